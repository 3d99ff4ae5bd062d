"""``modelbox experiments …``: questions that runs answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.objects import path_of, put_into_bin, take_from_bin
from modelbox.cli.output import (
    OutputFormat,
    OutputOption,
    UrlOption,
    fields,
    local_time,
    pairs_text,
    print_json,
    print_line,
    print_table,
)
from modelbox.cli.run import with_client
from modelbox.tracking import ObjectKind

if TYPE_CHECKING:
    from modelbox.client import Client

__all__ = ("app",)

app = typer.Typer(
    help="Experiments: questions that runs answer.",
    epilog="Example: modelbox experiments list --namespace langtech",
    no_args_is_help=True,
)

ExperimentArgument = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="NAMESPACE/NAME, or its id (exp_5f0c…).")]
ExperimentArguments = Annotated[
    list[str], typer.Argument(metavar="EXPERIMENT...", help="NAMESPACE/NAME, or their ids (exp_5f0c…).")
]
DeletedOption = Annotated[bool, typer.Option("--deleted", help="Also what is in the bin.")]


@app.command("create")
def create(
    path: Annotated[str | None, typer.Argument(metavar="[NAMESPACE/NAME]", help="The experiment.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Its name, instead of the argument.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", help="Its namespace, with --name.")] = None,
    owner: Annotated[str, typer.Option("--owner", help="Who answers for it.")] = "",
    framework: Annotated[str, typer.Option("--framework", help="What trains in it, such as pytorch.")] = "",
    task: Annotated[str, typer.Option("--task", help="What it is for, such as asr.")] = "",
    external_id: Annotated[str, typer.Option("--external-id", help="What another system calls it.")] = "",
    description: Annotated[str, typer.Option("--description", help="Free text.")] = "",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Make an experiment; an existing one stays as it is.

    Example: modelbox experiments create langtech/wav2vec-lid --owner you@example.com --framework pytorch
    """
    target = path_of("experiment", path, name, namespace)

    async def run(client: Client) -> None:
        created = await client.create_experiment(
            target,
            owner=owner,
            framework=framework,
            task=task,
            external_id=external_id,
            description=description,
        )
        if output is OutputFormat.JSON:
            print_json(created)
        else:
            where = " in the bin: `modelbox experiments restore` brings it back" if created.item.deleted_at else ""
            verb = "exists" if created.existed else "created"
            print_line(f"{verb} {created.item.path} {created.item.id}{where}")

    with_client(url, run)


@app.command("list")
def list_experiments(
    namespace: Annotated[str, typer.Option("--namespace", help="Only of this namespace.")] = "",
    deleted: DeletedOption = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List experiments.

    Example: modelbox experiments list --namespace langtech
    """

    async def run(client: Client) -> None:
        found = [one async for one in client.iter_experiments(namespace, include_deleted=deleted)]
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = [
            (one.path, one.framework, one.task, one.owner, local_time(one.created_at), one.description)
            + ((local_time(one.deleted_at) if one.deleted_at else "",) if deleted else ())
            for one in found
        ]
        columns = ("EXPERIMENT", "FRAMEWORK", "TASK", "OWNER", "CREATED", "DESCRIPTION")
        print_table((*columns, "DELETED") if deleted else columns, rows, empty="no experiments")

    with_client(url, run)


@app.command("show")
def show(experiment: ExperimentArgument, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Show an experiment, and how many of its runs stand where.

    Example: modelbox experiments show langtech/wav2vec-lid
    """

    async def run(client: Client) -> None:
        found = await client.get_experiment(experiment)
        attributes = [] if found.deleted_at else await client.get_attributes(found.id)
        statuses: dict[str, int] = {}
        if not found.deleted_at:
            page = await client.find("runs", within=found.id, columns=["status"], limit=None)
            for status in page.columns.get("status", ()):
                statuses[status] = statuses.get(status, 0) + 1
        if output is OutputFormat.JSON:
            print_json({"experiment": found, "attributes": attributes, "runs": statuses})
            return
        fields(
            {
                "experiment": found.path,
                "id": found.id,
                "owner": found.owner,
                "framework": found.framework,
                "task": found.task,
                "external id": found.external_id,
                "description": found.description,
                "created": f"{local_time(found.created_at)} by {found.created_by or 'unknown'}",
                "deleted": local_time(found.deleted_at) if found.deleted_at else "",
                "runs": ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())) or "none",
            }
            | {
                f"{kind}s": pairs_text({one.key: one.value for one in attributes if one.kind.value == kind})
                for kind in ("tag", "label")
            }
        )

    with_client(url, run)


@app.command("update")
def update(
    experiment: ExperimentArgument,
    owner: Annotated[str | None, typer.Option("--owner", help="Who answers for it.")] = None,
    framework: Annotated[str | None, typer.Option("--framework", help="What trains in it.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="What it is for.")] = None,
    external_id: Annotated[str | None, typer.Option("--external-id", help="What another system calls it.")] = None,
    description: Annotated[str | None, typer.Option("--description", help="Free text.")] = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Edit an experiment; what is not given stays as it is.

    Example: modelbox experiments update langtech/wav2vec-lid --owner speech-team
    """

    async def run(client: Client) -> None:
        updated = await client.update_experiment(
            experiment,
            owner=owner,
            framework=framework,
            task=task,
            external_id=external_id,
            description=description,
        )
        if output is OutputFormat.JSON:
            print_json(updated)
        else:
            print_line(f"updated {updated.path}")

    with_client(url, run)


@app.command("delete")
def delete(experiments: ExperimentArguments, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Put experiments into the bin, with their runs and checkpoints; `restore` brings them back until a `purge`.

    Example: modelbox experiments delete langtech/wav2vec-lid
    """
    put_into_bin(ObjectKind.EXPERIMENT, experiments, url, output)


@app.command("restore")
def restore(experiments: ExperimentArguments, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Take experiments out of the bin, with what went in with them.

    Example: modelbox experiments restore langtech/wav2vec-lid
    """
    take_from_bin(ObjectKind.EXPERIMENT, experiments, url, output)

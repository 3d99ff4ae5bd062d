"""``modelbox datasets …``: data that runs use, and their versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.objects import path_of, put_into_bin, take_from_bin
from modelbox.cli.output import (
    OutputFormat,
    OutputOption,
    UrlOption,
    fields,
    local_time,
    print_json,
    print_line,
    print_table,
    progress_bar,
    short_digest,
    size_text,
    value_text,
)
from modelbox.cli.run import with_client
from modelbox.errors import InvalidError
from modelbox.tracking import DatasetComponent, DatasetVersion, ObjectKind

if TYPE_CHECKING:
    from modelbox._local_files import Progress
    from modelbox.client import Client

__all__ = ("app",)

app = typer.Typer(
    help="Datasets: data that runs use, version by version.",
    epilog="Example: modelbox datasets show langtech/voices",
    no_args_is_help=True,
)

DatasetArgument = Annotated[
    str, typer.Argument(metavar="DATASET", help="NAMESPACE/NAME, one version as NAMESPACE/NAME@3, or an id.")
]
DatasetArguments = Annotated[
    list[str], typer.Argument(metavar="DATASET...", help="NAMESPACE/NAME, versions as NAMESPACE/NAME@3, or ids.")
]


@app.command("create")
def create(
    path: Annotated[str | None, typer.Argument(metavar="[NAMESPACE/NAME]", help="The dataset.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Its name, instead of the argument.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", help="Its namespace, with --name.")] = None,
    owner: Annotated[str, typer.Option("--owner", help="Who answers for it.")] = "",
    description: Annotated[str, typer.Option("--description", help="Free text.")] = "",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Make a dataset; an existing one stays as it is.

    Example: modelbox datasets create langtech/voices --owner speech-team
    """
    target = path_of("dataset", path, name, namespace)

    async def run(client: Client) -> None:
        created = await client.create_dataset(target, owner=owner, description=description)
        if output is OutputFormat.JSON:
            print_json(created)
        else:
            dataset = created.item
            verb = "exists" if created.existed else "created"
            print_line(f"{verb} {dataset.namespace}/{dataset.name} {dataset.id}")

    with_client(url, run)


@app.command("add")
def add(
    dataset: Annotated[str, typer.Argument(metavar="NAMESPACE/NAME", help="The dataset, made where it is new.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PATH...]", help="Local files or directories: recorded with their sizes and digests."),
    ] = None,
    s3: Annotated[
        list[str] | None, typer.Option("--s3", metavar="s3://…", help="Objects in S3; may be given several times.")
    ] = None,
    query: Annotated[
        list[str] | None, typer.Option("--query", metavar="SQL", help="A query; may be given several times.")
    ] = None,
    source: Annotated[str, typer.Option("--source", help="The database of the queries, without secrets.")] = "",
    component: Annotated[
        list[str] | None,
        typer.Option(
            "--component",
            metavar="JSON",
            help='With all that is known: {"type": "s3", "location": …, "digest": …, "size_bytes": …, "rows": …}.',
        ),
    ] = None,
    description: Annotated[str, typer.Option("--description", help="What changed.")] = "",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Record data as they are now as the next version; the same data again are the same version.

    Example: modelbox datasets add langtech/voices /data/voices --query "select * from clips" --source warehouse
    """
    if source and not query:
        raise InvalidError("--source says where a --query was put to, and there is none")
    elsewhere = [DatasetComponent(type="s3", location=one) for one in s3 or ()]
    elsewhere += [DatasetComponent(type="query", location=one, source=source) for one in query or ()]
    elsewhere += [_component(one) for one in component or ()]
    if not files and not elsewhere:
        raise InvalidError("name local files, or what is elsewhere with --s3, --query or --component")
    with progress_bar(f"reading {dataset}", output) as on_progress:
        components = [*_local(files or [], on_progress), *elsewhere]

    async def run(client: Client) -> None:
        created = await client.create_dataset_version(dataset, components, description=description)
        if output is OutputFormat.JSON:
            print_json(created)
        else:
            version = created.item
            verb = "exists" if created.existed else "added"
            print_line(f"{verb} {_path(version)} {version.id} {short_digest(version.digest)}")

    with_client(url, run)


def _local(files: list[Path], on_progress: Progress | None) -> list[DatasetComponent]:
    from modelbox.datasets import local_component

    done = 0

    def read(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            # Nobody knows how much it is before everything was read.
            on_progress(done, 0)

    return [local_component(file, on_bytes=read) for file in files]


def _component(text: str) -> DatasetComponent:
    try:
        return DatasetComponent(**json.loads(text))
    except (ValueError, TypeError, RecursionError) as exc:
        names = ", ".join(DatasetComponent.__dataclass_fields__)
        raise InvalidError(f"--component is no JSON object with type, location and others of {names}: {exc}") from exc


def _path(version: DatasetVersion) -> str:
    return f"{version.namespace}/{version.dataset}@{version.version}"


@app.command("list")
def list_datasets(
    namespace: Annotated[str, typer.Option("--namespace", help="Only of this namespace.")] = "",
    deleted: Annotated[bool, typer.Option("--deleted", help="Also what is in the bin.")] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List datasets.

    Example: modelbox datasets list --namespace langtech
    """

    async def run(client: Client) -> None:
        found = [one async for one in client.iter_datasets(namespace, include_deleted=deleted)]
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = [
            (
                f"{one.namespace}/{one.name}",
                one.latest_version or "-",
                one.owner,
                local_time(one.created_at),
                one.description,
                "deleted" if one.deleted_at else "",
            )
            for one in found
        ]
        columns = ("DATASET", "LATEST", "OWNER", "CREATED", "DESCRIPTION", "")
        print_table(columns, rows, empty="no datasets")

    with_client(url, run)


@app.command("show")
def show(dataset: DatasetArgument, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Show a dataset with its versions, or one version with its components.

    Example: modelbox datasets show langtech/voices@3
    """

    async def run(client: Client) -> None:
        if "@" in dataset or dataset.startswith("dsv_"):
            version = await client.get_dataset_version(dataset)
            if output is OutputFormat.JSON:
                print_json(version)
            else:
                _show_version(version)
            return
        found = await client.get_dataset(dataset)
        versions = [one async for one in client.iter_dataset_versions(dataset)]
        if output is OutputFormat.JSON:
            print_json({"dataset": found, "versions": versions})
            return
        fields(
            {
                "dataset": f"{found.namespace}/{found.name}",
                "id": found.id,
                "owner": found.owner,
                "description": found.description,
                "created": f"{local_time(found.created_at)} by {found.created_by or 'unknown'}",
                "deleted": local_time(found.deleted_at) if found.deleted_at else "",
            }
        )
        print_line("")
        rows = [
            (
                one.version,
                short_digest(one.digest),
                _size(one),
                len(one.components),
                local_time(one.created_at),
                one.created_by,
                one.id,
                one.description,
            )
            for one in versions
        ]
        columns = ("VERSION", "DIGEST", "SIZE", "PARTS", "CREATED", "BY", "ID", "DESCRIPTION")
        print_table(columns, rows, empty=f"{dataset} has no versions yet")

    with_client(url, run)


def _size(version: DatasetVersion) -> str:
    sizes = [part.size_bytes for part in version.components]
    return size_text(sum(size or 0 for size in sizes)) if any(size is not None for size in sizes) else ""


def _show_version(version: DatasetVersion) -> None:
    fields(
        {
            "version": _path(version),
            "id": version.id,
            "digest": version.digest,
            "description": version.description,
            "created": f"{local_time(version.created_at)} by {version.created_by or 'unknown'}",
            "deleted": local_time(version.deleted_at) if version.deleted_at else "",
        }
    )
    print_line("")
    rows = [
        (
            part.type,
            value_text(part.location, max_chars=400),
            part.source,
            "" if part.size_bytes is None else size_text(part.size_bytes),
            "" if part.rows is None else part.rows,
            part.digest,
        )
        for part in version.components
    ]
    print_table(("TYPE", "LOCATION", "SOURCE", "SIZE", "ROWS", "DIGEST"), rows, empty="")


@app.command("delete")
def delete(datasets: DatasetArguments, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Put datasets or versions into the bin; `restore` brings them back until a `purge`.

    Example: modelbox datasets delete langtech/voices@3
    """
    put_into_bin(ObjectKind.DATASET, datasets, url, output)


@app.command("restore")
def restore(datasets: DatasetArguments, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Take datasets or versions out of the bin.

    Example: modelbox datasets restore langtech/voices@3
    """
    take_from_bin(ObjectKind.DATASET, datasets, url, output)

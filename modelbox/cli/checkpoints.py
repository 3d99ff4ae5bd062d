"""``modelbox checkpoints …``: states of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.objects import object_id, put_into_bin, take_from_bin
from modelbox.cli.output import (
    OutputFormat,
    OutputOption,
    UrlOption,
    local_time,
    pairs_text,
    print_json,
    print_line,
    print_table,
    progress_bar,
)
from modelbox.cli.run import number_pairs, with_client
from modelbox.tracking import ObjectKind, kind_of_id

if TYPE_CHECKING:
    from modelbox.client import Client

__all__ = ("app",)

app = typer.Typer(
    help="Checkpoints: states of training, one for each epoch.",
    epilog="Example: modelbox checkpoints list run_5f0c2a7be91d34f608a1c2d3",
    no_args_is_help=True,
)

ParentArgument = Annotated[
    str, typer.Argument(metavar="PARENT", help="A run's id, or an experiment as its id or NAMESPACE/NAME.")
]
CheckpointArguments = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of checkpoints (ckp_5f0c…).")]


async def _parent_id(client: Client, parent: str) -> str:
    return parent if kind_of_id(parent) else await object_id(client, f"experiment:{parent}")


@app.command("create")
def create(
    parent: ParentArgument,
    epoch: Annotated[int, typer.Argument(min=0, help="From 0; there is one checkpoint for each.")],
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE...]", help="Files or directories to upload with it.")
    ] = None,
    step: Annotated[int | None, typer.Option("--step", help="The optimiser's step.")] = None,
    path: Annotated[str, typer.Option("--path", help="Where its file lies, if it is not uploaded.")] = "",
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="KEY=NUMBER", help="A metric; may be given several times.")
    ] = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Record a checkpoint, and upload its files; an existing one of the same epoch stays as it is.

    Example: modelbox checkpoints create run_5f0c2a7be91d34f608a1c2d3 7 weights.pt --metric wer=0.043
    """
    metrics = number_pairs(metric or [], "--metric")

    async def run(client: Client) -> None:
        created = await client.create_checkpoint(
            await _parent_id(client, parent), epoch, step=step, path=path, metrics=metrics
        )
        if files:
            with progress_bar(f"uploading epoch {epoch}", output) as on_progress:
                await client.upload_artifact(created.item.id, "files", files, on_progress=on_progress)
        if output is OutputFormat.JSON:
            print_json(created)
        else:
            print_line(f"{'exists' if created.existed else 'created'} {created.item.id} epoch {created.item.epoch}")

    with_client(url, run)


@app.command("list")
def list_checkpoints(
    parent: ParentArgument,
    deleted: Annotated[bool, typer.Option("--deleted", help="Also what is in the bin.")] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List the checkpoints of a run or experiment, by epoch.

    Example: modelbox checkpoints list run_5f0c2a7be91d34f608a1c2d3
    """

    async def run(client: Client) -> None:
        parent_id = await _parent_id(client, parent)
        found = [one async for one in client.iter_checkpoints(parent_id, include_deleted=deleted)]
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = [
            (
                one.epoch,
                "" if one.step is None else one.step,
                one.id,
                pairs_text(one.metrics),
                one.path,
                local_time(one.created_at),
                "deleted" if one.deleted_at else "",
            )
            for one in found
        ]
        columns = ("EPOCH", "STEP", "ID", "METRICS", "PATH", "CREATED", "")
        print_table(columns, rows, empty=f"{parent} has no checkpoints")

    with_client(url, run)


@app.command("delete")
def delete(checkpoints: CheckpointArguments, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Put checkpoints into the bin; `restore` brings them back until a `purge`.

    Example: modelbox checkpoints delete ckp_5f0c2a7be91d34f608a1c2d3
    """
    put_into_bin(ObjectKind.CHECKPOINT, checkpoints, url, output)


@app.command("restore")
def restore(checkpoints: CheckpointArguments, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Take checkpoints out of the bin.

    Example: modelbox checkpoints restore ckp_5f0c2a7be91d34f608a1c2d3
    """
    take_from_bin(ObjectKind.CHECKPOINT, checkpoints, url, output)

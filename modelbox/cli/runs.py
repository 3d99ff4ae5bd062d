"""``modelbox runs …``: executions inside of experiments."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.compare import compare_runs
from modelbox.cli.metrics import print_summaries
from modelbox.cli.objects import put_into_bin, take_from_bin
from modelbox.cli.output import (
    CsvOutput,
    OutputFormat,
    OutputOption,
    UrlOption,
    fields,
    local_time,
    note,
    pairs_text,
    print_json,
    print_line,
    print_table,
    time_text,
    value_text,
)
from modelbox.cli.run import with_client
from modelbox.errors import ConfigError, InvalidError
from modelbox.tracking import Attribute, AttributeKind, ObjectKind, Run, RunStatus

if TYPE_CHECKING:
    from modelbox.client import Client
    from modelbox.integrations.tensorboard import ImportedRun

__all__ = ("app",)

app = typer.Typer(
    help="Runs: executions inside of experiments.",
    epilog="Example: modelbox runs list langtech/wav2vec-lid",
    no_args_is_help=True,
)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, see `runs list`.")]
RunArguments = Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of runs, see `runs list`.")]


@app.command("list")
def list_runs(
    parent: Annotated[
        str, typer.Argument(metavar="[PARENT]", help="NAMESPACE/EXPERIMENT, a namespace, or the id of a run.")
    ] = "",
    status: Annotated[
        list[RunStatus] | None, typer.Option("--status", help="Only these; may be given several times.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 100,
    deleted: Annotated[bool, typer.Option("--deleted", help="Also what is in the bin.")] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List runs, newest first; `find runs` also sorts and selects by metrics and parameters.

    Example: modelbox runs list langtech/wav2vec-lid --status running
    """

    async def run(client: Client) -> None:
        found: list[Run] = []
        async for one in client.iter_runs(parent, include_deleted=deleted):
            if status and one.status not in status:
                continue
            if len(found) == limit:
                note(f"there are more than {limit}: --limit shows more of them")
                break
            found.append(one)
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = [
            (
                one.id,
                one.name,
                f"{one.namespace}/{one.experiment}",
                "deleted" if one.deleted_at else one.status,
                local_time(one.started_at),
                _duration(one),
                one.created_by,
                one.reason,
            )
            for one in found
        ]
        columns = ("ID", "NAME", "EXPERIMENT", "STATUS", "STARTED", "DURATION", "BY", "REASON")
        print_table(columns, rows, empty="no runs")

    with_client(url, run)


def _duration(run: Run) -> str:
    if run.ended_at is None and run.status is not RunStatus.RUNNING:
        return ""
    return time_text((run.ended_at or datetime.now(UTC)) - run.started_at)


@app.command("show")
def show(run_id: RunArgument, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Show a run: where it stands, what it was told, and what it measured.

    Example: modelbox runs show run_5f0c2a7be91d34f608a1c2d3
    """

    async def run(client: Client) -> None:
        found = await client.get_run(run_id)
        if found.deleted_at is not None:
            # What is attached to it can be read again when it is restored.
            if output is OutputFormat.JSON:
                print_json({"run": found})
            else:
                _print_run(found, ())
            return
        attributes = await client.get_attributes(found.id)
        metrics = await client.metric_summaries(found.id)
        checkpoints = [one async for one in client.iter_checkpoints(found.id)]
        artifacts = [one async for one in client.iter_artifacts(found.id)]
        if output is OutputFormat.JSON:
            by_kind = {kind: _values(attributes, kind) for kind in AttributeKind}
            print_json(
                {
                    "run": found,
                    "params": by_kind[AttributeKind.PARAM],
                    "tags": by_kind[AttributeKind.TAG],
                    "labels": by_kind[AttributeKind.LABEL],
                    "metadata": by_kind[AttributeKind.METADATA],
                    "metrics": metrics,
                    "checkpoints": checkpoints,
                    "artifacts": artifacts,
                }
            )
            return
        _print_run(found, attributes)
        if checkpoints or artifacts:
            print_line("")
        fields(
            {
                "checkpoints": ", ".join(str(one.epoch) for one in checkpoints[-10:]),
                "artifacts": ", ".join(one.name for one in artifacts),
            }
        )
        if metrics:
            print_line("")
            print_summaries(list(metrics), several=False)

    with_client(url, run)


def _values(attributes: tuple[Attribute, ...], kind: AttributeKind) -> dict[str, object]:
    return {one.key: one.value for one in attributes if one.kind is kind}


def _print_run(run: Run, attributes: tuple[Attribute, ...]) -> None:
    fields(
        {
            "run": run.id,
            "name": run.name,
            "experiment": f"{run.namespace}/{run.experiment}",
            "status": f"{run.status}{f': {run.reason}' if run.reason else ''}",
            "started": f"{local_time(run.started_at)} by {run.created_by or 'unknown'}",
            "ended": local_time(run.ended_at) if run.ended_at else "",
            "duration": _duration(run),
            "parent": run.parent_id,
            "cloned from": run.cloned_from,
            "deleted": local_time(run.deleted_at) if run.deleted_at else "",
            "tags": pairs_text(_values(attributes, AttributeKind.TAG)),
            "labels": pairs_text(_values(attributes, AttributeKind.LABEL)),
        }
    )
    for kind, title in ((AttributeKind.PARAM, "PARAM"), (AttributeKind.METADATA, "METADATA")):
        values = _values(attributes, kind)
        if values:
            print_line("")
            print_table((title, "VALUE"), [(key, value_text(value)) for key, value in sorted(values.items())], empty="")


@app.command("compare")
def compare(
    runs: RunArguments,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", "-m", metavar="KEY", help="Only these; may be given several times.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also parameters that are the same.")] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Compare runs: the parameters that differ, and the latest values of metrics side by side.

    Example: modelbox runs compare run_5f0c2a7be91d34f608a1c2d3 run_91d34f608a1c2d35f0c2a7be
    """
    if len(set(runs)) < 2:
        raise InvalidError("name at least two runs to compare")

    async def run(client: Client) -> None:
        await compare_runs(client, list(dict.fromkeys(runs)), metric or [], everything=everything, output=output)

    with_client(url, run)


@app.command("delete")
def delete(runs: RunArguments, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Put runs into the bin, with their checkpoints; `restore` brings them back until a `purge`.

    Example: modelbox runs delete run_5f0c2a7be91d34f608a1c2d3
    """
    put_into_bin(ObjectKind.RUN, runs, url, output)


@app.command("restore")
def restore(runs: RunArguments, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Take runs out of the bin, with what went in with them.

    Example: modelbox runs restore run_5f0c2a7be91d34f608a1c2d3
    """
    take_from_bin(ObjectKind.RUN, runs, url, output)


@app.command("export")
def export(
    runs: RunArguments,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", "-m", metavar="KEY", help="Only these; may be given several times.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="Where to write; default: stdout.")
    ] = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Write all points of the metrics of runs as CSV: run, key, step, time, value.

    Example: modelbox runs export run_5f0c2a7be91d34f608a1c2d3 --file metrics.csv
    """
    if file is None and output is OutputFormat.JSON:
        raise InvalidError("points are written as CSV: with --output json, name a --file for them")

    async def run(client: Client) -> None:
        from modelbox.cli.export import export_points

        if file is None:
            await export_points(client, runs, metric or [], CsvOutput())
            sys.stdout.flush()
            return
        try:
            with file.open("w", encoding="utf-8", newline="") as stream:
                count = await export_points(client, runs, metric or [], stream)
        except OSError as exc:
            raise ConfigError(f"{file} cannot be written: {exc.strerror}", path=str(file)) from exc
        if output is OutputFormat.JSON:
            print_json({"path": str(file), "points": count})
        else:
            print_line(f"wrote {count} points to {file}")

    with_client(url, run)


@app.command("import-tensorboard")
def import_tensorboard(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `tensorboard --logdir` is given.")],
    experiment: Annotated[
        str, typer.Option("--experiment", metavar="NAMESPACE/NAME", help="Where to; made where it is new.")
    ],
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Make runs of TensorBoard's event files, one for each directory; again, it adds what is new.

    Example: modelbox runs import-tensorboard lightning_logs --experiment langtech/wav2vec-lid
    """
    from modelbox.integrations.tensorboard import import_directory

    async def run(client: Client) -> None:
        imported = await import_directory(client, directory, experiment)
        if output is OutputFormat.JSON:
            print_json([_imported(one) for one in imported])
            return
        rows = [
            (one.run.id, one.run.name, "updated" if one.existed else "new", one.points, _counts(one.skipped))
            for one in imported
        ]
        print_table(("ID", "NAME", "", "POINTS", "LEFT OUT"), rows, empty=f"the event files in {directory} are empty")

    with_client(url, run)


def _imported(one: ImportedRun) -> dict[str, object]:
    return {
        "run": one.run,
        "directory": str(one.directory),
        "existed": one.existed,
        "points": one.points,
        "skipped": one.skipped,
    }


def _counts(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{what}: {count}" for what, count in sorted(skipped.items()))


@app.command("export-tensorboard")
def export_tensorboard(
    run_id: RunArgument,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the event file goes.")],
    double_precision: Annotated[
        bool, typer.Option("--double-precision", help="All 64 bits of numbers, which not every program reads.")
    ] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Write a run's metrics and parameters as an event file of TensorBoard's.

    Example: modelbox runs export-tensorboard run_5f0c2a7be91d34f608a1c2d3 logs/first
    """
    from modelbox.integrations.tensorboard import export_run

    async def run(client: Client) -> None:
        exported = await export_run(client, run_id, directory, double_precision=double_precision)
        if output is OutputFormat.JSON:
            print_json({"path": str(exported.path), "points": exported.points, "skipped": exported.skipped})
            return
        print_line(f"wrote {exported.points} points to {exported.path}")
        if exported.skipped:
            note(f"left out: {_counts(exported.skipped)}")

    with_client(url, run)

"""``modelbox metrics …``: series of numbers, as tables and as plots in the terminal."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.objects import object_id
from modelbox.cli.output import (
    OutputFormat,
    OutputOption,
    UrlOption,
    local_time,
    note,
    number_text,
    print_json,
    print_line,
    print_table,
)
from modelbox.cli.run import number_pairs, with_client
from modelbox.errors import InvalidError, NotFoundError
from modelbox.tracking import MetricKind, MetricSummary, ObjectKind, kind_of_id

if TYPE_CHECKING:
    from modelbox.client import Client
    from modelbox.display import Curve
    from modelbox.series import Sample

__all__ = ("app", "print_summaries")

app = typer.Typer(
    help="Metrics: series of values by step.",
    epilog="Example: modelbox metrics show run_5f0c2a7be91d34f608a1c2d3 --metric loss",
    no_args_is_help=True,
)

_BATCH = 100


@app.command("show")
def show(
    objects: Annotated[
        list[str],
        typer.Argument(metavar="OBJECT...", help="Ids of runs or of anything else; several are drawn in one plot."),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", "-m", metavar="KEY", help="Draw this metric; may be given several times."),
    ] = None,
    from_step: Annotated[int | None, typer.Option("--from-step", help="Draw from this step on.")] = None,
    to_step: Annotated[int | None, typer.Option("--to-step", help="Draw up to this step.")] = None,
    log: Annotated[bool, typer.Option("--log", help="A logarithmic scale of values.")] = False,
    width: Annotated[
        int | None, typer.Option("--width", min=20, max=1000, help="Characters; default: the terminal's.")
    ] = None,
    height: Annotated[int, typer.Option("--height", min=3, max=200, help="Lines of a plot.")] = 15,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show what metrics objects have; with --metric, draw it in the terminal.

    Example: modelbox metrics show run_5f0c2a7be91d34f608a1c2d3 --metric loss --log
    """
    columns = width or shutil.get_terminal_size((80, 24)).columns

    async def run(client: Client) -> None:
        ids = [await object_id(client, text) for text in objects]
        found: list[MetricSummary] = []
        for begin in range(0, len(ids), _BATCH):
            found += await client.metric_summaries(*ids[begin : begin + _BATCH], keys=metric or ())
        if not metric:
            _print_all(found, output)
            return
        _check(found, ids, metric)
        samples = [
            (
                one,
                await client.sample_series(
                    one.object, one.key, buckets=2 * columns, from_step=from_step, to_step=to_step
                ),
            )
            for key in metric
            for one in sorted(found, key=lambda one: _place(ids, one.object))
            if one.key == key
        ]
        if output is OutputFormat.JSON:
            print_json(
                [
                    {"object": one.object, "key": one.key, "summary": one, "sample": _json(sample)}
                    for one, sample in samples
                ]
            )
            return
        names = {one.object: await _name(client, one.object) for one, _ in samples}
        for number, key in enumerate(metric):
            if number:
                print_line("")
            print_line(key)
            _draw(
                [_curve(one, sample, names[one.object]) for one, sample in samples if one.key == key],
                columns,
                height,
                log,
            )

    with_client(url, run)


def _place(ids: list[str], object_id: str) -> int:
    # What was named by its path comes back with its id.
    return ids.index(object_id) if object_id in ids else len(ids)


def _check(found: list[MetricSummary], ids: list[str], keys: list[str]) -> None:
    """Refuses what cannot be drawn, and says what is missing.

    Raises:
        NotFoundError: No object has one of the metrics.
        InvalidError: One holds text or bytes.
    """
    for key in keys:
        having = [one for one in found if one.key == key]
        if not having:
            raise NotFoundError(
                f"no metric {key!r} on {', '.join(ids[:5])}: `metrics show` without --metric lists what there is",
                what="metric",
                name=key,
            )
        if len(having) < len(ids):
            note(f"{len(ids) - len(having)} of {len(ids)} objects have no metric {key!r}")
        for one in having:
            if one.kind is not MetricKind.NUMBER:
                raise InvalidError(
                    f"the metric {key!r} of {one.object} holds {one.kind}: `modelbox runs export` writes it"
                )


async def _name(client: Client, object_id: str) -> str:
    if kind_of_id(object_id) is ObjectKind.RUN:
        run = await client.get_run(object_id)
        return f"{run.name} ({run.id})" if run.name not in run.id else run.id
    return object_id


def _curve(summary: MetricSummary, sample: Sample, name: str) -> Curve:
    remark = f"latest {number_text(summary.latest)} at step {summary.latest_step}  points {summary.count}"
    return sample.curve(name, remark=remark)


def _draw(curves: list[Curve], width: int, height: int, log: bool) -> None:
    from modelbox.cli.plot import draw

    terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    lines = draw(
        curves,
        width=width,
        height=height,
        colour=terminal and len(curves) > 1 and not os.environ.get("NO_COLOR"),
        unicode="utf" in (sys.stdout.encoding or "").lower(),
        log=log,
    )
    # Already without control characters but our own.
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def _json(sample: Sample) -> dict[str, list[float]]:
    return {name: getattr(sample, name).tolist() for name in sample.__slots__}


def _print_all(found: list[MetricSummary], output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_json(found)
    else:
        print_summaries(found, several=len({one.object for one in found}) > 1)


def print_summaries(found: list[MetricSummary], *, several: bool) -> None:
    """A table of metrics; with ``several``, of several objects."""
    rows = [
        ((one.object,) if several else ())
        + (one.key, one.kind, number_text(one.latest), one.latest_step, number_text(one.min), number_text(one.max))
        + (one.count, local_time(one.latest_at))
        for one in found
    ]
    columns = ("METRIC", "KIND", "LATEST", "STEP", "MIN", "MAX", "POINTS", "AT")
    print_table(("OBJECT", *columns) if several else columns, rows, empty="no metrics")


@app.command("log")
def log(
    target: Annotated[str, typer.Argument(metavar="OBJECT", help="Id of what was measured.")],
    values: Annotated[list[str], typer.Argument(metavar="KEY=NUMBER...", help="Metrics and their values.")],
    step: Annotated[int, typer.Option("--step", help="At which step.")] = 0,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Append a point to metrics.

    Example: modelbox metrics log run_5f0c2a7be91d34f608a1c2d3 wer=0.043 --step 1200
    """
    numbers = number_pairs(values, "KEY=NUMBER")

    async def run(client: Client) -> None:
        await client.log_metrics(await object_id(client, target), numbers, step=step)
        if output is OutputFormat.JSON:
            print_json({"object": target, "step": step, "values": numbers})
        else:
            print_line(f"logged {len(numbers)} values at step {step}")

    with_client(url, run)

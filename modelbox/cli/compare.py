"""Runs side by side: what they were told differently, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelbox.cli.output import OutputFormat, note, number_text, print_json, print_line, print_table, value_text
from modelbox.objects import JsonValue
from modelbox.tracking import Attribute, AttributeKind, MetricSummary

if TYPE_CHECKING:
    from modelbox.client import Client

__all__ = ("compare_runs",)

_BATCH = 100


async def compare_runs(
    client: Client, ids: Sequence[str], keys: Sequence[str], *, everything: bool, output: OutputFormat
) -> None:
    """Prints a comparison.

    Args:
        client: Where from.
        ids: At least two runs.
        keys: Only these metrics; empty for all.
        everything: Also parameters that are the same in all.
        output: How.
    """
    runs = [await client.get_run(run) for run in ids]
    attributes: list[Attribute] = []
    metrics: list[MetricSummary] = []
    for begin in range(0, len(ids), _BATCH):
        batch = ids[begin : begin + _BATCH]
        attributes += await client.get_attributes(*batch, kinds=[AttributeKind.PARAM])
        metrics += await client.metric_summaries(*batch, keys=keys)
    params: dict[str, dict[str, JsonValue]] = {}
    for one in attributes:
        params.setdefault(one.key, {})[one.object] = one.value
    if not everything:
        params = {key: values for key, values in params.items() if _differ(values, len(ids))}
    summaries: dict[str, dict[str, MetricSummary]] = {}
    for summary in metrics:
        summaries.setdefault(summary.key, {})[summary.object] = summary
    if output is OutputFormat.JSON:
        print_json({"runs": runs, "params": params, "metrics": summaries})
        return
    names = tuple(run.name for run in runs)
    # Names need not be unique; ids are.
    heads = names if len(set(names)) == len(names) else tuple(ids)
    about = [(run.name, run.id, f"{run.namespace}/{run.experiment}", run.status) for run in runs]
    print_table(("RUN", "ID", "EXPERIMENT", "STATUS"), about, empty="")
    print_line("")
    rows = [
        (key, *(value_text(values[run], max_chars=40) if run in values else "-" for run in ids))
        for key, values in sorted(params.items())
    ]
    print_table(("PARAM", *heads), rows, empty="no parameters" if everything else "no parameter differs", numbers=())
    if not summaries:
        note("no metrics")
        return
    print_line("")
    rows = [
        (key, *(number_text(values[run].latest) or values[run].kind if run in values else "-" for run in ids))
        for key, values in sorted(summaries.items())
    ]
    print_table(("METRIC", *heads), rows, empty="", numbers=heads)


def _differ(values: dict[str, JsonValue], runs: int) -> bool:
    return len(values) < runs or len({json.dumps(value, sort_keys=True) for value in values.values()}) > 1

"""The table for people and the JSON file for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.figure import Figure, shown

__all__ = ("print_table", "write_json")

_VERDICT = {True: Text("yes", "green"), False: Text("NO", "bold red"), None: Text("")}
_UNATTENDED_COLUMNS = 200


def print_table(figures: Sequence[Figure], about: Mapping[str, object], *, to: TextIO = sys.stdout) -> None:
    """Prints all figures, the details of each below it."""
    console = Console(file=to, width=None if to.isatty() else _UNATTENDED_COLUMNS)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("figure", overflow="fold")
    for name in ("p50", "p99", "floor p50", "floor p99", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("aim", overflow="fold")
    table.add_column("reached", justify="center")
    for figure in figures:
        what = Text.assemble((figure.name, "bold"), "\n", (figure.what, "dim"))
        if figure.floor_what:
            what.append(f"\nfloor: {figure.floor_what}", "dim")
        if figure.details:
            pairs = (f"{key} {_detail(key, value)}" for key, value in figure.details.items())
            what.append("\n" + " · ".join(pairs), "dim")
        table.add_row(
            what,
            *_both(figure, measured=True),
            *_both(figure, measured=False),
            "" if figure.ratio is None else f"{figure.ratio:.2f}x",
            figure.aim,
            _VERDICT[figure.reached],
        )
    console.print(f"{about['processor']}, {about['cores']} cores, {about['system']}, {about['file_system']}")
    versions = about["versions"]
    assert isinstance(versions, Mapping)
    console.print(f"Python {about['python']}, " + ", ".join(f"{name} {found}" for name, found in versions.items()))
    console.print(f"commit {about['commit']}, {about['at']}, load before {about['load_before']}\n", highlight=False)
    console.print(table)


def write_json(path: Path, figures: Sequence[Figure], about: Mapping[str, object], failed: Mapping[str, str]) -> None:
    """Writes everything that was measured; ``failed`` holds the reason by group."""
    document = {"machine": about, "figures": [figure.to_json() for figure in figures], "failed": dict(failed)}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _both(figure: Figure, *, measured: bool) -> tuple[str, str]:
    series = figure.measured if measured else figure.floor
    if series is None:
        return "", ""
    bad = shown(figure.bad_end(series), figure.unit) if len(series.values) > 1 else ""
    return shown(series.p50, figure.unit), bad


def _detail(key: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"

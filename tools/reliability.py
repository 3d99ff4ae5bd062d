"""Makes docs/reliability.md of the fault matrix, the tests that are marked with its rows, and what they measured last.

``python -m tools.reliability`` writes the page; with ``--run`` it first runs the marked tests of ``tests/faults`` and
keeps their figures. A test says when the page is out of date; figures may be older than the code.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults.matrix import MATRIX, WITHOUT_TEST
from tests.faults.registry import FIGURES, RECORD, Mark, marked

__all__ = ("PAGE", "main", "read_figures", "render")

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
_HEAD = """\
# What ModelBox stands

Every fault that we know of, what ModelBox promises when it happens, and the tests that hold it to that. This page is
made by `make reliability` of the markers at the tests (`@fault(n)`), and checked by them; `make reliability ARGS=--run`
measures the figures anew. Faults are real ones wherever they can be: processes are killed and stopped, system calls
fail, disks are full, networks lose packets, and a proxy before the real server alters its answers (`tests/faults/`).

`make soak MINUTES=60` lets such things happen at random, under load, and counts what went wrong: [the last
runs](benchmarks.md#soak).
"""


def render(marks: Mapping[int, Sequence[Mark]], figures: Mapping[int, Sequence[str]]) -> str:
    """The page."""
    parts = [_HEAD]
    for section in MATRIX:
        parts.append(f"\n## {section.title}\n\n| | fault | promise | tests | last figure |\n|---|---|---|---|---|\n")
        for row in section.rows:
            tests = "<br>".join(_shown(mark) for mark in marks.get(row.number, ())) or WITHOUT_TEST.get(row.number, "")
            told = "<br>".join(figures.get(row.number, ()))
            parts.append(f"| {row.number} | {row.fault} | {row.promise} | {tests} | {told} |\n")
    return "".join(parts)


def _shown(mark: Mark) -> str:
    name = mark.name.rpartition("::")[2]
    return f"[`{name}`](../{mark.path})"


def read_figures() -> dict[int, list[str]]:
    """What was measured last, by row."""
    return {int(number): told for number, told in json.loads(FIGURES.read_text()).items()} if FIGURES.exists() else {}


def _measure() -> int:
    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory) / "figures"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "fault", "tests/faults"],
            cwd=ROOT,
            env={**os.environ, RECORD: str(record)},
        )
        figures = read_figures()
        measured: dict[int, list[str]] = {}
        for line in record.read_text().splitlines() if record.exists() else ():
            number, told = json.loads(line)
            measured.setdefault(number, []).append(told)
        FIGURES.write_text(json.dumps(dict(sorted({**figures, **measured}.items())), indent=1) + "\n")
    return done.returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    parser = argparse.ArgumentParser(description="Make docs/reliability.md.")
    parser.add_argument("--run", action="store_true", help="run the tests first, and keep their figures")
    options = parser.parse_args(arguments)
    code = _measure() if options.run else 0
    PAGE.write_text(render(marked(), read_figures()))
    return code


if __name__ == "__main__":
    sys.exit(main())

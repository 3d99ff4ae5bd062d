"""Which test proves which row of the fault matrix.

`fault` marks a test with the numbers of the rows that it proves; a test may prove several, and a row be proved by
several. Markers are read from the source (`marked`), so that the list needs no test to be collected or run; what a row
says is in `tests.faults.matrix`, and ``docs/reliability.md`` is made of both by `tools.reliability`.
"""

from __future__ import annotations

import ast
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ("FIGURES", "RECORD", "Mark", "fault", "marked", "record_figure")

ROOT = Path(__file__).parents[2]
FIGURES = Path(__file__).with_name("figures.json")
"""What the tests measured last, by row; written by `make reliability`."""

RECORD = "MODELBOX_TEST_FIGURES"
"""Names the file that figures go to; tests record nothing where it is not set."""


def fault(*numbers: int) -> pytest.MarkDecorator:
    """Says that a test proves these rows of the matrix."""
    return pytest.mark.fault(*numbers)


def record_figure(number: int, text: str) -> None:
    """Keeps what a test measured, for the row's last column: counts and times, with their units."""
    if not (path := os.environ.get(RECORD)):
        return
    with open(path, "a") as file:
        file.write(json.dumps([number, text]) + "\n")


class Mark:
    """One marked test.

    Attributes:
        path: Of the file, from the root of the project.
        name: Of the function, with its class if there is one.
    """

    __slots__ = ("name", "path")

    def __init__(self, path: str, name: str) -> None:
        self.path = path
        self.name = name

    def __str__(self) -> str:
        return f"{self.path}::{self.name}"


def marked(root: Path = ROOT) -> dict[int, list[Mark]]:
    """All marked tests by row, in the order of files and lines."""
    found: dict[int, list[Mark]] = defaultdict(list)
    for path in sorted((root / "tests").rglob("*.py")):
        text = path.read_text()
        if "fault(" not in text:
            continue
        for name, numbers in _marks(ast.parse(text), ""):
            for number in numbers:
                found[number].append(Mark(path.relative_to(root).as_posix(), name))
    return found


def _marks(tree: ast.AST, prefix: str) -> Iterator[tuple[str, list[int]]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from _marks(node, f"{prefix}{node.name}::")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            numbers = [number for decorator in node.decorator_list for number in _numbers(decorator)]
            if numbers:
                yield prefix + node.name, numbers


def _numbers(decorator: ast.expr) -> list[int]:
    match decorator:
        case ast.Call(func=ast.Name(id="fault") | ast.Attribute(attr="fault"), args=args):
            return [arg.value for arg in args if isinstance(arg, ast.Constant) and isinstance(arg.value, int)]
    return []

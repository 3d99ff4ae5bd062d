"""The matrix is whole: every fault has a test, or a reason why it has none; and the page says so."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.faults.matrix import MATRIX, WITHOUT_TEST
from tests.faults.registry import marked
from tools.reliability import PAGE, render

ROWS = [row for section in MATRIX for row in section.rows]


def test_the_rows_are_numbered_without_holes() -> None:
    assert [row.number for row in ROWS] == list(range(1, 71))


def test_every_fault_is_proved_or_has_a_reason() -> None:
    proved = marked()
    for row in ROWS:
        if row.number in WITHOUT_TEST:
            assert len(WITHOUT_TEST[row.number]) > 40, f"fault {row.number} needs a reason that can be judged"
            assert row.number not in proved, f"fault {row.number} has a test, so it needs no reason"
        else:
            assert row.number in proved, f"fault {row.number} has neither a test nor a reason: {row.fault}"
    assert set(proved) <= {row.number for row in ROWS}, "a test is marked with a fault that does not exist"


def test_markers_are_found_however_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text(
        "@fault(3)\ndef test_a(): ...\n\n"
        "class Contract:\n    @pytest.mark.slow\n    @pytest.mark.fault(4, 5)\n    async def test_b(self): ...\n\n"
        "def test_c(): fault(6)\n"
    )
    found = {number: [str(mark) for mark in marks] for number, marks in marked(tmp_path).items()}
    first, second = "tests/test_one.py::test_a", "tests/test_one.py::Contract::test_b"
    assert found == {3: [first], 4: [second], 5: [second]}


def test_the_page_is_up_to_date() -> None:
    def without_figures(text: str) -> list[str]:
        return [line.rsplit(" | ", 1)[0] if line.startswith("| ") else line for line in text.splitlines()]

    assert without_figures(PAGE.read_text()) == without_figures(render(marked(), {})), "run `make reliability`"


def test_no_two_tests_of_a_file_have_one_name() -> None:
    for mark in {str(mark): mark for marks in marked().values() for mark in marks}.values():
        tree = ast.parse((PAGE.parents[1] / mark.path).read_text())
        names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        assert names.count(mark.name.rpartition("::")[2]) == 1, f"{mark} is there twice"

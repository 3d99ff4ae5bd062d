"""Curves drawn with characters."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.cli.plot import draw
from modelbox.display import Curve


def curve(*values: float, name: str = "loss", first: int = 0) -> Curve:
    return Curve(name=name, steps=range(first, first + len(values)), lows=values, highs=values, means=values)


def test_a_line_goes_from_corner_to_corner() -> None:
    lines = draw([curve(0, 1, 2, 3)], width=20, height=4, unicode=False)
    assert lines == [
        "3 |             ****",
        "  |        ******",
        "  |  *******",
        "0 |***",
        "  +-----------------",
        "   0     step      3",
        "loss  min 0  max 3",
    ]


def test_a_bucket_is_drawn_from_its_least_to_its_greatest_value() -> None:
    tall = Curve(name="x", steps=[0, 1, 2], lows=[0, -9, 0], highs=[0, 9, 0], means=[0, 0, 0])
    lines = draw([tall], width=30, height=9, unicode=False)[:9]
    middle = max(range(30), key=lambda x: sum(line[x : x + 1] == "*" for line in lines))
    assert all(line[middle : middle + 1] == "*" for line in lines)


def test_several_curves_are_told_apart() -> None:
    both = [curve(0, 1, name="a"), curve(1, 0, name="b")]
    plain = "\n".join(draw(both, width=40, height=8))
    assert plain.count("●") > 2
    assert "○ b" in plain
    coloured = "\n".join(draw(both, width=40, height=8, colour=True))
    assert "\x1b[36m" in coloured
    assert "\x1b[33m" in coloured
    assert re.search("[\u2801-\u28ff]", coloured)


def test_several_curves_do_not_cover_each_other() -> None:
    band = Curve(name="band", steps=[0, 1], lows=[0, 0], highs=[9, 9], means=[8, 8])
    lines = draw([curve(1, 1), band], width=40, height=8)[:8]
    assert sum("○" in line for line in lines) == 1


def test_what_is_not_finite_leaves_a_gap() -> None:
    lines = draw([curve(1, 1, math.nan, math.nan, math.inf, 1, 1)], width=40, height=3, unicode=False)
    (row,) = [line for line in lines[:3] if "*" in line]
    assert re.search(r"\*+ {5,}\*+", row)


def test_nothing_to_draw_says_so() -> None:
    assert draw([curve(math.nan)])[0] == "nothing to draw: no finite numbers"
    assert draw([curve()])[0] == "nothing to draw: no finite numbers"
    assert draw([curve(-1, 0)], log=True)[0] == "nothing to draw: no positive numbers"


def test_labels_on_a_logarithmic_scale_are_values() -> None:
    lines = draw([curve(1, 10, 100)], width=40, height=9, log=True)
    assert [lines[row].split()[0] for row in (0, 4, 8)] == ["100", "10", "1"]


def test_a_name_cannot_drive_the_terminal() -> None:
    assert "\x1b" not in "\n".join(draw([curve(1, name="\x1b[31m\n")]))


@given(
    st.lists(st.lists(st.floats(), max_size=30), min_size=1, max_size=4),
    st.integers(20, 100),
    st.integers(3, 30),
    st.booleans(),
)
def test_any_numbers_fit_into_the_plot(values: list[list[float]], width: int, height: int, log: bool) -> None:
    lines = draw([curve(*one) for one in values], width=width, height=height, log=log)
    if not lines[0].startswith("nothing"):
        assert len(lines) == height + 2 + len(values)
        gutter = lines[0].index(next(ch for ch in lines[0] if ch in "│┤"))
        assert all(len(line) <= max(width, gutter + 9) for line in lines[:height])


@pytest.mark.parametrize("value", [1e308, -1e308, 5e-324, 0.0])
def test_one_value_is_drawn(value: float) -> None:
    assert max(max(line) for line in draw([curve(value)], height=5)[:5]) >= "⠁"

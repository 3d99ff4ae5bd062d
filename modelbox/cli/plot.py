"""Curves drawn with characters, for ``metrics show``.

Owns the scales, the drawing and the legend; writes nothing itself. A bucket of a sampled series is drawn from its least
to its greatest value, so that no peak is lost however many points it stands for; where several curves would cover each
other, only the line through the means is. What is not finite is not drawn, and
leaves a gap. With colours, or for one curve alone, a character holds eight dots (Unicode's braille); several curves
without colours are told apart by their marks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from modelbox.cli.output import number_text, plain
from modelbox.display import Curve

__all__ = ("draw",)

_COLOURS = (36, 33, 35, 32, 31, 34, 96, 93)
_MARKS = "●○■□▲△◆◇"
_ASCII_MARKS = "*o+x#@%&"
_BRAILLE = 0x2800
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_LABEL_EVERY = 4


def draw(
    curves: Sequence[Curve],
    *,
    width: int = 80,
    height: int = 15,
    colour: bool = False,
    unicode: bool = True,
    log: bool = False,
) -> list[str]:
    """Curves in one plot, as lines of text.

    Args:
        curves: At least one.
        width: Characters in all.
        height: Lines of the plot itself; axis and legend come on top.
        colour: Whether the terminal shows ANSI colours.
        unicode: Whether it shows more than ASCII.
        log: A logarithmic scale of values; those that are not positive are left out.
    """
    drawn = [_Scaled(curve, log=log, band=len(curves) == 1) for curve in curves]
    values = [value for one in drawn for value in one.values()]
    steps = [step for one in drawn for step in one.steps]
    marks = _MARKS if unicode else _ASCII_MARKS
    legend = [
        _legend(curve, number, marks=marks, colour=colour, alone=len(curves) == 1)
        for number, curve in enumerate(curves)
    ]
    if not values:
        return [f"nothing to draw: no {'positive' if log else 'finite'} numbers", *legend]
    low, high = _range(values)
    labels = _labels(low, high, height, log=log)
    gutter = max(len(label) for label in labels.values())
    columns = max(width - gutter - 2, 8)
    dots = unicode and (colour or len(curves) == 1)
    across, down = (2, 4) if dots else (1, 1)
    grid = _Grid(
        columns * across, height * down, low=low, high=high, first=min(steps), last=max(max(steps), min(steps) + 1)
    )
    canvas: list[list[tuple[int, int]]] = [[(0, -1)] * columns for _ in range(height)]
    for number, one in enumerate(drawn):
        for x, y in grid.dots(one):
            row, column = y // down, x // across
            bits = _DOTS[x % 2][y % 4] if dots else 1
            canvas[row][column] = (canvas[row][column][0] | bits, number)
    axis = "┤" if unicode else "|"
    bar = "│" if unicode else "|"
    lines = []
    for row, cells in enumerate(canvas):
        label = labels.get(row, "")
        text = "".join(_cell(bits, number, dots=dots, marks=marks, colour=colour) for bits, number in cells)
        lines.append(f"{label:>{gutter}} {axis if label else bar}{text}".rstrip())
    lines.append(f"{'':>{gutter}} {'└' if unicode else '+'}{('─' if unicode else '-') * columns}")
    left, right = f"{min(steps):.0f}", f"{max(steps):.0f}"
    lines.append(f"{'':>{gutter}}  {left}{'step':^{max(columns - len(left) - len(right), 4)}}{right}")
    return lines + legend


class _Scaled:
    """A curve on the scale that is drawn, without what cannot be."""

    def __init__(self, curve: Curve, *, log: bool, band: bool) -> None:
        self.steps: list[float] = []
        self.spans: list[tuple[float, float, float] | None] = []
        for step, low, high, mean in zip(curve.steps, curve.lows, curve.highs, curve.means, strict=True):
            mean = mean if math.isfinite(mean) else low / 2 + high / 2
            span = (low, high, mean) if band else (mean, mean, mean)
            if log:
                span = tuple(math.log10(value) if value > 0 else math.nan for value in span)  # type: ignore[assignment]
            self.steps.append(step)
            self.spans.append(span if all(math.isfinite(value) for value in span) else None)

    def values(self) -> Iterator[float]:
        for span in self.spans:
            if span is not None:
                yield span[0]
                yield span[1]


class _Grid:
    """From steps and values to dots; (0, 0) is at the top left."""

    def __init__(self, width: int, height: int, *, low: float, high: float, first: float, last: float) -> None:
        self._width = width
        self._height = height
        self._low = low
        self._high = high
        self._first = first
        self._last = last

    def _x(self, step: float) -> int:
        return round((step - self._first) / (self._last - self._first) * (self._width - 1))

    def _y(self, value: float) -> float:
        # Halves first: the span of two finite numbers may not be finite.
        share = (self._high / 2 - value / 2) / (self._high / 2 - self._low / 2)
        return share * (self._height - 1)

    def _column(self, x: int, y: float, other: float) -> Iterator[tuple[int, int]]:
        top, bottom = sorted((round(y), round(other)))
        for dot in range(max(top, 0), min(bottom, self._height - 1) + 1):
            yield x, dot

    def dots(self, curve: _Scaled) -> Iterator[tuple[int, int]]:
        before: tuple[int, float] | None = None
        for step, span in zip(curve.steps, curve.spans, strict=True):
            if span is None:
                before = None
                continue
            low, high, mean = span
            x, y = self._x(step), self._y(mean)
            yield from self._column(x, self._y(low), self._y(high))
            if before is not None and x > before[0]:
                slope = (y - before[1]) / (x - before[0])
                for between in range(before[0], x + 1):
                    begin = before[1] + slope * max(between - 0.5 - before[0], 0)
                    end = before[1] + slope * min(between + 0.5 - before[0], x - before[0])
                    yield from self._column(between, begin, end)
            before = (x, y)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low < high:
        return low, high
    room = abs(low) * 0.05 or 0.5
    return low - room, high + room


def _labels(low: float, high: float, height: int, *, log: bool) -> dict[int, str]:
    """Values by row, with as many digits as tell them apart."""
    rows = sorted({*range(0, height, _LABEL_EVERY), height - 1})
    if len(rows) > 2 and rows[-1] - rows[-2] < _LABEL_EVERY // 2:
        del rows[-2]
    shares = [row / max(height - 1, 1) for row in rows]
    values = [high * (1 - share) + low * share for share in shares]
    if log:
        values = [10**value if value < 308 else math.inf for value in values]
    texts: list[str] = []
    for digits in range(3, 18):
        texts = [f"{0.0 if abs(value) < (high - low) * 1e-9 else value:.{digits}g}" for value in values]
        if len(set(texts)) == len(texts):
            break
    return dict(zip(rows, texts, strict=True))


def _cell(bits: int, number: int, *, dots: bool, marks: str, colour: bool) -> str:
    if not bits:
        return " "
    text = chr(_BRAILLE + bits) if dots else marks[number % len(marks)]
    return f"\x1b[{_COLOURS[number % len(_COLOURS)]}m{text}\x1b[0m" if colour else text


def _legend(curve: Curve, number: int, *, marks: str, colour: bool, alone: bool) -> str:
    mark = "" if alone and not colour else f"{_cell(1, number, dots=False, marks=marks, colour=colour)} "
    finite = [value for value in curve.lows if math.isfinite(value)]
    finite_high = [value for value in curve.highs if math.isfinite(value)]
    parts = [plain(curve.name)]
    if finite and finite_high:
        parts.append(f"min {number_text(min(finite))}  max {number_text(max(finite_high))}")
    if curve.remark:
        parts.append(curve.remark)
    return f"{mark}{'  '.join(parts)}"

"""How objects look in a notebook: HTML and SVG, made of nothing but what they hold.

Owns escaping, sizes and the drawing of curves; the classes that are shown call in here when a notebook asks them to
(``_repr_html_``), and import this module only then. Every text is escaped, no script, style sheet or font is loaded
from anywhere, and what is shown is bounded: so many rows, columns, characters and points, however large the object is.
Colours are those of the page but for the curves, so that dark themes work.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from modelbox.objects import JsonValue, to_json
from modelbox.tracking import MetricSummary

__all__ = ("MAX_COLUMNS", "MAX_POINTS", "MAX_ROWS", "Curve", "Html", "card", "cell", "metrics", "plot", "table")

MAX_ROWS = 50
MAX_COLUMNS = 20
MAX_POINTS = 500
"""Of one curve."""
_MAX_CURVES = 20
_MAX_CHARS = 200
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")
_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 10, 36
_CELL = "padding:2px 12px 2px 0;text-align:{};vertical-align:top"


@dataclass(frozen=True, slots=True)
class Html:
    """A piece of a page, which notebooks show."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A curve to draw; all sequences have one length, NaN and infinities leave gaps.

    Attributes:
        name: For the legend.
        steps: Where on the x axis, ascending.
        lows: Least value there.
        highs: Greatest value.
        means: Where the line goes through.
        remark: Behind the name in the legend.
    """

    name: str
    steps: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]
    means: Sequence[float]
    remark: str = ""


def cell(value: JsonValue) -> str:
    """A value as escaped text, cut where it is long; times to the second and with their zone, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, datetime):
        text = value.strftime("%Y-%m-%d %H:%M:%S %Z").rstrip()
    elif isinstance(value, timedelta):
        text = str(timedelta(seconds=round(value.total_seconds())))
    elif isinstance(value, str | int):
        text = str(value)
    else:
        text = json.dumps(to_json(value), ensure_ascii=False)
    return html.escape(text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS - 1]}…")


def card(title: str, values: Mapping[str, JsonValue], *below: str) -> str:
    """A title, and names with values below it; empty values are left out.

    Args:
        title: Plain text.
        values: By name.
        *below: Further HTML, such as a `table`.
    """
    rows = "".join(
        f'<tr><th style="{_CELL.format("left")};font-weight:normal;opacity:.7">{cell(name)}</th>'
        f'<td style="{_CELL.format("left")}">{cell(value)}</td></tr>'
        for name, value in values.items()
        if value not in (None, "", (), [], {})
    )
    return (
        f'<div style="margin:4px 0"><div style="font-weight:bold;margin-bottom:4px">{cell(title)}</div>'
        f'<table style="border-collapse:collapse">{rows}</table>{"".join(below)}</div>'
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[JsonValue]], *, numbers: Collection[str] = ()) -> str:
    """Rows with their names above, as far as they fit.

    Args:
        columns: Their names.
        rows: As many values each; only the first are looked at.
        numbers: The columns that are set to the right.
    """
    shown = columns[:MAX_COLUMNS]
    sides = ["right" if name in numbers else "left" for name in shown]
    head = "".join(
        f'<th style="{_CELL.format(side)}">{cell(name)}</th>' for name, side in zip(shown, sides, strict=True)
    )
    body: list[str] = []
    more = False
    for row in rows:
        if len(body) == MAX_ROWS:
            more = True
            break
        cells = "".join(
            f'<td style="{_CELL.format(side)}">{cell(value)}</td>' for value, side in zip(row, sides, strict=False)
        )
        body.append(f"<tr>{cells}</tr>")
    left_out = [f"the first {MAX_ROWS} rows"] if more else []
    left_out += [f"{MAX_COLUMNS} of {len(columns)} columns"] if len(columns) > MAX_COLUMNS else []
    remark = f'<div style="opacity:.7">{" and ".join(left_out)}</div>' if left_out else ""
    return (
        f'<table style="border-collapse:collapse"><thead><tr style="border-bottom:1px solid">{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>{remark}"
    )


def metrics(summaries: Iterable[MetricSummary]) -> Html:
    """A table of what `Client.metric_summaries` gives."""
    columns = ("object", "metric", "latest", "step", "min", "max", "points", "time")
    rows = (
        (
            one.object,
            one.key,
            one.kind if one.latest is None else one.latest,
            one.latest_step,
            one.min,
            one.max,
            one.count,
            one.latest_at,
        )
        for one in summaries
    )
    return Html(table(columns, rows, numbers=("latest", "step", "min", "max", "points")))


def plot(*curves: Curve) -> Html:
    """Curves in one drawing, with a legend: ``plot(first.curve("a"), second.curve("b"))``.

    Where a curve stands for several points, the area between the least and the greatest is filled.
    """
    shown = [_thinned(curve) for curve in curves[:_MAX_CURVES]]
    values = [value for curve in shown for pair in (curve.lows, curve.highs) for value in pair if math.isfinite(value)]
    steps = [float(step) for curve in shown for step in curve.steps]
    legend = "".join(_legend(curve, number) for number, curve in enumerate(shown))
    if len(curves) > len(shown):
        legend += f"<div>and {len(curves) - len(shown)} more</div>"
    if not values:
        return Html(f'<div style="margin:4px 0"><div style="opacity:.7">no finite numbers</div>{legend}</div>')
    axes = _Axes(min(steps), max(steps), min(values), max(values))
    drawn = "".join(_drawn(curve, axes, _COLOURS[number % len(_COLOURS)]) for number, curve in enumerate(shown))
    return Html(
        f'<div style="margin:4px 0"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img"'
        f' style="max-width:100%;height:auto;font:11px sans-serif" fill="currentColor">{axes.svg()}{drawn}</svg>'
        f"{legend}</div>"
    )


def _thinned(curve: Curve) -> Curve:
    """A curve of no more than so many points, by putting neighbours together."""
    every = -(-len(curve.steps) // MAX_POINTS)
    if every <= 1:
        return curve
    places = range(0, len(curve.steps), every)
    means = [_finite(curve.means[at : at + every]) for at in places]
    return Curve(
        name=curve.name,
        steps=[curve.steps[at] for at in places],
        lows=[min(_finite(curve.lows[at : at + every]), default=math.nan) for at in places],
        highs=[max(_finite(curve.highs[at : at + every]), default=math.nan) for at in places],
        means=[math.fsum(value / len(part) for value in part) if part else math.nan for part in means],
        remark=curve.remark,
    )


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _legend(curve: Curve, number: int) -> str:
    line = f'<span style="color:{_COLOURS[number % len(_COLOURS)]}">━</span>'
    return f'<div>{line} {cell(curve.name)} <span style="opacity:.7">{cell(curve.remark)}</span></div>'


class _Axes:
    """From steps and values to places in the drawing."""

    def __init__(self, first: float, last: float, low: float, high: float) -> None:
        if first == last:
            first, last = first - 0.5, last + 0.5
        if low == high:
            room = abs(low) * 0.05 or 0.5
            low, high = low - room, high + room
        self._first, self._last, self._low, self._high = first, last, low, high

    def x(self, step: float) -> str:
        share = (step / 2 - self._first / 2) / (self._last / 2 - self._first / 2)
        return f"{_LEFT + share * (_WIDTH - _LEFT - _RIGHT):.1f}"

    def y(self, value: float) -> str:
        # Halves: the span of two finite numbers may not be finite.
        share = (self._high / 2 - value / 2) / (self._high / 2 - self._low / 2)
        return f"{_TOP + share * (_HEIGHT - _TOP - _BOTTOM):.1f}"

    def svg(self) -> str:
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        parts = [f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="currentColor" opacity=".5"/>']
        for text, value in _ticks(self._low, self._high):
            y = self.y(value)
            parts.append(f'<path d="M{_LEFT} {y}H{right}" stroke="currentColor" opacity=".1"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y}" dy=".35em" text-anchor="end">{text}</text>')
        for text, step in _ticks(self._first, self._last):
            parts.append(f'<text x="{self.x(step)}" y="{bottom + 14}" text-anchor="middle">{text}</text>')
        middle = (_LEFT + right) / 2
        parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle" opacity=".7">step</text>')
        return "".join(parts)


def _ticks(low: float, high: float) -> Iterator[tuple[str, float]]:
    """Round values between two, three to seven of them."""
    span = high - low
    if not 1e-300 < span < math.inf:
        yield from ((f"{value:.3g}", value) for value in (low, high))
        return
    unit = 10.0 ** math.floor(math.log10(span / 4))
    width = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 6)
    begin = math.ceil(low / width)
    digits = max(4, math.ceil(math.log10(max(abs(low), abs(high)) / width)) + 1)
    for number in range(begin, begin + 8):
        value = number * width
        if value > high:
            return
        yield f"{value:.{min(digits, 15)}g}", value


def _drawn(curve: Curve, axes: _Axes, colour: str) -> str:
    parts: list[str] = []
    piece: list[tuple[float, float, float, float]] = []
    points = zip(curve.steps, curve.lows, curve.highs, curve.means, strict=True)
    for step, low, high, mean in points:
        if math.isfinite(low) and math.isfinite(high):
            piece.append((step, low, high, mean if math.isfinite(mean) else low / 2 + high / 2))
        elif piece:
            parts.append(_piece(piece, axes, colour))
            piece = []
    if piece:
        parts.append(_piece(piece, axes, colour))
    return "".join(parts)


def _piece(points: Sequence[tuple[float, float, float, float]], axes: _Axes, colour: str) -> str:
    if len(points) == 1:
        step, low, high, mean = points[0]
        x = axes.x(step)
        line = f'<path d="M{x} {axes.y(low)}V{axes.y(high)}" stroke="{colour}"/>' if low < high else ""
        return f'{line}<circle cx="{x}" cy="{axes.y(mean)}" r="2.5" fill="{colour}"/>'
    area = ""
    if any(low < high for _, low, high, _ in points):
        there = [f"{axes.x(step)} {axes.y(high)}" for step, _, high, _ in points]
        back = [f"{axes.x(step)} {axes.y(low)}" for step, low, _, _ in reversed(points)]
        area = f'<path d="M{"L".join(there + back)}Z" fill="{colour}" opacity=".2"/>'
    line = "L".join(f"{axes.x(step)} {axes.y(mean)}" for step, _, _, mean in points)
    return f'{area}<path d="M{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'

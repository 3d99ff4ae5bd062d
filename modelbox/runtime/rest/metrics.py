"""Metrics over HTTP: points in, summaries, series and samples out.

A value is a JSON number; ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` for what JSON has no numbers for;
``{"text": "..."}`` or ``{"bytes": "base64"}`` for the others. Series are written as they are read, a part at a time, so
that one of ten million points takes no more memory than a short one.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime

import anyio
import anyio.to_thread
import numpy as np
from aiohttp import web

from modelbox._wire.values import pack_time
from modelbox.errors import InvalidError
from modelbox.objects import JsonValue, to_json
from modelbox.refs import shown
from modelbox.runtime.metrics import Metrics
from modelbox.runtime.rest.bodies import int_of, item_of, read_body, text_of, texts_of
from modelbox.runtime.services.metrics import MetricService
from modelbox.series import MetricValue, Point, Series, columns_of, join_series, sample_of
from modelbox.tracking import MetricColumns

__all__ = ("MetricRoutes",)

_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_ROWS = 8192
"""Points that are written at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _NewPoint:
    key: str
    value: JsonValue
    step: int = 0
    at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _NewPoints:
    object: str
    points: tuple[_NewPoint, ...]


class MetricRoutes:
    """Handlers: decode, call the service, encode.

    Args:
        metrics: The service.
        counts: Where cut off readers are counted.
        send_timeout_s: How long a reader may leave unread what is sent.
    """

    def __init__(self, metrics: MetricService, counts: Metrics, *, send_timeout_s: float) -> None:
        self._metrics = metrics
        self._counts = counts
        self._send_timeout_s = send_timeout_s

    def routes(self) -> list[web.RouteDef]:
        """Which path leads where."""
        return [
            web.get("/api/v1/metrics", self.get_summaries),
            web.post("/api/v1/metrics", self.log),
            web.get("/api/v1/metrics/series", self.read_series),
            web.get("/api/v1/metrics/sample", self.sample_series),
        ]

    async def log(self, request: web.Request) -> web.StreamResponse:
        """POST ``{"object", "points": [{"key", "value", "step", "at"}, ...]}``; a point without ``at`` is of now."""
        new = await read_body(request, _NewPoints)
        now_us = pack_time(datetime.now(UTC))
        columns = columns_of(
            new.object,
            [
                Point(
                    key=point.key,
                    step=point.step,
                    time_us=now_us if point.at is None else pack_time(point.at),
                    value=_value(point.key, point.value),
                )
                for point in new.points
            ],
        )
        stored, repeated = await self._metrics.log([columns])
        return item_of({"stored": stored, "repeated": repeated})

    async def get_summaries(self, request: web.Request) -> web.StreamResponse:
        """GET ?object=&key=, both may be repeated."""
        return item_of(
            await self._metrics.summaries(texts_of(request, "object", required=True), texts_of(request, "key"))
        )

    async def sample_series(self, request: web.Request) -> web.StreamResponse:
        """GET ?object=&key=&from_step=&to_step=&buckets=; columns with one element per bucket."""
        sample = sample_of(
            await self._metrics.sample_series(
                text_of(request, "object", None),
                text_of(request, "key", None),
                from_step=int_of(request, "from_step", None),
                to_step=int_of(request, "to_step", None),
                buckets=int_of(request, "buckets", 0),
            )
        )
        names = ("first_steps", "last_steps", "counts", "mins", "maxs", "means", "lasts")
        return item_of({name: to_json(getattr(sample, name).tolist()) for name in names})

    async def read_series(self, request: web.Request) -> web.StreamResponse:
        """GET ?object=&key=&from_step=&to_step=&format=json|csv.

        JSON is ``{"object", "key", "points": [[step, microseconds since 1970, value], ...]}``; CSV has the columns
        step, time and value, bytes in base64.
        """
        name, key = text_of(request, "object", None), text_of(request, "key", None)
        kind = text_of(request, "format") or "json"
        if kind not in ("json", "csv"):
            raise InvalidError(f"the format {shown(kind)} is not known: expected json or csv", what="format")
        parts = self._metrics.read_series(
            name, key, from_step=int_of(request, "from_step", None), to_step=int_of(request, "to_step", None)
        )
        content_type = "application/json" if kind == "json" else "text/csv"
        response = web.StreamResponse(
            headers={"Content-Type": f"{content_type}; charset=utf-8", "X-Content-Type-Options": "nosniff"}
        )
        if kind == "csv":
            response.headers["Content-Disposition"] = 'attachment; filename="series.csv"'
        texts = _json_parts(name, key, parts) if kind == "json" else _csv_parts(parts)
        async with aclosing(texts):
            # What is wrong with the request shows before there is a status.
            first = await anext(texts)
            await response.prepare(request)
            await self._write(request, response, first)
            async for text in texts:
                await self._write(request, response, text)
        await response.write_eof()
        return response

    async def _write(self, request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        try:
            with anyio.fail_after(self._send_timeout_s):
                await response.write(data)
        except TimeoutError as exc:
            self._counts.count_slow_reader("http")
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the peer does not read") from exc


def _value(key: str, value: JsonValue) -> MetricValue:
    match value:
        case bool():
            pass
        case int() | float():
            return value
        case str() if value in _NUMBERS:
            return _NUMBERS[value]
        case {"text": str(text)}:
            return text
        case {"bytes": str(text)}:
            try:
                return base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError) as exc:
                raise InvalidError(f"the bytes of {shown(key)} are not base64") from exc
    raise InvalidError(
        f'the value of {shown(key)} is {shown(value)}: expected a number, "NaN", "Infinity", "-Infinity", '
        '{"text": ...} or {"bytes": base64}'
    )


async def _json_parts(name: str, key: str, parts: AsyncIterator[MetricColumns]) -> AsyncGenerator[bytes, None]:
    head = json.dumps({"object": name, "key": key}, ensure_ascii=False)[:-1] + ', "points": ['
    between = ""
    async for series in _slices(parts):
        rows = await anyio.to_thread.run_sync(_json_rows, series)
        yield (head + between + rows).encode()
        head, between = "", ","
    yield (head + "]}\n").encode()


def _json_rows(series: Series) -> str:
    rows = zip(series.steps.tolist(), series.times_us.tolist(), _values(series), strict=True)
    return json.dumps(list(rows), separators=(",", ":"), ensure_ascii=False)[1:-1]


async def _csv_parts(parts: AsyncIterator[MetricColumns]) -> AsyncGenerator[bytes, None]:
    head = "step,time,value\r\n"
    async for series in _slices(parts):
        rows = await anyio.to_thread.run_sync(_csv_rows, series)
        yield (head + rows).encode()
        head = ""
    if head:
        yield head.encode()


def _csv_rows(series: Series) -> str:
    times = np.datetime_as_string(series.times_us.astype("datetime64[us]"), timezone="UTC").tolist()
    values: list[object] = list(series.values.tolist())
    if series.payloads:
        values = [base64.b64encode(one).decode() if isinstance(one, bytes) else one for one in series.payloads]
    out = io.StringIO()
    csv.writer(out).writerows(zip(series.steps.tolist(), times, values, strict=True))
    return out.getvalue()


def _values(series: Series) -> Iterator[JsonValue]:
    if not series.payloads:
        if bool(np.isfinite(series.values).all()):
            yield from series.values.tolist()
        else:
            yield from (to_json(value) for value in series.values.tolist())
    for payload in series.payloads:
        yield ({"bytes": base64.b64encode(payload).decode()} if isinstance(payload, bytes) else {"text": payload})


async def _slices(parts: AsyncIterator[MetricColumns]) -> AsyncIterator[Series]:
    """Parts of a size that is written at once."""
    async for part in parts:
        for begin in range(0, len(part), _ROWS):
            piece = slice(begin, begin + _ROWS)
            wide = slice(begin * 8, (begin + _ROWS) * 8)
            yield join_series(
                part.object,
                part.keys[0],
                [
                    MetricColumns(
                        object=part.object,
                        keys=part.keys,
                        steps=part.steps[wide],
                        times_us=part.times_us[wide],
                        values=part.values[wide],
                        kinds=part.kinds[piece],
                        # A series is of one kind: there is a payload for every point, or none.
                        payloads=part.payloads[piece],
                    )
                ],
            )

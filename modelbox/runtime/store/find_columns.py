"""The answer of a find: what is recorded of a page's objects, as columns of JSON.

One query for each kind of value. Values by key are JSON already and are put into the answer as they are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Select, literal_column, select

from modelbox.errors import LimitError
from modelbox.find import COLLECTIONS, Field, FieldType, Scope
from modelbox.runtime.store.find_sources import SOURCES, Expr, Source
from modelbox.runtime.store.find_terms import KINDS
from modelbox.runtime.store.metric_schema import metric_keys, metric_objects, metric_series
from modelbox.runtime.store.prepared import spelling_of
from modelbox.runtime.store.schema import attribute_leaves, attributes, events, objects

__all__ = ("Columns", "read_columns")

_MAX_CELLS = 2_000_000
_MAX_BYTES = 64 << 20
_GREATEST = sys.float_info.max
_NOT_FINITE = {3: "NaN", 4: "Infinity", 5: "-Infinity"}

_COUNTED = ("count", "step")


class _OfMany:
    """A statement for the rows of many numbers, run on the driver: the answer has tens of thousands of rows.

    Numbers come from the database and are written into the text: a parameter for each would cost more than its row.

    Args:
        make: Gives the statement for a condition ``IN (…)`` of a column.
    """

    _PLACE = "(0/*ids*/)"

    def __init__(self, make: Callable[[Callable[[Expr], Any]], Select[Any]]) -> None:
        self._statement = make(lambda column: column.op("IN")(literal_column(self._PLACE)))
        self._texts: dict[str, str] = {}

    def rows(self, conn: Connection, ids: Iterable[int]) -> Sequence[Any]:
        """The rows, as plain tuples."""
        listed = ",".join(map(str, ids))
        if not listed:
            return ()
        spelling = spelling_of(conn.dialect)
        text = self._texts.get(spelling)
        if text is None:
            compiled = self._statement.compile(dialect=conn.dialect, compile_kwargs={"literal_binds": True})
            text = self._texts[spelling] = str(compiled)
        cursor = conn.connection.cursor()
        try:
            cursor.execute(text.replace(self._PLACE, f"({listed})"))
            return cursor.fetchall()
        finally:
            cursor.close()


def _values_of(kind: str, column: Expr) -> _OfMany:
    return _OfMany(
        lambda among: select(attributes.c.object_id, attributes.c.key, column).where(
            among(attributes.c.object_id), attributes.c.kind == kind
        )
    )


def _series(*columns: Expr) -> _OfMany:
    return _OfMany(
        lambda among: (
            select(objects.c.id, metric_series.c.key_id, *columns)
            .join_from(objects, metric_objects, metric_objects.c.uid == objects.c.uid)
            .join(metric_series, metric_series.c.object_id == metric_objects.c.id)
            .where(among(objects.c.id))
        )
    )


_VALUES = {kind: _values_of(kind, attributes.c.value) for kind in KINDS.values()}
_PROJECTED = _values_of("metric", attributes.c.number)
_LATEST = _series(metric_series.c.latest, metric_series.c.latest_flag)
_SUMMARIES = _series(
    metric_series.c.latest,
    metric_series.c.latest_flag,
    metric_series.c.min,
    metric_series.c.max,
    metric_series.c.count,
    metric_series.c.latest_step,
)
_KEY_NAMES = _OfMany(lambda among: select(metric_keys.c.id, metric_keys.c.name).where(among(metric_keys.c.id)))
_EVENT_METADATA = _OfMany(lambda among: select(events.c.id, events.c.metadata).where(among(events.c.id)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """A page."""

    json: bytes
    times: tuple[str, ...]
    numbers: tuple[str, ...]


@dataclass(slots=True)
class _Page:
    """A page in the making: cells are texts of JSON by column, or Python values for those of numbers."""

    collection: str
    source: Source
    types: Mapping[str, FieldType]
    ids: Sequence[int]
    object_ids: dict[int, int] = field(default_factory=dict)
    encoded: dict[str, str] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    numbers: dict[str, list[Any]] = field(default_factory=dict)

    def column(self, columns: dict[str, list[Any]], name: str, missing: Any) -> list[Any]:
        found = columns.get(name)
        if found is None:
            if (len(self.texts) + len(self.numbers) + 1) * len(self.ids) > _MAX_CELLS:
                raise LimitError(
                    f"{len(self.ids)} objects with this many different keys are too much for one answer: "
                    "name the columns, or ask for smaller pages",
                    what="columns",
                )
            found = columns[name] = [missing] * len(self.ids)
        return found


def read_columns(conn: Connection, collection: str, wanted: Sequence[Field | Scope], ids: Sequence[int]) -> Columns:
    """The columns of the objects with these numbers, in their order.

    Args:
        conn: The transaction.
        collection: What the objects are.
        wanted: Groups and single fields.
        ids: Numbers in the collection's own table.

    Raises:
        LimitError: It is too much for one answer.
    """
    source = SOURCES[collection]
    page = _Page(collection, source, COLLECTIONS[collection], ids)
    times, numbers = _own_columns(conn, page, wanted)
    fields = [one for one in wanted if isinstance(one, Field)]
    if source.kind is not None and ids:
        parts = {(one.name, one.part): str(one) for one in fields if one.scope is Scope.METRIC}
        if Scope.METRIC in wanted or parts:
            _metric_columns(conn, page, parts, everything=Scope.METRIC in wanted)
        _value_columns(conn, page, wanted)
    elif ids:
        _event_columns(conn, page, everything=Scope.METADATA in wanted, fields=fields)
    size = sum(map(len, page.encoded.values()))
    for name in sorted(page.numbers):
        page.encoded[name] = json.dumps(page.numbers[name], separators=(",", ":"))
    for name in sorted(page.texts):
        size += sum(map(len, page.texts[name]))
        page.encoded[name] = f"[{','.join(page.texts[name])}]"
    if size > _MAX_BYTES:
        raise LimitError(
            f"the values of {len(ids)} objects are too much for one answer ({size >> 20} MiB): name the columns, or "
            "ask for smaller pages",
            what="columns",
        )
    for name in (str(one) for one in fields):
        page.encoded.setdefault(name, json.dumps([None] * len(ids)))
    body = ",".join(f"{json.dumps(name, ensure_ascii=False)}:{text}" for name, text in page.encoded.items())
    return Columns(json=f"{{{body}}}".encode(), times=tuple(times), numbers=(*numbers, *sorted(page.numbers)))


@lru_cache(maxsize=256)
def _own_rows(collection: str, names: tuple[str, ...]) -> _OfMany:
    source = SOURCES[collection]
    number = source.base.c.id
    return _OfMany(
        lambda among: (
            select(number, objects.c.id.label("object_number"), *(source.attributes[name][0] for name in names))
            .select_from(source.tables({source.attributes[name][1] for name in names}))
            .where(among(number))
        )
    )


def _own_columns(conn: Connection, page: _Page, wanted: Sequence[Field | Scope]) -> tuple[list[str], list[str]]:
    """Reads what is in the objects' own rows, and their ids; returns the columns of times and of numbers."""
    source = page.source
    names = [one.name for one in wanted if isinstance(one, Field) and one.scope is Scope.ATTRIBUTE]
    if Scope.ATTRIBUTE in wanted:
        names = list(source.attributes)
    names = list(dict.fromkeys(["id", *names]))
    rows = {row[0]: row for row in _own_rows(page.collection, tuple(names)).rows(conn, page.ids)}
    ordered = [rows[one] for one in page.ids]
    page.object_ids = {row[1]: place for place, row in enumerate(ordered)}
    cells = list(zip(*ordered, strict=True))[2:] if ordered else [()] * len(names)
    for name, values in zip(names, cells, strict=True):
        page.encoded[name] = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    times = [name for name in names if page.types[name] is FieldType.TIME]
    return times, [name for name in names if page.types[name] is FieldType.NUMBER]


def _metric_columns(conn: Connection, page: _Page, parts: Mapping[tuple[str, str], str], *, everything: bool) -> None:
    """Reads summaries of series: the latest values of all metrics, or only those that are named."""
    places = page.object_ids
    rows: Sequence[Any] = ()
    if parts:
        rows = _SUMMARIES.rows(conn, places)
    elif everything:
        rows = _LATEST.rows(conn, places)
    names: dict[int, str] = dict(_KEY_NAMES.rows(conn, {row[1] for row in rows}))
    latest: dict[int, list[Any]] = {}
    if everything:
        latest = {key: page.column(page.numbers, f"metrics.{name}", None) for key, name in names.items()}
        for object_id, key, value, flag, *_ in rows:
            latest[key][places[object_id]] = _NOT_FINITE.get(flag) if flag else value
    named: dict[int, list[tuple[str, list[Any]]]] = {}
    for key, name in names.items():
        for (one, part), column_name in parts.items():
            if one == name:
                named.setdefault(key, []).append((part, page.column(page.numbers, column_name, None)))
    if named:
        for object_id, key, *summary in rows:
            for part, column in named.get(key, ()):
                column[places[object_id]] = _part(part, *summary)
    if page.source.projects_metrics:
        for object_id, name, value in _PROJECTED.rows(conn, places):
            wanted = [column for (one, part), column in parts.items() if one == name and part not in _COUNTED]
            for column_name in ([f"metrics.{name}"] if everything else []) + wanted:
                column = page.column(page.numbers, column_name, None)
                if column[places[object_id]] is None:
                    column[places[object_id]] = value


def _part(part: str, latest: Any, flag: int, least: Any, most: Any, count: int, step: int) -> Any:
    if part in _COUNTED:
        return count if part == "count" else step
    if part == "latest":
        return _NOT_FINITE.get(flag) if flag else latest
    value = least if part == "min" else most
    if value in (_GREATEST, -_GREATEST):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _value_columns(conn: Connection, page: _Page, wanted: Sequence[Field | Scope]) -> None:
    """Reads values by key: whole kinds, single keys, and paths into JSON."""
    places = page.object_ids
    for scope, kind in KINDS.items():
        if scope not in wanted:
            continue
        found: dict[str, list[str]] = {}
        for object_id, key, value in _VALUES[kind].rows(conn, places):
            column = found.get(key)
            if column is None:
                column = found[key] = page.column(page.texts, f"{scope.value}.{key}", "null")
            column[places[object_id]] = value
    for one in wanted:
        if not isinstance(one, Field) or one.scope not in KINDS or one.scope in wanted:
            continue
        for table in (attributes, attribute_leaves) if "." in one.name else (attributes,):
            at = table.c.path if "path" in table.c else table.c.key
            query = select(table.c.object_id, table.c.value).where(
                table.c.object_id.in_(list(places)), table.c.kind == KINDS[one.scope], at == one.name
            )
            for object_id, value in conn.execute(query).all() if places else ():
                column = page.column(page.texts, str(one), "null")
                if column[places[object_id]] == "null":
                    column[places[object_id]] = value


def _event_columns(conn: Connection, page: _Page, *, everything: bool, fields: Sequence[Field]) -> None:
    """Reads what is in the metadata of events: every key, and paths into it."""
    named = [one for one in fields if one.scope is Scope.METADATA]
    if not everything and not named:
        return
    kept = dict(_EVENT_METADATA.rows(conn, page.ids))
    for place, number in enumerate(page.ids):
        values = json.loads(kept[number])
        if everything:
            for key, value in values.items():
                page.column(page.texts, f"{Scope.METADATA.value}.{key}", "null")[place] = _text(value)
        for one in named:
            page.column(page.texts, str(one), "null")[place] = _text(_inside(values, one.name))


def _inside(value: Any, path: str) -> Any:
    """What is at a path, whose keys may hold dots themselves; None if there is nothing."""
    if isinstance(value, list):
        value = {str(place): one for place, one in enumerate(value)}
    if not isinstance(value, dict):
        return None
    if path in value:
        return value[path]
    dots = [place for place, char in enumerate(path) if char == "."]
    found = (_inside(value[path[:dot]], path[dot + 1 :]) for dot in dots if path[:dot] in value)
    return next((one for one in found if one is not None), None)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

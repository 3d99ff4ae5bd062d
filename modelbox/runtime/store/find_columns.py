"""The answer of a find: what is recorded of a page's objects, as columns of JSON.

One query for each kind of value. Values by key are JSON already and are put into the answer as they are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import BindParameter, Connection, bindparam, select

from modelbox.errors import LimitError
from modelbox.find import COLLECTIONS, Field, FieldType, Scope
from modelbox.runtime.store.find_sources import SOURCES, Source
from modelbox.runtime.store.find_terms import KINDS
from modelbox.runtime.store.metric_schema import metric_keys, metric_objects, metric_series
from modelbox.runtime.store.schema import attribute_leaves, attributes, events, objects

__all__ = ("Columns", "read_columns")

_MAX_CELLS = 2_000_000
_MAX_BYTES = 64 << 20
_GREATEST = sys.float_info.max
_NOT_FINITE = {3: "NaN", 4: "Infinity", 5: "-Infinity"}
_SCOPES = {kind: scope.value for scope, kind in KINDS.items()}

_IDS: BindParameter[Sequence[int]] = bindparam("ids", expanding=True, literal_execute=True)
_SERIES = select(
    metric_series.c.object_id,
    metric_series.c.key_id,
    metric_series.c.latest,
    metric_series.c.latest_flag,
    metric_series.c.min,
    metric_series.c.max,
    metric_series.c.count,
    metric_series.c.latest_step,
    metric_series.c.kind,
).where(metric_series.c.object_id.in_(_IDS))
_OWNERS = select(metric_objects.c.uid, metric_objects.c.id).where(
    metric_objects.c.uid.in_(bindparam("uids", expanding=True))
)
_KEY_NAMES = select(metric_keys.c.id, metric_keys.c.name).where(metric_keys.c.id.in_(_IDS))
_VALUES = select(attributes.c.object_id, attributes.c.kind, attributes.c.key, attributes.c.value).where(
    attributes.c.object_id.in_(_IDS), attributes.c.kind.in_(bindparam("kinds", expanding=True))
)
_EVENT_METADATA = select(events.c.id, events.c.metadata).where(events.c.id.in_(_IDS))
_COUNTED = ("count", "step")
_PROJECTED = select(attributes.c.object_id, attributes.c.key, attributes.c.number).where(
    attributes.c.object_id.in_(_IDS), attributes.c.kind == "metric"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """A page."""

    json: bytes
    times: tuple[str, ...]
    numbers: tuple[str, ...]


@dataclass(slots=True)
class _Page:
    """A page in the making: cells are texts of JSON by column, or Python values for those of numbers."""

    source: Source
    types: Mapping[str, FieldType]
    ids: Sequence[int]
    object_ids: dict[int, int] = field(default_factory=dict)
    uids: dict[str, int] = field(default_factory=dict)
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


def read_columns(
    conn: Connection, collection: str, wanted: Sequence[Field | Scope], ids: Sequence[int], metrics: Mapping[str, int]
) -> Columns:
    """The columns of the objects with these numbers, in their order.

    Args:
        conn: The transaction.
        collection: What the objects are.
        wanted: Groups and single fields.
        ids: Numbers in the collection's own table.
        metrics: Numbers of the metrics that ``wanted`` names.

    Raises:
        LimitError: It is too much for one answer.
    """
    source = SOURCES[collection]
    page = _Page(source, COLLECTIONS[collection], ids)
    times, numbers = _own_columns(conn, page, wanted)
    fields = [one for one in wanted if isinstance(one, Field)]
    if source.kind is not None and ids:
        parts = {(one.name, one.part): str(one) for one in fields if one.scope is Scope.METRIC}
        if Scope.METRIC in wanted or parts:
            _metric_columns(conn, page, parts, None if Scope.METRIC in wanted else metrics)
        _value_columns(conn, page, wanted)
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


def _own_columns(conn: Connection, page: _Page, wanted: Sequence[Field | Scope]) -> tuple[list[str], list[str]]:
    """Reads what is in the objects' own rows, and their ids; returns the columns of times and of numbers."""
    source = page.source
    names = [one.name for one in wanted if isinstance(one, Field) and one.scope is Scope.ATTRIBUTE]
    if Scope.ATTRIBUTE in wanted:
        names = list(source.attributes)
    names = list(dict.fromkeys(["id", *names]))
    number = source.base.c.id
    found = (
        select(number, objects.c.id.label("object_number"), *(source.attributes[name][0] for name in names))
        .select_from(source.tables({source.attributes[name][1] for name in names}))
        .where(number.in_(_IDS))
    )
    rows = {row[0]: row for row in conn.execute(found, {"ids": list(page.ids)})} if page.ids else {}
    ordered = [rows[one] for one in page.ids]
    page.object_ids = {row[1]: place for place, row in enumerate(ordered)}
    page.uids = {row[2]: place for place, row in enumerate(ordered)}
    cells = list(zip(*ordered, strict=True))[2:] if ordered else [()] * len(names)
    for name, values in zip(names, cells, strict=True):
        page.encoded[name] = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    if source.base is events and Scope.ATTRIBUTE in wanted and page.ids:
        kept = {row.id: row.metadata for row in conn.execute(_EVENT_METADATA, {"ids": list(page.ids)})}
        page.texts["metadata"] = [kept[one] for one in page.ids]
    times = [name for name in names if page.types[name] is FieldType.TIME]
    return times, [name for name in names if page.types[name] is FieldType.NUMBER]


def _metric_columns(
    conn: Connection, page: _Page, parts: Mapping[tuple[str, str], str], only: Mapping[str, int] | None
) -> None:
    """Reads summaries of series: the latest values of all metrics, or only those that are named."""
    owners = {row.id: page.uids[row.uid] for row in conn.execute(_OWNERS, {"uids": list(page.uids)})}
    rows: Sequence[Any] = ()
    if owners and (only is None or only):
        query = _SERIES if only is None else _SERIES.where(metric_series.c.key_id.in_(sorted(only.values())))
        rows = conn.execute(query, {"ids": list(owners)}).all()
    key_ids = {row[1] for row in rows}
    names = {row.id: row.name for row in conn.execute(_KEY_NAMES, {"ids": list(key_ids)})} if key_ids else {}
    latest: dict[int, list[Any]] = {}
    if only is None:
        latest = {key: page.column(page.numbers, f"metrics.{names[key]}", None) for key in sorted(key_ids)}
    named: dict[int, list[tuple[str, list[Any]]]] = {}
    for key, name in names.items():
        found = [(part, column) for (one, part), column in parts.items() if one == name]
        if found:
            named[key] = [(part, page.column(page.numbers, column, None)) for part, column in found]
    for object_id, key, value, flag, least, most, count, step, kind in rows:
        place = owners[object_id]
        if flag:
            value = _NOT_FINITE.get(flag)
        if latest:
            latest[key][place] = value
        for part, column in named.get(key, ()):
            column[place] = _part(part, value, least, most, count, step) if kind == 0 or part in _COUNTED else None
    if page.source.projects_metrics:
        for object_id, name, value in conn.execute(_PROJECTED, {"ids": list(page.object_ids)}):
            place = page.object_ids[object_id]
            wanted = [column for (one, part), column in parts.items() if one == name and part not in _COUNTED]
            for column_name in ([f"metrics.{name}"] if only is None else []) + wanted:
                column = page.column(page.numbers, column_name, None)
                if column[place] is None:
                    column[place] = value


def _part(part: str, latest: Any, least: Any, most: Any, count: int, step: int) -> Any:
    if part == "latest":
        return latest
    if part in _COUNTED:
        return count if part == "count" else step
    value = least if part == "min" else most
    if value in (_GREATEST, -_GREATEST):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _value_columns(conn: Connection, page: _Page, wanted: Sequence[Field | Scope]) -> None:
    """Reads values by key: whole kinds, single keys, and paths into JSON."""
    scopes = [kind for kind, scope in _SCOPES.items() if Scope(scope) in wanted]
    if scopes:
        prefixes = {kind: f"{_SCOPES[kind]}." for kind in scopes}
        found: dict[tuple[str, str], list[str]] = {}
        places = page.object_ids
        for object_id, kind, key, value in conn.execute(_VALUES, {"ids": list(places), "kinds": scopes}).all():
            column = found.get((kind, key))
            if column is None:
                column = found[kind, key] = page.column(page.texts, prefixes[kind] + key, "null")
            column[places[object_id]] = value
    for one in wanted:
        if not isinstance(one, Field) or one.scope not in KINDS or one.scope in wanted:
            continue
        for table in (attributes, attribute_leaves) if "." in one.name else (attributes,):
            at = table.c.path if "path" in table.c else table.c.key
            query = select(table.c.object_id, table.c.value).where(
                table.c.object_id.in_(_IDS), table.c.kind == KINDS[one.scope], at == one.name
            )
            for object_id, value in conn.execute(query, {"ids": list(page.object_ids)}):
                column = page.column(page.texts, str(one), "null")
                if column[page.object_ids[object_id]] == "null":
                    column[page.object_ids[object_id]] = value

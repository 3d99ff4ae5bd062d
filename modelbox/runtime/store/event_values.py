"""What events carry as metadata, by path: rows for `find`.

An event never changes, and is no object; so its metadata needs neither keys nor history as attributes do. Every value
that is not null has a row, a list or object one of its own beside those of what is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection

from modelbox.objects import JsonValue
from modelbox.runtime.store.attributes import MAX_LEAVES, MAX_PATH_CHARS, compared
from modelbox.runtime.store.prepared_rows import PreparedRows
from modelbox.runtime.store.schema import event_values

__all__ = ("add_event_values",)

_ADD = PreparedRows(event_values, ("event_id", "path", "number", "text"))


def add_event_values(conn: Connection, event_id: int, metadata: Mapping[str, JsonValue]) -> None:
    """Adds the rows of a new event; of more than `MAX_LEAVES` values the first ones."""
    # Two ways may lead to one path ({"a.b": 1, "a": {"b": 2}}): the first is known.
    found: dict[str, JsonValue] = {}
    for path, value in _values(metadata.items()):
        if len(found) == MAX_LEAVES:
            break
        if len(path) <= MAX_PATH_CHARS:
            found.setdefault(path, value)
    rows: list[Any] = []
    for path, value in found.items():
        rows += (event_id, path, *compared(value))
    _ADD.insert(conn, rows)


def _values(pairs: Any, above: str = "") -> Iterator[tuple[str, JsonValue]]:
    for key, value in pairs:
        path = f"{above}{key}"
        if value is not None:
            yield path, value
        if isinstance(value, Mapping):
            yield from _values(value.items(), f"{path}.")
        elif isinstance(value, list | tuple):
            yield from _values(enumerate(value), f"{path}.")

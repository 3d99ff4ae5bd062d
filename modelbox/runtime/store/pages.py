"""Reading a whole table, page by page in the order of its key, with bounded memory.

A page ends at a number of rows or of bytes. Long columns are measured before they are read: their lengths come with the
rest of the rows, and they themselves only for as many rows as fit. Both statements must see the same snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Table, and_, bindparam, func, or_, select, tuple_

from modelbox.runtime.store.metric_schema import LongBytes
from modelbox.runtime.store.schema import LongText

__all__ = ("iter_pages",)

Row = tuple[Any, ...]


def iter_pages(conn: Connection, table: Table, *, rows: int, max_bytes: int) -> Iterator[list[Row]]:
    """All rows of a table, in the order of its primary key, with the values of all columns in their order.

    Args:
        conn: A transaction with one snapshot.
        table: Any with a primary key.
        rows: Most rows of a page.
        max_bytes: Most bytes (on SQLite: characters of texts) that long columns have in a page of several rows.
    """
    keys = list(table.primary_key.columns)
    long = [column for column in table.c if isinstance(column.type, LongText | LongBytes)]
    short = [column for column in table.c if column not in long]
    places = {column.name: number for number, column in enumerate([*short, *long])}
    order = [places[column.name] for column in table.c]
    key_places = [places[column.name] for column in keys]
    dialect = conn.dialect.name
    first = select(*short, *[_length(column, dialect) for column in long]).order_by(*keys).limit(rows)
    following = first.where(_compare(keys, "after", dialect))
    upto = _compare(keys, "upto", dialect, inclusive=True)
    contents = select(*long).order_by(*keys).where(upto) if long else None
    parameters: dict[str, Any] = {}
    while True:
        found = [tuple(row) for row in conn.execute(following if parameters else first, parameters)]
        ended = len(found) < rows
        page = _cut(found, len(short), max_bytes)
        if not page:
            return
        last = {f"upto_{number}": page[-1][place] for number, place in enumerate(key_places)}
        if contents is not None:
            heads = [row[: len(short)] for row in page]
            if all(length is None for row in page for length in row[len(short) :]):
                page = [(*head, *[None] * len(long)) for head in heads]
            else:
                bounded = contents.where(_compare(keys, "after", dialect)) if parameters else contents
                texts = conn.execute(bounded, {**parameters, **last}).all()
                page = [(*head, *text) for head, text in zip(heads, texts, strict=True)]
        yield list(page) if order == sorted(order) else [tuple(row[place] for place in order) for row in page]
        if ended and len(page) == len(found):
            return
        parameters = {f"after_{number}": last[f"upto_{number}"] for number in range(len(keys))}


def _length(column: Column[Any], dialect: str) -> ColumnElement[int]:
    return func.length(column) if dialect == "sqlite" else func.octet_length(column)


def _cut(found: Sequence[Row], first_length: int, max_bytes: int) -> Sequence[Row]:
    size = 0
    for number, row in enumerate(found):
        size += sum(length or 0 for length in row[first_length:])
        if number and size > max_bytes:
            return found[:number]
    return found


def _compare(keys: Sequence[Column[Any]], name: str, dialect: str, *, inclusive: bool = False) -> ColumnElement[bool]:
    """Whether a row's key is behind that of the parameters, or at most that one."""
    values = [bindparam(f"{name}_{number}", type_=key.type) for number, key in enumerate(keys)]
    if dialect not in ("mysql", "mariadb"):
        left, right = (tuple_(*keys), tuple_(*values)) if len(keys) > 1 else (keys[0], values[0])
        return left <= right if inclusive else left > right
    # MySQL uses an index for ranges that are spelled out, and none for a comparison of rows.
    choices: list[ColumnElement[bool]] = []
    for number, key in enumerate(keys):
        equal = [keys[before] == values[before] for before in range(number)]
        choices.append(and_(*equal, key < values[number] if inclusive else key > values[number]))
    if inclusive:
        choices.append(and_(*[key == value for key, value in zip(keys, values, strict=True)]))
    return or_(*choices)

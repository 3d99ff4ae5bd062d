"""What the service of finding needs of a database, as a protocol; the rules of `modelbox.runtime.ports` hold here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from modelbox.access import ALL
from modelbox.access import Scope as Visible
from modelbox.find import Expression, Field, Order, Scope

__all__ = ("FindKey", "FindQuery", "FindStore", "FoundColumns")

FindKey = tuple[int | float | str | None, ...]
"""Where a page ended: what its last object is sorted by, and its internal number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindQuery:
    """What is looked for, parsed and checked.

    Attributes:
        within: A namespace, or an object's id or path; empty for all.
        columns: Of the answer, as `modelbox.find.parse_columns` tells them.
        visible: What the caller may see; the rest is as if it were not there.
    """

    collection: str
    where: Expression | None
    order: tuple[Order, ...]
    within: str
    columns: tuple[Field | Scope, ...]
    include_deleted: bool
    visible: Visible = ALL


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundColumns:
    """A page as columns; see `modelbox.tracking.Found`."""

    columns_json: bytes
    time_columns: tuple[str, ...]
    number_columns: tuple[str, ...]
    count: int
    next_key: FindKey | None


class FindStore(Protocol):
    """Objects by what is recorded of them."""

    async def find(self, query: FindQuery, *, limit: int, after: FindKey | None) -> FoundColumns:
        """A page, by the query's order, then oldest first; newest first without an order.

        Raises:
            NotFoundError: There is no object ``within``.
            InvalidError: ``after`` is no key of this query.
            LimitError: It took too long and was ended; or the page has more values than an answer takes: ask for fewer
                objects, or name the columns.
            ServerBusy: Others' queries kept it waiting.
        """

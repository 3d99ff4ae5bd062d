"""The use cases of lineage: which object was made from which others.

Owns the checks of what callers send. That there is no cycle is the store's rule, inside its transaction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from modelbox.access import ALL, Scope
from modelbox.errors import InvalidError, LimitError
from modelbox.refs import shown
from modelbox.runtime.limits import check_text
from modelbox.runtime.record_ports import LineageStore
from modelbox.runtime.services.naming import check_actor, check_object
from modelbox.tracking import Lineage, NewEdge, NewEdges

__all__ = ("MAX_EDGES", "MAX_NODES", "LineageService", "check_edges")

MAX_EDGES = 1000
"""In one call."""
MAX_NODES = 10_000
"""In one answer."""
_MAX_OBJECTS = 100
_TYPE = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_DIRECTIONS = {"ancestors": (True, False), "descendants": (False, True), "both": (True, True)}


def _now() -> datetime:
    return datetime.now(UTC)


def check_edges(edges: Sequence[NewEdge]) -> Sequence[NewEdge]:
    """Returns ``edges`` if they can be edges.

    Raises:
        InvalidError: There is none, a name is not valid, or an edge leads from an object to itself.
        LimitError: There are too many.
    """
    if not edges:
        raise InvalidError("no edges are given")
    if len(edges) > MAX_EDGES:
        raise LimitError(f"{len(edges)} edges in one call, more than the {MAX_EDGES} allowed")
    for edge in edges:
        check_object(edge.source)
        check_object(edge.target)
        if not _TYPE.fullmatch(check_text(edge.type, "type", max_chars=64)):
            raise InvalidError(
                f"{shown(edge.type)} is not the type of an edge: expected a word such as used, produced or derived",
                what="type",
            )
        if edge.source == edge.target:
            raise InvalidError(f"an edge leads from {edge.source} to itself: nothing is made from itself")
    return edges


class LineageService:
    """Edges between objects, and what they lead to.

    Args:
        store: Where they are kept.
        clock: Gives the time of a change, aware and in UTC.
    """

    def __init__(self, store: LineageStore, *, clock: Callable[[], datetime] = _now) -> None:
        self._store = store
        self._clock = clock

    async def add_edges(self, new: NewEdges, *, actor: str, scope: Scope = ALL) -> int:
        """Adds edges, all or none; returns how many were not there before.

        Raises:
            NotFoundError: An object does not exist.
            ConflictError: The edges would close a cycle; ``cycle`` lists the ids along it, of what ``scope`` shows.
        """
        check_edges(new.edges)
        return await self._store.add_edges(new, actor=check_actor(actor), at=self._clock(), scope=scope)

    async def remove_edges(self, edges: Sequence[NewEdge], *, actor: str) -> int:
        """Removes edges; returns how many there were. Those that are not there change nothing.

        Raises:
            NotFoundError: An object does not exist.
        """
        check_edges(edges)
        return await self._store.remove_edges(edges, actor=check_actor(actor), at=self._clock())

    async def get_lineage(
        self, objects: Sequence[str], *, direction: str = "ancestors", max_depth: int = 0, scope: Scope = ALL
    ) -> Lineage:
        """What some objects came of, or what came of them.

        Args:
            objects: 1 to 100 of them.
            direction: ``ancestors``, ``descendants`` or ``both``.
            max_depth: How many edges away at most; 0 for no bound.
            scope: What the caller may see; the rest is as if it were not there, with what lies only behind it.

        Returns:
            At most 10,000 nodes, the nearest first; ``truncated`` says that there are more.

        Raises:
            NotFoundError: An object does not exist.
        """
        if direction not in _DIRECTIONS:
            raise InvalidError(
                f"{shown(direction)} is not a direction: expected ancestors, descendants or both", what="direction"
            )
        if not 1 <= len(objects) <= _MAX_OBJECTS:
            raise LimitError(f"lineage is asked of 1 to {_MAX_OBJECTS} objects at once, not {len(objects)}")
        if isinstance(max_depth, bool) or not isinstance(max_depth, int) or not 0 <= max_depth < 2**31:
            raise InvalidError(f"{shown(max_depth)} is not a depth: expected 0 or more", what="max_depth")
        for text in objects:
            check_object(text)
        up, down = _DIRECTIONS[direction]
        return await self._store.get_lineage(
            tuple(objects), up=up, down=down, max_depth=max_depth, max_nodes=MAX_NODES, scope=scope
        )

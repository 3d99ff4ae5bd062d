"""Lineage in SQL: typed edges between objects, and walks along them.

Invariant: the edges never close a cycle. `write_edges` checks that behind the lock of the feed's head, which every
change takes, so that two writers cannot close one together.

Walks go several levels at a time by a recursive query, since databases bound the depth of one (MySQL at 1000), and
level by level where many paths lead to the same objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, insert, literal, select

from modelbox.access import ALL, Scope
from modelbox.errors import ConflictError, InvalidError
from modelbox.feed import Action, Kind
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.objects import ObjectRow, find_objects, seen_object
from modelbox.runtime.store.rows import from_us
from modelbox.runtime.store.schema import lineage_edges, objects
from modelbox.runtime.store.titles import titles_of
from modelbox.runtime.store.visible import Visible, find_visible
from modelbox.runtime.store.writing import Writing
from modelbox.tracking import Lineage, LineageEdge, LineageNode, NewEdge, NewEdges, ObjectKind, kind_of_id

__all__ = (
    "Link",
    "SqlLineageStore",
    "add_edges",
    "find_missing",
    "get_lineage",
    "has_ancestor",
    "remove_edges",
    "write_edges",
)

_IN_CHUNK = 500
_LEVELS = 32
_FIRST_ROOM = 2000
_SHOWN = 12
_HIDDEN = "(not yours to see)"
_ANCESTORS = 10_000

_Edge = tuple[int, int, str]

_source, _target = lineage_edges.c.source_id, lineage_edges.c.target_id
_ADD = insert(lineage_edges)
_REMOVE = delete(lineage_edges).where(
    _source == bindparam("the_source"),
    _target == bindparam("the_target"),
    lineage_edges.c.type == bindparam("the_type"),
)
_OUT = select(lineage_edges).where(_source.in_(bindparam("ids", expanding=True)))
_IN = select(lineage_edges).where(_target.in_(bindparam("ids", expanding=True)))
_WITH_OUT = select(_source).where(_source.in_(bindparam("ids", expanding=True))).distinct()
_WITH_IN = select(_target).where(_target.in_(bindparam("ids", expanding=True))).distinct()
_LOCK = (
    select(objects.c.id)
    .where(objects.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(objects.c.id)
    .with_for_update()
)
_NODES = select(objects.c.id, objects.c.uid, objects.c.kind).where(objects.c.id.in_(bindparam("ids", expanding=True)))


def _reach(begin: Any, end: Any, visible: Visible | None = None) -> Select[Any]:
    """Objects within ``levels`` edges of some, each with the lengths of all paths to it, the shortest first."""
    first = select(end.label("id"), literal(1).label("depth")).where(begin.in_(bindparam("ids", expanding=True)))
    found = _only(first, end, visible).cte("found", recursive=True)
    further = select(end, found.c.depth + 1).join(found, begin == found.c.id)
    found = found.union(_only(further, end, visible).where(found.c.depth < bindparam("levels")))
    return select(found.c.id, found.c.depth)


def _next(begin: Any, end: Any, visible: Visible | None = None) -> Select[Any]:
    """Objects one edge away from some."""
    return _only(select(end), end, visible).where(begin.in_(bindparam("ids", expanding=True))).distinct()


def _only(query: Select[Any], end: Any, visible: Visible | None) -> Select[Any]:
    """The edges that end at what may be seen."""
    if visible is None:
        return query
    return query.join(objects, objects.c.id == end).where(visible.of_object(objects.c.namespace_id, objects.c.uid))


_REACH_DOWN = _reach(_source, _target)
_REACH_UP = _reach(_target, _source)
_NEXT_DOWN = _next(_source, _target)
_NEXT_UP = _next(_target, _source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An edge whose objects were found."""

    source: ObjectRow
    target: ObjectRow
    type: str

    @property
    def key(self) -> _Edge:
        """Its row's primary key."""
        return (self.source.id, self.target.id, self.type)

    @property
    def path(self) -> str:
        """Its name in the feed."""
        return f"{self.source.uid}->{self.target.uid}:{self.type}"


# -- writing ---------------------------------------------------------------------------------------------------------


def add_edges(conn: Connection, new: NewEdges, *, actor: str, at: datetime, scope: Scope = ALL) -> int:
    """See `modelbox.runtime.record_ports.LineageStore.add_edges`."""
    links = _links(conn, new.edges)
    _lock(conn, {link.source.id for link in links})
    missing = find_missing(conn, links)
    if not missing:
        return 0
    writing = Writing(conn, actor=actor, at=at)
    write_edges(writing, missing, scope=scope)
    writing.finish()
    return len(missing)


def remove_edges(conn: Connection, edges: Sequence[NewEdge], *, actor: str, at: datetime) -> int:
    """See `modelbox.runtime.record_ports.LineageStore.remove_edges`."""
    links = _links(conn, edges)
    _lock(conn, {link.source.id for link in links})
    there = _there(conn, links)
    if not there:
        return 0
    removed = len(there)
    writing = Writing(conn, actor=actor, at=at)
    for link in links:
        row = there.pop(link.key, None)
        if row is not None:
            conn.execute(_REMOVE, {"the_source": link.source.id, "the_target": link.target.id, "the_type": link.type})
            edge = _edge_of(row, {link.source.id: link.source.uid, link.target.id: link.target.uid})
            writing.note(link.target.namespace, link.path, Kind.LINEAGE, Action.DELETED, edge)
    writing.finish()
    return removed


def find_missing(conn: Connection, links: Iterable[Link]) -> list[Link]:
    """Those of some edges that are not there, each once."""
    unique = {link.key: link for link in links}
    there = _there(conn, list(unique.values()))
    return [link for key, link in unique.items() if key not in there]


def write_edges(writing: Writing, missing: Sequence[Link], *, scope: Scope = ALL) -> None:
    """Adds edges that are not there, and notes them.

    Raises:
        InvalidError: An edge leads from an object to itself.
        ConflictError: They would close a cycle; ``cycle`` lists the ids along it, of what ``scope`` shows.
    """
    if not missing:
        return
    for link in missing:
        if link.source.id == link.target.id:
            raise InvalidError(f"an edge leads from {link.source.uid} to itself: nothing is made from itself")
    writing.conn.execute(
        _ADD,
        [
            {
                "source_id": link.source.id,
                "target_id": link.target.id,
                "type": link.type,
                "created_at_us": writing.at_us,
                "created_by": writing.actor,
                "mod_rev": writing.rev,
            }
            for link in missing
        ],
    )
    _refuse_cycles(writing.conn, missing, scope)
    for link in missing:
        edge = LineageEdge(
            source=link.source.uid,
            target=link.target.uid,
            type=link.type,
            created_at=from_us(writing.at_us),
            created_by=writing.actor,
        )
        writing.note(link.target.namespace, link.path, Kind.LINEAGE, Action.CREATED, edge)


def _links(conn: Connection, edges: Sequence[NewEdge]) -> list[Link]:
    rows = _objects(conn, [text for edge in edges for text in (edge.source, edge.target)])
    return [Link(source=rows[edge.source], target=rows[edge.target], type=edge.type) for edge in edges]


def _objects(conn: Connection, texts: Sequence[str], visible: Visible | None = None) -> dict[str, ObjectRow]:
    """The objects by what they were called, in the bin or not.

    Raises:
        NotFoundError: There is no such object, or none that may be seen.
    """
    unique = list(dict.fromkeys(texts))
    ids = [text for text in unique if kind_of_id(text) is not None]
    found: dict[str, ObjectRow] = {}
    for some in _chunks(ids):
        found |= find_objects(conn, some)
    if visible is not None:
        shown = _shown(conn, {row.id for row in found.values()}, visible)
        found = {text: row for text, row in found.items() if row.id in shown}
    for text in unique:
        if text not in found:
            found[text] = seen_object(conn, text, visible, deleted_ok=True)
    return found


def _lock(conn: Connection, ids: set[int]) -> None:
    for some in _chunks(sorted(ids)):
        conn.execute(_LOCK, {"ids": some}).all()


def _there(conn: Connection, links: Sequence[Link]) -> dict[_Edge, Any]:
    """The rows of those edges that there are."""
    wanted = {link.key for link in links}
    there: dict[_Edge, Any] = {}
    # By their targets: what many things are made from has many more edges than what is made from few.
    for some in _chunks(sorted({link.target.id for link in links})):
        for row in conn.execute(_IN, {"ids": some}):
            if (row.source_id, row.target_id, row.type) in wanted:
                there[row.source_id, row.target_id, row.type] = row
    return there


def _refuse_cycles(conn: Connection, added: Sequence[Link], scope: Scope) -> None:
    # A cycle goes through a new edge, and so leads on from its target and into its source. Mostly one of the two is
    # new and has no other edge.
    leads_on = _those(conn, _WITH_OUT, {link.target.id for link in added})
    leads_in = _those(conn, _WITH_IN, {link.source.id for link in added})
    suspects = [link for link in added if link.target.id in leads_on and link.source.id in leads_in]
    cycle = _find_cycle(*_smaller_side(conn, suspects)) if suspects else []
    if not cycle:
        return
    nodes = {row.id: row for some in _chunks(sorted(set(cycle))) for row in conn.execute(_NODES, {"ids": some})}
    # What may not be seen closes a cycle all the same.
    shown = _shown(conn, set(cycle), find_visible(conn, scope))
    titles = titles_of(conn, {number: ObjectKind(row.kind) for number, row in nodes.items() if number in shown})
    names = [(titles.get(number) or nodes[number].uid) if number in shown else _HIDDEN for number in cycle]
    if len(names) > _SHOWN:
        names = [*names[: _SHOWN - 2], "…", names[-1]]
    raise ConflictError(
        f"these edges would close a cycle: {' → '.join(names)}; nothing is made from what was made from it",
        cycle=[nodes[number].uid for number in cycle if number in shown],
    )


def _shown(conn: Connection, ids: set[int], visible: Visible | None) -> set[int]:
    """Those of some objects that may be seen."""
    if visible is None:
        return ids
    query = select(objects.c.id).where(visible.of_object(objects.c.namespace_id, objects.c.uid))
    return {
        number
        for some in _chunks(sorted(ids))
        for number in conn.execute(query.where(objects.c.id.in_(some))).scalars()
    }


def _smaller_side(conn: Connection, suspects: Sequence[Link]) -> tuple[dict[int, list[int]], set[int]]:
    """A part of the graph that holds every cycle through some edges: targets by source, and where to begin.

    All of such a cycle is both above the edge's source and below its target. One of the two may be most of what there
    is (the runs that used a popular dataset), so both are tried, and given more room in turn.
    """
    room = _FIRST_ROOM
    while True:
        for down in (False, True):
            starts = {(link.target if down else link.source).id for link in suspects}
            depths, more = _walk(conn, starts, down=down, max_depth=0, max_nodes=room)
            if not more:
                targets: dict[int, list[int]] = {}
                for row in _edges(conn, depths, down=down, limit=None):
                    targets.setdefault(row.source_id, []).append(row.target_id)
                return targets, starts
        room *= 8


def _those(conn: Connection, query: Select[Any], ids: set[int]) -> set[int]:
    return {row[0] for some in _chunks(sorted(ids)) for row in conn.execute(query, {"ids": some})}


def _find_cycle(targets: Mapping[int, Sequence[int]], starts: Iterable[int]) -> list[int]:
    """The objects along a cycle, the first one again at the end; empty if there is none."""
    done: set[int] = set()
    for start in sorted(starts):
        if start in done:
            continue
        path, on_path = [start], {start}
        waiting = [iter(targets.get(start, ()))]
        while waiting:
            following = next(waiting[-1], None)
            if following is None:
                waiting.pop()
                left = path.pop()
                on_path.discard(left)
                done.add(left)
            elif following in on_path:
                return [*path[path.index(following) :], following]
            elif following not in done:
                path.append(following)
                on_path.add(following)
                waiting.append(iter(targets.get(following, ())))
    return []


# -- reading ---------------------------------------------------------------------------------------------------------


def get_lineage(
    conn: Connection,
    texts: Sequence[str],
    *,
    up: bool,
    down: bool,
    max_depth: int,
    max_nodes: int,
    scope: Scope = ALL,
) -> Lineage:
    """See `modelbox.runtime.record_ports.LineageStore.get_lineage`."""
    visible = find_visible(conn, scope)
    seeds = {row.id for row in _objects(conn, texts, visible).values()}
    depths: dict[int, int] = dict.fromkeys(seeds, 0)
    edges: dict[_Edge, Any] = {}
    truncated = False
    for wanted, direction in ((up, False), (down, True)):
        if wanted:
            room = max_nodes - len(depths) + len(seeds)
            walked, more = _walk(conn, seeds, down=direction, max_depth=max_depth, max_nodes=room, visible=visible)
            truncated = truncated or more
            for number, depth in walked.items():
                depths[number] = min(depth, depths.get(number, depth))
            for row in _edges(conn, walked, down=direction, limit=10 * max_nodes if more else None):
                edges[row.source_id, row.target_id, row.type] = row
    found = {row.id: row for some in _chunks(sorted(depths)) for row in conn.execute(_NODES, {"ids": some})}
    kinds = {number: ObjectKind(row.kind) for number, row in found.items()}
    titles = titles_of(conn, kinds)
    uids = {number: row.uid for number, row in found.items()}
    return Lineage(
        nodes=tuple(
            LineageNode(id=uids[number], kind=kinds[number], title=titles.get(number, ""), depth=depths[number])
            for number in sorted(found, key=lambda number: (depths[number], number))
        ),
        edges=tuple(_edge_of(edges[key], uids) for key in sorted(edges)),
        truncated=truncated,
    )


def has_ancestor(conn: Connection, seeds: Sequence[int], kind: ObjectKind) -> bool:
    """Whether some objects, or one of the nearest ten thousand that they were made from, are of a kind."""
    walked, _ = _walk(conn, set(seeds), down=False, max_depth=0, max_nodes=_ANCESTORS)
    return any(
        ObjectKind(row.kind) is kind
        for some in _chunks(sorted(walked))
        for row in conn.execute(_NODES, {"ids": some}).all()
    )


def _edge_of(row: Any, uids: Mapping[int, str]) -> LineageEdge:
    return LineageEdge(
        source=uids[row.source_id],
        target=uids[row.target_id],
        type=row.type,
        created_at=from_us(row.created_at_us),
        created_by=row.created_by,
    )


def _walk(
    conn: Connection,
    seeds: set[int],
    *,
    down: bool,
    max_depth: int,
    max_nodes: int,
    visible: Visible | None = None,
) -> tuple[dict[int, int], bool]:
    """Everything that can be reached, with its least distance; and whether ``max_nodes`` cut something off.

    Args:
        conn: The transaction.
        seeds: Where to begin; they are part of the answer.
        down: From sources to targets, or back.
        max_depth: 0 for no bound.
        max_nodes: The nearest are kept.
        visible: What may be met; all of it for None.
    """
    reach, following = (_REACH_DOWN, _NEXT_DOWN) if down else (_REACH_UP, _NEXT_UP)
    if visible is not None:
        begin, end = (_source, _target) if down else (_target, _source)
        reach, following = _reach(begin, end, visible), _next(begin, end, visible)
    depths = dict.fromkeys(seeds, 0)
    frontier, depth = set(seeds), 0
    while frontier and (not max_depth or depth < max_depth):
        levels = min(_LEVELS, max_depth - depth) if max_depth else _LEVELS
        room = max_nodes - len(depths)
        found = _leap(conn, frontier, reach, levels=levels, room=room)
        if found is None:
            levels, found = 1, _step(conn, frontier, following, limit=room + 1 + len(depths))
        news = {number: depth + steps for number, steps in found.items() if number not in depths}
        if len(news) > room:
            nearest = sorted(news, key=lambda number: (news[number], number))[:room]
            depths.update((number, news[number]) for number in nearest)
            return depths, True
        depths.update(news)
        depth += levels
        frontier = {number for number, at in news.items() if at == depth}
    return depths, False


def _leap(conn: Connection, frontier: set[int], query: Select[Any], *, levels: int, room: int) -> dict[int, int] | None:
    """Distances of what lies within some levels; None where that would be too many rows for too few objects."""
    limit = 2 * room + 100
    found: dict[int, int] = {}
    rows = 0
    for some in _chunks(sorted(frontier)):
        for number, steps in conn.execute(query.limit(limit), {"ids": some, "levels": levels}).all():
            found[number] = min(steps, found.get(number, steps))
            rows += 1
        if rows >= limit:
            return None
    return found


def _step(conn: Connection, frontier: set[int], query: Select[Any], *, limit: int) -> dict[int, int]:
    """What lies one edge away."""
    found: dict[int, int] = {}
    for some in _chunks(sorted(frontier)):
        found.update((row[0], 1) for row in conn.execute(query.limit(limit), {"ids": some}))
        if len(found) >= limit:
            break
    return found


def _edges(conn: Connection, nodes: Mapping[int, int], *, down: bool, limit: int | None) -> list[Any]:
    """The edges between objects that a walk found."""
    query = _OUT if down else _IN
    rows: list[Any] = []
    for some in _chunks(sorted(nodes)):
        found = conn.execute(query.limit(limit), {"ids": some})
        rows += [row for row in found if row.source_id in nodes and row.target_id in nodes]
        if limit is not None and len(rows) >= limit:
            break
    return rows


def _chunks(items: Sequence[Any]) -> Iterable[list[Any]]:
    return (list(items[start : start + _IN_CHUNK]) for start in range(0, len(items), _IN_CHUNK))


class SqlLineageStore:
    """`modelbox.runtime.record_ports.LineageStore` over a database; see there for each method."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def add_edges(self, new: NewEdges, *, actor: str, at: datetime, scope: Scope = ALL) -> int:
        """See the port."""
        return await self._db.write(lambda conn: add_edges(conn, new, actor=actor, at=at, scope=scope))

    async def remove_edges(self, edges: Sequence[NewEdge], *, actor: str, at: datetime) -> int:
        """See the port."""
        return await self._db.write(lambda conn: remove_edges(conn, edges, actor=actor, at=at))

    async def get_lineage(
        self,
        objects: Sequence[str],
        *,
        up: bool,
        down: bool,
        max_depth: int,
        max_nodes: int,
        scope: Scope = ALL,
    ) -> Lineage:
        """See the port."""
        return await self._db.scan(
            lambda conn: get_lineage(
                conn, objects, up=up, down=down, max_depth=max_depth, max_nodes=max_nodes, scope=scope
            )
        )

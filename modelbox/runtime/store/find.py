"""Finding objects in SQL: which index a query begins with, and pages that are stable under it.

A page is ordered by the query's sort keys, then by the collection's number, so that its key (those values) is a place
between objects: whatever is added or removed, the next page goes on there. How a page is computed is chosen anew each
time and does not change the order:

* A condition that few objects fulfil (counted up to a bound, in its index) is where the query begins.
* Otherwise a sort key that an index has in order is walked until the page is full; then come the objects without it.
* Otherwise the collection is walked: newest first where there is no order, or whole, to sort it.

No statistics of the database are needed. Conditions that a query does not begin with are written so that no planner
takes them for a way in (``deleted_at_us + 0``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Select, and_, case, func, or_, select

from modelbox.errors import InvalidError, LimitError, NotFoundError
from modelbox.find import And, Comparison, Expression
from modelbox.runtime.find_ports import FindKey, FindQuery, FoundColumns
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.find_columns import read_columns
from modelbox.runtime.store.find_sources import SOURCES, Expr, Source
from modelbox.runtime.store.find_terms import Predicate, Term, TermCompiler, metric_ids, metric_names
from modelbox.runtime.store.objects import ObjectRow, seen_object
from modelbox.runtime.store.schema import datasets, experiments, namespaces, objects, runs
from modelbox.runtime.store.visible import Visible, find_visible
from modelbox.tracking import ObjectKind

__all__ = ("SqlFindStore", "find_page")

_FEW = 2000
"""Up to so many objects are looked at one by one."""


@dataclass(frozen=True, slots=True)
class _Condition:
    """One of the conditions that all must hold.

    Attributes:
        probe: Asked of an object that another way led to.
        begin: The same, as a way to the objects; None if there is no index for it.
        rows: What `begin` would lead to, to count.
    """

    probe: Predicate
    begin: Predicate | None = None
    rows: Select[Any] | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    source: Source
    terms: list[Term]
    conditions: list[_Condition]
    needs: set[str]


def find_page(conn: Connection, query: FindQuery, limit: int, after: FindKey | None) -> FoundColumns:
    """One page, as `FindStore.find` tells."""
    source = SOURCES[query.collection]
    metrics = metric_ids(conn, metric_names(query.where, query.order))
    compiler = TermCompiler(source, metrics)
    terms = compiler.terms(query.order)
    conditions = [_condition(compiler, part) for part in _parts(query.where)]
    visible = find_visible(conn, query.visible)
    if visible is not None:
        conditions.append(_seen(source, visible))
    if query.within:
        conditions.append(_within(conn, source, query.within, visible, include_deleted=query.include_deleted))
    if not query.include_deleted:
        conditions.append(_Condition((objects.c.deleted_at_us + 0).is_(None)))
    _check_key(after, len(terms))
    plan = _Plan(source, terms, conditions, compiler.needs)
    rows = _rows(conn, plan, limit + 1, after)
    page = rows[:limit]
    columns = read_columns(conn, query.collection, query.columns, [row[0] for row in page])
    return FoundColumns(
        columns_json=columns.json,
        time_columns=columns.times,
        number_columns=columns.numbers,
        count=len(page),
        next_key=(*page[-1][1:], page[-1][0]) if len(rows) > limit else None,
    )


def _parts(where: Expression | None) -> Sequence[Expression]:
    if where is None:
        return ()
    return [part for one in where.parts for part in _parts(one)] if isinstance(where, And) else [where]


def _condition(compiler: TermCompiler, part: Expression) -> _Condition:
    driver = compiler.driver(part) if isinstance(part, Comparison) else None
    return _Condition(compiler.predicate(part), *(driver or ()))


def _check_key(after: FindKey | None, terms: int) -> None:
    if after is None:
        return
    number = after[-1] if len(after) == terms + 1 else None
    if isinstance(number, bool) or not isinstance(number, int):
        raise InvalidError(
            "the page token is not one of this query: pass the one of the page before", what="page token"
        )


# -- what is seen ----------------------------------------------------------------------------------------------------


def _seen(source: Source, visible: Visible) -> _Condition:
    """What the caller may see."""
    if source.kind is None:
        return _Condition(visible.of_object(source.namespace_id + 0, objects.c.uid))
    if source.model_id is not None and visible.model_ids:
        return _Condition(visible.of_model(source.namespace_id + 0, source.model_id + 0))
    begin = and_(visible.of_namespace(objects.c.namespace_id), objects.c.kind == source.kind)
    return _Condition(visible.of_namespace(source.namespace_id + 0), begin, select(objects.c.id).where(begin))


# -- within ----------------------------------------------------------------------------------------------------------


def _within(
    conn: Connection, source: Source, text: str, visible: Visible | None, *, include_deleted: bool
) -> _Condition:
    row = _place(conn, source, text, visible, include_deleted=include_deleted)
    if row.kind is ObjectKind.NAMESPACE:
        begin = and_(objects.c.namespace_id == row.namespace_id, objects.c.kind == (source.kind or ""))
        rows = select(objects.c.id).where(begin)
        probe = (source.namespace_id + 0) == row.namespace_id
        return _Condition(probe) if source.kind is None else _Condition(probe, begin, rows)
    if source.kind is None:
        return _Condition(source.parent_id == row.id)
    if source.kind is ObjectKind.RUN and row.kind is ObjectKind.RUN:
        own = runs.alias()
        children = select(own.c.id).where(own.c.parent_run_id == row.id)
        return _Condition((runs.c.parent_run_id + 0) == row.id, objects.c.id.in_(children), children)
    # What belongs to it, and what belongs to that: the checkpoints of an experiment's runs.
    middle = objects.alias()
    parents = select(middle.c.id).where(or_(middle.c.id == row.id, middle.c.parent_id == row.id))
    direct = source.kind in (ObjectKind.RUN, ObjectKind.VERSION, ObjectKind.DATASET_VERSION)
    begin = objects.c.parent_id == row.id if direct else objects.c.parent_id.in_(parents)
    probe = (objects.c.parent_id + 0) == row.id if direct else (objects.c.parent_id + 0).in_(parents)
    return _Condition(probe, begin, select(objects.c.id).where(begin))


def _place(conn: Connection, source: Source, text: str, visible: Visible | None, *, include_deleted: bool) -> ObjectRow:
    """The object that ``text`` names: ``namespace/name`` is what the collection's objects belong to.

    What the caller may not see is answered as what is not there.
    """
    tables = {
        ObjectKind.RUN: experiments,
        ObjectKind.CHECKPOINT: experiments,
        ObjectKind.DATASET_VERSION: datasets,
    }
    table = tables.get(source.kind) if source.kind is not None else None
    if table is not None and "/" in text and "@" not in text:
        namespace, _, name = text.partition("/")
        query = (
            select(objects.c.uid)
            .join_from(table, objects, objects.c.id == table.c.id)
            .join(namespaces, namespaces.c.id == table.c.namespace_id)
            .where(namespaces.c.name == namespace, table.c.name == name)
        )
        if visible is not None:
            query = query.where(visible.of_namespace(objects.c.namespace_id))
        uid = conn.execute(query).scalar()
        if uid is None:
            what = table.name[:-1]
            raise NotFoundError(f"no {what} {text!a}: name one that there is, or its id", what=what, name=text)
        text = uid
    return seen_object(conn, text, visible, deleted_ok=include_deleted)


# -- pages -----------------------------------------------------------------------------------------------------------


def _rows(conn: Connection, plan: _Plan, limit: int, after: FindKey | None) -> list[Any]:
    """Rows of a number and the sort keys."""
    first = _fewest(conn, plan.conditions)
    if first is None and plan.terms and plan.terms[0].walk is not None:
        return _walked(conn, plan, limit, after)
    where = [one.begin if one is first and one.begin is not None else one.probe for one in plan.conditions]
    # What an index begins with is met in `objects`; else the collection is walked by its own table.
    begins_in_objects = first is not None and plan.source.kind is not None
    tables = plan.source.tables(plan.needs, begin=objects if begins_in_objects else None)
    return list(conn.execute(_page(plan, tables, plan.terms, where, limit, after)).all())


def _fewest(conn: Connection, conditions: Sequence[_Condition]) -> _Condition | None:
    best, least = None, _FEW
    for one in conditions:
        if one.rows is None:
            continue
        some = one.rows.limit(least).subquery()
        count = conn.execute(select(func.count()).select_from(some)).scalar_one()
        if count < least:
            best, least = one, max(count, 1)
    return best


def _page(
    plan: _Plan, tables: Any, terms: Sequence[Term], where: Sequence[Predicate], limit: int, after: FindKey | None
) -> Select[Any]:
    number = plan.source.base.c.id
    query = select(number, *(term.value for term in terms)).select_from(tables).where(*where)
    if not plan.terms:
        query = query.order_by(number.desc())
        return (query if after is None else query.where(number < after[0])).limit(limit)
    for term in terms:
        query = query.order_by(case((term.value.is_(None), 1), else_=0), _direction(term.value, term.descending))
    if after is not None:
        query = query.where(_behind(terms, after, number))
    return query.order_by(number).limit(limit)


def _walked(conn: Connection, plan: _Plan, limit: int, after: FindKey | None) -> list[Any]:
    """The objects along the first sort key's index, then those that are not in it."""
    term, *others = plan.terms
    walk = term.walk
    assert walk is not None
    number = plan.source.base.c.id if walk.number is None else walk.number
    probes = [one.probe for one in plan.conditions]
    rows: list[Any] = []
    if after is None or after[0] is not None:
        query = (
            select(number, walk.value, *(one.value for one in others))
            .select_from(plan.source.tables(plan.needs, begin=walk.tables))
            .where(*walk.where, *probes)
            .order_by(_direction(walk.value, term.descending))
        )
        for one in others:
            query = query.order_by(case((one.value.is_(None), 1), else_=0), _direction(one.value, one.descending))
        if after is not None:
            value = after[0]
            query = query.where(
                walk.value <= value if term.descending else walk.value >= value,
                _behind([Term(walk.value, term.descending), *others], after, number),
            )
        rows = list(conn.execute(query.order_by(number).limit(limit)).all())
    if len(rows) < limit:
        behind = None if after is None or after[0] is not None else after[1:]
        if others and others[0].walk is not None:
            rest = replace(plan, terms=others, conditions=[*plan.conditions, _Condition(walk.missing)])
            left: Sequence[Any] = _walked(conn, rest, limit - len(rows), behind)
        else:
            tables = plan.source.tables(plan.needs)
            left = conn.execute(_page(plan, tables, others, [walk.missing, *probes], limit - len(rows), behind)).all()
        rows.extend((row[0], None, *row[1:]) for row in left)
    return rows


def _direction(value: Expr, descending: bool) -> Expr:
    return value.desc() if descending else value.asc()


def _behind(terms: Sequence[Term], after: FindKey, number: Expr) -> Predicate:
    """Whether a row comes behind a place in the order."""
    behind: Predicate = number > after[-1]
    for term, value in reversed(list(zip(terms, after[:-1], strict=True))):
        if value is None:
            behind = and_(term.value.is_(None), behind)
        else:
            further = term.value < value if term.descending else term.value > value
            behind = or_(further, term.value.is_(None), and_(term.value == value, behind))
    return behind


class SqlFindStore:
    """`modelbox.runtime.find_ports.FindStore` over a `Database` that has the metrics' tables too.

    Args:
        database: Where the objects are.
        limit_s: Seconds that one page may take.
    """

    def __init__(self, database: Database, *, limit_s: float = 10.0) -> None:
        self._database = database
        self._limit_s = limit_s

    async def find(self, query: FindQuery, *, limit: int, after: FindKey | None) -> FoundColumns:
        """See `FindStore.find`."""
        try:
            return await self._database.search(lambda conn: find_page(conn, query, limit, after), limit_s=self._limit_s)
        except TimeoutError as exc:
            raise LimitError(
                f"the query took more than {self._limit_s:g} s and was ended: look `within` less, sort by the latest "
                "value of a metric or by a key, add a condition that few objects fulfil, or raise find_timeout_s of "
                "the server",
                what="time",
                limit_s=self._limit_s,
            ) from exc

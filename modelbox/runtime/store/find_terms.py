"""Comparisons and sort keys of the find language as expressions of SQL.

Invariants: a predicate made here is true or false and never NULL, so that NOT means what it says. Keys are looked up in
correlated subqueries, each one step into an index; `TermCompiler.driver` gives the same comparison as a set of objects
instead, for the one that a query begins with.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Select, and_, exists, false, func, not_, or_, select, true
from sqlalchemy.sql.selectable import NamedFromClause

from modelbox.find import And, Comparison, Expression, Field, FieldType, Not, Op, Or, Order, Scalar, Scope, wildcards
from modelbox.runtime.store.find_sources import Expr, Source
from modelbox.runtime.store.metric_schema import metric_keys, metric_objects, metric_series
from modelbox.runtime.store.schema import attribute_leaves, attributes, event_values, events, objects

__all__ = ("KINDS", "Predicate", "Term", "TermCompiler", "Walk", "metric_ids", "metric_names")

Predicate = ColumnElement[bool]
_Alias: TypeAlias = NamedFromClause[Any]

KINDS = {Scope.PARAM: "param", Scope.TAG: "tag", Scope.LABEL: "label", Scope.METADATA: "metadata"}
_METRIC_KIND = "metric"
_NAN_FLAG = 3
_PARTS = {"latest": "latest", "min": "min", "max": "max", "count": "count", "step": "latest_step"}
_PROJECTED_PARTS = ("latest", "min", "max")
_TEXT_CHARS = 255
_POSITIVE = frozenset([Op.EQ, Op.GT, Op.GE, Op.LT, Op.LE, Op.IN])


@dataclass(frozen=True, slots=True)
class Walk:
    """An index that has the values of a sort key in order.

    Attributes:
        value: The key, never NULL under ``where``.
        tables: With ``objects`` among them.
        missing: Holds for the objects that the walk does not meet.
        number: The collection's number, where the index has it in order behind the value.
    """

    value: Expr
    tables: Any
    where: tuple[Predicate, ...]
    missing: Predicate
    number: Expr | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """A sort key: an expression that is NULL where there is no value."""

    value: Expr
    descending: bool
    walk: Walk | None = None


def metric_names(where: Expression | None, order: Sequence[Order]) -> set[str]:
    """The metrics that a query compares or sorts by."""
    fields = [*_fields(where), *(one.field for one in order)]
    return {field.name for field in fields if field.scope is Scope.METRIC}


def _fields(where: Expression | None) -> Iterator[Field]:
    match where:
        case Comparison():
            yield where.field
        case And(parts) | Or(parts):
            for part in parts:
                yield from _fields(part)
        case Not(part):
            yield from _fields(part)


def metric_ids(conn: Connection, names: set[str]) -> dict[str, int]:
    """The numbers of metrics by name, of those that there are."""
    if not names:
        return {}
    rows = conn.execute(select(metric_keys.c.name, metric_keys.c.id).where(metric_keys.c.name.in_(sorted(names))))
    return {row.name: row.id for row in rows}


class TermCompiler:
    """Compiles the comparisons and sort keys of one query.

    Args:
        source: The collection.
        metrics: Numbers of the metrics that there are, by name.

    Attributes:
        needs: The joins that what was compiled needs.
    """

    def __init__(self, source: Source, metrics: Mapping[str, int]) -> None:
        self._source = source
        self._metrics = metrics
        self.needs: set[str] = set()

    # -- predicates ------------------------------------------------------------------------------------------------

    def predicate(self, where: Expression) -> Predicate:
        """Whether an object is let through."""
        match where:
            case And(parts):
                return and_(*map(self.predicate, parts))
            case Or(parts):
                return or_(*map(self.predicate, parts))
            case Not(part):
                return not_(self.predicate(part))
            case Comparison():
                return self._comparison(where)

    def _comparison(self, one: Comparison) -> Predicate:
        field, op, values = one.field, one.op, one.values
        if field.scope is Scope.ATTRIBUTE:
            column = self._attribute(field.name)
            present: Predicate = column.is_not(None)
            if values == (None,):
                return column.is_(None) if op is Op.EQ else present
            is_text = field.type is FieldType.TEXT
            found = _matches(op, values, present, number=None if is_text else column, text=column if is_text else None)
            return and_(present, found)
        absent = values == (None,) and op is Op.EQ
        somewhere = or_(false(), *(exists(rows.correlate(objects, events)) for rows in self._rows(one)))
        return not_(somewhere) if absent else somewhere

    def _attribute(self, name: str) -> Expr:
        expression, need = self._source.attributes[name]
        if need:
            self.needs.add(need)
        return expression

    def _rows(self, one: Comparison, *, apart: bool = False) -> Iterator[Select[Any]]:
        """Rows that fulfil a comparison with what is attached: of the object at hand, or of all (``apart``)."""
        field, op, values = one.field, one.op, one.values
        if op is not Op.LIKE:
            values = tuple(value[:_TEXT_CHARS] if isinstance(value, str) else value for value in values)
            one = replace(one, values=values)
        if field.scope is Scope.METRIC:
            key_id = self._metrics.get(field.name)
            if key_id is not None:
                series = metric_series.alias()
                owners = metric_objects.alias()
                number = series.c[_PARTS[field.part]]
                present = _has_part(series, field.part)
                nan = series.c.latest_flag == _NAN_FLAG if field.part == "latest" else false()
                yield (
                    select(owners.c.uid)
                    .join_from(series, owners, owners.c.id == series.c.object_id)
                    .where(
                        true() if apart else owners.c.uid == objects.c.uid,
                        series.c.key_id == key_id,
                        _matches(op, values, present, number=number, nan=nan),
                    )
                )
            if self._source.projects_metrics and field.part in _PROJECTED_PARTS:
                rows = attributes.alias()
                yield self._of_key(rows, _METRIC_KIND, field.name, one, apart=apart, is_text=False)
            return
        if self._source.kind is None:
            yield self._of_event(field.name, one, apart=apart)
            return
        kind = KINDS[field.scope]
        is_json = field.type is FieldType.JSON
        yield self._of_key(attributes.alias(), kind, field.name, one, apart=apart)
        if is_json and "." in field.name:
            leaves = attribute_leaves.alias()
            yield self._of_key(leaves, kind, field.name, one, apart=apart)
            if values == (None,) or op in (Op.NE, Op.NOT_IN):
                # A path to an object or list: something lies below it, and it equals no scalar.
                below = attribute_leaves.alias()
                yield select(below.c.object_id).where(
                    true() if apart else below.c.object_id == objects.c.id,
                    below.c.kind == kind,
                    below.c.path > f"{field.name}.",
                    below.c.path < f"{field.name}/",
                )

    def _of_key(
        self, rows: _Alias, kind: str, name: str, one: Comparison, *, apart: bool, is_text: bool = True
    ) -> Select[Any]:
        at = rows.c.path if "path" in rows.c else rows.c.key
        present = rows.c.value != "null"
        return select(rows.c.object_id).where(
            true() if apart else rows.c.object_id == objects.c.id,
            rows.c.kind == kind,
            at == name,
            _matches(one.op, one.values, present, number=rows.c.number, text=rows.c.text if is_text else None),
        )

    def _of_event(self, path: str, one: Comparison, *, apart: bool) -> Select[Any]:
        rows = event_values.alias()
        return select(rows.c.event_id).where(
            true() if apart else rows.c.event_id == events.c.id,
            rows.c.path == path,
            _matches(one.op, one.values, true(), number=rows.c.number, text=rows.c.text),
        )

    # -- drivers ---------------------------------------------------------------------------------------------------

    def driver(self, one: Comparison) -> tuple[Predicate, Select[Any]] | None:
        """The comparison as a set that an index gives; None if there is no such index.

        Returns:
            What an object of the set fulfils, for a query that begins there; and the rows of the set, to count.
        """
        if one.op not in _POSITIVE or one.values == (None,):
            return None
        if any(isinstance(value, float) and math.isnan(value) for value in one.values):
            return None
        field = one.field
        if field.scope is Scope.ATTRIBUTE:
            if self._source.kind is None or field.name != "id" or one.op not in (Op.EQ, Op.IN):
                return None
            found = objects.c.uid.in_(one.values)
            return found, select(objects.c.id).where(found)
        if len({isinstance(value, str) for value in one.values}) > 1:
            return None
        sets = list(self._rows(one, apart=True))
        if len(sets) != 1:
            return None
        (rows,) = sets
        if self._source.kind is None:
            return events.c.id.in_(rows), rows
        column = objects.c.uid if field.scope is Scope.METRIC and field.name in self._metrics else objects.c.id
        return column.in_(rows), rows

    # -- sort keys -------------------------------------------------------------------------------------------------

    def terms(self, order: Sequence[Order]) -> list[Term]:
        """Sort keys: two for values that may be numbers or texts, where numbers come first."""
        found: list[Term] = []
        for one in order:
            field = one.field
            if field.scope is Scope.ATTRIBUTE:
                found.append(Term(self._attribute(field.name), one.descending))
            elif field.scope is Scope.METRIC:
                found.append(self._metric_term(field, one.descending))
            else:
                names = ("number", "text") if field.type is FieldType.JSON else ("text",)
                found.extend(self._key_term(field, name, one.descending) for name in names)
        return found

    def _metric_term(self, field: Field, descending: bool) -> Term:
        values: list[Expr] = []
        walk: Walk | None = None
        key_id = self._metrics.get(field.name)
        if key_id is not None:
            series, owners = metric_series.alias(), metric_objects.alias()
            of_key = (series.c.key_id == key_id, series.c[_PARTS[field.part]].is_not(None))
            values.append(
                select(series.c[_PARTS[field.part]])
                .join_from(owners, series, owners.c.id == series.c.object_id)
                .where(owners.c.uid == objects.c.uid, *of_key)
                .correlate(objects)
                .scalar_subquery()
            )
            if field.part == "latest" and not self._source.projects_metrics:
                walk = Walk(
                    value=series.c.latest,
                    tables=series.join(owners, owners.c.id == series.c.object_id).join(
                        objects, objects.c.uid == owners.c.uid
                    ),
                    where=of_key,
                    missing=values[0].is_(None),
                )
        if self._source.projects_metrics and field.part in _PROJECTED_PARTS:
            rows = attributes.alias()
            values.append(self._scalar(rows, _METRIC_KIND, field.name, "number"))
        return Term(_first_of(values), descending, walk)

    def _key_term(self, field: Field, name: str, descending: bool) -> Term:
        if self._source.kind is None:
            of_event = event_values.alias()
            value = select(of_event.c[name]).where(of_event.c.event_id == events.c.id, of_event.c.path == field.name)
            return Term(value.correlate(events).scalar_subquery(), descending)
        kind = KINDS[field.scope]
        values = [self._scalar(attributes.alias(), kind, field.name, name)]
        if field.type is FieldType.JSON and "." in field.name:
            values.append(self._scalar(attribute_leaves.alias(), kind, field.name, name))
            return Term(_first_of(values), descending)
        rows = attributes.alias()
        walk = Walk(
            value=rows.c[name],
            tables=rows.join(objects, objects.c.id == rows.c.object_id),
            where=(rows.c.kind == kind, rows.c.key == field.name, rows.c[name].is_not(None)),
            missing=values[0].is_(None),
            number=rows.c.object_id if self._source.same_id else None,
        )
        return Term(values[0], descending, walk)

    def _scalar(self, rows: _Alias, kind: str, path: str, name: str) -> Expr:
        at = rows.c.path if "path" in rows.c else rows.c.key
        # A path may be met under two keys; any one of them, but always the same.
        return (
            select(func.max(rows.c[name]))
            .where(rows.c.object_id == objects.c.id, rows.c.kind == kind, at == path)
            .correlate(objects)
            .scalar_subquery()
        )


def _first_of(values: Sequence[Expr]) -> Expr:
    if not values:
        return func.nullif(1, 1)
    return values[0] if len(values) == 1 else func.coalesce(*values)


def _has_part(series: _Alias, part: str) -> Predicate:
    has: Predicate = series.c["count"] > 0
    if part == "latest":
        has = series.c.kind == 0
    elif part in ("min", "max"):
        has = series.c[part].is_not(None)
    return has


def _matches(
    op: Op,
    values: Sequence[Scalar],
    present: Predicate,
    *,
    number: Expr | None = None,
    text: Expr | None = None,
    nan: Predicate | None = None,
) -> Predicate:
    """Whether a row fulfils a comparison; it may be NULL where a value is, which a WHERE takes for false."""
    if values == (None,):
        return present
    if op is Op.LIKE:
        assert text is not None
        pattern = _like(str(values[0]))
        return and_(text.is_not(None), func.lower(text).like(func.lower(pattern), escape="!"))
    if op in (Op.EQ, Op.IN, Op.NE, Op.NOT_IN):
        equal = _equals(values, number, text, nan)
        return equal if op in (Op.EQ, Op.IN) else and_(present, not_(func.coalesce(equal, false())))
    (value,) = values
    column = text if isinstance(value, str) else number
    if column is None or (isinstance(value, float) and math.isnan(value)):
        return false()
    bound = _bound(value)
    compared = {Op.GT: column > bound, Op.GE: column >= bound, Op.LT: column < bound, Op.LE: column <= bound}[op]
    return compared


def _equals(values: Sequence[Scalar], number: Expr | None, text: Expr | None, nan: Predicate | None) -> Predicate:
    numbers = [_bound(value) for value in values if not isinstance(value, str) and not _is_nan(value)]
    texts = [_bound(value) for value in values if isinstance(value, str)]
    ways: list[Predicate] = []
    if numbers and number is not None:
        ways.append(number == numbers[0] if len(numbers) == 1 else number.in_(numbers))
    if texts and text is not None:
        ways.append(text == texts[0] if len(texts) == 1 else text.in_(texts))
    if nan is not None and any(_is_nan(value) for value in values):
        ways.append(nan)
    return or_(false(), *ways)


def _is_nan(value: Scalar) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _bound(value: Scalar) -> Scalar:
    """As it is kept: the greatest finite number for infinity."""
    if isinstance(value, float) and math.isinf(value):
        return math.copysign(sys.float_info.max, value)
    return value


def _like(pattern: str) -> str:
    escaped = wildcards(pattern).replace("!", "!!").replace("%", "!%").replace("_", "!_")
    return escaped.replace("*", "%").replace("?", "_")

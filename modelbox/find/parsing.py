"""The grammar of find: queries, orders and columns, read into the tree of `modelbox.find.query`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from modelbox.find.query import (
    COLLECTIONS,
    METRIC_PARTS,
    SCOPE_TYPES,
    And,
    Comparison,
    Expression,
    Field,
    FieldType,
    Not,
    Op,
    Or,
    Order,
    Scalar,
    Scope,
    scopes_of,
)
from modelbox.find.reading import NAME, OP, Reader, number_of, refuse, time_of

__all__ = (
    "MAX_COMPARISONS",
    "MAX_DEPTH",
    "MAX_ORDER",
    "MAX_VALUES",
    "attributes_of",
    "parse_columns",
    "parse_order",
    "parse_where",
)

MAX_DEPTH = 32
"""Of parentheses and NOTs in each other."""
MAX_COMPARISONS = 64
MAX_VALUES = 1000
"""In all lists of a query together."""
MAX_ORDER = 8
_MAX_NAME_CHARS = 250


def attributes_of(collection: str) -> Mapping[str, FieldType]:
    """The attributes of a collection.

    Raises:
        FindError: There is no such collection.
    """
    found = COLLECTIONS.get(collection) if isinstance(collection, str) else None
    if found is None:
        refuse(collection, 0, "there is no such collection", tuple(COLLECTIONS))
    return found


def parse_where(collection: str, text: str, *, now: datetime) -> Expression | None:
    """The tree of a query; None for an empty one, which lets everything through.

    Args:
        collection: What is looked for, a key of `COLLECTIONS`.
        text: The query.
        now: What ``now`` means in it.

    Raises:
        FindError: It is no query; ``position`` counts characters from 0, ``expected`` lists what could stand there.
    """
    parser = _Parser(collection, text, now)
    if parser.at_end():
        return None
    tree = parser.query(0)
    if not parser.at_end():
        parser.fail("this is not understood", ("AND", "OR", "the end"))
    return tree


def parse_order(collection: str, terms: Sequence[str], *, now: datetime | None = None) -> tuple[Order, ...]:
    """What to sort by, such as ``["metrics.accuracy desc", "name"]``.

    Raises:
        FindError: A term is not a field with ``asc`` or ``desc`` or nothing behind it.
    """
    if len(terms) > MAX_ORDER:
        refuse(", ".join(terms), 0, f"{len(terms)} fields to sort by are too many", (f"at most {MAX_ORDER}",))
    orders = []
    for term in terms:
        parser = _Parser(collection, term, now or datetime.fromtimestamp(0, UTC))
        field = parser.field()
        descending = parser.word("desc")
        if not descending:
            parser.word("asc")
        if not parser.at_end():
            parser.fail("this is not understood", ("asc", "desc", "the end"))
        orders.append(Order(field=field, descending=descending))
    return tuple(orders)


def parse_columns(collection: str, names: Sequence[str]) -> tuple[Field | Scope, ...]:
    """The columns that are asked for: a whole scope (``metrics``), or one field (``metrics.loss``, ``name``).

    ``attributes`` is `Scope.ATTRIBUTE`; nothing named means every scope that the collection has.

    Raises:
        FindError: There is no such column.
    """
    known = attributes_of(collection)
    if len(names) > MAX_VALUES:
        refuse(", ".join(names[:8]), 0, f"{len(names)} columns are too many", (f"at most {MAX_VALUES}",))
    if not names:
        return (Scope.ATTRIBUTE, *scopes_of(collection))
    scopes = {"attributes": Scope.ATTRIBUTE} | {scope.value: scope for scope in scopes_of(collection)}
    found: list[Field | Scope] = []
    for name in names:
        if name in scopes and name not in known:
            found.append(scopes[name])
            continue
        parser = _Parser(collection, name, datetime.fromtimestamp(0, UTC))
        found.append(parser.field())
        if not parser.at_end():
            parser.fail("this is not understood", ("the end",))
    return tuple(found)


class _Parser(Reader):
    """Reads one text of a collection's."""

    def __init__(self, collection: str, text: str, now: datetime) -> None:
        self._attributes = attributes_of(collection)
        super().__init__(text)
        self._collection = collection
        self._scopes = {scope.value: scope for scope in scopes_of(collection)}
        self._now = now
        self._comparisons = 0
        self._values = 0

    # -- the grammar -----------------------------------------------------------------------------------------------

    def query(self, depth: int) -> Expression:
        parts = [self._all_of(depth)]
        while self.word("or"):
            parts.append(self._all_of(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _all_of(self, depth: int) -> Expression:
        parts = [self._one(depth)]
        while self.word("and"):
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _one(self, depth: int) -> Expression:
        self.skip()
        if depth > MAX_DEPTH:
            self.fail("the query is nested too deeply", (f"at most {MAX_DEPTH} levels",))
        if self.word("not"):
            return Not(self._one(depth + 1))
        if self.char("("):
            inner = self.query(depth + 1)
            if not self.char(")"):
                self.fail("a parenthesis is not closed", (")", "AND", "OR"))
            return inner
        return self._comparison()

    def _comparison(self) -> Comparison:
        start = self.at
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            self.fail("there are too many comparisons", (f"at most {MAX_COMPARISONS}",))
        field = self.field()
        self.skip()
        began = self.at
        symbol = self.take(OP)
        if symbol is not None:
            op = Op(symbol)
            if op is Op.LIKE and field.type in (FieldType.NUMBER, FieldType.TIME):
                self.fail(f"{field} is a {field.type.value}, which has no pattern", _ops(field), at=began)
            return Comparison(field=field, op=op, values=(self._value(field, op),))
        negated = self.word("not")
        if not self.word("in"):
            problem = f"{self.text[start : self.at].strip()} is compared with nothing" if not negated else "NOT what?"
            self.fail(problem, ("in",) if negated else _ops(field))
        if not self.char("("):
            self.fail("a list stands in parentheses", ("(",))
        values = [self._value(field, Op.IN)]
        while self.char(","):
            values.append(self._value(field, Op.IN))
        if not self.char(")"):
            self.fail("the list is not closed", (",", ")"))
        return Comparison(field=field, op=Op.NOT_IN if negated else Op.IN, values=tuple(values))

    def field(self) -> Field:
        """Takes a field."""
        self.skip()
        start = self.at
        first = self.take(NAME)
        if first is None:
            self.fail("here a field must stand", self._fields())
        if not self.next_is("."):
            kind = self._attributes.get(first)
            if kind is not None:
                return Field(scope=Scope.ATTRIBUTE, name=first, type=kind)
            if first in self._scopes:
                self.fail(f"{first} is a group: say which one of it", (f"{first}.NAME",), at=self.at)
            self.fail(f"{self._collection} have no attribute {first!r}", self._fields(), at=start)
        if first not in self._scopes:
            self.fail(f"{first!r} has no parts", self._fields(), at=start)
        scope = self._scopes[first]
        segments: list[tuple[str, bool]] = []
        while self.next_is("."):
            self.at += 1
            segments.append(self.segment())
        part = ""
        if scope is Scope.METRIC:
            part = "latest"
            if len(segments) > 1 and not segments[-1][1] and segments[-1][0] in METRIC_PARTS:
                part = segments.pop()[0]
        name = ".".join(segment for segment, _ in segments)
        if len(name) > _MAX_NAME_CHARS:
            self.fail("the name is too long", (f"at most {_MAX_NAME_CHARS} characters",), at=start)
        return Field(scope=scope, name=name, type=SCOPE_TYPES[scope], part=part)

    def _fields(self) -> tuple[str, ...]:
        return (*self._attributes, *(f"{scope}.NAME" for scope in self._scopes))

    # -- values ----------------------------------------------------------------------------------------------------

    def _value(self, field: Field, op: Op) -> Scalar:
        self._values += 1
        if self._values > MAX_VALUES:
            self.fail("there are too many values", (f"at most {MAX_VALUES}",))
        self.skip()
        start = self.at
        taken = self.value()
        if taken is None:
            self.fail("a value is missing", _values(field, op))
        text, quoted = taken
        if not quoted and text.lower() == "null":
            if op not in (Op.EQ, Op.NE):
                self.fail(f"null cannot be compared by {op.value}", ("= null", "!= null"), at=start)
            return None
        if field.type is FieldType.TIME:
            at_us = time_of(text, self._now)
            if at_us is None:
                self.fail(f"{field} is a time", _values(field, op), at=start)
            return at_us
        number = None if quoted else number_of(text)
        if field.type is FieldType.NUMBER:
            if number is None:
                self.fail(f"{field} is a number", _values(field, op), at=start)
            return number
        if number is not None and field.type is FieldType.JSON and op is not Op.LIKE:
            return number
        if number is not None and op is not Op.LIKE:
            self.fail(f"{field} is text, which never equals a number", (f"'{text}'",), at=start)
        return text


def _ops(field: Field) -> tuple[str, ...]:
    some = ("=", "!=", ">", ">=", "<", "<=", "in (…)", "not in (…)")
    return some if field.type in (FieldType.NUMBER, FieldType.TIME) else (*some, "~")


def _values(field: Field, op: Op) -> tuple[str, ...]:
    forms = {
        FieldType.NUMBER: ("a number",),
        FieldType.TIME: ("2026-05-03", "2026-05-03T10:00:00Z", "now-7d"),
        FieldType.TEXT: ("'text'",),
        FieldType.JSON: ("a number", "'text'"),
    }[field.type]
    return (*forms, "null") if op in (Op.EQ, Op.NE) else forms

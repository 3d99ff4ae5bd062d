"""The language in which objects are found: ``metrics.accuracy > 0.9 and tags.team = "speech"``.

Owns the grammar, what each collection has, and the tree that a query becomes. Pure: knows no database, and no clock but
the one that it is given. Refuses what can never be true by its types (``epoch = "last"``), and points at the place.

::

    query      = and-part { OR and-part }          words in any case
    and-part   = not-part { AND not-part }
    not-part   = NOT not-part | "(" query ")" | comparison
    comparison = field op value | field [NOT] IN "(" value { "," value } ")"
    field      = name { "." segment }              segment: bare, "quoted" or `quoted`
    op         = "=" | "!=" | ">" | ">=" | "<" | "<=" | "~"
    value      = 'text' | "text" | word | number | date | now[-7d] | null

A comparison with what an object does not have is false, also ``!=``; ``x = null`` asks for that. ``docs/find.md`` tells
the whole for people.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NoReturn

from modelbox.errors import FindError

__all__ = (
    "COLLECTIONS",
    "MAX_COMPARISONS",
    "MAX_DEPTH",
    "MAX_QUERY_CHARS",
    "MAX_VALUES",
    "METRIC_PARTS",
    "And",
    "Comparison",
    "Expression",
    "Field",
    "FieldType",
    "Not",
    "Op",
    "Or",
    "Order",
    "Scalar",
    "Scope",
    "attributes_of",
    "parse_columns",
    "parse_order",
    "parse_where",
    "wildcards",
)

MAX_QUERY_CHARS = 10_000
MAX_DEPTH = 32
"""Of parentheses and NOTs in each other."""
MAX_COMPARISONS = 64
MAX_VALUES = 1000
"""In all lists of a query together."""
MAX_ORDER = 8
_MAX_NAME_CHARS = 250

Scalar = str | int | float | None
"""What a field is compared with; times are microseconds since 1970."""


class FieldType(StrEnum):
    """What a field holds; ``json`` is a number or a text, object by object."""

    TEXT = "text"
    NUMBER = "number"
    TIME = "time"
    JSON = "json"


class Scope(StrEnum):
    """Where a field's values are: in the object's own row, or attached to it by key."""

    ATTRIBUTE = "attribute"
    METRIC = "metrics"
    PARAM = "params"
    TAG = "tags"
    LABEL = "labels"
    METADATA = "metadata"


class Op(StrEnum):
    """How a field is compared."""

    EQ = "="
    NE = "!="
    GT = ">"
    GE = ">="
    LT = "<"
    LE = "<="
    LIKE = "~"
    IN = "in"
    NOT_IN = "not in"


METRIC_PARTS = ("latest", "min", "max", "count", "step")
"""What of a metric can be asked for; ``step`` is that of the latest point."""

_TYPES = {
    Scope.METRIC: FieldType.NUMBER,
    Scope.PARAM: FieldType.JSON,
    Scope.TAG: FieldType.TEXT,
    Scope.LABEL: FieldType.TEXT,
    Scope.METADATA: FieldType.JSON,
}
_COMMON = {
    "id": FieldType.TEXT,
    "namespace": FieldType.TEXT,
    "created_at": FieldType.TIME,
    "created_by": FieldType.TEXT,
    "deleted_at": FieldType.TIME,
}


def _collection(texts: str, numbers: str = "", times: str = "") -> Mapping[str, FieldType]:
    own = {name: FieldType.TEXT for name in texts.split()}
    own |= {name: FieldType.NUMBER for name in numbers.split()}
    own |= {name: FieldType.TIME for name in times.split()}
    return MappingProxyType({"id": FieldType.TEXT} | own | _COMMON)


COLLECTIONS: Mapping[str, Mapping[str, FieldType]] = MappingProxyType(
    {
        "experiments": _collection("name owner framework task external_id description"),
        "runs": _collection(
            "name experiment experiment_id status parent_id cloned_from reason", "duration", "started_at ended_at"
        ),
        "checkpoints": _collection("parent_id path", "epoch step"),
        "models": _collection("name owner task description", "latest_version"),
        "versions": _collection("model digest description", "version"),
        "datasets": _collection("name owner description", "latest_version"),
        "dataset_versions": _collection("dataset dataset_id digest description", "version"),
        "artifacts": _collection("name parent"),
        "events": MappingProxyType(
            {
                "id": FieldType.TEXT,
                "name": FieldType.TEXT,
                "source": FieldType.TEXT,
                "object": FieldType.TEXT,
                "at": FieldType.TIME,
                "received_at": FieldType.TIME,
                "namespace": FieldType.TEXT,
                "created_by": FieldType.TEXT,
            }
        ),
    }
)
"""The attributes of each collection, in the order of an answer's columns. ``duration`` is in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """What is compared or sorted by.

    Attributes:
        name: Of the attribute, or the key; a path into JSON has dots.
        part: Of a metric: one of `METRIC_PARTS`.
    """

    scope: Scope
    name: str
    type: FieldType
    part: str = ""

    def __str__(self) -> str:
        if self.scope is Scope.ATTRIBUTE:
            return self.name
        return f"{self.scope.value}.{self.name}" + (f".{self.part}" if self.part not in ("", "latest") else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A field against values: one, but for the operators with a list. ``None`` is ``null``, and stands alone."""

    field: Field
    op: Op
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class And:
    """All hold."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One holds at least."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Expression


Expression = Comparison | And | Or | Not


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A field to sort by; objects without it come last in both directions."""

    field: Field
    descending: bool = False


def attributes_of(collection: str) -> Mapping[str, FieldType]:
    """The attributes of a collection.

    Raises:
        FindError: There is no such collection.
    """
    found = COLLECTIONS.get(collection) if isinstance(collection, str) else None
    if found is None:
        _refuse(collection, 0, "there is no such collection", tuple(COLLECTIONS))
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
        _refuse(", ".join(terms), 0, f"{len(terms)} fields to sort by are too many", (f"at most {MAX_ORDER}",))
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
        _refuse(", ".join(names[:8]), 0, f"{len(names)} columns are too many", (f"at most {MAX_VALUES}",))
    if not names:
        return (Scope.ATTRIBUTE,) if collection == "events" else tuple(Scope)
    scopes = {"attributes": Scope.ATTRIBUTE} | {scope.value: scope for scope in _TYPES}
    if collection == "events":
        del scopes["metrics"], scopes["params"], scopes["tags"], scopes["labels"], scopes["metadata"]
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


def wildcards(pattern: str) -> str:
    """The pattern with wildcards that ``~`` means: one without any asks for texts that contain it."""
    return pattern if "*" in pattern or "?" in pattern else f"*{pattern}*"


_STRANGE = re.compile("[\0\ud800-\udfff]")
_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SEGMENT = re.compile(r"[^\s.,()'\"`=!<>~]+")
_BARE = re.compile(r"[^\s,()'\"`=!<>~]+")
_OP = re.compile(r"!=|>=|<=|=|>|<|~")
_WORD = re.compile(r"[A-Za-z]+(?![A-Za-z0-9_.])")
_QUOTED = {quote: re.compile(rf"{quote}((?:[^{quote}\\]|\\.)*){quote}", re.DOTALL) for quote in "'\"`"}
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "+inf": math.inf, "-inf": -math.inf, "infinity": math.inf}
_NOT_FINITE["-infinity"] = -math.inf
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?(?:Z|[+-]\d\d:\d\d)?)?", re.ASCII)
_NOW = re.compile(r"now(?:([+-])(\d{1,9})([smhdw]))?", re.ASCII)
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Parser:
    """Reads one text from left to right."""

    def __init__(self, collection: str, text: str, now: datetime) -> None:
        self._attributes = attributes_of(collection)
        self._collection = collection
        if not isinstance(text, str):
            _refuse(str(text), 0, f"{type(text).__name__} is no query", ("text",))
        if len(text) > MAX_QUERY_CHARS:
            _refuse(text, MAX_QUERY_CHARS, f"the query has {len(text)} characters", (f"at most {MAX_QUERY_CHARS}",))
        strange = _STRANGE.search(text)
        if strange is not None:
            _refuse(text, strange.start(), "this character cannot be searched for", ("text without NUL",))
        self._text = text
        self._now = now
        self._at = 0
        self._comparisons = 0
        self._values = 0

    def fail(self, problem: str, expected: tuple[str, ...], *, at: int | None = None) -> NoReturn:
        _refuse(self._text, self._at if at is None else at, problem, expected)

    def at_end(self) -> bool:
        self._skip()
        return self._at == len(self._text)

    def _skip(self) -> None:
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        match = pattern.match(self._text, self._at)
        if match is None:
            return None
        self._at = match.end()
        return match[0]

    def word(self, word: str) -> bool:
        """Takes this word, in any case, if it is next."""
        self._skip()
        match = _WORD.match(self._text, self._at)
        if match is None or match[0].lower() != word:
            return False
        self._at = match.end()
        return True

    def _char(self, char: str) -> bool:
        self._skip()
        if not self._text.startswith(char, self._at):
            return False
        self._at += 1
        return True

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
        self._skip()
        if depth > MAX_DEPTH:
            self.fail("the query is nested too deeply", (f"at most {MAX_DEPTH} levels",))
        if self.word("not"):
            return Not(self._one(depth + 1))
        if self._char("("):
            inner = self.query(depth + 1)
            if not self._char(")"):
                self.fail("a parenthesis is not closed", (")", "AND", "OR"))
            return inner
        return self._comparison()

    def _comparison(self) -> Comparison:
        start = self._at
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            self.fail("there are too many comparisons", (f"at most {MAX_COMPARISONS}",))
        field = self.field()
        self._skip()
        began = self._at
        symbol = self._take(_OP)
        if symbol is not None:
            op = Op(symbol)
            if op is Op.LIKE and field.type in (FieldType.NUMBER, FieldType.TIME):
                self.fail(f"{field} is a {field.type.value}, which has no pattern", _ops(field), at=began)
            return Comparison(field=field, op=op, values=(self._value(field, op),))
        negated = self.word("not")
        if not self.word("in"):
            problem = f"{self._text[start : self._at].strip()} is compared with nothing" if not negated else "NOT what?"
            self.fail(problem, ("in",) if negated else _ops(field))
        if not self._char("("):
            self.fail("a list stands in parentheses", ("(",))
        values = [self._value(field, Op.IN)]
        while self._char(","):
            values.append(self._value(field, Op.IN))
        if not self._char(")"):
            self.fail("the list is not closed", (",", ")"))
        return Comparison(field=field, op=Op.NOT_IN if negated else Op.IN, values=tuple(values))

    def field(self) -> Field:
        """Takes a field."""
        self._skip()
        start = self._at
        first = self._take(_NAME)
        if first is None:
            self.fail("here a field must stand", self._fields())
        if not self._text.startswith(".", self._at):
            kind = self._attributes.get(first)
            if kind is not None:
                return Field(scope=Scope.ATTRIBUTE, name=first, type=kind)
            if first in _scopes(self._collection):
                self.fail(f"{first} is a group: say which one of it", (f"{first}.NAME",), at=self._at)
            self.fail(f"{self._collection} have no attribute {first!r}", self._fields(), at=start)
        if first not in _scopes(self._collection):
            self.fail(f"{first!r} has no parts", self._fields(), at=start)
        scope = Scope(first)
        segments: list[tuple[str, bool]] = []
        while self._text.startswith(".", self._at):
            self._at += 1
            segments.append(self._segment())
        part = ""
        if scope is Scope.METRIC:
            part = "latest"
            if len(segments) > 1 and not segments[-1][1] and segments[-1][0] in METRIC_PARTS:
                part = segments.pop()[0]
        name = ".".join(segment for segment, _ in segments)
        if len(name) > _MAX_NAME_CHARS:
            self.fail("the name is too long", (f"at most {_MAX_NAME_CHARS} characters",), at=start)
        return Field(scope=scope, name=name, type=_TYPES[scope], part=part)

    def _segment(self) -> tuple[str, bool]:
        for quote in '"`':
            if self._text.startswith(quote, self._at):
                return self._quoted(quote), True
        bare = self._take(_SEGMENT)
        if bare is None:
            self.fail("the name goes on behind a dot", ("a name", 'a name in "…" or `…`'))
        return bare, False

    def _quoted(self, quote: str) -> str:
        start = self._at
        taken = self._take(_QUOTED[quote])
        if taken is None:
            self.fail("the quotation does not end", (quote,), at=start)
        return _ESCAPE.sub(r"\1", taken[1:-1])

    def _fields(self) -> tuple[str, ...]:
        return (*self._attributes, *(f"{scope}.NAME" for scope in _scopes(self._collection)))

    # -- values ----------------------------------------------------------------------------------------------------

    def _value(self, field: Field, op: Op) -> Scalar:
        self._values += 1
        if self._values > MAX_VALUES:
            self.fail("there are too many values", (f"at most {MAX_VALUES}",))
        self._skip()
        start = self._at
        quoted = next((quote for quote in "'\"" if self._text.startswith(quote, self._at)), None)
        if quoted is not None:
            text = self._quoted(quoted)
        else:
            bare = self._take(_BARE)
            if bare is None:
                self.fail("a value is missing", _values(field, op))
            text = bare
            if text.lower() == "null":
                if op not in (Op.EQ, Op.NE):
                    self.fail(f"null cannot be compared by {op.value}", ("= null", "!= null"), at=start)
                return None
        if field.type is FieldType.TIME:
            return self._time(field, text, op, start)
        number = None if quoted is not None else _number(text)
        if field.type is FieldType.NUMBER:
            if number is None:
                self.fail(f"{field} is a number", _values(field, op), at=start)
            return number
        if number is not None and field.type is FieldType.JSON and op is not Op.LIKE:
            return number
        if number is not None and op is not Op.LIKE:
            self.fail(f"{field} is text, which never equals a number", (f"'{text}'",), at=start)
        return text

    def _time(self, field: Field, text: str, op: Op, start: int) -> int:
        relative = _NOW.fullmatch(text.lower())
        at: datetime | None = None
        try:
            if relative is not None:
                sign, count, unit = relative.groups()
                away = timedelta(seconds=int(count) * _UNITS_S[unit]) if sign else timedelta(0)
                at = self._now - away if sign == "-" else self._now + away
            elif _DATE.fullmatch(text):
                at = datetime.fromisoformat(text)
                at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
        except (ValueError, OverflowError):
            at = None
        if at is None:
            self.fail(f"{field} is a time", _values(field, op), at=start)
        return (at - _EPOCH) // timedelta(microseconds=1)


def _number(text: str) -> int | float | None:
    if text.lower() in _NOT_FINITE:
        return _NOT_FINITE[text.lower()]
    if not _NUMBER.fullmatch(text):
        return None
    if text.lstrip("+-").isdigit() and len(text) < 19:
        return int(text)
    return float(text)


def _scopes(collection: str) -> tuple[str, ...]:
    return () if collection == "events" else tuple(scope.value for scope in _TYPES)


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


_BEFORE, _AFTER = 60, 40


def _refuse(text: Any, at: int, problem: str, expected: tuple[str, ...]) -> NoReturn:
    """Raises the error that shows the place."""
    shown = "".join(char if char.isprintable() else " " for char in str(text))
    start = max(0, at - _BEFORE)
    line = shown[start : at + _AFTER]
    before, after = ("…" if start else ""), ("…" if at + _AFTER < len(shown) else "")
    caret = " " * (len(before) + at - start) + "^"
    wanted = " or ".join(expected) if len(expected) < 3 else f"one of {', '.join(expected)}"
    raise FindError(
        f"{problem}: expected {wanted}\n  {before}{line}{after}\n  {caret}", position=at, expected=list(expected)
    )

"""What a query of find is: fields, comparisons and the tree of them; and what each collection has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

__all__ = (
    "COLLECTIONS",
    "METRIC_PARTS",
    "SCOPE_TYPES",
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
    "scopes_of",
    "wildcards",
)

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

SCOPE_TYPES: Mapping[Scope, FieldType] = MappingProxyType(
    {
        Scope.METRIC: FieldType.NUMBER,
        Scope.PARAM: FieldType.JSON,
        Scope.TAG: FieldType.TEXT,
        Scope.LABEL: FieldType.TEXT,
        Scope.METADATA: FieldType.JSON,
    }
)
"""What the values are of that are attached by key."""

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


def scopes_of(collection: str) -> tuple[Scope, ...]:
    """What is attached by key to the objects of a collection; events have metadata only."""
    return (Scope.METADATA,) if collection == "events" else tuple(SCOPE_TYPES)


def wildcards(pattern: str) -> str:
    """The pattern with wildcards that ``~`` means: one without any asks for texts that contain it."""
    return pattern if "*" in pattern or "?" in pattern else f"*{pattern}*"

"""Values by key on any object: parameters, tags, labels, metadata, and their history."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from modelbox.objects import JsonValue

__all__ = (
    "Attribute",
    "AttributeChange",
    "AttributeKind",
)


class AttributeKind(StrEnum):
    """The sorts of values by key that an object has.

    ``param`` is what a run was told (JSON; overwriting is explicit), ``tag`` is what people or programs call an object
    (text, may be empty), ``label`` is text that programs select by, ``metadata`` is any JSON.
    """

    PARAM = "param"
    TAG = "tag"
    LABEL = "label"
    METADATA = "metadata"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A value by key on an object."""

    object: str
    kind: AttributeKind
    key: str
    value: JsonValue
    updated_at: datetime
    updated_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeChange:
    """One entry of an attribute's history, newest first in lists.

    Attributes:
        value: What it was set to; None with ``deleted``.
    """

    object: str
    kind: AttributeKind
    key: str
    value: JsonValue
    deleted: bool = False
    at: datetime
    by: str = ""
    rev: int

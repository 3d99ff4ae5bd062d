"""Events, comments and pages on any object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from modelbox.objects import JsonValue
from modelbox.tracking.ids import ObjectKind, new_id

__all__ = (
    "Comment",
    "Event",
    "NewEvent",
    "Readme",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that an outside system reports of an object.

    Attributes:
        object: Id of what it is about.
        name: What happened, such as ``gpu.lost``.
        source: Who says so, such as ``scheduler``.
        at: When it happened, by the reporter's clock.
        received_at: When it came here.
    """

    id: str
    namespace: str
    object: str
    name: str
    source: str = ""
    at: datetime
    received_at: datetime
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    created_by: str = ""
    mod_rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """What a caller reports."""

    id: str = field(default_factory=lambda: new_id(ObjectKind.EVENT))
    object: str
    name: str
    source: str = ""
    at: datetime
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment:
    """What somebody says about an object, in Markdown."""

    id: str
    namespace: str
    object: str
    text: str
    created_at: datetime
    created_by: str = ""
    edited_at: datetime | None = None
    deleted_at: datetime | None = None
    mod_rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Readme:
    """The page of an object, in Markdown."""

    object: str
    text: str
    updated_at: datetime
    updated_by: str = ""
    mod_rev: int

"""How callers name what they mean: objects of any kind, datasets and their versions, times.

Pure checks; whether there is such an object is for the stores to say.
"""

from __future__ import annotations

from datetime import UTC, datetime

from modelbox.errors import InvalidError
from modelbox.refs import ModelRef, check_name, shown
from modelbox.runtime.limits import check_text
from modelbox.tracking import ObjectKind, check_id, kind_of_id

__all__ = ("check_actor", "check_dataset", "check_dataset_version", "check_object", "check_time")

_FIRST = datetime(1970, 1, 1, tzinfo=UTC)


def check_actor(actor: str) -> str:
    """Returns ``actor`` if it is short text."""
    return check_text(actor, "actor", max_chars=256)


def check_object(text: str) -> str:
    """Returns ``text`` if it may name an object: an id, a namespace, ``namespace/model`` or ``namespace/model@7``.

    Raises:
        InvalidError: It is none of these; an alias or digest is none either, since it may mean another version soon.
    """
    if kind_of_id(check_text(text, "object", max_chars=255)) is not None:
        return text
    if "/" not in text:
        return check_name(text, "namespace")
    ref = ModelRef.parse(text)
    if "@" in text and ref.version is None:
        raise InvalidError(
            f"{shown(text)} does not name one object for good: expected an id, a namespace, namespace/model or "
            "namespace/model@7",
            what="object",
        )
    return text


def check_dataset(text: str) -> str:
    """Returns ``text`` if it may name a dataset: an id, or ``namespace/name``.

    Raises:
        InvalidError: It is neither.
    """
    if "/" not in check_text(text, "dataset", max_chars=255):
        return check_id(text, ObjectKind.DATASET)
    namespace, _, name = text.partition("/")
    check_name(namespace, "namespace")
    check_name(name, "dataset")
    return text


def check_dataset_version(text: str) -> str:
    """Returns ``text`` if it may name a version of a dataset: an id, ``namespace/name@3`` or ``namespace/name``.

    Raises:
        InvalidError: It is none of these.
    """
    if "/" not in check_text(text, "dataset version", max_chars=255):
        return check_id(text, ObjectKind.DATASET_VERSION)
    path, at, number = text.partition("@")
    check_dataset(path)
    if at and not (number.isascii() and number.isdigit() and len(number) <= 18 and number[0] != "0"):
        raise InvalidError(f"{shown(text)} is not a dataset version: expected namespace/name@3", what="dataset version")
    return text


def check_time(at: datetime, what: str) -> datetime:
    """Returns ``at`` if it is a time since 1970.

    Raises:
        InvalidError: It has no time zone, or lies before.
    """
    if not isinstance(at, datetime) or at.tzinfo is None:
        raise InvalidError(f"the {what} has no time zone: pass an aware datetime", what=what)
    if at < _FIRST:
        raise InvalidError(f"the {what} {at.isoformat()} lies before 1970", what=what)
    return at

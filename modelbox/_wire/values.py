"""Scalars, and the one place that reads bytes: times, JSON texts, messages."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

import betterproto2

from modelbox.errors import (
    InvalidError,
)
from modelbox.objects import (
    JsonValue,
)
from modelbox.refs import shown

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


E = TypeVar("E", bound=StrEnum)
M = TypeVar("M", bound=betterproto2.Message)
T = TypeVar("T")


def decode_message(cls: type[M], data: bytes) -> M:
    """Reads the bytes of one message.

    The codec is pure Python and lets every kind of error through on malformed bytes, and values of other types than the
    message declares; this is the one place that catches them.

    Raises:
        InvalidError: The bytes are not a message of this type.
    """
    try:
        message = cls.parse(data)
        _check_types(message)
    except Exception as exc:
        raise InvalidError(f"these {len(data)} bytes are not a valid {cls.__name__} message") from exc
    return message


_PYTHON_TYPES: Mapping[str, type] = {"string": str, "bytes": bytes, "bool": bool, "float": float, "double": float}


def _check_types(message: betterproto2.Message) -> None:
    about: Any = message._betterproto  # type: ignore[arg-type]  # a property of the class
    for name, meta in about.meta_by_field_name.items():
        value = getattr(message, name)
        if meta.map_meta is not None:
            _check_all(meta.map_meta[0].proto_type, value.keys())
            _check_all(meta.map_meta[1].proto_type, value.values())
        elif meta.repeated:
            _check_all(meta.proto_type, value)
        elif value is not None:
            _check_all(meta.proto_type, (value,))
        elif not (meta.optional or meta.group or meta.proto_type == "message"):
            raise TypeError(name)


def _check_all(kind: str, values: Iterable[object]) -> None:
    for value in values:
        if kind == "message" and isinstance(value, betterproto2.Message):
            _check_types(value)
        elif kind == "message" or not isinstance(value, _PYTHON_TYPES.get(kind, int)):
            raise TypeError(kind)


def pack_int64(value: int, what: str) -> int:
    """A whole number of 64 bits; the codec would wrap a greater one without a word.

    Raises:
        InvalidError: It is none.
    """
    try:
        number = operator.index(value)
    except TypeError as exc:
        raise InvalidError(f"{shown(value)} is not a {what}: expected a whole number", what=what) from exc
    if not -(2**63) <= number < 2**63:
        raise InvalidError(f"{shown(value)} is not a {what}: expected a whole number of 64 bits", what=what)
    return number


def pack_optional_int64(value: int | None, what: str) -> int | None:
    """As `pack_int64`; None stays None."""
    return None if value is None else pack_int64(value, what)


def pack_time(value: datetime) -> int:
    """Microseconds since 1970 in UTC."""
    return (value - _EPOCH) // _MICROSECOND


def unpack_time(us: int) -> datetime:
    """The time that `pack_time` packed."""
    try:
        return _EPOCH + us * _MICROSECOND
    except OverflowError as exc:
        raise InvalidError(f"{us} is not a time: expected microseconds since 1970") from exc


def pack_optional_time(value: datetime | None) -> int:
    """As `pack_time`; 0 for None."""
    return 0 if value is None else pack_time(value)


def unpack_optional_time(us: int) -> datetime | None:
    """What `pack_optional_time` packed."""
    return unpack_time(us) if us else None


def unpack_time_or_now(us: int) -> datetime:
    """The time that a caller gives; now where it gives none."""
    return unpack_time(us) if us else datetime.now(UTC)


def pack_json(values: Mapping[str, JsonValue]) -> dict[str, str]:
    try:
        return {key: dumps(value) for key, value in values.items()}
    except (ValueError, TypeError, RecursionError) as exc:
        raise _no_json(values, "metadata", exc) from exc


def _no_json(values: Mapping[str, JsonValue], what: str, error: Exception) -> InvalidError:
    for key, value in values.items():
        try:
            dumps({key: value}).encode()
        except (ValueError, TypeError, RecursionError):
            return InvalidError(f"{what} must be JSON: {shown(key)} is not ({error})", key=str(key))
    return InvalidError(f"{what} must be JSON: {error}")


def unpack_json(texts: Mapping[str, str]) -> dict[str, JsonValue]:
    values = {}
    for key, text in texts.items():
        try:
            values[key] = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as exc:
            raise InvalidError(f"the metadata of {shown(key)} is not JSON: {shown(text)}") from exc
    return values


def pack_object(values: Mapping[str, JsonValue], what: str) -> bytes:
    """JSON by key as one JSON text; empty for none.

    Raises:
        InvalidError: A value is not JSON.
    """
    if not values:
        return b""
    try:
        return dumps(dict(values)).encode()
    except (ValueError, TypeError, RecursionError) as exc:
        raise _no_json(values, what, exc) from exc


def unpack_object(data: bytes, what: str) -> dict[str, JsonValue]:
    """What `pack_object` packed.

    Raises:
        InvalidError: It is not one JSON object, or holds halves of characters.
    """
    if not data:
        return {}
    values = loads(data, what)
    if not isinstance(values, dict):
        raise InvalidError(f"{what} must be one JSON object: {shown(data.decode(errors='replace'))}")
    return values


def loads(data: bytes, what: str) -> JsonValue:
    """One JSON text in UTF-8.

    Raises:
        InvalidError: It is not, or is nested too deeply to read.
    """
    try:
        value = _DECODER.decode(data.decode())
        if _SURROGATE.search(data):
            dumps(value).encode()
    except (ValueError, RecursionError) as exc:
        raise InvalidError(f"{what} cannot be read as JSON: {shown(data[:200].decode(errors='replace'))}") from exc
    return value


def member(kind: type[E], text: str, what: str) -> E:
    """The member of ``kind`` that ``text`` is.

    Raises:
        InvalidError: There is none.
    """
    try:
        return kind(text)
    except ValueError as exc:
        raise InvalidError(f"{shown(text)} is not {what}: expected {', '.join(kind)}", what=what) from exc


def dumps(value: JsonValue) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _refuse_constant(text: str) -> JsonValue:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""Half of a character, perhaps with its other half."""


def given(message: Any, name: str) -> Any:
    """A field that may be absent, and is None then: google's messages never say so by themselves."""
    if isinstance(message, betterproto2.Message) or message.HasField(name):
        return getattr(message, name)
    return None


def chosen(message: Any, group: str) -> tuple[str, Any]:
    """Which field of a oneof there is, and what it holds; an empty name for none."""
    if isinstance(message, betterproto2.Message):
        return betterproto2.which_one_of(message, group)
    name = message.WhichOneof(group)
    return (name, getattr(message, name)) if name else ("", None)


def present(message: T | None, what: str) -> T:
    if message is None:
        raise InvalidError(f"the message lacks {what}")
    return message

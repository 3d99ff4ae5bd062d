"""Scalars, and the one place that reads bytes: times, JSON texts, messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TypeVar

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


M = TypeVar("M", bound=betterproto2.Message)
T = TypeVar("T")


def decode_message(cls: type[M], data: bytes) -> M:
    """Reads the bytes of one message.

    The codec is pure Python and lets every kind of error through on malformed bytes; this is the one place that
    catches them.

    Raises:
        InvalidError: The bytes are not a message of this type.
    """
    try:
        return cls.parse(data)
    except Exception as exc:
        raise InvalidError(f"these {len(data)} bytes are not a valid {cls.__name__} message") from exc


def pack_time(value: datetime) -> int:
    """Microseconds since 1970 in UTC."""
    return (value - _EPOCH) // _MICROSECOND


def unpack_time(us: int) -> datetime:
    """The time that `pack_time` packed."""
    try:
        return _EPOCH + us * _MICROSECOND
    except OverflowError as exc:
        raise InvalidError(f"{us} is not a time: expected microseconds since 1970") from exc


def pack_json(values: Mapping[str, JsonValue]) -> dict[str, str]:
    try:
        return {key: dumps(value) for key, value in values.items()}
    except (ValueError, TypeError, RecursionError) as exc:
        raise InvalidError(f"metadata must be JSON: {exc}") from exc


def unpack_json(texts: Mapping[str, str]) -> dict[str, JsonValue]:
    values = {}
    for key, text in texts.items():
        try:
            values[key] = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as exc:
            raise InvalidError(f"the metadata of {shown(key)} is not JSON: {shown(text)}") from exc
    return values


def dumps(value: JsonValue) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _refuse_constant(text: str) -> JsonValue:
    raise ValueError(f"{text} is not JSON")


def present(message: T | None, what: str) -> T:
    if message is None:
        raise InvalidError(f"the message lacks {what}")
    return message

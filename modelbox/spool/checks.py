"""What can be said to be wrong with a record before any server has seen it.

Pure. The server checks everything again and may refuse more; these checks keep one bad value from taking others with
it.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Mapping
from datetime import date, datetime
from enum import Enum
from typing import Any

from modelbox.errors import InvalidError, LimitError
from modelbox.objects import JsonValue
from modelbox.refs import shown
from modelbox.tracking import AttributeKind

__all__ = (
    "MAX_KEYS",
    "MAX_PAYLOAD_BYTES",
    "aware",
    "check_key",
    "check_labels",
    "int64",
    "json_text",
    "metric_value",
    "micros",
    "plain_json",
    "unicode_text",
)

MAX_PAYLOAD_BYTES = 1 << 20
"""Of text or bytes as the value of a metric."""

MAX_KEYS = {
    AttributeKind.PARAM: 2000,
    AttributeKind.TAG: 1000,
    AttributeKind.LABEL: 256,
    AttributeKind.METADATA: 1000,
}
"""Of each kind on one object. More would be refused one by one, which holds up everything behind them."""

_MAX_KEY_CHARS = 250
_MAX_VALUE_BYTES = 64 << 10
_MAX_LABEL_CHARS = 1024
_MAX_DEPTH = 16
_FLAT = (str, float, int, bool, type(None))
_LIMIT_OF_LEVELS = "nested more than 16 levels deep"


def check_key(key: object) -> str:
    """Returns ``key`` if a value may be kept under it.

    Raises:
        InvalidError: It may not.
    """
    if not isinstance(key, str) or not key or len(key) > _MAX_KEY_CHARS or not key.isprintable():
        raise InvalidError(f"{shown(key)} is not a key: expected 1 to {_MAX_KEY_CHARS} printable characters")
    return key


def metric_value(key: str, value: Any) -> float | str | bytes:
    """A metric's value as it is kept: numbers of any library as a float.

    Raises:
        InvalidError: It is none.
        LimitError: Text or bytes are too long.
    """
    if isinstance(value, str | bytes | bytearray | memoryview):
        kept = value if isinstance(value, str) else bytes(value)
        size = len(kept.encode(errors="replace")) if isinstance(kept, str) else len(kept)
        if size > MAX_PAYLOAD_BYTES:
            raise LimitError(
                f"the value of {shown(key)} has {size} bytes, more than the {MAX_PAYLOAD_BYTES} allowed: log an"
                " artifact"
            )
        if isinstance(kept, str):
            try:
                kept.encode()
            except UnicodeEncodeError as exc:
                raise InvalidError(f"the value of {shown(key)} is not valid Unicode") from exc
        return kept
    try:
        # A tensor that is being differentiated, as a loss is, warns when it is made a number.
        return float(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as exc:
        raise InvalidError(
            f"the metric {shown(key)} is {shown(value)}: expected a number, text (a serialized tensor) or bytes"
        ) from exc


def check_labels(values: Mapping[str, object]) -> None:
    """Raises `InvalidError` or `LimitError` for a value that is no short text."""
    for key, value in values.items():
        if not isinstance(value, str):
            raise InvalidError(f"the value of {shown(key)} is {shown(value)}: expected text, such as str() of it")
        if len(value) > _MAX_LABEL_CHARS:
            raise LimitError(f"{shown(key)} has {len(value)} characters, more than the {_MAX_LABEL_CHARS} allowed")


def json_text(key: str, value: Any) -> str:
    """A value as JSON; numpy and torch scalars, paths, enums and times count as what they stand for.

    Raises:
        InvalidError: It is no JSON, or nested too deeply.
        LimitError: It is too large.
    """
    kind = type(value)
    if kind is int and abs(value) >= 10**300:
        raise InvalidError(f"the number of {shown(key)} is too large for JSON")
    try:
        text = _encode(value)
        size = len(text) if text.isascii() else len(text.encode())
    except RecursionError as exc:
        raise LimitError(f"the value of {shown(key)} is {_LIMIT_OF_LEVELS}") from exc
    except UnicodeEncodeError as exc:
        raise InvalidError(f"the value of {shown(key)} is not valid Unicode") from exc
    except (TypeError, ValueError) as exc:
        raise InvalidError(f"the value of {shown(key)} cannot be kept as JSON: {exc}") from exc
    if size > _MAX_VALUE_BYTES:
        raise LimitError(
            f"the value of {shown(key)} has {size} bytes as JSON, more than the {_MAX_VALUE_BYTES} allowed: log an"
            " artifact"
        )
    if "\\u0000" in text and "\0" in str(value):
        raise InvalidError(f"the value of {shown(key)} holds NUL")
    if kind not in _FLAT and _depth(text) > _MAX_DEPTH:
        raise LimitError(f"the value of {shown(key)} is {_LIMIT_OF_LEVELS}")
    return text


def _plain(value: Any) -> Any:
    """What a value that JSON does not know stands for."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{shown(value)} is not JSON")


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode


def _depth(text: str) -> int:
    """How deeply JSON text is nested; brackets in texts do not count."""
    if text.count("[") + text.count("{") <= _MAX_DEPTH:
        return 0
    deepest = depth = 0
    in_text = escaped = False
    for ch in text:
        if in_text:
            if escaped:
                escaped = False
            elif ch == "\\":
                escaped = True
            elif ch == '"':
                in_text = False
        elif ch == '"':
            in_text = True
        elif ch in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif ch in "]}":
            depth -= 1
    return deepest


def int64(step: int) -> int:
    """A whole number of any library that fits into 64 bits.

    Raises:
        InvalidError: It is none, or does not fit.
    """
    try:
        number = operator.index(step)
    except TypeError as exc:
        raise InvalidError(f"the step {shown(step)} is not valid: expected a whole number") from exc
    if not -(2**63) <= number < 2**63:
        raise InvalidError(f"the step {shown(step)} does not fit into 64 bits")
    return number


def micros(at: datetime) -> int:
    """An aware time as microseconds since 1970 in UTC."""
    return round(aware(at).timestamp() * 1e6)


def aware(at: datetime) -> datetime:
    """Returns ``at`` if it says its time zone.

    Raises:
        InvalidError: It does not.
    """
    if at.tzinfo is None:
        raise InvalidError(f"{at} says no time zone: expected an aware datetime, such as datetime.now(UTC)")
    return at


def plain_json(metadata: Mapping[str, Any] | None) -> dict[str, JsonValue]:
    """Metadata as plain JSON."""
    return {key: json.loads(json_text(check_key(key), value)) for key, value in (metadata or {}).items()}


def unicode_text(text: str) -> str:
    """Returns ``text`` if it is text that can be written.

    Raises:
        InvalidError: It is something else, or holds lone surrogates.
    """
    if not isinstance(text, str):
        raise InvalidError(f"{shown(text)} is no text")
    text.encode()
    return text

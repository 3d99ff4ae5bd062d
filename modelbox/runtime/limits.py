"""What the server takes of free text, labels, metadata and metrics.

Pure checks without I/O, used by the services on what callers send and by the stores on what a patch makes of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from modelbox.errors import InvalidError, LimitError
from modelbox.objects import JsonValue
from modelbox.refs import shown

__all__ = (
    "MAX_DEPTH",
    "MAX_KEYS",
    "MAX_OBJECT_BYTES",
    "check_labels",
    "check_metadata",
    "check_metrics",
    "check_text",
)

MAX_OBJECT_BYTES = 64 << 10
"""Of an object's labels, metadata or metrics as JSON."""
MAX_KEYS = 256
MAX_DEPTH = 16
_MAX_KEY_CHARS = 128
_MAX_LABEL_CHARS = 1024


def check_text(text: str, what: str, *, max_chars: int) -> str:
    """Returns ``text`` if it may be kept as it is.

    Raises:
        InvalidError: It holds NUL or a lone surrogate.
        LimitError: It is too long.
    """
    if not isinstance(text, str) or "\0" in text:
        raise InvalidError(f"the {what} {shown(text)} is not valid: expected text without NUL", what=what)
    if len(text) > max_chars:
        raise LimitError(f"the {what} has {len(text)} characters, more than the {max_chars} allowed", what=what)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise InvalidError(f"the {what} {shown(text)} is not valid Unicode", what=what) from exc
    return text


def check_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Returns ``labels`` if every key and value is short text.

    Raises:
        InvalidError: A key or value is no valid text.
        LimitError: There are too many, or they are too long.
    """
    _check_keys(labels, "labels")
    for key, value in labels.items():
        check_text(value, f"label {shown(key)}", max_chars=_MAX_LABEL_CHARS)
    _check_size(labels, "labels")
    return labels


def check_metadata(metadata: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    """Returns ``metadata`` if it is JSON within the limits.

    Raises:
        InvalidError: A value is not JSON; NaN and infinities are not.
        LimitError: It has too many keys, is nested too deeply, or is too large.
    """
    _check_keys(metadata, "metadata")
    for key, value in metadata.items():
        _check_json(value, f"metadata {shown(key)}", MAX_DEPTH - 1)
    _check_size(metadata, "metadata")
    return metadata


def check_metrics(metrics: Mapping[str, float]) -> Mapping[str, float]:
    """Returns ``metrics`` if every value is a finite number.

    Raises:
        InvalidError: A value is not a finite number.
        LimitError: There are too many.
    """
    _check_keys(metrics, "metrics")
    for key, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidError(f"the metric {shown(key)} is {shown(value)}: expected a finite number", what="metrics")
    return metrics


def _check_keys(values: Mapping[str, object], what: str) -> None:
    if len(values) > MAX_KEYS:
        raise LimitError(f"{len(values)} keys in {what}, more than the {MAX_KEYS} allowed", what=what)
    for key in values:
        if not isinstance(key, str) or not key or not key.isprintable():
            raise InvalidError(f"{shown(key)} is not a valid key in {what}: expected printable text", what=what)
        check_text(key, f"key in {what}", max_chars=_MAX_KEY_CHARS)


def _check_size(values: Mapping[str, object], what: str) -> None:
    size = len(json.dumps(dict(values), ensure_ascii=False).encode())
    if size > MAX_OBJECT_BYTES:
        raise LimitError(f"the {what} have {size} bytes as JSON, more than the {MAX_OBJECT_BYTES} allowed", what=what)


def _check_json(value: object, what: str, depth: int) -> None:
    if depth < 0:
        raise LimitError(f"the {what} is nested more than {MAX_DEPTH} levels deep", what=what)
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        check_text(value, what, max_chars=MAX_OBJECT_BYTES)
    elif isinstance(value, int):
        # Beyond this, JSON readers round or fail, and Python refuses to print it.
        if abs(value) >= 10**300:
            raise InvalidError(f"a number in the {what} is too large for JSON", what=what)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidError(f"the {what} holds {value}, which JSON cannot: write it as text", what=what)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise InvalidError(f"the {what} has the key {shown(key)}: JSON objects have text as keys", what=what)
            check_text(key, what, max_chars=MAX_OBJECT_BYTES)
            _check_json(inner, what, depth - 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_json(inner, what, depth - 1)
    else:
        raise InvalidError(f"the {what} holds {shown(value)}, which is not JSON", what=what)

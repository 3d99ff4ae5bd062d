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
from modelbox.tracking import AttributeKind

__all__ = (
    "MAX_ATTRIBUTES",
    "MAX_ATTRIBUTES_BYTES",
    "MAX_DEPTH",
    "MAX_KEYS",
    "MAX_OBJECT_BYTES",
    "MAX_VALUE_BYTES",
    "check_attributes",
    "check_checkpoint_metrics",
    "check_epoch",
    "check_key",
    "check_labels",
    "check_metadata",
    "check_metrics",
    "check_step",
    "check_text",
)

MAX_OBJECT_BYTES = 64 << 10
"""Of an object's labels, metadata or metrics as JSON."""
MAX_KEYS = 256
MAX_DEPTH = 16
MAX_ATTRIBUTES = {
    AttributeKind.PARAM: 2000,
    AttributeKind.TAG: 1000,
    AttributeKind.LABEL: 256,
    AttributeKind.METADATA: 1000,
}
"""Keys of each kind that an object may have."""
MAX_VALUE_BYTES = 64 << 10
"""Of one attribute's value as JSON."""
MAX_ATTRIBUTES_BYTES = 1 << 20
"""Of all values of one kind on one object as JSON: a change of the feed carries them all."""
_MAX_CHECKPOINT_METRICS = 1000
_MAX_KEY_CHARS = 250
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


def check_key(key: str, what: str) -> str:
    """Returns ``key`` if it may name an attribute or a metric.

    Raises:
        InvalidError: It is empty, or holds what cannot be printed.
        LimitError: It is longer than 250 characters.
    """
    if not isinstance(key, str) or not key or not key.isprintable():
        raise InvalidError(f"{shown(key)} is not a valid key of a {what}: expected printable text", what=what)
    return check_text(key, f"key of a {what}", max_chars=_MAX_KEY_CHARS)


def check_attributes(kind: AttributeKind, values: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    """Returns ``values`` if an object may have them as attributes of one kind.

    Raises:
        InvalidError: A key is no valid text, or a value is not JSON (for tags and labels: no text).
        LimitError: There are too many, or one is too large or nested too deeply.
    """
    if not isinstance(values, Mapping):
        raise InvalidError(f"{shown(values)} are no values by key", what=kind.value)
    if len(values) > MAX_ATTRIBUTES[kind]:
        raise LimitError(
            f"{len(values)} keys of kind {kind.value}, more than the {MAX_ATTRIBUTES[kind]} that an object may have",
            what=kind.value,
        )
    total = 0
    textual = kind in (AttributeKind.TAG, AttributeKind.LABEL)
    for key, value in values.items():
        check_key(key, kind.value)
        what = f"{kind.value} {shown(key)}"
        if isinstance(value, str):
            chars = _MAX_LABEL_CHARS if kind is AttributeKind.LABEL else MAX_VALUE_BYTES
            check_text(value, what, max_chars=chars)
            size = _size_of_text(value)
        elif textual:
            raise InvalidError(f"the {what} is {shown(value)}: expected text", what=kind.value)
        else:
            size = check_value(value, what)
        if size > MAX_VALUE_BYTES:
            raise LimitError(
                f"the {what} has {size} bytes as JSON, more than the {MAX_VALUE_BYTES} allowed: "
                "keep large things as artifacts",
                what=kind.value,
            )
        total += size
    if total > MAX_ATTRIBUTES_BYTES:
        raise LimitError(
            f"the values of kind {kind.value} have {total} bytes as JSON, more than the {MAX_ATTRIBUTES_BYTES} that an "
            "object may have: keep large things as artifacts",
            what=kind.value,
        )
    return values


def check_value(value: JsonValue, what: str) -> int:
    """The size of a value as JSON, in bytes.

    Raises:
        InvalidError: It is not JSON; NaN and infinities are not.
        LimitError: It is nested too deeply.
    """
    _check_json(value, what, MAX_DEPTH - 1)
    if isinstance(value, bool | int | float) or value is None:
        return 24
    return len(json.dumps(value, ensure_ascii=False).encode())


def _size_of_text(text: str) -> int:
    # Quotes, and what JSON escapes: only near the limit does it matter how much.
    if len(text) < MAX_VALUE_BYTES // 8:
        return len(text) + 2
    return len(json.dumps(text, ensure_ascii=False).encode())


def check_checkpoint_metrics(metrics: Mapping[str, float]) -> Mapping[str, float]:
    """Returns ``metrics`` if every value is a number; NaN and infinities are.

    Raises:
        InvalidError: A key is no valid text, or a value is no number.
        LimitError: There are too many.
    """
    if len(metrics) > _MAX_CHECKPOINT_METRICS:
        raise LimitError(
            f"{len(metrics)} metrics of a checkpoint, more than the {_MAX_CHECKPOINT_METRICS} allowed", what="metrics"
        )
    for key, value in metrics.items():
        check_key(key, "metric")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidError(f"the metric {shown(key)} is {shown(value)}: expected a number", what="metrics")
        if isinstance(value, int) and abs(value) >= 10**308:
            raise InvalidError(f"the metric {shown(key)} is beyond what 64-bit floats hold", what="metrics")
    return metrics


def check_step(step: int, what: str = "step") -> int:
    """Returns ``step`` if it is a whole number of 64 bits.

    Raises:
        InvalidError: It is not.
    """
    if isinstance(step, bool) or not isinstance(step, int) or not -(2**63) <= step < 2**63:
        raise InvalidError(f"{shown(step)} is not a {what}: expected a whole number of 64 bits", what=what)
    return step


def check_epoch(epoch: int) -> int:
    """Returns ``epoch`` if it is a whole number from 0 on.

    Raises:
        InvalidError: It is not.
    """
    if check_step(epoch, "epoch") < 0:
        raise InvalidError(f"{epoch} is not an epoch: epochs count from 0", what="epoch")
    return epoch


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

"""What libraries call hyperparameters, as the JSON by key that a run keeps.

Pure. A value that JSON has no word for (a module, a function, an optimiser) is kept as what it says of itself, since a
hyperparameter that is left out misleads more than one that reads ``ReLU()``.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from modelbox.errors import ModelBoxError
from modelbox.objects import JsonValue
from modelbox.spool.checks import json_text

__all__ = ("numbers", "parameters")

_MAX_TEXT_CHARS = 2000


def parameters(values: object, prefix: str = "") -> dict[str, JsonValue]:
    """Nested mappings as one, keys joined by dots.

    Args:
        values: A mapping, `argparse.Namespace` or dataclass; None for nothing.
        prefix: Put before every key.
    """
    found: dict[str, JsonValue] = {}
    for key, value in _items(values):
        name = f"{prefix}{key}"
        if isinstance(value, Mapping | Namespace) and _items(value):
            found.update(parameters(value, f"{name}."))
        else:
            found[name] = _kept(name, value)
    return found


def numbers(values: Mapping[str, Any] | None) -> dict[str, float]:
    """Those values that are numbers, of any library."""
    found: dict[str, float] = {}
    for key, value in (values or {}).items():
        if not isinstance(value, str | bytes):
            try:
                found[str(key)] = float(value)
            except (TypeError, ValueError, RuntimeError):
                continue
    return found


def _items(values: object) -> list[tuple[str, Any]]:
    if values is None:
        return []
    if isinstance(values, Mapping):
        return [(str(key), value) for key, value in values.items()]
    if is_dataclass(values) and not isinstance(values, type):
        return list(asdict(values).items())
    return list(vars(values).items())


def _kept(key: str, value: Any) -> JsonValue:
    try:
        json_text(key, value)
    except (ModelBoxError, TypeError, ValueError):
        said = f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else str(value)
        return said[:_MAX_TEXT_CHARS]
    found: JsonValue = value
    return found

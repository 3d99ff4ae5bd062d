"""How arguments of the client's methods name things."""

from __future__ import annotations

import os
from pathlib import Path

from modelbox.errors import InvalidError
from modelbox.refs import ModelRef, shown

__all__ = ("alias_of", "model_of", "numbered", "path_of")


def model_of(path: str) -> tuple[str, str]:
    """Namespace and name out of ``namespace/model``."""
    if isinstance(path, str) and "@" in path:
        raise InvalidError(f"{shown(path)} names a version: expected namespace/model")
    ref = ModelRef.parse(path)
    return ref.namespace, ref.model


def alias_of(ref: str | ModelRef) -> tuple[str, str, str]:
    """Namespace, model and alias out of ``namespace/model@alias``."""
    parsed = ModelRef.parse(ref)
    if parsed.alias is None or (isinstance(ref, str) and "@" not in ref):
        raise InvalidError(f"{shown(str(ref))} names no alias: expected namespace/model@alias")
    return parsed.namespace, parsed.model, parsed.alias


def numbered(ref: str | ModelRef) -> tuple[str, str, int]:
    """Namespace, model and version out of ``namespace/model@7``."""
    parsed = ModelRef.parse(ref)
    if parsed.version is None:
        raise InvalidError(f"{shown(str(ref))} names no version by its number: expected namespace/model@7")
    return parsed.namespace, parsed.model, parsed.version


def path_of(directory: str | os.PathLike[str]) -> Path:
    """The absolute path, whatever the working directory becomes."""
    return Path(os.path.abspath(os.fspath(directory)))

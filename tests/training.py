"""The libraries that train models, for tests: installed by `make test`, and not there for everybody who runs pytest."""

from __future__ import annotations

import importlib.util
import os

import pytest

__all__ = ("need",)


def need(*packages: str) -> None:
    """Skips the module that calls it where a package is missing; in CI, where none may be, fails instead."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if not missing:
        return
    reason = f"not installed: {', '.join(missing)} (requirements/training.txt)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)

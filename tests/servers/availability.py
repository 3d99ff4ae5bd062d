"""What a test does whose server cannot be had on this machine."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ("unavailable",)


def unavailable(reason: str) -> NoReturn:
    """Skips the test on a user's machine; fails it where the server has to be there: in CI, and as root."""
    if os.environ.get("CI") == "true" or os.geteuid() == 0:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)

"""What has to start anew in a forked child.

A child has the memory of its parent but only one of its threads: locks may be held by threads that are gone, work that
was queued will never be done. Objects with such state register here and are reset before the child runs anything else.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ("reset_in_child",)


class Resettable(Protocol):
    """State that does not survive a fork."""

    def _after_fork_in_child(self) -> None:
        """Brings the object into the state of a fresh one; runs with a single thread, must not block or raise."""


_registered: weakref.WeakSet[Resettable] = weakref.WeakSet()


def reset_in_child(item: Resettable) -> None:
    """Has ``item`` reset in every forked child for as long as it lives."""
    _registered.add(item)


def _reset_all() -> None:
    for item in list(_registered):
        item._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)

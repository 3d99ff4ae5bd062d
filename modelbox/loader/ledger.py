"""Keeps the call statistics of a process by model, version and alias, for as long as somebody may want to read them.

A version that comes back (a rollback) goes on with its old numbers, so what exporters see only ever grows. Bounded: of
each reference, the statistics of the newest versions are kept.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from modelbox._fork import reset_in_child
from modelbox.loader.stats import CallStats

__all__ = ("CallLabels", "Ledger")

_VERSIONS_KEPT = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLabels:
    """What a series of calls is about.

    Attributes:
        model: ``namespace/model``.
        alias: Empty for a pinned reference.
    """

    model: str
    version: int
    alias: str


class Ledger:
    """Statistics by labels; every method may be called from any thread.

    Attributes:
        began_ns: When it began to count, in nanoseconds since 1970.
    """

    def __init__(self) -> None:
        self.began_ns = time.time_ns()
        self._lock = threading.Lock()
        self._stats: dict[CallLabels, CallStats] = {}
        reset_in_child(self)

    def stats(self, labels: CallLabels) -> CallStats:
        """The statistics under ``labels``, made on first use."""
        with self._lock:
            found = self._stats.pop(labels, None) or CallStats()
            self._stats[labels] = found  # newest last
            same = [held for held in self._stats if (held.model, held.alias) == (labels.model, labels.alias)]
            for oldest in same[:-_VERSIONS_KEPT]:
                del self._stats[oldest]
            return found

    def entries(self) -> list[tuple[CallLabels, CallStats]]:
        """Everything that is kept."""
        with self._lock:
            return list(self._stats.items())

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()

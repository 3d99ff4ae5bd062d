"""The moment between the answer to a lone caller and its next call, spent awake.

Owns the decision whether to look for the next call before the sidecar sleeps, and the looking. Waking a process on an
idle processor costs more than a small model (25 µs on a virtual machine, each way), and one that never slept runs with
warm caches: a caller that makes one call after the other gets its answers in half of the time.

It must not cost others anything. So it happens only where the calls before came just as quickly, only for as long as
``limit_s`` each time, and every look offers the processor to whoever wants it. Once somebody does, there is a long
pause; once a caller lets it look in vain, the caller has to be quick for a while again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter_ns

__all__ = ("Linger",)

_SCHED_YIELD: Callable[[], object] | None = getattr(os, "sched_yield", None)
_QUICK_CALLS = 8
"""Calls in a row that must have come quickly."""
_PAUSE_CALLS = 200
"""Calls without a look, after somebody else wanted the processor."""
_WAKING_NS = 100_000
"""What it takes to wake both ends, at most, when nobody looks."""
_TAKEN_NS = 60_000
"""An offer of the processor that takes longer was accepted."""


class Linger:
    """Waits for the next call of one connection.

    Args:
        limit_s: Longest wait at a time, seconds; 0 for none.
        clock_ns: A steady clock, nanoseconds.
        offer: Lets others use the processor.
    """

    __slots__ = ("_calls", "_clock_ns", "_left_ns", "_limit_ns", "_offer")

    def __init__(
        self,
        limit_s: float,
        *,
        clock_ns: Callable[[], int] = perf_counter_ns,
        offer: Callable[[], object] | None = _SCHED_YIELD,
    ) -> None:
        self._limit_ns = int(limit_s * 1e9) if offer is not None else 0
        self._clock_ns = clock_ns
        self._offer: Callable[[], object] = offer or (lambda: None)
        self._calls = 0
        self._left_ns = 0

    def after_call(self, came_ns: int, arrived: Callable[[], object]) -> None:
        """Looks for the next call, now that one that came alone was answered.

        Args:
            came_ns: When that one came, by the clock.
            arrived: Whether there is something to read.
        """
        limit_ns = self._limit_ns
        if not limit_ns:
            return
        clock_ns = self._clock_ns
        if came_ns - self._left_ns < limit_ns + _WAKING_NS:
            self._calls += 1
        else:
            self._calls = min(self._calls, 0)
        before_ns = clock_ns()
        if self._calls >= _QUICK_CALLS:
            until_ns = before_ns + limit_ns
            while not arrived():
                now_ns = clock_ns()
                if now_ns - before_ns > _TAKEN_NS:
                    self._calls = -_PAUSE_CALLS
                    break
                if now_ns > until_ns:
                    self._calls = 0
                    break
                before_ns = now_ns
                self._offer()
            before_ns = clock_ns()
        self._left_ns = before_ns

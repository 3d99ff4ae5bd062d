"""Whether a new version runs slower than the one that it is to replace.

Times a few runs of the version that serves, on the inputs of the new one's warm-up, and holds what the warm-up measured
against them. Refuses to guess: where the two cannot be compared on the same inputs, it says nothing.

Invariants: a comparison costs a few runs, or `_BUDGET_S` for either side, whichever is less; a run of what serves that
is far longer than expected is stopped. A factor counts only where both the medians and the best runs say so, so that
one stall of a busy machine is nobody's fault.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from modelbox.errors import LeaseReleased, ModelBoxError
from modelbox.loader.generation import Generation
from modelbox.loader.inputs import Feed
from modelbox.loader.session import Session, WarmReport, new_run_options

__all__ = ("Slowdown", "Slower", "compare_speed")

_RUNS = 5
_BUDGET_S = 0.02
_STOP_S = 0.25
"""For inputs on which a model that is usually quick is not."""


class Slower(StrEnum):
    """What becomes of a version that runs many times as long as the one before."""

    OFF = "off"
    WARN = "warn"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """How two versions compare.

    Attributes:
        factor: How many times as long a run of the new version takes; below 1 if it is faster.
        run_s: Seconds of one of its runs.
        before_s: Seconds of one run of the version before.
        before_version: The number of that.
    """

    factor: float
    run_s: float
    before_s: float
    before_version: int

    def __str__(self) -> str:
        return (
            f"a run takes {self.run_s * 1e3:.3g} ms, {self.factor:.3g} times as long as a run of version "
            f"{self.before_version} ({self.before_s * 1e3:.3g} ms)"
        )


def compare_speed(session: Session, report: WarmReport, before: Generation, limit: float) -> Slowdown | None:
    """How a warmed session compares with what serves; None where nobody can say. Blocks for some milliseconds at most.

    Args:
        session: The new one.
        report: What its warm-up found.
        before: What serves; it may be retired meanwhile.
        limit: A factor above it is measured again before it is believed.
    """
    if report.feed is None or not report.times_s:
        return None
    before_s = _times_of(before, report.feed)
    if not before_s:
        return None
    found = _compare(report.times_s, before_s, before)
    if found.factor > limit and min(report.times_s) <= _BUDGET_S:
        # What was measured a moment later, side by side, is not a matter of what the machine did meanwhile.
        found = _compare(_times(session, report.feed) or report.times_s, before_s, before)
    return found


def _compare(now: Sequence[float], earlier: Sequence[float], before: Generation) -> Slowdown:
    middle, middle_before = statistics.median(now), statistics.median(earlier)
    return Slowdown(
        factor=min(middle / middle_before, min(now) / min(earlier)),
        run_s=middle,
        before_s=middle_before,
        before_version=before.version.version,
    )


def _times_of(before: Generation, feed: Feed) -> list[float]:
    """Seconds of runs of the version that serves; none if it does not take these inputs, or is being replaced."""
    known_s = before.session.run_s
    if known_s is not None and known_s > _BUDGET_S:
        # Its own warm-up has measured it, and one more run is dear.
        return [known_s]
    if not before.acquire():
        return []
    try:
        return _times(before.session, before.check(feed))
    except (ModelBoxError, LeaseReleased):
        return []
    finally:
        before.release()


def _times(session: Session, feed: Feed) -> list[float]:
    """Seconds of a few runs, one at least; none if that had to be stopped."""
    options = new_run_options()

    def stop() -> None:
        options.terminate = True

    found: list[float] = []
    timer = threading.Timer(_STOP_S, stop)
    timer.daemon = True
    timer.start()
    end = time.perf_counter() + _BUDGET_S
    try:
        while len(found) < _RUNS and (not found or time.perf_counter() < end):
            begun = time.perf_counter()
            session.run_within(feed, options)
            found.append(time.perf_counter() - begun)
    except ModelBoxError:
        if not options.terminate:
            raise
    finally:
        timer.cancel()
    return found

"""Figures of a set of calls: how many, by which version, how long."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from .load import Answer

__all__ = ("Figures", "figures", "percentile")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all values do not exceed (nearest rank); NaN of none.

    Args:
        values: In any order.
        share: In (0, 1], such as 0.99.
    """
    if not 0 < share <= 1:
        raise ValueError(f"Expected a share in (0, 1], got {share}.")
    if not values:
        return math.nan
    return sorted(values)[math.ceil(share * len(values)) - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One row of the table; durations in milliseconds, NaN where nothing was answered.

    Attributes:
        by_version: Answers per version of the model, in order of versions.
    """

    phase: str
    calls: int
    failed: int
    by_version: dict[int, int]
    p50_ms: float
    p99_ms: float
    max_ms: float


def figures(phase: str, answers: Iterable[Answer]) -> Figures:
    """Counts and percentiles of the answers of one phase."""
    taken: Collection[Answer] = tuple(answers)
    good = [answer for answer in taken if answer.error is None]
    ms = [1000 * answer.latency_s for answer in good]
    return Figures(
        phase=phase,
        calls=len(taken),
        failed=len(taken) - len(good),
        by_version=dict(sorted(Counter(answer.version for answer in good).items())),
        p50_ms=percentile(ms, 0.50),
        p99_ms=percentile(ms, 0.99),
        max_ms=max(ms, default=math.nan),
    )

"""Samples, their quantiles, and how two subjects are compared on a machine that does not hold still.

Owns no clock of its own and knows nothing of what is measured. Subjects are measured in turns, in an order that a seed
gives: whatever slows the machine down for a while hits all of them, so the comparison of one round with the same round
of another subject holds where the plain medians do not.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import anyio
import anyio.lowlevel

__all__ = ("Series", "calls_per_s", "difference", "interleave", "quantile", "ratio", "time_calls")

Round = Callable[[], Awaitable[Sequence[float]]]
"""One turn of a subject; returns its samples."""


def quantile(values: Sequence[float], q: float) -> float:
    """The ``q``-quantile (0 to 1), between two neighbours in proportion.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("there is no quantile of no values")
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """All samples of one subject, by round."""

    rounds: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Series:
        """A series of a single round."""
        return cls(rounds=(tuple(values),))

    @property
    def values(self) -> tuple[float, ...]:
        """The samples of all rounds."""
        return tuple(value for samples in self.rounds for value in samples)

    @property
    def p50(self) -> float:
        """Median of all samples."""
        return quantile(self.values, 0.5)

    @property
    def p99(self) -> float:
        """What 99 % of the samples do not exceed."""
        return quantile(self.values, 0.99)

    @property
    def p1(self) -> float:
        """What 99 % of the samples reach: the bad end of a rate."""
        return quantile(self.values, 0.01)

    @property
    def medians(self) -> tuple[float, ...]:
        """The median of each round."""
        return tuple(statistics.median(samples) for samples in self.rounds)


def ratio(of: Series, to: Series) -> float:
    """Median over the rounds of one subject's median divided by the other's in the same round."""
    return statistics.median(a / b for a, b in zip(of.medians, to.medians, strict=True))


def difference(of: Series, to: Series) -> float:
    """Median over the rounds of one subject's median minus the other's in the same round."""
    return statistics.median(a - b for a, b in zip(of.medians, to.medians, strict=True))


async def interleave(
    subjects: Mapping[str, Round], *, rounds: int, warm_up: int = 1, seed: int = 0
) -> dict[str, Series]:
    """Measures subjects in turns.

    Args:
        subjects: One turn each, by name.
        rounds: How many turns each gets that count.
        warm_up: How many turns come before and are thrown away.
        seed: Of the order within each round.
    """
    rng = random.Random(seed)
    taken: dict[str, list[tuple[float, ...]]] = {name: [] for name in subjects}
    for number in range(-warm_up, rounds):
        order = list(subjects)
        rng.shuffle(order)
        for name in order:
            samples = tuple(await subjects[name]())
            if number >= 0:
                taken[name].append(samples)
    return {name: Series(rounds=tuple(samples)) for name, samples in taken.items()}


async def time_calls(call: Callable[[], Awaitable[object]], calls: int) -> list[float]:
    """Seconds of each of ``calls`` calls, one after the other."""
    clock = perf_counter
    took = []
    for _ in range(calls):
        began = clock()
        await call()
        took.append(clock() - began)
    return took


async def calls_per_s(call: Callable[[], Awaitable[object]], *, tasks: int, seconds: float) -> float:
    """Calls per second of ``tasks`` tasks that each call without a pause."""
    done = 0
    began = perf_counter()
    end = began + seconds

    async def keep_calling() -> None:
        nonlocal done
        while perf_counter() < end:
            await call()
            done += 1

    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(keep_calling)
    return done / (perf_counter() - began)

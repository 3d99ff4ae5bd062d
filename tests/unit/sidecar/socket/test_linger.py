"""When the sidecar stays awake for a lone caller, and when it leaves the processor to others."""

from __future__ import annotations

import pytest

from modelbox.sidecar.socket.linger import Linger

MICRO = 1000


class Clock:
    """Time that passes with each look and each offer."""

    def __init__(self, *, look_ns: int = MICRO, offer_ns: int = 0) -> None:
        self.now_ns = 0
        self.look_ns = look_ns
        self.offer_ns = offer_ns
        self.offers = 0
        self.looks = 0
        self.arrives_ns: int | None = None

    def __call__(self) -> int:
        return self.now_ns

    def offer(self) -> None:
        self.offers += 1
        self.now_ns += self.offer_ns

    def arrived(self) -> bool:
        self.looks += 1
        self.now_ns += self.look_ns
        return self.arrives_ns is not None and self.now_ns >= self.arrives_ns


def call(linger: Linger, clock: Clock, *, after_us: int) -> int:
    """One call that comes ``after_us`` after the last one was answered; returns how often it was looked for more."""
    clock.now_ns += after_us * MICRO
    looks = clock.looks
    linger.after_call(clock.now_ns, clock.arrived)
    return clock.looks - looks


def made(clock: Clock, *, limit_s: float = 100e-6) -> Linger:
    return Linger(limit_s, clock_ns=clock, offer=clock.offer)


def warm(linger: Linger, clock: Clock) -> None:
    for _ in range(20):
        clock.arrives_ns = clock.now_ns + 60 * MICRO
        call(linger, clock, after_us=10)


def test_looks_only_after_quick_calls() -> None:
    clock = Clock()
    linger = made(clock)
    assert [call(linger, clock, after_us=50) for _ in range(7)] == [0] * 7
    assert call(linger, clock, after_us=50) > 0


@pytest.mark.parametrize("after_us", [1000, 100_000])
def test_never_looks_for_a_caller_that_takes_its_time(after_us: int) -> None:
    clock = Clock()
    linger = made(clock)
    assert sum(call(linger, clock, after_us=after_us) for _ in range(100)) == 0


def test_ends_with_the_next_call() -> None:
    clock = Clock()
    linger = made(clock)
    warm(linger, clock)
    clock.arrives_ns = clock.now_ns + 40 * MICRO
    began_ns = clock.now_ns
    call(linger, clock, after_us=10)
    assert clock.now_ns - began_ns == 40 * MICRO


def test_looks_no_longer_than_its_limit_and_then_not_at_once_again() -> None:
    clock = Clock()
    linger = made(clock)
    warm(linger, clock)
    clock.arrives_ns = None
    began_ns = clock.now_ns
    assert call(linger, clock, after_us=0) > 0
    assert clock.now_ns - began_ns <= 102 * MICRO
    assert [call(linger, clock, after_us=10) for _ in range(7)] == [0] * 7


def test_offers_the_processor_with_every_look() -> None:
    clock = Clock()
    linger = made(clock)
    warm(linger, clock)
    clock.arrives_ns = clock.now_ns + 30 * MICRO
    offers = clock.offers
    looks = call(linger, clock, after_us=0)
    assert clock.offers - offers == looks - 1 > 10


def test_leaves_the_processor_for_long_once_somebody_took_it() -> None:
    clock = Clock()
    linger = made(clock)
    warm(linger, clock)
    clock.offer_ns, clock.arrives_ns = 3_000 * MICRO, None
    assert call(linger, clock, after_us=0) == 2
    clock.offer_ns = 0
    assert sum(call(linger, clock, after_us=10) for _ in range(200)) == 0
    assert sum(call(linger, clock, after_us=10) for _ in range(10)) > 0


@pytest.mark.parametrize("limit_s", [0.0, 100e-6])
def test_can_be_switched_off(limit_s: float) -> None:
    clock = Clock()
    linger = Linger(limit_s, clock_ns=clock, offer=clock.offer if not limit_s else None)
    assert sum(call(linger, clock, after_us=10) for _ in range(100)) == 0

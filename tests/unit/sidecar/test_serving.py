"""The queue before a model: bounds, order, and what a cancelled call leaves behind."""

from __future__ import annotations

import asyncio
import random

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbox.errors import ServerBusy
from modelbox.sidecar.serving import DEFAULT_PRIORITY, Gate


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def gate(*, width: int = 1, max_waiting: int = 100, drain_s: float = 0.01) -> Gate:
    return Gate("acme/m", max_waiting=max_waiting, width=width, drain_s=lambda: drain_s)


async def test_who_finds_room_goes_in_and_who_does_not_waits() -> None:
    door = gate(width=2)
    await door.enter()
    await door.enter()
    assert not door.open
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(door.enter)
        await anyio.wait_all_tasks_blocked()
        assert (door.running, door.waiting) == (2, 1)
        door.leave()
    assert (door.running, door.waiting) == (2, 0)
    door.leave()
    door.leave()
    assert door.open
    assert door.running == 0


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    door = gate(max_waiting=3, drain_s=0.5)
    await door.enter()
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(door.enter)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(ServerBusy) as caught:
            await door.enter()
        assert caught.value.fields["retry_after_s"] == pytest.approx(0.5 * 4)
        assert door.refused == 1
        tasks.cancel_scope.cancel()
    assert door.waiting == 0


async def test_without_a_queue_only_those_inside_are_served() -> None:
    door = gate(max_waiting=0)
    await door.enter()
    with pytest.raises(ServerBusy):
        await door.enter()
    door.leave()
    await door.enter()


async def test_urgent_calls_go_first_and_equal_ones_in_their_order() -> None:
    door = gate()
    order: list[str] = []

    async def call(name: str, priority: int) -> None:
        await door.enter(priority)
        order.append(name)
        door.leave()

    await door.enter()
    async with anyio.create_task_group() as tasks:
        for name, priority in [("late", DEFAULT_PRIORITY + 1), ("a", 0), ("b", 0), ("c", DEFAULT_PRIORITY), ("now", 1)]:
            tasks.start_soon(call, name, priority)
        await anyio.wait_all_tasks_blocked()
        door.leave()
    assert order == ["now", "a", "b", "c", "late"]


async def test_a_cancelled_call_leaves_the_queue_and_nobody_waits_for_it() -> None:
    door = gate()
    await door.enter()
    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def impatient() -> None:
            with scope:
                await door.enter(1)

        tasks.start_soon(impatient)
        tasks.start_soon(door.enter)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert door.waiting == 1
        door.leave()
    assert (door.running, door.waiting) == (1, 0)


async def test_a_turn_that_comes_with_the_cancellation_goes_to_the_next() -> None:
    door = gate()
    await door.enter()
    loser = asyncio.ensure_future(door.enter())
    winner = asyncio.ensure_future(door.enter())
    await anyio.wait_all_tasks_blocked()
    door.leave()
    loser.cancel()
    await winner
    with pytest.raises(asyncio.CancelledError):
        await loser
    assert (door.running, door.waiting) == (1, 0)


async def test_a_call_that_comes_while_another_gives_up_does_not_wait_for_nobody() -> None:
    door = gate()
    await door.enter()
    gone = asyncio.ensure_future(door.enter())
    await anyio.wait_all_tasks_blocked()
    gone.cancel()
    door.leave()
    with anyio.fail_after(60):
        await door.enter()
    assert (door.running, door.waiting) == (1, 0)


async def test_many_that_give_up_do_not_pile_up() -> None:
    door = gate(max_waiting=10_000)
    await door.enter()
    for _ in range(20):
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(door.enter)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
    assert door.waiting == 0
    assert len(door._heap) <= 64


async def test_a_wider_gate_lets_those_in_who_wait() -> None:
    door = gate()
    await door.enter()
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(door.enter)
        await anyio.wait_all_tasks_blocked()
        door.width = 4
        door.admit()
        await anyio.wait_all_tasks_blocked()
        assert (door.running, door.waiting) == (4, 2)
        tasks.cancel_scope.cancel()


async def test_idle_means_that_nobody_is_inside_or_waits() -> None:
    door = gate()
    with anyio.fail_after(30):
        await door.wait_idle()
    await door.enter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(door.enter)
        tasks.start_soon(door.wait_idle)
        await anyio.wait_all_tasks_blocked()
        door.leave()
        await anyio.wait_all_tasks_blocked()
        assert door.running == 1
        door.leave()


@given(seed=st.integers(0, 2**32), width=st.integers(1, 4), calls=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_whatever_happens_the_counts_come_back_to_nothing(seed: int, width: int, calls: int) -> None:
    dice = random.Random(seed)
    door = gate(width=width, max_waiting=10)
    inside = 0

    async def call() -> None:
        nonlocal inside
        try:
            with anyio.move_on_after(dice.choice([0.0, 0.001, 10])):
                await door.enter(dice.randrange(5))
                try:
                    inside += 1
                    assert inside <= width
                    for _ in range(dice.randrange(3)):
                        await checkpoint()
                finally:
                    inside -= 1
                    door.leave()
        except ServerBusy:
            pass

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(calls):
                tasks.start_soon(call)
                if dice.random() < 0.3:
                    await checkpoint()

    anyio.run(run)
    assert (door.running, door.waiting, inside) == (0, 0, 0)

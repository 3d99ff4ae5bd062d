from __future__ import annotations

import threading

import anyio
import pytest

from modelbox._loops import current_loop, find_current_loop


def test_no_loop_is_said_so() -> None:
    assert find_current_loop() is None
    with pytest.raises(RuntimeError, match="no event loop"):
        current_loop()


async def test_loop_is_the_same_object_for_all_its_tasks() -> None:
    loops = []

    async def task() -> None:
        loops.append(current_loop())

    async with anyio.create_task_group() as group:
        group.start_soon(task)
        group.start_soon(task)
    assert loops == [current_loop(), current_loop()]


async def test_functions_from_other_threads_run_on_the_loop() -> None:
    loop = current_loop()
    ran = anyio.Event()
    threads = []

    def run() -> None:
        threads.append(threading.current_thread())
        ran.set()

    await anyio.to_thread.run_sync(lambda: loop.call_soon_threadsafe(run))
    with anyio.fail_after(60):
        await ran.wait()
    assert threads == [threading.current_thread()]


async def test_call_soon_comes_after_the_tasks_that_are_ready() -> None:
    order: list[str] = []
    done = anyio.Event()

    def last() -> None:
        order.append("end of tick")
        done.set()

    async def task(name: str) -> None:
        if not order:
            current_loop().call_soon(last)
        order.append(name)

    async with anyio.create_task_group() as group:
        for name in ("a", "b", "c"):
            group.start_soon(task, name)
    with anyio.fail_after(60):
        await done.wait()
    assert sorted(order[:3]) == ["a", "b", "c"]
    assert order[3:] == ["end of tick"]


async def test_waiter_gives_results_and_errors() -> None:
    loop = current_loop()
    early = loop.make_waiter()
    early.set_result(1)
    assert await early == 1

    late = loop.make_waiter()
    loop.call_soon(late.set_result, 2)
    assert await late == 2

    failing = loop.make_waiter()
    loop.call_soon(failing.set_exception, LookupError("no"))
    with pytest.raises(LookupError, match="no"):
        await failing


async def test_cancelled_waiter_is_done() -> None:
    loop = current_loop()
    waiter = loop.make_waiter()
    with anyio.move_on_after(0) as scope:
        await waiter
    assert scope.cancelled_caught
    assert waiter.done()


async def test_call_later_runs_once_unless_cancelled() -> None:
    loop = current_loop()
    due = anyio.Event()
    never: list[int] = []
    timer = loop.call_later(0.01, lambda: never.append(1))
    timer.cancel()
    loop.call_later(0.02, due.set)
    with anyio.fail_after(60):
        await due.wait()
    assert not never


async def test_checkpoint_delivers_cancellation() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await current_loop().checkpoint()
    assert scope.cancelled_caught


def test_an_ended_loop_refuses_calls() -> None:
    for backend in ("asyncio", "trio"):

        async def main() -> object:
            return current_loop()

        loop = anyio.run(main, backend=backend)
        with pytest.raises(RuntimeError):
            loop.call_soon_threadsafe(print)  # type: ignore[attr-defined]

"""Runs that take for ever: they hold up no loop, no thread for longer than somebody waits, and no other call."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from modelbox.errors import DeadlineExceeded, RunTerminated
from modelbox.loader import stall
from modelbox.loader.generation import Generation
from modelbox.loader.runner import Mode, Runner, RunnerOptions
from modelbox.loader.session import new_run_options
from modelbox.loader.stall import RunStalled
from tests.faults.registry import fault
from tests.onnx_models import loop_as_told
from tests.unit.loader.inference import opened, version

EVER = 10**15
STALL_S = 0.15


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "STALL_S", STALL_S)
    monkeypatch.setattr(stall, "_POLL_S", 0.02)


def ask(times: int, x: float = 0.0) -> dict[str, Any]:
    return {"x": np.full((1, 4), x, np.float32), "n": np.array([times])}


def make(tmp_path: Path, *, batching: bool = False, **options: Any) -> Runner:
    session = opened(tmp_path, loop_as_told())
    session.warm(10.0)
    runner = Runner(RunnerOptions(threads=2, **options))
    runner.swap(Generation(number=1, version=version(1), session=session, batching=batching))
    return runner


async def settled(runner: Runner) -> None:
    """Until no thread has a run any more."""
    with anyio.fail_after(60):
        while runner.active is not None and runner.active.leases:
            await anyio.sleep(0.01)


@pytest.mark.parametrize("batching", [False, True], ids=["alone", "joined"])
async def test_a_call_without_end_holds_up_neither_the_loop_nor_others(tmp_path: Path, batching: bool) -> None:
    runner = make(tmp_path, batching=batching, batch_above_s=0.0)
    longest = 0.0

    async def watch_loop() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await anyio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch_loop)
        assert (await runner.predict(ask(3)))["y"][0, 0] == 3
        for _ in range(5):
            with pytest.raises(DeadlineExceeded):
                await runner.predict(ask(EVER), timeout=STALL_S + 0.3)
            # Its thread is free again: with two of them, three calls without end would have taken all.
            assert (await runner.predict(ask(4), timeout=60))["y"][0, 0] == 4
        tasks.cancel_scope.cancel()
    await settled(runner)
    assert longest < STALL_S + 10.0
    runner.close()


async def test_a_timeout_counts_for_a_call_that_began_on_the_loop(tmp_path: Path) -> None:
    runner = make(tmp_path)
    for _ in range(3):
        runner.active.average_ns = 1000.0  # type: ignore[union-attr]
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await runner.predict(ask(EVER), timeout=2 * STALL_S)
        assert time.monotonic() - began < 2 * STALL_S + 10.0
    await settled(runner)
    runner.close()


async def test_a_long_call_is_answered_though_it_began_on_the_loop(tmp_path: Path) -> None:
    runner = make(tmp_path)
    took_s = []
    for _ in range(3):
        began = time.monotonic()
        runner.predict_sync(ask(200_000))
        took_s.append(time.monotonic() - began)
    times = int(200_000 * 5 * STALL_S / min(took_s))
    answer = await runner.predict(ask(times))
    assert answer["y"][0, 0] == np.float32(times) or answer["y"][0, 0] >= 2**24
    assert runner.active is not None
    assert runner.active.average_ns > runner.options.inline_below_s * 1e9
    # Short calls bring it back; how many it takes depends on what else the machine does.
    with anyio.fail_after(60):
        while runner.active.average_ns >= runner.options.inline_below_s * 1e9:
            await runner.predict(ask(1))
    runner.close()


async def test_blocking_calls_are_not_watched_and_end_with_their_timeout(tmp_path: Path) -> None:
    runner = make(tmp_path)
    for _ in range(4):
        with pytest.raises(DeadlineExceeded):
            runner.predict_sync(ask(EVER), timeout=0.1)
    await settled(runner)
    runner.close()


async def test_who_wants_every_run_on_the_loop_is_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stall, "STALL_S", 0.0)
    runner = make(tmp_path, mode=Mode.INLINE)
    began = time.monotonic()
    await runner.predict(ask(100_000))
    while time.monotonic() - began < 0.3:
        await runner.predict(ask(100_000))
    assert runner.active is not None
    assert runner.active.average_ns < 1e9
    runner.close()


async def test_a_batch_goes_on_while_anybody_waits_for_it(tmp_path: Path) -> None:
    runner = make(tmp_path, batching=True, batch_above_s=0.0, mode=Mode.POOL)
    runner.predict_sync(ask(1))
    active: Any = runner.active
    run_within = active.run_within
    began, go_on = threading.Event(), threading.Event()

    def run(feed: Any, stop: Any) -> Any:
        began.set()
        assert go_on.wait(60)
        return run_within(feed, stop)

    active.run_within = run
    answers: list[Any] = []
    async with anyio.create_task_group() as tasks:

        async def stays() -> None:
            answers.append(await runner.predict(ask(200_000, 1.0)))

        tasks.start_soon(stays)
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(runner.predict, ask(2, 5.0))
            await anyio.to_thread.run_sync(began.wait, 60)
            leaving.cancel_scope.cancel()
        go_on.set()
    assert answers[0]["y"][0, 0] == 200_001
    await settled(runner)
    runner.close()


@fault(58)
def test_force_ends_a_run_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "STALL_S", 600.0)
    session = opened(tmp_path, loop_as_told())
    ended: list[BaseException] = []

    def run(how: Any) -> None:
        try:
            how()
        except Exception as exc:
            ended.append(exc)

    feed = ask(EVER)
    threads = [
        threading.Thread(target=run, args=(how,))
        for how in (
            lambda: session.run(feed),
            lambda: session.run_within(feed, new_run_options()),
            lambda: session.run_here(feed),
        )
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    session.terminate()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert [type(exc) for exc in ended] == [RunTerminated] * 3
    for how in (session.run, session.run_here):
        with pytest.raises(RunTerminated):
            how(ask(1))


def test_a_slot_is_of_use_after_a_stop(tmp_path: Path) -> None:
    session = opened(tmp_path, loop_as_told())
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(RunStalled):
            session.run_here(ask(EVER))
        assert STALL_S <= time.monotonic() - began < STALL_S + 10.0
        assert session.run_here(ask(5))[0][0, 0] == 5

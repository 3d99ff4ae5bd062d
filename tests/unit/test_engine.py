from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import anyio
import anyio.lowlevel
import pytest

from modelbox.engine import Engine
from modelbox.errors import ClientClosed, DeadlineExceeded, UsageError


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(name="engine-under-test")
    yield engine
    engine.close()


async def _double(x: int) -> int:
    await anyio.lowlevel.checkpoint()
    return 2 * x


async def _thread() -> threading.Thread:
    return threading.current_thread()


async def _fail() -> None:
    raise LookupError("from the engine")


async def _fail_in_group() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(_fail)


class _Blocked:
    """A function that waits until it is cancelled, and says so."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.cancelled = threading.Event()
        self.cleanup_s = 0.0

    async def __call__(self) -> None:
        self.started.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self.cleanup_s)
            self.cancelled.set()


async def test_call_returns_the_result_from_the_engine_thread(engine: Engine) -> None:
    assert await engine.call(_double, 21) == 42
    thread = await engine.call(_thread)
    assert thread.name == "engine-under-test"
    assert thread.daemon


async def test_call_raises_what_the_function_raised(engine: Engine) -> None:
    for fn in (_fail, _fail_in_group):
        with pytest.raises(LookupError, match="from the engine"):
            await engine.call(fn)


async def test_cancelled_call_cancels_and_awaits_its_work(engine: Engine) -> None:
    blocked = _Blocked()
    blocked.cleanup_s = 0.05
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.call, blocked)
        assert await anyio.to_thread.run_sync(blocked.started.wait, 60)
        tasks.cancel_scope.cancel()
    assert blocked.started.is_set()
    assert blocked.cancelled.is_set()
    assert await engine.call(_double, 1) == 2


async def test_call_inside_of_the_engine_runs_in_place(engine: Engine) -> None:
    async def outer() -> bool:
        return await engine.call(_thread) is threading.current_thread()

    assert await engine.call(outer)


async def test_many_calls_at_once(engine: Engine) -> None:
    results: set[int] = set()

    async def one(x: int) -> None:
        results.add(await engine.call(_double, x))

    async with anyio.create_task_group() as group:
        for x in range(100):
            group.start_soon(one, x)
    assert results == {2 * x for x in range(100)}


async def test_engine_code_uses_anyio_whatever_the_caller_runs_on(engine: Engine) -> None:
    async def library() -> str:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0)
        return await anyio.to_thread.run_sync(lambda: "in a thread")

    assert await engine.call(library) == "in a thread"


async def test_closing_ends_calls_in_flight(engine: Engine) -> None:
    blocked = _Blocked()

    async def close_when_started() -> None:
        await anyio.to_thread.run_sync(blocked.started.wait)
        await engine.aclose()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(close_when_started)
            with pytest.raises(ClientClosed):
                await engine.call(blocked)
    assert blocked.cancelled.is_set()
    with pytest.raises(ClientClosed):
        await engine.call(_double, 1)


def test_call_sync(engine: Engine) -> None:
    assert engine.call_sync(_double, 4) == 8
    with pytest.raises(LookupError):
        engine.call_sync(_fail)


def test_call_sync_gives_up_in_time_and_cancels(engine: Engine) -> None:
    assert engine.call_sync(_double, 1) == 2
    blocked = _Blocked()
    for timeout in (0.2, 1.0, 60.0):  # a call that has not begun in time leaves nothing to cancel
        with pytest.raises(DeadlineExceeded):
            engine.call_sync(blocked, timeout=timeout)
        if blocked.started.is_set():
            break
    assert blocked.cancelled.is_set()


def test_call_sync_on_the_engine_itself_is_refused(engine: Engine) -> None:
    async def mistaken() -> int:
        return engine.call_sync(_double, 1)

    with pytest.raises(UsageError, match="own thread"):
        engine.call_sync(mistaken)


def test_background_tasks_outlive_their_starter_and_can_be_cancelled(engine: Engine) -> None:
    blocked = _Blocked()
    task = engine.start_soon(blocked, name="blocked")
    assert blocked.started.wait(60)
    assert not task.done
    task.cancel()
    assert blocked.cancelled.wait(60)


def test_failed_background_task_is_logged_and_harms_nobody(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    engine.start_soon(_fail, name="doomed")
    assert engine.call_sync(_double, 1) == 2
    assert "doomed" in caplog.text
    assert "from the engine" in caplog.text


def test_close_is_idempotent_and_ends_the_thread(engine: Engine) -> None:
    thread = engine.call_sync(_thread)
    blocked = _Blocked()
    engine.start_soon(blocked, name="blocked")
    assert blocked.started.wait(60)
    engine.close()
    engine.close()
    assert blocked.cancelled.is_set()
    assert not thread.is_alive()
    assert engine.closed
    with pytest.raises(ClientClosed):
        engine.call_sync(_double, 1)


def test_close_on_the_engine_itself(engine: Engine) -> None:
    async def close() -> None:
        engine.close()
        await anyio.sleep_forever()

    with pytest.raises(ClientClosed):
        engine.call_sync(close)


def test_an_engine_that_was_never_used_closes() -> None:
    engine = Engine()
    engine.close()
    with pytest.raises(ClientClosed):
        engine.start_soon(_double, 1, name="late")


def _run_script(text: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_interpreter_exit_does_not_wait_for_background_work() -> None:
    out = _run_script(
        """
        import anyio
        from modelbox.engine import Engine

        engine = Engine()
        async def forever():
            try:
                await anyio.sleep_forever()
            finally:
                print("cleaned up", flush=True)
        async def ready():
            await anyio.sleep(0)
        engine.start_soon(forever, name="forever")
        engine.call_sync(ready)
        """
    )
    assert out == "cleaned up\n"


def test_forked_child_has_an_engine_of_its_own() -> None:
    out = _run_script(
        """
        import os, threading, anyio
        from modelbox.engine import Engine

        engine = Engine()
        async def double(x):
            await anyio.sleep(0.001)
            return 2 * x
        async def forever():
            await anyio.sleep_forever()
        assert engine.call_sync(double, 1) == 2
        engine.start_soon(forever, name="forever")
        pids = []
        for _ in range(3):
            pid = os.fork()
            if not pid:
                assert engine.call_sync(double, 2, timeout=50) == 4
                engine.close()
                os._exit(7)
            pids.append(pid)
        for pid in pids:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert engine.call_sync(double, 3, timeout=50) == 6
        print("parent works")
        """
    )
    assert out == "parent works\n"

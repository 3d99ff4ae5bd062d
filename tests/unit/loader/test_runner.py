from __future__ import annotations

import contextlib
import gc
import math
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from anyio.lowlevel import checkpoint

from modelbox.errors import (
    ClientClosed,
    DeadlineExceeded,
    InputError,
    LeaseReleased,
    PredictError,
    RunTerminated,
    UsageError,
)
from modelbox.loader.runner import Mode, Prediction, Runner, RunnerOptions
from modelbox.loader.stats import Outcome
from tests.onnx_models import add_constant, endless_loop
from tests.unit.loader.inference import generation, lookup, ones

ENDLESS = {"x": np.zeros(1, np.float32)}


@pytest.fixture
def runners() -> Iterator[Any]:
    made: list[Runner] = []

    def make(**options: Any) -> Runner:
        made.append(Runner(RunnerOptions(**{"batch_above_s": 0.0, **options})))
        return made[-1]

    yield make
    for runner in made:
        last = runner.close()
        if last is not None:
            last.force()


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("batching", [False, True])
async def test_predict_answers_with_the_version_that_ran(
    tmp_path: Path, runners: Any, mode: Mode, batching: bool
) -> None:
    runner = runners(mode=mode)
    runner.swap(generation(tmp_path, add_constant(1.0), 7, batching=batching))
    answer = await runner.predict(ones(3))
    assert isinstance(answer, Prediction)
    assert answer.version.version == 7
    assert answer["y"].dtype == np.float32
    np.testing.assert_array_equal(answer["y"], np.full((3, 4), 2.0))
    assert runner.active.leases == 0
    assert runner.active.stats.snapshot().duration_s[Outcome.OK].count == 1


def test_predict_sync(tmp_path: Path, runners: Any) -> None:
    runner = runners()
    runner.swap(generation(tmp_path, add_constant(1.0)))
    np.testing.assert_array_equal(runner.predict_sync(ones())["y"], np.full((1, 4), 2.0))
    np.testing.assert_array_equal(runner.predict_sync(ones(), timeout=60)["y"], np.full((1, 4), 2.0))
    with pytest.raises(InputError):
        runner.predict_sync({})
    assert runner.active.leases == 0


async def test_a_fast_model_runs_on_the_loop_and_a_slow_one_in_the_pool(tmp_path: Path, runners: Any) -> None:
    runner = runners()
    runner.swap(generation(tmp_path, add_constant(1.0)))
    threads = []
    run = runner.active.run

    def spy(feed: Any) -> Any:
        threads.append(threading.current_thread())
        return run(feed)

    runner.active.run_here = spy
    runner.active.run_within = lambda feed, stop: spy(feed)
    runner.active.average_ns = 1e3
    await runner.predict(ones())
    runner.active.average_ns = 50e6
    await runner.predict(ones())
    assert threads[0] is threading.current_thread()
    assert threads[1].name.startswith("modelbox-run")
    # It turns out to be fast after all; how many calls that takes depends on what else the machine does.
    with anyio.fail_after(60):
        while threads[-1] is not threading.current_thread():
            await runner.predict(ones())


async def test_calls_of_a_very_fast_model_do_not_wait_for_each_other(tmp_path: Path, runners: Any) -> None:
    # Far above and below what any machine measures while the calls run; and what earlier runs of this thread have cost
    # must not make the first call give way to others, nor a stop of the machine send a run to a thread.
    runner = runners(batch_above_s=10.0, inline_below_s=100.0, fairness_s=math.inf)
    runner.swap(generation(tmp_path, add_constant(1.0), batching=True))
    runner.active.run_here = runner.active.run

    async def both(average_ns: float) -> int:
        runner.active.average_ns = average_ns
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(runner.predict, ones())
        return int(runner.active.stats.snapshot().batch_size.count)

    assert await both(3_000.0) == 0
    assert await both(20e9) == 1


async def test_inline_calls_leave_time_for_other_tasks(tmp_path: Path, runners: Any) -> None:
    runner = runners(mode=Mode.INLINE, fairness_s=0.0005)
    runner.swap(generation(tmp_path, add_constant(1.0)))
    turns = 0
    stop = False

    async def other() -> None:
        nonlocal turns
        while not stop:
            turns += 1
            await checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        for _ in range(2_000_000):
            if turns >= 5:
                break
            await runner.predict(ones())
        stop = True
    assert turns >= 5


async def test_errors_name_the_problem_and_leave_no_lease(tmp_path: Path, runners: Any) -> None:
    for mode in Mode:
        runner = runners(mode=mode)
        runner.swap(generation(tmp_path, lookup()))
        with pytest.raises(InputError, match=r"expected int64\[batch\], got float32\[1\]"):
            await runner.predict({"i": np.zeros(1, np.float32)})
        with pytest.raises(PredictError, match="out of data bounds"):
            await runner.predict({"i": np.array([99])})
        snapshot = runner.active.stats.snapshot()
        assert snapshot.duration_s[Outcome.INVALID].count == 1
        assert snapshot.duration_s[Outcome.ERROR].count == 1
        assert runner.active.leases == 0


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("batching", [False, True])
async def test_inputs_are_let_go_with_their_call(tmp_path: Path, runners: Any, mode: Mode, batching: bool) -> None:
    """They may lie in memory of another process, and where nothing happens, no garbage is collected."""
    runner = runners(mode=mode)
    runner.swap(generation(tmp_path, lookup(), batching=batching))
    inputs: list[weakref.ref[Any]] = []

    async def call(index: int, timeout: float | None = None) -> None:
        given = np.array([index])
        inputs.append(weakref.ref(given))
        with contextlib.suppress(PredictError, DeadlineExceeded):
            await runner.predict({"i": given}, timeout=timeout)

    gc.disable()
    try:
        async with anyio.create_task_group() as group:
            for index in (0, 99, 1):
                group.start_soon(call, index)
        await call(2)
        await call(99)
        await call(3, 0.0)
        # A thread that has just answered is still to come to its end.
        await _until(lambda: all(given() is None for given in inputs))
    finally:
        gc.enable()
    assert len(inputs) == 6


async def test_before_the_first_swap_and_after_close(tmp_path: Path, runners: Any) -> None:
    runner = runners()
    with pytest.raises(UsageError, match="no version"):
        await runner.predict(ones())
    only = generation(tmp_path, add_constant(1.0))
    assert runner.swap(only) is None
    assert runner.close() is only
    assert runner.close() is None
    with pytest.raises(ClientClosed):
        await runner.predict(ones())
    with pytest.raises(ClientClosed):
        runner.predict_sync(ones())
    with pytest.raises(ClientClosed):
        runner.swap(generation(tmp_path, add_constant(1.0), 2))


def test_generation_numbers_only_grow(tmp_path: Path, runners: Any) -> None:
    runner = runners()
    runner.swap(generation(tmp_path, add_constant(1.0), 2))
    with pytest.raises(UsageError):
        runner.swap(generation(tmp_path, add_constant(1.0), 2))


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("batching", [False, True])
async def test_swap_under_load_fails_no_call_and_mixes_none(
    tmp_path: Path, runners: Any, mode: Mode, batching: bool
) -> None:
    """Odd versions add 1, even ones 100: the answer has to agree with the version that it names."""
    runner: Runner = runners(mode=mode)
    runner.swap(generation(tmp_path, add_constant(1.0), 1, batching=batching))
    answered: dict[int, int] = {}
    drained: list[int] = []
    stop = False

    async def caller(rows: int) -> None:
        while not stop:
            answer = await runner.predict(ones(rows))
            number = answer.version.version
            answered[number] = answered.get(number, 0) + 1
            np.testing.assert_array_equal(answer["y"], np.full((rows, 4), 2.0 if number % 2 else 101.0, np.float32))
            await checkpoint()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for rows in range(1, 9):
                group.start_soon(caller, rows)
            for number in range(2, 21):
                await _until(lambda: number - 1 in answered)  # noqa: B023 - awaited here
                new = generation(tmp_path, add_constant(1.0 if number % 2 else 100.0), number, batching=batching)
                old = runner.swap(new)
                assert old is not None

                def on_drained(old: Any = old) -> None:
                    drained.append(old.number)
                    old.session.close()

                old.retire(on_drained)
            await _until(lambda: 20 in answered)
            stop = True
    assert sorted(drained) == list(range(1, 20))
    assert sorted(answered) == list(range(1, 21))
    assert runner.active is not None
    assert runner.active.leases == 0


def test_event_loops_in_several_threads_share_a_runner(tmp_path: Path, runners: Any) -> None:
    runner: Runner = runners()
    runner.swap(generation(tmp_path, add_constant(1.0), 1, batching=True))
    errors: list[BaseException] = []
    counts: list[int] = []
    begun = threading.Semaphore(0)
    stop = threading.Event()

    async def main() -> None:
        done = 0

        async def caller() -> None:
            nonlocal done
            while not stop.is_set():
                answer = await runner.predict(ones())
                assert answer["y"][0, 0] == (2.0 if answer.version.version % 2 else 101.0)
                done += 1
                if done == 1:
                    begun.release()
                await checkpoint()

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(caller)
        counts.append(done)

    def thread(backend: str, options: dict[str, Any]) -> None:
        try:
            anyio.run(main, backend=backend, backend_options=options)
        except BaseException as exc:
            errors.append(exc)

    loops: list[tuple[str, dict[str, Any]]] = [("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {})]
    threads = [threading.Thread(target=thread, args=loop) for loop in loops]
    for each in threads:
        each.start()
    for _ in threads:
        assert begun.acquire(timeout=60), errors
    drained = threading.Semaphore(0)
    for number in range(2, 12):
        new = generation(tmp_path, add_constant(1.0 if number % 2 else 100.0), number, batching=number % 3 > 0)
        old = runner.swap(new)
        assert old is not None
        old.retire(drained.release)
        assert drained.acquire(timeout=60)
        for _ in range(3):
            runner.predict_sync(ones())
    stop.set()
    for each in threads:
        each.join(60)
    assert not errors
    assert len(counts) == 3


async def _until(condition: Any) -> None:
    with anyio.fail_after(60):
        while not condition():
            await anyio.sleep(0.001)


async def test_cancelled_call_that_waits_leaves_the_queue_and_its_lease(tmp_path: Path, runners: Any) -> None:
    runner: Runner = runners(threads=1)
    runner.swap(generation(tmp_path, endless_loop(), 1, warm=False))
    stuck = runner.active
    assert stuck is not None
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:

            async def terminated() -> None:
                with pytest.raises(RunTerminated):
                    await runner.predict(ENDLESS)

            group.start_soon(terminated)
            await _until(lambda: stuck.leases == 2 and not runner._pool.waiting)
            with anyio.move_on_after(0.02) as scope:
                await runner.predict(ENDLESS)
            assert scope.cancelled_caught
            assert not runner._pool.waiting
            # The first call only: the caller's own lease and the run's.
            assert stuck.leases == 2
            stuck.force()
    assert stuck.leases == 0
    assert stuck.stats.snapshot().duration_s[Outcome.CANCELLED].count == 1


async def test_cancelled_call_that_runs_keeps_its_lease_until_the_run_ends(tmp_path: Path, runners: Any) -> None:
    runner: Runner = runners()
    runner.swap(generation(tmp_path, endless_loop(), 1, warm=False))
    stuck = runner.active
    assert stuck is not None
    drained = threading.Event()
    while not stuck.leases:  # until a thread has taken it in time
        with pytest.raises(DeadlineExceeded):
            await runner.predict(ENDLESS, timeout=0.05)
    assert stuck.leases == 1
    stuck.retire(drained.set)
    assert not drained.is_set()
    stuck.force()
    assert await anyio.to_thread.run_sync(drained.wait, 60)
    assert stuck.leases == 0


async def test_cancelled_inline_call_leaves_nothing(tmp_path: Path, runners: Any) -> None:
    runner: Runner = runners(mode=Mode.INLINE, fairness_s=0.0)
    runner.swap(generation(tmp_path, add_constant(1.0)))
    with anyio.CancelScope() as scope:
        scope.cancel()
        for _ in range(3):
            await runner.predict(ones())
    assert scope.cancelled_caught
    assert runner.active is not None
    assert runner.active.leases == 0


class _Direct:
    """A call of `Runner.start` that keeps its outcome."""

    def __init__(self) -> None:
        self.generation: Any = None
        self.entry: Any = None
        self.outcome: Any = None

    def done(self) -> bool:
        return self.outcome is not None

    def set_result(self, result: list[Any], /) -> None:
        self.outcome = result

    def set_exception(self, exception: BaseException, /) -> None:
        self.outcome = exception

    def __await__(self) -> Any:
        raise AssertionError("never awaited")


@pytest.mark.parametrize("alone", [False, True])
async def test_a_started_call_waits_for_others_only_where_there_may_be_any(
    tmp_path: Path, runners: Any, alone: bool
) -> None:
    runner = runners()
    active = generation(tmp_path, add_constant(1.0), batching=True)
    runner.swap(active)
    call = _Direct()
    assert runner.start(ones(), call, alone=alone)
    assert call.done() is alone
    assert (call.entry is None) is alone
    await _until(call.done)
    assert call.outcome[0].tolist() == [[2, 2, 2, 2]]
    assert call.generation is active
    assert active.leases == 0


def test_timeouts_of_synchronous_calls(tmp_path: Path, runners: Any) -> None:
    runner: Runner = runners(threads=1)
    runner.swap(generation(tmp_path, endless_loop(), 1, warm=False))
    stuck = runner.active
    assert stuck is not None
    while not stuck.leases:  # until a thread has taken it in time
        with pytest.raises(DeadlineExceeded):
            runner.predict_sync(ENDLESS, timeout=0.05)
    with pytest.raises(DeadlineExceeded):
        runner.predict_sync(ENDLESS, timeout=0.05)
    assert not runner._pool.waiting
    assert stuck.leases == 1
    drained = threading.Event()
    stuck.retire(drained.set)
    stuck.force()
    assert drained.wait(60)


async def test_lease_keeps_the_session_across_a_swap(tmp_path: Path, runners: Any) -> None:
    runner: Runner = runners()
    runner.swap(generation(tmp_path, add_constant(1.0), 1))
    drained = anyio.Event()
    async with runner.lease() as lease:
        raw = lease.session
        old = runner.swap(generation(tmp_path, add_constant(100.0), 2))
        assert old is not None
        old.retire(drained.set)
        assert not drained.is_set()
        assert lease.version.version == 1
        assert raw.run(None, ones())[0][0, 0] == 2.0
        with pytest.raises(UsageError):
            lease.__enter__()
    assert drained.is_set()
    with pytest.raises(LeaseReleased):
        _ = lease.session
    with runner.lease() as lease:
        assert lease.version.version == 2


def _script(text: str, *args: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PRELUDE = """
import os, sys, threading
from pathlib import Path
import anyio, numpy as np
from modelbox.loader.runner import Mode, Runner, RunnerOptions
from tests.unit.loader.inference import generation, ones
from tests.onnx_models import add_constant, endless_loop
tmp = Path(sys.argv[1])
"""


def test_forked_child_predicts_in_every_mode(tmp_path: Path) -> None:
    out = _script(
        PRELUDE
        + textwrap.dedent("""
        runner = Runner(RunnerOptions(mode=Mode.POOL))
        runner.swap(generation(tmp, add_constant(1.0), batching=True))
        async def main():
            return (await runner.predict(ones()))["y"][0, 0]
        assert anyio.run(main) == 2.0
        assert runner.predict_sync(ones(), timeout=60)["y"][0, 0] == 2.0
        pid = os.fork()
        if not pid:
            assert anyio.run(main) == 2.0
            assert anyio.run(main, backend="trio") == 2.0
            assert runner.predict_sync(ones(), timeout=60)["y"][0, 0] == 2.0
            assert runner.predict_sync(ones())["y"][0, 0] == 2.0
            assert runner.active.leases == 0
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert anyio.run(main) == 2.0
        print("ok")
        """),
        tmp_path,
    )
    assert out == "ok\n"


def test_interpreter_exit_does_not_wait_for_an_endless_run(tmp_path: Path) -> None:
    out = _script(
        PRELUDE
        + textwrap.dedent("""
        runner = Runner()
        runner.swap(generation(tmp, endless_loop(), warm=False))
        try:
            runner.predict_sync({"x": np.zeros(1, np.float32)}, timeout=0.1)
        except TimeoutError:
            print("timeout")
        """),
        tmp_path,
    )
    assert out == "timeout\n"


def test_the_call_path_does_not_import_onnxruntime() -> None:
    out = _script(
        """
        import sys
        import modelbox.loader.runner, modelbox.loader.session, modelbox.loader.optimise, modelbox.engine
        print("onnxruntime" in sys.modules)
        sys.modules["onnxruntime"] = None
        from modelbox.errors import ConfigError
        from pathlib import Path
        from modelbox.loader.session import Session, SessionOptions
        try:
            Session.open(Path("model.onnx"), options=SessionOptions())
        except ConfigError as exc:
            print(exc)
        """
    )
    assert out.startswith("False\n")
    assert "modelbox[onnx]" in out

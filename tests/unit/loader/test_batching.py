from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from modelbox.errors import InputError, PredictError, RunTerminated
from modelbox.loader.runner import Mode, Runner, RunnerOptions
from modelbox.loader.stats import Outcome
from tests.onnx_models import add_constant, endless_loop
from tests.unit.loader.inference import add_any_width, generation, lookup, ones


def _runner(directory: Path, model: bytes, **options: Any) -> Runner:
    # Runs that this thread made before must not have the first call give way to the others of its tick.
    runner = Runner(RunnerOptions(batch_above_s=0.0, fairness_s=math.inf, **options))
    runner.swap(generation(directory, model, batching=True))
    active = runner.active
    assert active is not None
    assert active.batching
    # How busy the machine is must not decide how batches are cut, neither during the warm-up nor later.
    active.row_ns = 1000.0
    active.run_here = active.run
    return runner


async def _until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(60):
        while not condition():
            await anyio.sleep(0.001)


def _waiting(runner: Runner) -> int:
    """Calls that wait for others to share their run."""
    collector = runner._local.collector
    return 0 if collector is None else collector.waiting


def _batches(runner: Runner) -> tuple[int, float]:
    assert runner.active is not None
    sizes = runner.active.stats.snapshot().batch_size
    return sizes.count, sizes.sum


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.INLINE, Mode.POOL])
async def test_calls_of_one_tick_share_a_run_and_get_their_own_rows(tmp_path: Path, mode: Mode) -> None:
    runner = _runner(tmp_path, add_constant(1.0), mode=mode)
    answers: dict[int, Any] = {}

    async def call(i: int) -> None:
        rows = 1 + i % 3
        answers[i] = (rows, await runner.predict({"x": np.full((rows, 4), i, np.float32)}))

    async with anyio.create_task_group() as group:
        for i in range(20):
            group.start_soon(call, i)
    for i, (rows, answer) in answers.items():
        np.testing.assert_array_equal(answer["y"], np.full((rows, 4), i + 1, np.float32))
    assert len(answers) == 20
    assert _batches(runner) == (1, 20.0)


async def test_rows_of_one_call_stay_in_order(tmp_path: Path) -> None:
    runner = _runner(tmp_path, add_constant(1.0))
    got: list[Any] = []

    async def call(start: int) -> None:
        x = np.arange(start, start + 12, dtype=np.float32).reshape(3, 4)
        got.append((x, (await runner.predict({"x": x}))["y"]))

    async with anyio.create_task_group() as group:
        for start in (0, 100, 200):
            group.start_soon(call, start)
    for x, y in got:
        np.testing.assert_array_equal(y, x + 1)


async def test_max_batch_splits_and_a_larger_call_runs_alone(tmp_path: Path) -> None:
    runner = _runner(tmp_path, add_constant(1.0), max_batch=4)
    rows = [1, 1, 1, 1, 1, 9, 2, 2]

    async def call(n: int) -> None:
        assert (await runner.predict(ones(n)))["y"].shape == (n, 4)

    async with anyio.create_task_group() as group:
        for n in rows:
            group.start_soon(call, n)
    count, calls = _batches(runner)
    assert calls == len(rows)
    assert count >= 4


async def test_max_delay_waits_for_others_but_not_longer_than_a_full_batch(tmp_path: Path) -> None:
    patient = _runner(tmp_path, add_constant(1.0), max_delay_s=600.0, max_batch=2)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(patient.predict, ones())
            await _until(lambda: _waiting(patient) == 1)
            await anyio.sleep(0.01)
            assert _waiting(patient) == 1
            group.start_soon(patient.predict, ones())
    assert _batches(patient) == (1, 2.0)


async def test_max_delay_ends_without_others(tmp_path: Path) -> None:
    runner = _runner(tmp_path, add_constant(1.0), max_delay_s=0.05)
    with anyio.fail_after(60):
        await runner.predict(ones())
    assert _batches(runner) == (1, 1.0)


async def test_different_row_shapes_do_not_share_a_run(tmp_path: Path) -> None:
    # Inline: a second shape whose first one took long would go to several threads.
    runner = _runner(tmp_path, add_any_width(1.0), mode=Mode.INLINE)
    answers: list[tuple[int, Any]] = []

    async def call(width: int) -> None:
        answers.append((width, (await runner.predict(ones(1, width)))["y"]))

    async with anyio.create_task_group() as group:
        for width in (2, 3, 2, 3, 3):
            group.start_soon(call, width)
    assert sorted(width for width, _ in answers) == [2, 2, 3, 3, 3]
    for width, y in answers:
        assert y.shape == (1, width)
    assert _batches(runner) == (2, 5.0)


@pytest.mark.parametrize("mode", [Mode.INLINE, Mode.POOL])
async def test_a_bad_call_fails_alone(tmp_path: Path, mode: Mode) -> None:
    runner = _runner(tmp_path, lookup(), mode=mode)
    outcomes: dict[int, object] = {}

    async def call(index: int) -> None:
        try:
            outcomes[index] = float((await runner.predict({"i": np.array([index])}))["y"][0, 0])
        except PredictError as exc:
            outcomes[index] = type(exc)

    async def refused() -> None:
        with pytest.raises(InputError):
            await runner.predict({"i": np.array([1.5])})

    async with anyio.create_task_group() as group:
        for index in (0, 1, 99, 3):
            group.start_soon(call, index)
        group.start_soon(refused)
    assert outcomes == {0: 0.0, 1: 4.0, 99: PredictError, 3: 12.0}
    assert runner.active is not None
    assert runner.active.leases == 0
    snapshot = runner.active.stats.snapshot()
    assert {outcome: h.count for outcome, h in snapshot.duration_s.items()} == {
        Outcome.OK: 3,
        Outcome.INVALID: 1,
        Outcome.ERROR: 1,
        Outcome.CANCELLED: 0,
    }


async def test_calls_before_and_after_a_swap_do_not_share_a_run(tmp_path: Path) -> None:
    runner = _runner(tmp_path, add_constant(1.0), max_delay_s=600.0, max_batch=2)
    seen: list[tuple[int, int, float]] = []
    drained: list[int] = []

    async def call(rows: int) -> None:
        answer = await runner.predict(ones(rows))
        seen.append((rows, answer.version.version, float(answer["y"][0, 0])))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(call, 1)
            await _until(lambda: _waiting(runner) == 1)
            old = runner.swap(generation(tmp_path, add_constant(100.0), 2, batching=True))
            assert old is not None
            old.retire(lambda: drained.append(1))
            assert not drained
            # The first of the new version's group; the second one fills it, which sends off what waits.
            group.start_soon(call, 1)
            await _until(lambda: _waiting(runner) == 2)
            group.start_soon(call, 2)
    assert sorted(seen) == [(1, 1, 2.0), (1, 2, 101.0), (2, 2, 101.0)]
    assert drained == [1]


async def test_cancelled_call_leaves_its_batch(tmp_path: Path) -> None:
    runner = _runner(tmp_path, add_constant(1.0), max_delay_s=600.0, max_batch=3)
    active = runner.active
    assert active is not None
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(runner.predict, ones())
            await _until(lambda: _waiting(runner) == 1)
            group.cancel_scope.cancel()
    assert active.leases == 0
    assert _waiting(runner) == 0

    kept: list[float] = []

    async def stays(rows: int) -> None:
        kept.append(float((await runner.predict(ones(rows)))["y"][0, 0]))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(stays, 1)
            await _until(lambda: _waiting(runner) == 1)
            async with anyio.create_task_group() as leaving:
                leaving.start_soon(runner.predict, ones())
                await _until(lambda: _waiting(runner) == 2)
                leaving.cancel_scope.cancel()
            assert _waiting(runner) == 1
            assert active.leases == 1
            group.start_soon(stays, 2)
    assert kept == [2.0, 2.0]
    assert active.leases == 0
    assert active.stats.snapshot().duration_s[Outcome.CANCELLED].count == 2


def _endless_rows() -> bytes:
    import onnx

    model = onnx.load_from_string(endless_loop())
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model.SerializeToString()


async def test_cancelled_batches_in_the_pool_leave_no_lease(tmp_path: Path) -> None:
    runner = Runner(RunnerOptions(mode=Mode.POOL, threads=1))
    runner.swap(generation(tmp_path, _endless_rows(), batching=True, warm=False))
    active = runner.active
    assert active is not None
    inputs = {"x": np.zeros(1, np.float32)}
    terminated = 0

    async def run() -> None:
        nonlocal terminated
        try:
            await runner.predict(inputs)
        except RunTerminated:
            terminated += 1

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            group.start_soon(run)
            while not active.leases or runner._pool.waiting:
                await anyio.sleep(0.001)
            await anyio.sleep(0.02)
            # The only thread is taken: these wait for it, and leave.
            with anyio.move_on_after(0.02) as scope:
                async with anyio.create_task_group() as waiting:
                    waiting.start_soon(run)
                    waiting.start_soon(run)
            assert scope.cancelled_caught
            # What left gives its lease back, while the thread is still taken.
            while active.leases != 1:
                await anyio.sleep(0.001)
            active.force()
        while active.leases:
            await anyio.sleep(0.001)
    assert terminated == 2


async def test_a_long_delay_does_not_hold_up_what_waits_for_a_thread(tmp_path: Path) -> None:
    runner = _runner(tmp_path, add_constant(1.0), mode=Mode.POOL, threads=1, max_batch=1, max_delay_s=600.0)

    async def caller() -> None:
        for _ in range(3):
            await runner.predict(ones())

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(caller)
    assert _batches(runner) == (18, 18.0)


async def test_rows_that_disagree_run_alone(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    shape: list[str | int | None] = ["batch", 2]
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("a", "b")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    runner = _runner(tmp_path, model.SerializeToString())
    one, three = np.ones((1, 2), np.float32), np.ones((3, 2), np.float32)
    answer = await runner.predict({"a": one, "b": three})  # broadcasts
    assert answer["y"].shape == (3, 2)
    assert _batches(runner)[0] == 0
    assert runner.active is not None
    assert runner.active.leases == 0

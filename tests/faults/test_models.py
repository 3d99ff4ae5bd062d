"""Models that ask for too much: what serves goes on, and memory comes back."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import anyio
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from modelbox import LoadOptions, ModelEvent, ReloadFailed, ReloadStarted, ReloadSucceeded, SessionFreed
from modelbox.errors import FormatRefused, ModelInvalid, ProbeFailed, RunTerminated
from modelbox.loader.probe import ProbeMode
from modelbox.loader.slower import Slower
from modelbox.objects import InstanceReport, InstanceState
from modelbox.refs import ModelRef
from tests.faults.registry import fault, record_figure
from tests.feed_source import FeedSource
from tests.heavy_models import hungry_to_open, slow_to_open, slow_to_run
from tests.loading import SETTINGS, X, answer, loading, recorded
from tests.onnx_models import add_constant
from tests.trials import children, trial_under_way

ROOT = Path(__file__).parents[2]
REF = ModelRef.parse("ns/model@prod")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def source() -> FeedSource:
    source = FeedSource()
    source.add({"model.onnx": add_constant(1)})
    source.move("prod", source.versions["ns/model@1"])
    return source


def long_when_negative(constant: int) -> bytes:
    """``add_constant``, but for an element far below zero it counts to 2**62 before it answers."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["sum"], ["sum_on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_on", TensorProto.FLOAT, None),
        ],
    )
    scalar = helper.make_tensor
    nodes = [
        helper.make_node("Constant", [], ["c"], value=scalar("c", TensorProto.FLOAT, [], [float(constant)])),
        helper.make_node("Constant", [], ["low"], value=scalar("low", TensorProto.FLOAT, [], [-1e6])),
        helper.make_node("Constant", [], ["true"], value=scalar("true", TensorProto.BOOL, [], [True])),
        helper.make_node("Constant", [], ["many"], value=scalar("many", TensorProto.INT64, [], [2**62])),
        helper.make_node("ReduceMin", ["x"], ["least"], keepdims=0),
        helper.make_node("Less", ["least", "low"], ["negative"]),
        helper.make_node("Cast", ["negative"], ["as_number"], to=TensorProto.INT64),
        helper.make_node("Mul", ["many", "as_number"], ["turns"]),
        helper.make_node("Add", ["x", "c"], ["sum0"]),
        helper.make_node("Loop", ["turns", "true", "sum0"], ["y"], body=body),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "long", [value("x", TensorProto.FLOAT, ["n", 4])], [value("y", TensorProto.FLOAT, ["n", 4])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


tried = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory hold on Linux only")
TRIED = replace(SETTINGS, probe=ProbeMode.ON)


@fault(52)
@tried
async def test_a_version_that_fails_its_trial_is_refused(source: FeedSource, tmp_path: Path) -> None:
    source.add({"model.onnx": hungry_to_open(768)}, version=2)
    source.add({"model.onnx": slow_to_open()}, version=3)
    source.add({"model.onnx": add_constant(4)}, version=4)
    async with loading(source, tmp_path, settings=TRIED) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        source.move("prod", source.versions["ns/model@2"])
        failed = await log.failed(2)
        assert (failed.stage, failed.code, failed.quarantined) == ("probe", ProbeFailed.code, True)
        assert "MiB" in failed.reason
        assert await answer(reloader) == 2.0
        source.move("prod", source.versions["ns/model@3"])
        os.kill(await trial_under_way(), signal.SIGSEGV)
        failed = await log.failed(3)
        assert (failed.stage, failed.code, failed.quarantined) == ("probe", ProbeFailed.code, True)
        assert "SIGSEGV" in failed.reason
        assert await answer(reloader) == 2.0
        source.move("prod", source.versions["ns/model@4"])
        await log.served(4)
        assert await answer(reloader) == 5.0
    assert not children()
    nack = next(report for report in source.reports if report.target_version == 3)
    assert (nack.state, nack.version, nack.stage) == (InstanceState.FAILED, 1, "probe")


@fault(52)
@tried
async def test_a_trial_without_end_is_ended_and_thrice_begun(source: FeedSource, tmp_path: Path) -> None:
    source.add({"model.onnx": slow_to_open()}, version=2)
    settings = replace(SETTINGS, probe_timeout_s=0.5, warm_up_timeout_s=0.5)
    async with loading(source, tmp_path, settings=settings) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        loader._preparer._settings = replace(settings, probe=ProbeMode.ON)
        source.move("prod", source.versions["ns/model@2"])
        await log.failed(2, count=3)
        failures = [event for event in log.events if isinstance(event, ReloadFailed)]
        assert [failure.quarantined for failure in failures] == [False, False, True]
        assert {(failure.stage, failure.code) for failure in failures} == {("probe", ProbeFailed.code)}
        assert await answer(reloader) == 2.0
    assert not children()


@tried
async def test_a_newer_move_and_a_close_end_a_trial(source: FeedSource, tmp_path: Path) -> None:
    source.add({"model.onnx": slow_to_open()}, version=2)
    source.add({"model.onnx": add_constant(3)}, version=3)
    async with loading(source, tmp_path, settings=TRIED) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        source.move("prod", source.versions["ns/model@2"])
        await trial_under_way()
        source.move("prod", source.versions["ns/model@3"])
        await log.served(3)
        assert await answer(reloader) == 4.0
        source.move("prod", source.versions["ns/model@2"])
        await trial_under_way()
    assert not children()
    assert not any(isinstance(event, ReloadFailed) for event in log.events)


@tried
async def test_what_served_here_before_is_not_tried_again(source: FeedSource, tmp_path: Path) -> None:
    source.add({"model.onnx": add_constant(2)}, version=2)
    async with loading(source, tmp_path, settings=replace(TRIED, keep_optimised=False)) as (loader, log):
        await loader.load(REF, LoadOptions())
        source.move("prod", source.versions["ns/model@2"])
        await log.served(2)
        source.move("prod", source.versions["ns/model@1"])
        await log.until(lambda event: isinstance(event, ReloadSucceeded) and event.version == 1, count=2)
    swaps = [event for event in log.events if isinstance(event, ReloadSucceeded)]
    assert [(swap.version, "probe" in swap.stage_s) for swap in swaps] == [(1, True), (2, True), (1, False)]


@fault(54)
@pytest.mark.parametrize("golden", [7.0, np.nan, np.inf], ids=["other values", "NaN", "infinity"])
async def test_a_version_that_misses_its_golden_outputs_is_refused(
    source: FeedSource, tmp_path: Path, golden: float
) -> None:
    files = {"model.onnx": add_constant(2)}
    for name, arrays in (("inputs", X), ("outputs", {"y": np.full((1, 4), golden, np.float32)})):
        np.savez(tmp_path / f"{name}.npz", **arrays)  # type: ignore[arg-type]
        files[f"golden/{name}.npz"] = (tmp_path / f"{name}.npz").read_bytes()
    source.add(files, version=2)
    async with loading(source, tmp_path / "cache") as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        source.move("prod", source.versions["ns/model@2"])
        failed = await log.failed(2)
        assert (failed.stage, failed.code, failed.quarantined) == ("warm", "load.warmup", True)
        assert await answer(reloader) == 2.0


async def active_report(source: FeedSource, version: int) -> InstanceReport:
    """What the fleet is told of a version that serves."""
    with anyio.fail_after(60):
        while True:
            for report in source.reports:
                if (report.state, report.version) == (InstanceState.ACTIVE, version):
                    return report
            await anyio.sleep(0.005)


@fault(54)
async def test_a_version_that_is_slower_is_told_of(
    source: FeedSource, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelbox.loader.slower._STOP_S", 60.0)
    # Some milliseconds against some microseconds.
    source.add({"model.onnx": slow_to_run(2, 10_000)}, version=2)
    source.add({"model.onnx": add_constant(3)}, version=3)
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        for number in (2, 3):
            source.move("prod", source.versions[f"ns/model@{number}"])
            await log.served(number)
            assert await answer(reloader) == number + 1.0
            await active_report(source, number)
    first, slow, fast = [event for event in log.events if isinstance(event, ReloadSucceeded)]
    assert first.slowdown is None
    assert slow.slowdown is not None
    assert slow.slowdown > 10
    assert fast.slowdown is not None
    assert fast.slowdown < 1
    told = await active_report(source, 2)
    assert (told.stage, told.target_version) == ("warm", 2)
    assert "times as long as a run of version 1" in told.reason
    assert not (await active_report(source, 3)).reason
    assert [record.args[1] for record in caplog.records if "is slow" in record.msg] == [2]  # type: ignore[index]


@fault(54)
async def test_a_version_that_is_slower_may_be_refused_unless_it_served_before(
    source: FeedSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelbox.loader.slower._STOP_S", 60.0)
    source.add({"model.onnx": slow_to_run(2, 10_000)}, version=2)
    source.add({"model.onnx": slow_to_run(3, 20_000)}, version=3)
    source.move("prod", source.versions["ns/model@2"])
    async with loading(source, tmp_path, settings=replace(SETTINGS, slower=Slower.REFUSE)) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        source.move("prod", source.versions["ns/model@1"])
        await log.served(1)
        source.move("prod", source.versions["ns/model@3"])
        failed = await log.failed(3)
        assert (failed.stage, failed.code, failed.quarantined) == ("warm", "load.warmup", True)
        assert "slower_factor" in failed.reason
        assert await answer(reloader) == 2.0
        # Back to what was there before, however slow.
        source.move("prod", source.versions["ns/model@2"])
        await log.until(lambda event: isinstance(event, ReloadSucceeded) and event.version == 2, count=2)
        assert await answer(reloader) == 3.0


async def test_nobody_looks_for_slower_versions_where_that_is_off(source: FeedSource, tmp_path: Path) -> None:
    source.add({"model.onnx": slow_to_run(2, 10_000)}, version=2)
    async with loading(source, tmp_path, settings=replace(SETTINGS, slower=Slower.OFF)) as (loader, log):
        await loader.load(REF, LoadOptions())
        source.move("prod", source.versions["ns/model@2"])
        await log.served(2)
        assert not (await active_report(source, 2)).reason
    assert not any(event.slowdown for event in log.events if isinstance(event, ReloadSucceeded))


@fault(56)
async def test_of_fifty_promotions_the_last_one_counts(source: FeedSource, tmp_path: Path) -> None:
    for number in range(2, 52):
        source.add({"model.onnx": add_constant(number)}, version=number)
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        for number in range(2, 52):
            source.move("prod", source.versions[f"ns/model@{number}"])
            await anyio.sleep(0.002)
        await log.served(51)
        await anyio.wait_all_tasks_blocked()
        assert await answer(reloader) == 52.0
        swapped = [event.version for event in log.events if isinstance(event, ReloadSucceeded)]
        assert swapped == sorted(swapped), "never back to one that was overtaken"
        assert not [event for event in log.events if isinstance(event, ReloadFailed)]
        record_figure(56, f"{len(swapped) - 1} swaps for 50 promotions, the last one serves")


@fault(56)
async def test_swaps_are_an_interval_apart(source: FeedSource, tmp_path: Path) -> None:
    interval_s = 0.4
    for number in range(2, 52):
        source.add({"model.onnx": add_constant(number)}, version=number)
    swaps: list[tuple[float, int]] = []

    def note(event: ModelEvent) -> None:
        if isinstance(event, ReloadSucceeded):
            swaps.append((time.monotonic(), event.version))

    async with loading(source, tmp_path, settings=replace(SETTINGS, swap_interval_s=interval_s)) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        reloader.observers.append(note)
        for number in range(2, 52):
            source.move("prod", source.versions[f"ns/model@{number}"])
            if number <= 3:
                # However slow the machine is, there are swaps to compare.
                await log.served(number)
            await anyio.sleep(0.02)
        # Nothing moves any more.
        await log.served(51)
        active = reloader.runner.active
        assert active is not None
        assert active.version.digest == source.versions["ns/model@51"].digest
        assert await answer(reloader) == 52.0
    times = [at for at, _ in swaps]
    assert min(later - sooner for sooner, later in itertools.pairwise(times)) >= interval_s
    versions = [version for _, version in swaps]
    assert versions == sorted(set(versions)), "never back to one that was overtaken"
    assert not [event for event in log.events if isinstance(event, ReloadFailed)]
    record_figure(56, f"{len(swaps)} swaps for 50 promotions, {interval_s} s apart at least")


@fault(56)
async def test_a_way_back_waits_for_no_interval(source: FeedSource, tmp_path: Path) -> None:
    for number in (2, 3):
        source.add({"model.onnx": add_constant(number)}, version=number)
    async with loading(source, tmp_path, settings=replace(SETTINGS, swap_interval_s=3600.0)) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())

        async def waits(number: int) -> None:
            source.move("prod", source.versions[f"ns/model@{number}"])
            with anyio.fail_after(60):
                while (target := reloader._target) is None or target.version.version != number:
                    await anyio.sleep(0.005)
            await anyio.wait_all_tasks_blocked()

        # The first change after a load is at once, a refused one begins no interval.
        source.move("prod", source.add({"model.onnx": b"not a model"}, version=9))
        await log.failed(9)
        source.move("prod", source.versions["ns/model@2"])
        await log.served(2)
        await waits(3)
        source.move("prod", source.versions["ns/model@1"])
        await log.until(lambda event: isinstance(event, ReloadSucceeded) and event.version == 1, count=2)
        # To and fro is no way back.
        await waits(2)
        assert await answer(reloader) == 2.0
    begun = [event.version for event in log.events if isinstance(event, ReloadStarted)]
    assert begun == [1, 9, 2, 1]


@fault(56)
async def test_the_way_back_is_known_after_a_restart(source: FeedSource, tmp_path: Path) -> None:
    for number in (2, 3):
        source.add({"model.onnx": add_constant(number)}, version=number)
    settings = replace(SETTINGS, swap_interval_s=3600.0)
    async with loading(source, tmp_path, settings=settings) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        source.move("prod", source.versions["ns/model@2"])
        await log.served(2)
        await recorded(reloader, lambda state: state.previous is not None)
    async with loading(source, tmp_path, settings=settings) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        source.edit(source.versions["ns/model@2"], note="is written down with all else")
        await recorded(reloader, lambda state: bool(state.version.metadata))
    async with loading(source, tmp_path, settings=settings) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        source.move("prod", source.versions["ns/model@3"])
        await log.served(3)
        source.move("prod", source.versions["ns/model@1"])
        await log.served(1)
        assert await answer(reloader) == 2.0


@fault(58)
async def test_a_call_without_end_holds_its_version_for_the_drain_only(source: FeedSource, tmp_path: Path) -> None:
    source.add({"model.onnx": long_when_negative(1)}, version=2)
    source.add({"model.onnx": add_constant(3)}, version=3)
    source.move("prod", source.versions["ns/model@2"])
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        assert await answer(reloader) == 2.0
        ended: list[BaseException] = []

        async def ask_for_ever() -> None:
            try:
                await reloader.runner.predict({"x": np.full((1, 4), -1e7, np.float32)})
            except RunTerminated as exc:
                ended.append(exc)

        async with anyio.create_task_group() as tg:
            tg.start_soon(ask_for_ever)
            await anyio.sleep(0.1)
            source.move("prod", source.versions["ns/model@3"])
            await log.served(3)
            assert await answer(reloader) == 4.0
            freed = await log.until(lambda event: isinstance(event, SessionFreed))
        assert isinstance(freed, SessionFreed)
        assert (freed.version, freed.forced) == (2, True)
        assert len(ended) == 1


_ZIP = b"PK\x03\x04" + b"\0" * 26
_PICKLE = b"\x80\x04\x95\x1c\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94."
CORPUS = {
    "a pickle": ("model.pkl", _PICKLE, "sklearn"),
    "a torch archive": ("model.pt", _ZIP, "torch"),
    "keras": ("model.keras", _ZIP, "keras"),
    "a shared library": ("custom.so", b"\x7fELF\x02\x01\x01" + b"\0" * 60, "onnx"),
    "an archive that climbs": ("model.zip", _ZIP + b"../../../etc/cron.d/x", "onnx"),
    "a tar": ("model.tar", b"../../../etc/passwd".ljust(100, b"\0") + b"0000644\0" + b"\0" * 404, "onnx"),
    "a pickle that says it is onnx": ("model.onnx", _PICKLE, "onnx"),
    "an archive that says it is onnx": ("model.onnx", _ZIP, "onnx"),
    "a model that is an archive as well": ("model.onnx", add_constant(2) + _ZIP, "onnx"),
    "a library that says it is onnx": ("model.onnx", b"\x7fELF\x02\x01\x01" + b"\0" * 60, "onnx"),
}


@fault(59)
@pytest.mark.parametrize("kind", CORPUS)
async def test_what_is_no_model_is_kept_and_never_opened(source: FeedSource, tmp_path: Path, kind: str) -> None:
    from dataclasses import replace

    name, content, framework = CORPUS[kind]
    version = source.add({name: content}, version=2)
    manifest = replace(version.manifest, framework=framework)
    bad = source.versions["ns/model@2"] = replace(version, manifest=manifest, digest=manifest.digest)
    outside = {path for path in tmp_path.iterdir()}
    async with loading(source, tmp_path / "cache") as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        source.move("prod", bad)
        failed = await log.failed(2)
        assert failed.code in (FormatRefused.code, ModelInvalid.code)
        assert failed.quarantined
        assert await answer(reloader) == 2.0
        # Its bytes may be here, as one file with its digest for a name; nothing was unpacked.
        held = {path.name for path in (tmp_path / "cache").rglob("*")}
        assert not held & {"x", "passwd", "cron.d"}
    assert set(tmp_path.iterdir()) - outside == {tmp_path / "cache"}


# Serves a small model, then gets one that does not fit, then more room.
_TIGHT = """
import json, resource, sys
from pathlib import Path
import anyio, numpy as np
from modelbox import LoadOptions
from modelbox.events import ReloadFailed
from modelbox.loader import memory
from modelbox.refs import ModelRef
from modelbox.signature import Compatibility
from tests.feed_source import FeedSource
from tests.loading import answer, loading
from tests.onnx_models import add_constant, perceptron

async def main():
    source = FeedSource()
    source.add({"model.onnx": add_constant(1)})
    source.add({"model.onnx": perceptron(2048, 6)}, version=2)  # 100 MB
    source.move("prod", source.versions["ns/model@1"])
    async with loading(source, Path(sys.argv[1])) as (loader, log):
        reloader = await loader.load(ModelRef.parse("ns/model@prod"), LoadOptions(compatibility=Compatibility.ANY))
        await answer(reloader)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
        # What is left below the reserve is less than what the model takes, and enough to read it.
        resource.setrlimit(resource.RLIMIT_AS, (int((used + (150 << 20)) / 0.9), resource.RLIM_INFINITY))
        source.move("prod", source.versions["ns/model@2"])
        failed = await log.failed(2, count=2)
        still = await answer(reloader)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        await log.served(2)
        print(json.dumps({
            "code": failed.code, "reason": failed.reason, "quarantined": failed.quarantined,
            "still": still, "tries": sum(isinstance(event, ReloadFailed) for event in log.events),
        }))

anyio.run(main)
"""


@fault(55)
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS holds on Linux only")
def test_a_model_that_does_not_fit_waits_for_room(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_TIGHT), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["code"], told["quarantined"]) == ("load.memory", False)
    assert told["still"] == 2.0
    assert told["tries"] >= 2, "it was tried again while there was no room"

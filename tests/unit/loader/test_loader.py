"""The loader and its reload machine on real sessions: what serves after each kind of news."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from modelbox.errors import (
    FormatRefused,
    ModelBoxError,
    ModelInvalid,
    NotAuthenticated,
    NotFoundError,
    SignatureChanged,
    Unavailable,
    UnsupportedOperator,
)
from modelbox.events import ReloadFailed, ReloadSucceeded, SessionFreed, StaleChanged
from modelbox.loader.ledger import Ledger
from modelbox.loader.reload import ModelState, Reloader
from modelbox.loader.settings import LoadOptions
from modelbox.objects import InstanceReport, InstanceState, ModelVersion, Resolved
from modelbox.refs import ModelRef
from modelbox.signature import Compatibility
from tests.faults.registry import fault
from tests.feed_source import FeedSource
from tests.loading import SETTINGS, answer, loading, recorded
from tests.onnx_models import add_constant, endless_loop, unknown_operator

REF = ModelRef.parse("ns/model@prod")


@pytest.fixture
def source() -> FeedSource:
    source = FeedSource()
    for number in (1, 2, 3):
        source.add({"model.onnx": add_constant(number)}, version=number)
    source.move("prod", source.versions["ns/model@1"])
    return source


async def reported(source: FeedSource, wanted: Callable[[InstanceReport], bool]) -> InstanceReport:
    """The first report that is wanted, once it is there."""
    with anyio.fail_after(60):
        while not (found := [report for report in source.reports if wanted(report)]):
            await anyio.sleep(0.005)
    return found[0]


async def test_loads_and_answers(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path) as (loader, _):
        reloader = await loader.load(REF, LoadOptions())
        assert await answer(reloader) == 2.0
        assert reloader.state is ModelState.ACTIVE
        report = await reported(source, lambda report: True)
    assert (report.state, report.version, report.ref) == (InstanceState.ACTIVE, 1, "ns/model@prod")


async def test_follows_the_alias(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        source.move("prod", source.versions["ns/model@2"])
        await log.served(2)
        assert await answer(reloader) == 3.0
        freed = await log.until(lambda e: isinstance(e, SessionFreed))
        assert isinstance(freed, SessionFreed)
        assert (freed.version, freed.forced) == (1, False)


async def test_joins_handles_of_one_reference(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path) as (loader, _):
        found: list[Reloader] = []

        async def load() -> None:
            found.append(await loader.load(REF, LoadOptions()))

        async with anyio.create_task_group() as tg:
            for _ in range(5):
                tg.start_soon(load)
        assert len(set(map(id, found))) == 1
        assert source.downloads == 1
        for reloader in found[:4]:
            await loader.release(reloader)
        assert await answer(found[0]) == 2.0
        await loader.release(found[0])
        assert found[0].state is ModelState.CLOSED
        assert found[0].runner.active is None


async def test_goes_back_to_an_older_version(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        source.move("prod", source.versions["ns/model@2"])
        await log.served(2)
        source.move("prod", source.versions["ns/model@1"])
        await log.until(lambda e: isinstance(e, ReloadSucceeded) and e.version == 1, count=2)
        assert await answer(reloader) == 2.0
        assert len(source.opens) == 2  # version 1 came from the cache


@fault(56)
async def test_the_newest_target_wins(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        source.gate = anyio.Event()
        source.move("prod", source.versions["ns/model@2"])
        await log.until(lambda e: type(e).__name__ == "ReloadStarted" and e.version == 2)  # type: ignore[attr-defined]
        source.move("prod", source.versions["ns/model@3"])
        await log.until(lambda e: type(e).__name__ == "ReloadStarted" and e.version == 3)  # type: ignore[attr-defined]
        source.gate.set()
        await log.served(3)
        assert await answer(reloader) == 4.0
        assert not any(isinstance(e, ReloadSucceeded) and e.version == 2 for e in log.events)


BAD: dict[str, tuple[Callable[[], dict[str, bytes | Path]], type[ModelBoxError], str]] = {
    "garbage": (lambda: {"model.onnx": b"not a model"}, ModelInvalid, "verify"),
    "truncated": (lambda: {"model.onnx": add_constant(9)[:-20]}, ModelInvalid, "verify"),
    "empty": (lambda: {"model.onnx": b""}, ModelInvalid, "verify"),
    "operator": (lambda: {"model.onnx": unknown_operator()}, UnsupportedOperator, "verify"),
    "interface": (lambda: {"model.onnx": add_constant(9, name="renamed")}, SignatureChanged, "signature"),
    "format": (lambda: {"model.pkl": b"\x80\x04."}, FormatRefused, "verify"),
}


@fault(47, 48, 49)
@pytest.mark.parametrize("kind", sorted(BAD))
async def test_a_bad_version_leaves_the_old_one(kind: str, source: FeedSource, tmp_path: Path) -> None:
    files, error, stage = BAD[kind]
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        bad = source.add(files(), version=9)
        source.move("prod", bad)
        failure = await log.failed(9)
        assert failure.quarantined
        assert (failure.code, failure.stage) == (error.code, stage)
        assert await answer(reloader) == 2.0
        nack = await reported(source, lambda report: report.state is InstanceState.FAILED)
        assert (nack.version, nack.target_version, nack.stage) == (1, 9, failure.stage)
        # Not tried again for this move; tried again when the alias moves anew.
        source.edit(source.versions["ns/model@1"], note="wakes the machine")
        await anyio.sleep(0.1)
        assert sum(isinstance(e, ReloadFailed) for e in log.events) == 1
        source.move("prod", bad)
        await log.failed(9, count=2)
        source.move("prod", source.versions["ns/model@2"])
        await log.served(2)
        assert await answer(reloader) == 3.0


@fault(53)
async def test_an_endless_model_is_stopped_and_refused(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path, settings=replace(SETTINGS, warm_up_timeout_s=2.0)) as (loader, log):
        reloader = await loader.load(REF, LoadOptions(compatibility=Compatibility.ANY))
        source.move("prod", source.add({"model.onnx": endless_loop()}, version=9))
        failure = await log.failed(9)
        assert (failure.stage, failure.quarantined) == ("warm", True)
        assert await answer(reloader) == 2.0


@fault(12)
async def test_wrong_bytes_are_fetched_again_then_refused(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        source.faults.corrupt_at, source.faults.corruptions_left = 10, 1000
        source.move("prod", source.versions["ns/model@2"])
        await log.until(lambda e: isinstance(e, ReloadFailed) and e.quarantined)
        failures = [e for e in log.events if isinstance(e, ReloadFailed)]
        assert [e.quarantined for e in failures] == [False, False, True]
        assert {e.code for e in failures} == {"integrity"}
        assert await answer(reloader) == 2.0


async def test_a_failure_that_passes_is_tried_again(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        bytes_of_2 = source.contents.pop(source.versions["ns/model@2"].manifest.files[0].digest)

        class Gone(dict):  # type: ignore[type-arg]
            def __missing__(self, key: object) -> bytes:
                raise Unavailable("the blob store is away")

        source.contents = Gone(source.contents)
        source.move("prod", source.versions["ns/model@2"])
        failure = await log.failed(2)
        assert not failure.quarantined
        source.contents[source.versions["ns/model@2"].manifest.files[0].digest] = bytes_of_2
        await log.served(2)
        assert await answer(reloader) == 3.0


@fault(16)
async def test_an_older_answer_never_wins(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        old = await source.resolve(REF)
        source.move("prod", source.versions["ns/model@2"])
        await log.served(2)
        reloader.offer(old)
        await anyio.sleep(0.05)
        assert await answer(reloader) == 3.0
        reloader.offer(old, reset=True)  # the server was restored from a backup
        await log.until(lambda e: isinstance(e, ReloadSucceeded) and e.version == 1, count=2)


async def test_first_load_errors(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path) as (loader, _):
        with pytest.raises(NotFoundError):
            await loader.load(ModelRef.parse("ns/model@nobody"), LoadOptions())
        source.move("prod", source.add({"model.onnx": b"not a model"}, version=9))
        with pytest.raises(ModelInvalid):
            await loader.load(REF, LoadOptions())
        source.faults.down = True
        with pytest.raises(Unavailable):
            await loader.load(REF, LoadOptions())
        source.faults.down = False
        source.move("prod", source.versions["ns/model@1"])
        assert await answer(await loader.load(REF, LoadOptions())) == 2.0


@fault(2)
async def test_serves_the_last_good_version_without_a_server(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        source.move("prod", source.versions["ns/model@2"])
        await log.served(2)
        await recorded(reloader, lambda state: state.version.version == 2)
    source.faults.down = True
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        assert await answer(reloader) == 3.0
        assert reloader.stale
        source.faults.down = False
        source.move("prod", source.versions["ns/model@3"])
        await log.served(3)
        await log.until(lambda e: isinstance(e, StaleChanged) and not e.stale)
        assert await answer(reloader) == 4.0


async def test_a_token_that_is_not_taken_any_more_ends_no_serving(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        await recorded(reloader, lambda state: True)
        source.faults.unknown = True
        source.disconnect()
        await log.until(lambda e: isinstance(e, StaleChanged) and e.stale)
        assert await answer(reloader) == 2.0
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        assert await answer(reloader) == 2.0
        assert reloader.stale
        with pytest.raises(NotAuthenticated):
            await loader.load(ModelRef.parse("ns/model@1"), LoadOptions())


async def test_a_start_into_a_bad_promotion_serves_the_last_good(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path) as (loader, _):
        await recorded(await loader.load(REF, LoadOptions()), lambda state: True)
    source.move("prod", source.add({"model.onnx": b"not a model"}, version=9))
    failures = []
    for _ in range(2):
        async with loading(source, tmp_path) as (loader, log):
            reloader = await loader.load(REF, LoadOptions())
            assert await answer(reloader) == 2.0
            await recorded(reloader, lambda state: bool(state.quarantine))
            await anyio.sleep(0.1)
            failures.append(sum(isinstance(e, ReloadFailed) for e in log.events))
    assert failures == [1, 0]  # the second time the quarantine is known from disk


@fault(2)
async def test_a_silent_server_delays_a_start_only_shortly(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path) as (loader, _):
        await recorded(await loader.load(REF, LoadOptions()), lambda state: True)

    class Silent(FeedSource):
        async def resolve(self, ref: ModelRef):  # type: ignore[no-untyped-def]
            await anyio.sleep_forever()

    silent = Silent(contents=source.contents, versions=source.versions, aliases=source.aliases)
    async with loading(silent, tmp_path) as (loader, _):
        with anyio.fail_after(60):
            reloader = await loader.load(REF, LoadOptions())
        assert reloader.stale
        assert await answer(reloader) == 2.0


async def test_a_cancelled_load_leaves_nothing(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path) as (loader, _):
        source.gate = anyio.Event()
        with anyio.move_on_after(0.1):
            await loader.load(REF, LoadOptions())
        assert source.open_now == 0
        assert not any(path.name.startswith(("blob.", "tree.")) for path in tmp_path.rglob("*"))
        source.gate = None
        assert await answer(await loader.load(REF, LoadOptions())) == 2.0


async def test_one_cancelled_load_spares_the_others(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path) as (loader, _):
        source.gate = anyio.Event()
        async with anyio.create_task_group() as tg:

            async def impatient() -> None:
                with anyio.move_on_after(0.05):
                    await loader.load(REF, LoadOptions())
                assert source.gate is not None
                source.gate.set()

            tg.start_soon(impatient)
            reloader = await loader.load(REF, LoadOptions())
        assert await answer(reloader) == 2.0
        assert source.downloads == 1


async def test_statistics_go_on_when_a_version_comes_back(source: FeedSource, tmp_path: Path) -> None:
    ledger = Ledger()
    async with loading(source, tmp_path, ledger=ledger) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        await answer(reloader)
        source.move("prod", source.versions["ns/model@2"])
        await log.served(2)
        await answer(reloader)
        source.move("prod", source.versions["ns/model@1"])
        await log.until(lambda e: isinstance(e, ReloadSucceeded) and e.version == 1, count=2)
        await answer(reloader)
    calls = {(labels.version, labels.alias): stats.snapshot().calls for labels, stats in ledger.entries()}
    assert calls == {(1, "prod"): 2, (2, "prod"): 1}


async def test_opens_the_kept_optimised_form_next_time(source: FeedSource, tmp_path: Path) -> None:
    optimised = False
    for _ in range(2):
        async with loading(source, tmp_path) as (loader, _log):
            reloader = await loader.load(REF, LoadOptions())
            with anyio.fail_after(60):
                while not list(tmp_path.glob("derived/*/*/model.ort")):
                    await anyio.sleep(0.02)
            assert await answer(reloader) == 2.0
            optimised = reloader._active is not None and reloader._active.optimised
    assert optimised


class FlawedSource(FeedSource):
    """A source with a bug: the next call of one kind fails in a way that no transport fails."""

    flawed = ""

    def _stumble(self, call: str) -> None:
        if self.flawed == call:
            self.flawed = ""
            raise AttributeError(f"a bug in {call}")

    async def resolve(self, ref: ModelRef) -> Resolved:
        self._stumble("resolve")
        return await super().resolve(ref)

    async def begin_download(self, version: ModelVersion) -> str:
        self._stumble("download")
        return await super().begin_download(version)

    async def report(self, reports: Sequence[InstanceReport]) -> None:
        self._stumble("report")
        await super().report(reports)


@pytest.mark.parametrize("call", ["resolve", "download", "report"])
async def test_a_bug_takes_nothing_out_of_service(call: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = FlawedSource()
    for number in (1, 2, 3):
        source.add({"model.onnx": add_constant(number)}, version=number)
    source.move("prod", source.versions["ns/model@1"])
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        await anyio.wait_all_tasks_blocked()
        source.flawed = call
        source.move("prod", source.versions["ns/model@2"])
        if call == "download":
            await log.failed(2)
            assert await answer(reloader) == 2.0
        else:
            await log.served(2)
            assert await answer(reloader) == 3.0
        with anyio.fail_after(60):
            while source.flawed:
                await anyio.sleep(0.01)
        source.move("prod", source.versions["ns/model@3"])
        await log.served(3)
        with anyio.fail_after(60):
            while not any(report.version == 3 for report in source.reports):
                await anyio.sleep(0.01)
    assert f"a bug in {call}" in caplog.text

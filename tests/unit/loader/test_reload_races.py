"""News that come in the middle of a reload, and what is tried again once the server is back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from modelbox.errors import ModelBoxError, NotFoundError, ProbeFailed, Unavailable
from modelbox.events import ReloadFailed, ReloadStarted, ReloadSucceeded
from modelbox.loader.prepare import Prepared, Preparer
from modelbox.loader.settings import LoadOptions
from modelbox.loader.slower import Slowdown, compare_speed
from modelbox.loader.tensor_files import TensorFiles
from modelbox.objects import ModelVersion
from modelbox.refs import ModelRef
from tests.feed_source import FeedSource
from tests.loading import SETTINGS, answer, loading
from tests.onnx_models import add_constant
from tests.unit.loader.test_safetensors import of_tensors, tensors_of

REF = ModelRef.parse("ns/model@prod")


def _two_versions() -> FeedSource:
    """A model with two versions; ``prod`` points to the first."""
    source = FeedSource()
    for number in (1, 2):
        source.add({"model.onnx": add_constant(number)}, version=number)
    source.move("prod", source.versions["ns/model@1"])
    return source


def _hold_opening(monkeypatch: pytest.MonkeyPatch, begun: threading.Event, go_on: threading.Event) -> None:
    open_files = TensorFiles.open_files

    def held(paths: list[Path]) -> TensorFiles:
        begun.set()
        assert go_on.wait(60)
        return open_files(paths)

    monkeypatch.setattr(TensorFiles, "open_files", held)


def _hold_comparison(monkeypatch: pytest.MonkeyPatch, begun: threading.Event, go_on: threading.Event) -> None:
    def held(*args: Any) -> Slowdown | None:
        begun.set()
        assert go_on.wait(60)
        return compare_speed(*args)

    monkeypatch.setattr("modelbox.loader.prepare.compare_speed", held)


@pytest.mark.parametrize("hold", [_hold_opening, _hold_comparison], ids=["tensors", "a graph"])
async def test_what_was_taken_back_in_the_last_stage_does_not_come_into_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Callable[..., None]
) -> None:
    source = FeedSource()
    for number in (1, 2):
        if hold is _hold_opening:
            of_tensors(source, number, {"a.safetensors": tensors_of(a=number)})
        else:
            source.add({"model.onnx": add_constant(number)}, version=number)
    source.move("prod", source.versions["ns/model@1"])
    begun, go_on = threading.Event(), threading.Event()
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        hold(monkeypatch, begun, go_on)
        try:
            source.move("prod", source.versions["ns/model@2"])
            with anyio.fail_after(60):
                while not begun.is_set():
                    await anyio.sleep(0.005)
                source.move("prod", source.versions["ns/model@1"])
                while reloader._target is not None:
                    await anyio.sleep(0.005)
        finally:
            go_on.set()
        with anyio.fail_after(60):
            while reloader._attempt_scope is not None:
                await anyio.sleep(0.005)
        assert reloader.version_number == 1
        assert not any(isinstance(event, ReloadSucceeded) and event.version == 2 for event in log.events)
        source.move("prod", source.versions["ns/model@2"])
        await log.served(2)


async def test_what_failed_is_tried_again_at_once_when_the_server_is_back(tmp_path: Path) -> None:
    class Gone(dict[Any, Any]):
        def __missing__(self, key: object) -> bytes:
            raise NotFoundError("the bytes are away")

    source = _two_versions()
    async with loading(source, tmp_path, settings=replace(SETTINGS, retry_base_s=3600, retry_max_s=3600)) as (
        loader,
        log,
    ):
        reloader = await loader.load(REF, LoadOptions())
        contents, source.contents = source.contents, Gone()
        source.move("prod", source.versions["ns/model@2"])
        assert not (await log.failed(2)).quarantined
        source.contents = contents
        source.disconnect()
        await log.served(2)
        assert await answer(reloader) == 3.0
    assert len([event for event in log.events if isinstance(event, ReloadStarted) and event.version == 2]) == 2


async def test_an_error_of_nobody_in_a_fetch_is_not_the_version_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _two_versions()
    begin = source.begin_download
    failed: list[ModelVersion] = []

    async def breaks(version: ModelVersion) -> str:
        if not failed:
            failed.append(version)
            raise AttributeError("what a library says of a connection that is gone")
        return await begin(version)

    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        monkeypatch.setattr(source, "begin_download", breaks)
        source.move("prod", source.versions["ns/model@2"])
        failure = await log.failed(2)
        assert (failure.stage, failure.quarantined) == ("fetch", False)
        await log.served(2)
        assert await answer(reloader) == 3.0


async def test_a_comparison_that_fails_keeps_no_version_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("can't start new thread")

    source = _two_versions()
    async with loading(source, tmp_path) as (loader, log):
        await loader.load(REF, LoadOptions())
        monkeypatch.setattr("modelbox.loader.prepare.compare_speed", fails)
        source.move("prod", source.versions["ns/model@2"])
        await log.served(2)


def _fail(monkeypatch: pytest.MonkeyPatch, version: int, *errors: ModelBoxError) -> list[ModelBoxError]:
    """Has the next preparations of a version fail; gives those that are still to come."""
    left, prepare = list(errors), Preparer.prepare

    async def failing(self: Preparer, ref: ModelRef, wanted: ModelVersion, *args: Any, **more: Any) -> Prepared:
        if wanted.version == version and left:
            raise left.pop(0)
        return await prepare(self, ref, wanted, *args, **more)

    monkeypatch.setattr(Preparer, "prepare", failing)
    return left


def _doubt() -> ModelBoxError:
    return ProbeFailed("the machine may have been slow", reason="TIME", doubtful=True)


async def test_only_doubts_count_as_doubts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _two_versions()
    settings = replace(SETTINGS, retry_base_s=0.01, retry_max_s=0.02)
    async with loading(source, tmp_path, settings=settings) as (loader, log):
        await loader.load(REF, LoadOptions())
        left = _fail(monkeypatch, 2, Unavailable("away"), Unavailable("away"), Unavailable("away"), _doubt(), _doubt())
        source.move("prod", source.versions["ns/model@2"])
        await log.served(2)
    assert not left
    assert not any(isinstance(event, ReloadFailed) and event.quarantined for event in log.events)


async def test_three_doubts_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _two_versions()
    settings = replace(SETTINGS, retry_base_s=0.01, retry_max_s=0.02)
    async with loading(source, tmp_path, settings=settings) as (loader, log):
        await loader.load(REF, LoadOptions())
        left = _fail(monkeypatch, 2, *(_doubt() for _ in range(9)))
        source.move("prod", source.versions["ns/model@2"])
        with anyio.fail_after(60):
            while not any(isinstance(event, ReloadFailed) and event.quarantined for event in log.events):
                await anyio.sleep(0.005)
    assert len(left) == 6


async def test_a_start_believes_no_single_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _two_versions()
    async with loading(source, tmp_path) as (loader, _):
        await loader.load(REF, LoadOptions())
    source.move("prod", source.versions["ns/model@2"])
    left = _fail(monkeypatch, 2, _doubt())
    async with loading(source, tmp_path, settings=replace(SETTINGS, retry_base_s=0.01)) as (loader, log):
        assert (await loader.load(REF, LoadOptions())).version_number == 1
        await log.served(2)
    assert not left

"""News for the handles of a connection, on real models, with a socket that breaks in the middle of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from modelbox._loops import current_loop
from modelbox.loader.reload import Reloader
from modelbox.loader.settings import LoadOptions
from modelbox.model import LiveModel
from modelbox.refs import ModelRef
from modelbox.sidecar.model_settings import ModelServing
from modelbox.sidecar.served import ServedModel
from modelbox.sidecar.socket.handles import Handles
from tests.feed_source import FeedSource
from tests.loading import loading
from tests.onnx_models import add_constant

REFS = [ModelRef.parse(f"ns/model@{alias}") for alias in ("prod", "staging")]


class Keeper:
    """Takes references back, as a client does."""

    async def release(self, reference: Reloader) -> None:
        return None

    def release_sync(self, reference: Reloader) -> None:
        return None

    def forget(self, reference: Reloader) -> None:
        return None

    def adopt(self, model: LiveModel, inherited: Reloader) -> None:
        return None


@asynccontextmanager
async def served(directory: Path) -> AsyncIterator[tuple[dict[ModelRef, ServedModel], list[Reloader]]]:
    source = FeedSource()
    version = source.add({"model.onnx": add_constant(1)})
    for ref in REFS:
        assert ref.alias is not None
        source.move(ref.alias, version)
    async with loading(source, directory) as (loader, _):
        reloaders = [await loader.load(ref, LoadOptions()) for ref in REFS]
        models = {}
        for reloader in reloaders:
            models[reloader.ref] = one = ServedModel(reloader.ref, configured=True, serving=ModelServing(), cache=None)
            one.set_ready(LiveModel(reloader, Keeper()))
        yield models, reloaders


@pytest.mark.parametrize("frames", [1, 2], ids=["at the version", "at the state"])
async def test_a_connection_may_end_in_the_middle_of_its_news(frames: int, tmp_path: Path) -> None:
    left: list[int] = []

    def write(frame: bytes) -> None:
        """Ends the connection when so many more frames were written, as a socket does whose peer is gone."""
        if left:
            left[0] -= 1
            if not left[0]:
                handles.clear()

    async with served(tmp_path) as (models, reloaders):
        before = [len(reloader.observers) for reloader in reloaders]
        handles = Handles(write, current_loop(), models.get)
        for number, ref in enumerate(REFS, 1):
            handles.open(number, models[ref], events=True)
        assert [len(reloader.observers) for reloader in reloaders] == [count + 1 for count in before]
        handles.known.clear()  # too many: all are told anew
        for reloader in reloaders:
            reloader.stale = True
        left.append(frames)
        handles.tell_news()
        assert [len(reloader.observers) for reloader in reloaders] == before

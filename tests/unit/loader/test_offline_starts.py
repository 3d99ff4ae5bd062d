"""A start with a last good version at hand, before a server that answers and is of no use."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from modelbox.errors import ModelBoxError, ServerBusy, StorageError
from modelbox.loader.settings import LoadOptions
from modelbox.objects import Resolved
from modelbox.refs import ModelRef
from tests.feed_source import FeedSource
from tests.loading import answer, loading, recorded
from tests.onnx_models import add_constant

REF = ModelRef.parse("ns/model@prod")


@pytest.mark.parametrize("kind", [ServerBusy, StorageError])
async def test_a_server_without_its_database_ends_no_serving(
    kind: type[ModelBoxError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FeedSource()
    for number in (1, 2):
        source.add({"model.onnx": add_constant(number)}, version=number)
    source.move("prod", source.versions["ns/model@1"])
    async with loading(source, tmp_path) as (loader, _):
        await recorded(await loader.load(REF, LoadOptions()), lambda state: True)
    resolve, asked = source.resolve, anyio.Event()

    async def away(ref: ModelRef) -> Resolved:
        if not asked.is_set():
            asked.set()
            raise kind("the database is away")
        return await resolve(ref)

    monkeypatch.setattr(source, "resolve", away)
    source.faults.down = True
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        assert await answer(reloader) == 2.0
        assert reloader.stale
        source.move("prod", source.versions["ns/model@2"])
        source.faults.down = False
        await log.served(2)

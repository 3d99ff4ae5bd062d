"""Finding on a real server process: hard queries end, and hold up nobody; over HTTP as over gRPC."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import anyio
import pytest

from modelbox import errors
from modelbox._transport.source import RemoteSource
from modelbox.config import load_client_config
from modelbox.find import MAX_QUERY_CHARS
from modelbox.tracking import NewExperiment
from tests.server import ServerProcess

ROWS = 200
HARD = " or ".join(f"description ~ '{'a' * 200}{letter}'" for letter in "bcdefghijklmnopq")
"""A search in long texts where nothing helps: takes many seconds among `ROWS` of them."""
assert len(HARD) < MAX_QUERY_CHARS
SOON_S = 3.0


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("find")


@asynccontextmanager
async def _source(server: ServerProcess) -> AsyncIterator[RemoteSource]:
    source = RemoteSource(load_client_config(url=server.url, actor="ana"))
    try:
        yield source
    finally:
        await source.aclose()


async def _fill(source: RemoteSource) -> None:
    for number in range(ROWS):
        new = NewExperiment(namespace="hard", name=f"e{number}", description="a" * 16_000)
        await source.tracking.create_experiment(new)


async def test_a_query_that_takes_too_long_is_ended(data: Path) -> None:
    with ServerProcess(data / "limit", find_timeout_s=0.3) as server:
        async with _source(server) as source, aiohttp.ClientSession(server.url) as http:
            await _fill(source)
            began = time.perf_counter()
            with pytest.raises(errors.LimitError, match=r"more than 0\.3 s .*within.*find_timeout_s") as caught:
                await source.tracking.find("experiments", where=HARD, columns=["id"])
            assert time.perf_counter() - began < SOON_S
            assert caught.value.fields["limit_s"] == 0.3
            query = {"collection": "experiments", "where": HARD, "columns": "id"}
            async with http.get("/api/v1/find", params=query) as response:
                assert (response.status, (await response.json())["code"]) == (413, "limit")
            page = await source.tracking.find("experiments", where="name = e7", columns=["id"])
            assert page.count == 1


async def test_hard_queries_hold_up_nobody_and_end_with_their_callers(data: Path) -> None:
    with ServerProcess(data / "callers", find_timeout_s=25) as server:
        async with _source(server) as source, aiohttp.ClientSession(server.url) as http:
            calls = source.tracking
            await _fill(source)

            async def over_grpc() -> None:
                await calls.find("experiments", where=HARD, columns=["id"])

            async def over_http() -> None:
                query = {"collection": "experiments", "where": HARD, "columns": "id"}
                async with http.get("/api/v1/find", params=query):
                    pass

            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(over_grpc)
                    tasks.start_soon(over_http)
                await anyio.sleep(0.5)
                began = time.perf_counter()
                for number in range(20):
                    assert (await calls.get_experiment(f"hard/e{number}")).name == f"e{number}"
                assert len((await calls.list_experiments("hard", page_size=20)).items) == 20
                assert time.perf_counter() - began < SOON_S
                tasks.cancel_scope.cancel()
            began = time.perf_counter()
            page = await calls.find("experiments", where="name = e7", columns=["id"])
            assert page.count == 1
            assert time.perf_counter() - began < SOON_S
            assert server.terminate() == 0

"""Finding on a real server process: hard queries end, and hold up nobody; over HTTP as over gRPC."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

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
HARD = " or ".join(f"description ~ '{'a' * 200}{letter}'" for letter in "bcdefghijklmnopqrstuvwxyz012")
"""A search in long texts where nothing helps: takes very many seconds among `ROWS` of them."""
assert len(HARD) < MAX_QUERY_CHARS


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("find")


@asynccontextmanager
async def _source(server: ServerProcess) -> AsyncIterator[RemoteSource]:
    source = RemoteSource(load_client_config(url=server.url, actor="ana", request_timeout_s=60))
    try:
        yield source
    finally:
        await source.aclose()


async def _fill(source: RemoteSource) -> None:
    for number in range(ROWS):
        new = NewExperiment(namespace="hard", name=f"e{number}", description="a" * 16_000)
        await source.tracking.create_experiment(new)


async def _all_run(http: aiohttp.ClientSession, metrics_url: str, count: int) -> None:
    """Waits until so many calls of either protocol run."""
    wanted = {f'modelbox_api_running{{protocol="{protocol}"}} {count}.0' for protocol in ("grpc", "http")}
    with anyio.fail_after(60):
        while True:
            async with http.get(metrics_url) as response:
                if wanted <= {*(await response.text()).splitlines()}:
                    return
            await anyio.sleep(0.02)


async def test_a_query_that_takes_too_long_is_ended(data: Path) -> None:
    with ServerProcess(data / "limit", find_timeout_s=1.5) as server:
        async with _source(server) as source, aiohttp.ClientSession(server.url) as http:
            await _fill(source)
            with pytest.raises(errors.LimitError, match=r"more than 1\.5 s .*within.*find_timeout_s") as caught:
                await source.tracking.find("experiments", where=HARD, columns=["id"])
            assert caught.value.fields["limit_s"] == 1.5
            query = {"collection": "experiments", "where": HARD, "columns": "id"}
            async with http.get("/api/v1/find", params=query) as response:
                assert (response.status, (await response.json())["code"]) == (413, "limit")
            page = await source.tracking.find("experiments", where="name = e7", columns=["id"])
            assert page.count == 1


async def test_hard_queries_hold_up_nobody_and_end_with_their_callers(data: Path) -> None:
    with ServerProcess(data / "callers", find_timeout_s=600, call_timeout_s=600) as server:
        async with _source(server) as source, aiohttp.ClientSession(server.url) as http:
            calls = source.tracking
            await _fill(source)
            ended: list[str] = []

            async def over_grpc() -> None:
                await calls.find("experiments", where=HARD, columns=["id"])
                ended.append("grpc")

            async def over_http() -> None:
                query = {"collection": "experiments", "where": HARD, "columns": "id"}
                async with http.get("/api/v1/find", params=query):
                    ended.append("http")

            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(over_grpc)
                    tasks.start_soon(over_http)
                await _all_run(http, server.metrics_url, 4)
                for number in range(20):
                    assert (await calls.get_experiment(f"hard/e{number}")).name == f"e{number}"
                assert len((await calls.list_experiments("hard", page_size=20)).items) == 20
                # Had it waited for one of them, that one would have ended.
                assert ended == []
                tasks.cancel_scope.cancel()
            # There are fewer places than queries: where those went on, this one would not get its turn in time.
            page = await calls.find("experiments", where="name = e7", columns=["id"])
            assert page.count == 1
            assert server.terminate() == 0


# -- over HTTP -------------------------------------------------------------------------------------------------------


async def _post(http: aiohttp.ClientSession, path: str, body: Any, *, status: int = 200) -> Any:
    async with http.post(f"/api/v1/{path}", json=body) as response:
        answer = await response.json()
        assert response.status == status, answer
        return answer


async def _runs(http: aiohttp.ClientSession, namespace: str, count: int) -> list[str]:
    made = []
    for number in range(count):
        new = {
            "experiment": f"{namespace}/e",
            "name": f"größe {number}",
            "params": {"n": number, "net": {"a": ["ü", 1]}},
        }
        made.append(
            (await _post(http, "runs", new | {"tags": {"team": "a,b"} if number else {}}, status=201))["item"]["id"]
        )
    return made


async def test_a_field_that_there_is_none_of_is_refused(shared_server: ServerProcess) -> None:
    async with aiohttp.ClientSession(shared_server.url) as http:
        answer = await _post(http, "find", {"collection": "runs", "filter": "params.n = 1"}, status=400)
    assert answer["code"] == "invalid"
    assert answer["message"].startswith("the body has the unknown field 'filter': expected collection, where, order_by")


async def test_pages_over_http(shared_server: ServerProcess) -> None:
    async with aiohttp.ClientSession(shared_server.url) as http:
        made = await _runs(http, "find-pages", 5)
        query = {"collection": "runs", "within": "find-pages/e", "order_by": "params.n desc", "page_size": "2"}
        by_get: list[str] = []
        token = ""
        for size in (2, 2, 1):
            async with http.get("/api/v1/find", params=query | {"page_token": token}) as response:
                page = await response.json()
            assert (response.status, page["count"]) == (200, size)
            by_get += page["columns"]["id"]
            token = page["next_page_token"]
        assert token == ""
        assert by_get == made[::-1]

        body = {"collection": "runs", "within": "find-pages/e", "order_by": ["params.n desc"], "page_size": 3}
        first = await _post(http, "find", body | {"columns": ["id"]})
        assert first["columns"] == {"id": made[:1:-1]}
        rest = await _post(http, "find", body | {"page_token": first["next_page_token"], "columns": ["params.n"]})
        assert rest["columns"] == {"id": made[1::-1], "params.n": [1, 0]}
        other = body | {"page_token": first["next_page_token"], "where": "params.n > 0"}
        assert (await _post(http, "find", other, status=400))["code"] == "invalid"


async def test_csv_over_http(shared_server: ServerProcess) -> None:
    async with aiohttp.ClientSession(shared_server.url) as http:
        made = await _runs(http, "find-csv", 3)
        points = [{"key": "loss", "value": value} for value in ("NaN",)]
        await _post(http, "metrics", {"object": made[0], "points": points})
        body = {"collection": "runs", "within": "find-csv", "order_by": ["params.n"], "page_size": 2, "format": "csv"}
        lines: list[dict[str, str]] = []
        token = ""
        for turn in range(2):
            async with http.post("/api/v1/find", json=body | {"page_token": token}) as response:
                assert (response.content_type, response.charset) == ("text/csv", "utf-8")
                assert response.headers["Content-Disposition"] == 'attachment; filename="runs.csv"'
                lines += csv.DictReader(io.StringIO(await response.text(), newline=""))
                token = response.headers.get("Modelbox-Next-Page-Token", "")
                assert bool(token) is (turn == 0)
        assert [line["id"] for line in lines] == made
        assert [line["name"] for line in lines] == ["größe 0", "größe 1", "größe 2"]
        assert [line["tags.team"] for line in lines] == ["", "a,b", "a,b"]
        assert lines[0]["metrics.loss"] == "NaN"
        assert lines[0]["params.net"] == '{"a": ["ü", 1]}'
        assert lines[0]["ended_at"] == ""
        assert lines[0]["started_at"].endswith("Z")
        body = {"collection": "runs", "format": "xml"}
        assert "expected json or csv" in (await _post(http, "find", body, status=400))["message"]
        wrong = await _post(http, "find", {"collection": "runs", "where": "params.größe = "}, status=400)
        assert (wrong["code"], wrong["fields"]["position"]) == ("invalid.find", 15)


async def test_events_are_found_by_their_metadata(shared_server: ServerProcess) -> None:
    async with aiohttp.ClientSession(shared_server.url) as http:
        (run,) = await _runs(http, "find-events", 1)
        for number in range(3):
            metadata = {"job": {"id": number, "host": "größe"}}
            await _post(http, "events", {"object": run, "name": "lost", "metadata": metadata}, status=201)
        body = {
            "collection": "events",
            "where": "metadata.job.id >= 1 and metadata.job.host ~ 'gr*'",
            "order_by": ["metadata.job.id desc"],
            "within": run,
            "columns": ["name", "metadata", "metadata.job.id"],
        }
        found = await _post(http, "find", body)
        assert found["columns"]["metadata.job.id"] == [2, 1]
        assert found["columns"]["metadata.job"] == [{"id": 2, "host": "größe"}, {"id": 1, "host": "größe"}]
        assert (await _post(http, "find", body | {"where": "params.lr = 1"}, status=400))["code"] == "invalid.find"

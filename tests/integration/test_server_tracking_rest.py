"""Everything that training records, over HTTP, on a real server process."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import aiohttp
import pytest

from tests.faults.registry import fault
from tests.server import ServerProcess

UNKNOWN = "run_" + "0" * 24


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class Api:
    """The server's API, in JSON."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def call(self, method: str, path: str, body: Any = None, *, status: int = 200, **query: Any) -> Any:
        async with self.session.request(method, f"/api/v1/{path}", json=body, params=query) as response:
            answer = await response.json()
            assert response.status == status, answer
            return answer

    async def get(self, path: str, *, status: int = 200, **query: Any) -> Any:
        return await self.call("GET", path, status=status, **query)

    async def post(self, path: str, body: Any, *, status: int = 200, **query: Any) -> Any:
        return await self.call("POST", path, body, status=status, **query)

    async def run(self, namespace: str, **values: Any) -> str:
        created = await self.post("runs", {"experiment": f"{namespace}/speech", **values}, status=201)
        run_id: str = created["item"]["id"]
        return run_id


@asynccontextmanager
async def _api(server: ServerProcess) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession(server.url, headers={"Modelbox-Actor": "ana"}) as session:
        yield Api(session)


async def test_experiments_runs_and_checkpoints(shared_server: ServerProcess) -> None:
    async with _api(shared_server) as api:
        new = {"namespace": "rest", "name": "speech", "owner": "ana"}
        created = await api.post("experiments", new, status=201)
        assert (created["existed"], created["item"]["created_by"]) == (False, "ana")
        again = await api.post("experiments", new)
        assert again == {"item": created["item"], "existed": True}
        assert await api.get("experiments/rest/speech") == created["item"]
        changed = await api.call("PATCH", "experiments/rest/speech", {"task": "asr"})
        assert (changed["task"], changed["owner"]) == ("asr", "ana")
        assert [one["name"] for one in (await api.get("experiments", namespace="rest"))["items"]] == ["speech"]

        run = await api.run("rest", params={"lr": 0.1}, name="first")
        ended = await api.call("PATCH", f"runs/{run}", {"status": "finished"})
        assert ended["status"] == "finished"
        assert datetime.fromisoformat(ended["started_at"]) <= datetime.fromisoformat(ended["ended_at"])
        cloned = await api.post(f"runs/{run}/clone", {"name": "second"}, status=201)
        assert cloned["item"]["cloned_from"] == run
        page = await api.get("runs", parent="rest/speech", page_size=1)
        rest = await api.get("runs", parent="rest/speech", page_size=1, page_token=page["next_page_token"])
        assert [one["name"] for one in page["items"] + rest["items"]] == ["second", "first"]

        point = await api.post("checkpoints", {"parent_id": run, "epoch": 3, "metrics": {"acc": 0.5}}, status=201)
        assert await api.get(f"checkpoints/{point['item']['id']}") == point["item"]
        assert [one["epoch"] for one in (await api.get("checkpoints", parent=run))["items"]] == [3]

        assert await api.post("objects/delete", {"ids": [run]}) == {"count": 2}
        assert len((await api.get("runs", parent="rest/speech"))["items"]) == 1
        assert len((await api.get("runs", parent="rest/speech", include_deleted="true"))["items"]) == 2
        assert await api.post("objects/restore", {"ids": [run]}) == {"count": 2}


async def test_attributes(shared_server: ServerProcess) -> None:
    async with _api(shared_server) as api:
        run = await api.run("rest-attrs", params={"lr": 0.1})
        edit = {"object": run, "kind": "param", "values": {"lr": 0.2}}
        refused = await api.post("attributes", edit, status=409)
        assert (refused["code"], refused["fields"]["current"]) == ("conflict", 0.1)
        assert (await api.post("attributes", {**edit, "overwrite": True}))["rev"] > 0
        (found,) = (await api.get("attributes", object=run, kind="param"))["items"]
        assert (found["key"], found["value"]) == ("lr", 0.2)
        history = await api.get("attributes/history", object=run, kind="param", key="lr")
        assert [one["value"] for one in history["items"]] == [0.2, 0.1]


@fault(61)
async def test_metrics(shared_server: ServerProcess) -> None:
    async with _api(shared_server) as api:
        run = await api.run("rest-metrics")
        at = "2026-05-03T10:00:00Z"
        points = [
            {"key": "loss", "step": 1, "value": 0.5, "at": at},
            {"key": "loss", "step": 2, "value": "NaN", "at": at},
            {"key": "loss", "step": 3, "value": "-Infinity", "at": at},
            {"key": "note", "value": {"text": 'a "ü",\n'}, "at": at},
            {"key": "blob", "value": {"bytes": "AP8="}, "at": at},
        ]
        assert await api.post("metrics", {"object": run, "points": points}) == {"stored": 5, "repeated": 0}
        assert await api.post("metrics", {"object": run, "points": points}) == {"stored": 0, "repeated": 5}
        summaries = {one["key"]: one for one in (await api.get("metrics", object=run))["items"]}
        assert (summaries["loss"]["count"], summaries["loss"]["latest"]) == (3, "-Infinity")
        us = int(datetime.fromisoformat(at).timestamp()) * 1_000_000
        series = await api.get("metrics/series", object=run, key="loss")
        assert series == {
            "object": run,
            "key": "loss",
            "points": [[1, us, 0.5], [2, us, "NaN"], [3, us, "-Infinity"]],
        }
        part = await api.get("metrics/series", object=run, key="loss", from_step=2, to_step=2)
        assert part["points"] == [[2, us, "NaN"]]
        empty = await api.get("metrics/series", object=run, key="loss", from_step=9)
        assert empty["points"] == []
        assert (await api.get("metrics/series", object=run, key="note"))["points"] == [[0, us, {"text": 'a "ü",\n'}]]
        assert (await api.get("metrics/series", object=run, key="blob"))["points"] == [[0, us, {"bytes": "AP8="}]]
        sample = await api.get("metrics/sample", object=run, key="loss", buckets=2)
        assert (sample["counts"], sample["mins"]) == ([2, 1], [0.5, "-Infinity"])

        for key, rows in (
            ("loss", [["1", "2026-05-03T10:00:00.000000Z", "0.5"], ["2", "2026-05-03T10:00:00.000000Z", "nan"]]),
            ("note", [["0", "2026-05-03T10:00:00.000000Z", 'a "ü",\n']]),
            ("blob", [["0", "2026-05-03T10:00:00.000000Z", "AP8="]]),
        ):
            query = {"object": run, "key": key, "to_step": "2", "format": "csv"}
            async with api.session.get("/api/v1/metrics/series", params=query) as response:
                assert response.content_type == "text/csv"
                text = await response.text()
            assert list(csv.reader(io.StringIO(text, newline=""))) == [["step", "time", "value"], *rows]


async def test_a_long_series_is_written_in_parts(shared_server: ServerProcess) -> None:
    async with _api(shared_server) as api:
        run = await api.run("rest-long")
        for begin in range(0, 20_000, 10_000):
            points = [{"key": "loss", "step": step, "value": step} for step in range(begin, begin + 10_000)]
            await api.post("metrics", {"object": run, "points": points})
        series = await api.get("metrics/series", object=run, key="loss")
        assert [one[0] for one in series["points"]] == list(range(20_000))
        assert [one[2] for one in series["points"]] == list(range(20_000))


@pytest.mark.parametrize(
    "value", [None, True, "0.5", [1], {"text": 1}, {"bytes": "a"}, {"bytes": "ü"}, {}, 10**400], ids=str
)
async def test_values_that_are_none(shared_server: ServerProcess, value: Any) -> None:
    async with _api(shared_server) as api:
        body = {"object": UNKNOWN, "points": [{"key": "loss", "value": value}]}
        refused = await api.post("metrics", body, status=400)
        assert refused["code"] == "invalid"
        assert "loss" in refused["message"]


async def test_events_comments_and_readmes(shared_server: ServerProcess) -> None:
    async with _api(shared_server) as api:
        run = await api.run("rest-notes")
        event = await api.post(
            "events",
            {"object": run, "name": "seen", "at": "2026-05-03T10:00:00+02:00", "metadata": {"a": [1]}},
            status=201,
        )
        assert event["item"]["at"] == "2026-05-03T08:00:00.000000Z"
        found = await api.get("events", object="rest-notes", since="2026-05-03T08:00:00Z")
        assert found["items"] == [event["item"]]
        assert (await api.get("events", object=run, until="2026-05-03T08:00:00Z"))["items"] == []
        comment = await api.post("comments", {"object": run, "text": "why?"})
        edited = await api.call("PATCH", f"comments/{comment['id']}", {"text": "because"})
        assert (await api.get("comments", object=run))["items"] == [edited]
        readme = await api.call("PUT", "readme", {"object": run, "text": "# Hm"})
        assert await api.get("readme", object=run) == readme


async def test_datasets_and_lineage(shared_server: ServerProcess) -> None:
    async with _api(shared_server) as api:
        await api.post("datasets", {"namespace": "rest-data", "name": "speech"}, status=201)
        new = {
            "namespace": "rest-data",
            "dataset": "speech",
            "components": [{"type": "path", "location": "/d", "rows": 3}],
        }
        version = (await api.post("dataset-versions", new, status=201))["item"]
        assert (await api.get("datasets/rest-data/speech"))["latest_version"] == 1
        assert await api.get("dataset-versions/rest-data/speech@1") == version
        assert (await api.get("dataset-versions", dataset="rest-data/speech"))["items"] == [version]
        assert len((await api.get("datasets", namespace="rest-data"))["items"]) == 1
        run = await api.run("rest-data")
        edges = {"edges": [{"source": version["id"], "target": run, "type": "used"}]}
        assert await api.post("lineage", edges) == {"added": 1}
        graph = await api.get("lineage", object=run, direction="ancestors", max_depth=3)
        assert {one["id"] for one in graph["nodes"]} == {run, version["id"]}
        cycle = {"edges": [{"source": run, "target": version["id"], "type": "used"}]}
        assert (await api.post("lineage", cycle, status=409))["code"] == "conflict"
        assert await api.post("lineage/remove", edges) == {"removed": 1}


async def test_find(shared_server: ServerProcess) -> None:
    async with _api(shared_server) as api:
        for lr in (0.1, 0.2):
            await api.run("rest-found", name=f'r "{lr}"', params={"lr": lr, "deep": {"a": [1]}})
        found = await api.get("find", collection="runs", where="params.lr >= 0.1", within="rest-found", page_size=1)
        assert (found["count"], found["columns"]["params.lr"]) == (1, [0.2])
        body = {"collection": "runs", "within": "rest-found", "order_by": ["params.lr asc"], "columns": ["name"]}
        assert (await api.post("find", body))["columns"]["name"] == ['r "0.1"', 'r "0.2"']
        query = {"collection": "runs", "within": "rest-found", "format": "csv", "page_size": "1"}
        async with api.session.get("/api/v1/find", params=query) as response:
            assert response.content_type == "text/csv"
            assert response.headers["Modelbox-Next-Page-Token"]
            (row,) = csv.DictReader(io.StringIO(await response.text(), newline=""))
        assert (row["name"], row["params.lr"]) == ('r "0.2"', "0.2")
        assert datetime.fromisoformat(row["started_at"]).tzinfo is not None
        refused = await api.get("find", collection="runs", where="params.lr <", status=400)
        assert refused["code"] == "invalid.find"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "expected"),
    [
        ("GET", f"runs/{UNKNOWN}", None, 404, "run"),
        ("GET", "runs/nonsense", None, 400, "is not an id"),
        ("GET", "experiments?page_size=many", None, 400, "page_size is 'many': expected an integer"),
        ("GET", "experiments?include_deleted=maybe", None, 400, "expected true or false"),
        ("GET", "experiments?page_token=nonsense", None, 400, "page token"),
        ("GET", "events?object=a&since=yesterday", None, 400, "expected a time such as"),
        ("GET", "attributes", None, 400, "the query parameter object is missing"),
        ("GET", f"attributes?object={UNKNOWN}&kind=colour", None, 400, "is not a kind of attributes"),
        ("GET", f"metrics/series?object={UNKNOWN}&key=loss&format=xml", None, 400, "expected json or csv"),
        ("GET", f"metrics/series?object={UNKNOWN}&key=loss", None, 404, "no object"),
        ("GET", f"metrics/series?object={UNKNOWN}&key=loss&from_step={2**63}", None, 400, "64-bit"),
        ("POST", "runs", b"[]", 400, "one JSON object"),
        ("POST", "runs", b"{", 400, "cannot be read as JSON"),
        ("POST", "runs", b'{"experiment": "a/b", "params": {"lr": NaN}}', 400, "cannot be read as JSON"),
        ("POST", "runs", b'{"experiment": "a/b", "tags": {"a": "\\ud800"}}', 400, "cannot be read as JSON"),
        ("POST", "runs", b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400, "cannot be read as JSON"),
        (
            "POST",
            "runs",
            b'{"experiment": "a/b", "params": {"a": ' + b"[" * 50 + b"]" * 50 + b"}}",
            413,
            "16 levels deep",
        ),
        ("POST", "runs", b'{"experiment": 7}', 400, "NewRun.experiment: expected str"),
        ("POST", "runs", b'{"name": "x"}', 400, "the field 'experiment' is missing"),
        ("POST", "runs", b'{"experiment": "a/b", "status": "asleep"}', 400, "asleep"),
        ("POST", "runs", b'{"experiment": "a/b", "started_at": "0001-01-01T00:00:00+14:00"}', 400, "started_at"),
        ("POST", "objects/delete", b"{}", 400, "expected a list"),
        ("PUT", "runs", b"{}", 405, "Method Not Allowed"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_wrong_with_a_request_is_said(
    shared_server: ServerProcess, method: str, path: str, body: bytes | None, status: int, expected: str
) -> None:
    async with (
        _api(shared_server) as api,
        api.session.request(method, f"/api/v1/{path}", data=body) as response,
    ):
        answer = await response.json()
        assert (response.status, expected in answer["message"]) == (status, True), answer


async def test_a_body_has_an_end(shared_server: ServerProcess) -> None:
    async with (
        _api(shared_server) as api,
        api.session.post("/api/v1/runs", data=io.BytesIO(b" " * (1 << 20) + b"{}")) as response,
    ):
        assert response.status == 413
        assert (await response.json())["code"] == "limit"

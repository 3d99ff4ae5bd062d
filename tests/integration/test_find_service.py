"""Finding through the service, over the databases that the server has."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from modelbox.errors import FindError, InvalidError, NotFoundError
from modelbox.runtime.services.find import FindService
from modelbox.runtime.services.metrics import MetricService
from modelbox.runtime.services.tracking import TrackingService
from modelbox.runtime.store.find import SqlFindStore
from modelbox.runtime.store.metrics import SqlMetricStore
from modelbox.runtime.store.sqlite import SqliteDatabase
from modelbox.runtime.store.tracking import SqlTrackingStore
from modelbox.series import Point, columns_of
from modelbox.tracking import Found, NewRun, RunStatus
from tests.integration.server_core import migrated_database

BEGAN = datetime(2026, 5, 3, tzinfo=UTC)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = BEGAN

    def __call__(self) -> datetime:
        return self.now


class Server:
    """The services that the tests need, over one database."""

    def __init__(self, database: SqliteDatabase) -> None:
        tracking = SqlTrackingStore(database)
        self.clock = Clock()
        self.metrics = MetricService(SqlMetricStore(database.metrics), tracking)
        self.tracking = TrackingService(tracking, self.metrics)
        self.find = FindService(SqlFindStore(database), clock=self.clock)

    async def run(self, *, days: int = 0, **metrics: float) -> str:
        new = NewRun(
            experiment="langtech/lid",
            started_at=BEGAN - timedelta(days=days),
            params={"lr": 0.1, "days": days},
            tags={"team": "speech"},
        )
        created = await self.tracking.create_run(new, actor="me")
        points = [Point(key=key, step=1, time_us=1, value=value) for key, value in metrics.items()]
        if points:
            await self.metrics.log([columns_of(created.item.id, points)])
        return created.item.id


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    (tmp_path / "modelbox.db").write_bytes(migrated_database())
    async with SqliteDatabase(tmp_path) as database:
        yield Server(database)


def ids(found: Found) -> list[str]:
    listed: list[str] = json.loads(found.columns_json)["id"]
    return listed


async def test_what_was_logged_is_found_at_once(server: Server) -> None:
    bad = await server.run(loss=0.9)
    good = await server.run(loss=0.1)
    await server.run()
    assert ids(await server.find.find("runs", where="metrics.loss < 0.5")) == [good]
    assert ids(await server.find.find("runs", order_by=["metrics.loss"]))[:2] == [good, bad]
    found = await server.find.find("runs", where="metrics.loss < 0.5 and params.lr = 0.1 and tags.team = speech")
    columns = json.loads(found.columns_json)
    assert columns["metrics.loss"] == [0.1]
    assert columns["params.lr"] == [0.1]
    assert columns["experiment"] == ["lid"]


async def test_now_keeps_its_meaning_over_pages(server: Server) -> None:
    made = [await server.run(days=days) for days in range(4)]
    query = {"where": "started_at >= now-3d", "order_by": ["started_at desc"]}
    first = await server.find.find("runs", page_size=2, **query)  # type: ignore[arg-type]
    server.clock.now += timedelta(days=1)
    second = await server.find.find("runs", page_size=2, page_token=first.next_token, **query)  # type: ignore[arg-type]
    assert ids(first) + ids(second) == made
    assert second.next_token == ""
    assert ids(await server.find.find("runs", **query)) == made[:3]  # type: ignore[arg-type]


async def test_a_token_belongs_to_its_query(server: Server) -> None:
    for _ in range(3):
        await server.run(loss=1.0)
    token = (await server.find.find("runs", order_by=["metrics.loss"], page_size=1)).next_token
    assert token
    for other in (
        {"order_by": ["metrics.loss desc"]},
        {"order_by": ["metrics.loss"], "where": "name != null"},
        {"order_by": ["metrics.loss"], "within": "langtech"},
        {"order_by": ["metrics.loss"], "include_deleted": True},
        {},
    ):
        with pytest.raises(InvalidError, match="not a page token of this query"):
            await server.find.find("runs", page_token=token, **other)
    for bad in ("x", "é", token[:-4], "W10", "A" * 20_000):
        with pytest.raises(InvalidError):
            await server.find.find("runs", order_by=["metrics.loss"], page_token=bad)


async def test_the_bin(server: Server) -> None:
    kept, gone = await server.run(), await server.run()
    await server.tracking.delete_objects([gone], actor="me")
    assert ids(await server.find.find("runs")) == [kept]
    assert ids(await server.find.find("runs", include_deleted=True)) == [gone, kept]
    await server.tracking.restore_objects([gone], actor="me")
    assert ids(await server.find.find("runs")) == [gone, kept]


async def test_status_changes_are_seen(server: Server) -> None:
    one = await server.run()
    assert ids(await server.find.find("runs", where=f"status = {RunStatus.RUNNING.value}")) == [one]
    assert ids(await server.find.find("runs", where="duration = null")) == [one]


async def test_bad_queries(server: Server) -> None:
    with pytest.raises(FindError):
        await server.find.find("runs", where="nope = 1")
    with pytest.raises(FindError):
        await server.find.find("walks")
    with pytest.raises(FindError):
        await server.find.find("runs", order_by=["nope"])
    with pytest.raises(FindError):
        await server.find.find("runs", columns=["nope"])
    with pytest.raises(NotFoundError):
        await server.find.find("runs", within="nowhere")
    with pytest.raises(InvalidError):
        await server.find.find("runs", within="\0")
    with pytest.raises(InvalidError):
        await server.find.find("runs", page_size=1001)

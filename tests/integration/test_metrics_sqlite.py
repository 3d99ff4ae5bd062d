"""What only SQLite does with metrics: a second file beside the first, and crashes at any moment."""

from __future__ import annotations

import random
import signal
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest
from sqlalchemy import Connection, create_engine, func, inspect, select, text

from modelbox.errors import ConfigError, LimitError, NotFoundError, StorageError
from modelbox.runtime.services.metrics import CHUNK_POINTS, MetricService
from modelbox.runtime.store.metric_schema import metadata, metric_points, metric_series
from modelbox.runtime.store.metrics import SqlMetricStore
from modelbox.runtime.store.migrate import METRICS, migrate
from modelbox.runtime.store.schema import models
from modelbox.runtime.store.sqlite import SqliteDatabase
from modelbox.tracking import MetricColumns, ObjectKind, new_id
from tests.contract.metric_stores import Point, log, metric_columns, read_all, unpacked

from .metric_writer import WRITERS, run_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class Lookup:
    """Objects that there are."""

    def __init__(self, **ids: str) -> None:
        self.ids = ids
        self.asked: list[str] = []

    async def find_objects(self, names: Sequence[str]) -> dict[str, str]:
        self.asked.extend(names)
        return {name: self.ids[name] for name in names if name in self.ids}


# -- schema and files ----------------------------------------------------------------------------------------------


def test_migrations_make_the_schema() -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    def tables(connection: Connection) -> dict[str, object]:
        found = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")).all()
        return {name: sql for name, sql in found if name != METRICS.version_table}

    migrated, declared = create_engine("sqlite://"), create_engine("sqlite://")
    with migrated.connect() as left, declared.connect() as right:
        left = left.execution_options(isolation_level="AUTOCOMMIT")
        assert migrate(left, METRICS)
        assert not migrate(left, METRICS)
        metadata.create_all(right)
        context = MigrationContext.configure(left, opts={"version_table": METRICS.version_table})
        assert compare_metadata(context, metadata) == []
        for table in metadata.tables:
            of_left, of_right = inspect(left), inspect(right)
            assert [(c["name"], str(c["type"]), c["nullable"]) for c in of_left.get_columns(table)] == [
                (c["name"], str(c["type"]), c["nullable"]) for c in of_right.get_columns(table)
            ]
            assert of_left.get_pk_constraint(table) == of_right.get_pk_constraint(table)
        points = "metric_points"
        assert "WITHOUT ROWID" in str(tables(left)[points])
        assert "WITHOUT ROWID" in str(tables(right)[points])
    migrated.dispose()
    declared.dispose()
    config = Config()
    config.set_main_option("script_location", str(METRICS.scripts))
    assert ScriptDirectory.from_config(config).get_heads() == [METRICS.head]


async def test_readers_of_the_first_file_see_the_second(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path) as database:
        run = new_id(ObjectKind.RUN)
        await log(SqlMetricStore(database.metrics), run, {"a": [(1, 1, 1.0)]})

        def both(conn: Connection) -> tuple[int, int]:
            joined = select(func.count(metric_series.c.id), func.count(models.c.id)).select_from(
                metric_series.outerjoin(models, models.c.id == metric_series.c.id)
            )
            left, right = conn.execute(joined).one()
            return left, right

        assert await database.read(both) == (1, 0)
        assert await database.scan(both) == (1, 0)
        with pytest.raises(StorageError, match="readonly"):
            await database.read(lambda conn: conn.execute(metric_points.delete()))
        with pytest.raises(StorageError, match="readonly"):
            await database.scan(lambda conn: conn.execute(metric_points.delete()))


@pytest.mark.parametrize("name", ["with space", "a?b#c", "50%25", "ä'\""])
async def test_a_directory_with_any_name(tmp_path: Path, name: str) -> None:
    async with SqliteDatabase(tmp_path / name) as database:
        run = new_id(ObjectKind.RUN)
        await log(SqlMetricStore(database.metrics), run, {"a": [(1, 1, 1.0)]})
        count = select(func.count()).select_from(metric_points)
        assert await database.read(lambda conn: conn.execute(count).scalar()) == 1
        assert await database.scan(lambda conn: conn.execute(count).scalar()) == 1
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["metrics.db", "modelbox.db", "modelbox.lock"]


async def test_metrics_of_a_newer_release_are_left_alone(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "metrics.db") as raw:
        raw.execute("UPDATE metric_alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(ConfigError, match="9999"):
        async with SqliteDatabase(tmp_path):
            pass


async def test_a_damaged_file_of_metrics_gives_the_lock_back(tmp_path: Path) -> None:
    (tmp_path / "metrics.db").write_bytes(random.Random(1).randbytes(8192))
    with pytest.raises(StorageError):
        async with SqliteDatabase(tmp_path):
            pass
    (tmp_path / "metrics.db").unlink()
    async with SqliteDatabase(tmp_path):
        assert (tmp_path / "metrics.db").stat().st_mode & 0o077 == 0


# -- the service ---------------------------------------------------------------------------------------------------


async def test_the_service_over_it(tmp_path: Path) -> None:
    run = new_id(ObjectKind.RUN)
    lookup = Lookup(**{run: run, "ns/m@7": "ver_" + "1" * 24})
    async with SqliteDatabase(tmp_path) as database:
        service = MetricService(SqlMetricStore(database.metrics), lookup)
        assert await service.log([metric_columns(run, {"a": [(1, 1, 1.0)]})]) == (1, 0)
        assert await service.log([metric_columns(run, {"a": [(1, 1, 2.0), (2, 1, 2.0)]})]) == (1, 1)
        assert await service.log([]) == (0, 0)
        # An id that was found is not looked up again.
        assert lookup.asked == [run]
        assert await service.log([metric_columns("ns/m@7", {"a": [(1, 1, 5.0)]})]) == (1, 0)
        (summary,) = await service.summaries(["ns/m@7", "ns/m@7"], ["a"])
        assert (summary.object, summary.latest) == ("ver_" + "1" * 24, 5.0)

        missing = new_id(ObjectKind.RUN)
        with pytest.raises(NotFoundError, match=missing):
            await service.log(
                [metric_columns(run, {"a": [(9, 1, 1.0)]}), metric_columns(missing, {"a": [(9, 1, 1.0)]})]
            )
        with pytest.raises(NotFoundError, match=missing):
            await service.summaries([missing])
        with pytest.raises(NotFoundError, match="keys there are: a") as caught:
            async for _ in service.read_series(run, "b"):
                pass
        assert caught.value.fields["exists"] == ["a"]
        with pytest.raises(LimitError, match="101 objects"):
            await service.summaries([run] * 101)
        assert [point async for part in service.read_series(run, "a") for point in unpacked(part)] == [
            (1, 1, 1.0),
            (2, 1, 2.0),
        ]

        outcomes = await service.log_each(
            [
                metric_columns(missing, {"a": [(9, 1, 1.0)]}),
                metric_columns(run, {"a": [(3, 1, "text")]}),
                metric_columns(run, {"a": [(3, 1, 3.0)]}),
                MetricColumns(object=run, keys=("a",), steps=b"1", times_us=b"", values=b""),
            ]
        )
        assert [type(outcome).__name__ for outcome in outcomes] == [
            "NotFoundError",
            "InvalidError",
            "LoggedPoints",
            "InvalidError",
        ]
        await service.delete_series([run])
        await service.log([metric_columns(run, {"a": [(1, 1, 1.0)]})])
        assert lookup.asked.count(run) == 2


async def test_a_long_series_in_parts(tmp_path: Path) -> None:
    run = new_id(ObjectKind.RUN)
    async with SqliteDatabase(tmp_path) as database:
        service = MetricService(SqlMetricStore(database.metrics), Lookup(**{run: run}))
        count = 2 * CHUNK_POINTS
        points: list[Point] = [(step // 2, step % 2, step / 3) for step in range(count)]
        for start in range(0, count, 50_000):
            await service.log([metric_columns(run, {"a": points[start : start + 50_000]})])
        parts = [part async for part in service.read_series(run, "a")]
        assert [len(part) for part in parts] == [CHUNK_POINTS, CHUNK_POINTS]
        assert [point for part in parts for point in unpacked(part)] == points


# -- crashes -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_killed_at_any_moment_no_acknowledged_point_is_lost(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    seeded = random.Random(21)
    for _ in range(6):
        process = await anyio.open_process(
            [sys.executable, "-m", "tests.integration.metric_writer", str(directory)], cwd=ROOT, stderr=None
        )
        assert process.stdout is not None
        said = b""
        wanted = seeded.randint(1, 300)
        with anyio.fail_after(100):
            async for data in process.stdout:
                said += data
                if said.count(b"\n") >= wanted:
                    process.send_signal(signal.SIGKILL)
                    break
            async for data in process.stdout:
                said += data
            await process.wait()
        await process.aclose()
        heard = [tuple(map(int, line.split())) for line in said.decode().split("\n")[:-1]]
        assert len(heard) >= wanted
        async with SqliteDatabase(directory) as database:
            store = SqlMetricStore(database.metrics)
            shared = {step for step, *_ in await read_all(store, run_of(WRITERS), "all", limit=10_000)}
            for number in range(WRITERS):
                points = await read_all(store, run_of(number), "loss", limit=10_000)
                steps = [step for step, *_ in points]
                # Complete, without a gap, and what was said among them.
                assert steps == list(range(len(steps)))
                mine = {step for writer, step in heard if writer == number}
                assert mine <= set(steps)
                assert {step * WRITERS + number for step in mine} <= shared
                notes = await read_all(store, run_of(number), "note", limit=10_000)
                assert [value for *_, value in notes] == [f"step {step}" for step in steps]
                for key in ("loss", "note"):
                    summary = await store.find_summary(run_of(number), key)
                    assert (summary.count if summary else 0) == len(steps)
            assert await database.metrics.read(_integrity) == "ok"


def _integrity(conn: Connection) -> object:
    return conn.execute(text("PRAGMA integrity_check")).scalar()

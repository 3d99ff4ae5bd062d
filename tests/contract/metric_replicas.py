"""What metrics must be where several servers share a database. Subclass, and give the fixtures.

``replicas`` are two of them, ``metrics_url`` is where their database is, ``cut`` ends every connection of a server
between two statements, as an administrator can.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from sqlalchemy import Connection, func, select

from modelbox.errors import InvalidError, ModelBoxError, ServerBusy, Unavailable
from modelbox.runtime.metric_ports import LoggedPoints
from modelbox.runtime.store.database import MetricsDatabase
from modelbox.runtime.store.metric_schema import metric_keys, metric_objects, metric_points, metric_series
from modelbox.runtime.store.metrics import SqlMetricStore
from modelbox.runtime.store.sqlite import SqliteDatabase
from modelbox.tracking import ObjectKind, SampledSeries, new_id
from tests.integration.metric_writer import WRITERS, run_of

from .metric_stores import NOW_US, Model, Point, log, points_of, read_all, same

ROOT = Path(__file__).resolve().parents[2]


class MetricReplicasContract:
    """`modelbox.runtime.store.metrics.SqlMetricStore`, several on one database."""

    @pytest.fixture
    def stores(self, replicas: Sequence[MetricsDatabase]) -> list[SqlMetricStore]:
        return [SqlMetricStore(one) for one in replicas]

    async def test_series_that_both_begin_at_once_are_one(
        self, stores: Sequence[SqlMetricStore], replicas: Sequence[MetricsDatabase]
    ) -> None:
        keys = [f"key {number}" for number in range(12)]
        for turn in range(8):
            run = new_id(ObjectKind.RUN)
            outcomes: list[LoggedPoints] = []

            async def begin(place: int, run: str = run, outcomes: list[LoggedPoints] = outcomes) -> None:
                # In opposite orders, each point of its own replica.
                order = keys if place else keys[::-1]
                outcomes.append(await log(stores[place], run, {key: [(place, NOW_US, 1.0)] for key in order}))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(begin, 0)
                tasks.start_soon(begin, 1)
            assert outcomes == [LoggedPoints(stored=len(keys), repeated=0)] * 2, turn
            summaries = await stores[turn % 2].summaries([run], [])
            assert [(one.key, one.count) for one in summaries] == sorted((key, 2) for key in keys)

        def doubled(conn: Connection) -> list[int]:
            return [
                conn.execute(
                    select(func.count() - func.count(column.distinct())).select_from(column.table)
                ).scalar_one()
                for column in (metric_objects.c.uid, metric_keys.c.name)
            ]

        assert await replicas[0].read(doubled) == [0, 0]

    async def test_a_point_that_both_log_is_stored_once(
        self, stores: Sequence[SqlMetricStore], replicas: Sequence[MetricsDatabase]
    ) -> None:
        """As a client does that lost an answer and tries again at another server."""
        run, other, seeded = new_id(ObjectKind.RUN), new_id(ObjectKind.RUN), random.Random(5)
        stored = 0

        async def repeat(place: int, points: list[Point]) -> None:
            nonlocal stored
            outcome = await log(stores[place], run, {"a": points, "b": points})
            stored += outcome.stored
            assert outcome.stored + outcome.repeated == 2 * len(points)

        async def repeat_one(place: int, step: int) -> None:
            await log(stores[place], other, {"a": [(step, NOW_US, 1.0)]})

        for _ in range(10):
            begin, count = seeded.randrange(300), seeded.choice([1, 2, 40, 400])
            points: list[Point] = [(step, NOW_US, float(step)) for step in range(begin, begin + count)]
            async with anyio.create_task_group() as tasks:
                for place in (0, 1):
                    tasks.start_soon(repeat, place, points)
                    tasks.start_soon(repeat_one, place, begin)
        for key in ("a", "b"):
            found = await read_all(stores[0], run, key, limit=10_000)
            assert [value for *_, value in found] == [float(step) for step, *_ in found]
            summary = await stores[1].find_summary(run, key)
            assert summary is not None
            assert (summary.count, summary.latest_step) == (len(found), found[-1][0])
        assert stored == await replicas[0].read(
            lambda conn: conn.execute(
                select(func.count())
                .select_from(metric_points)
                .join(metric_series, metric_series.c.id == metric_points.c.series_id)
                .join(metric_objects, metric_objects.c.id == metric_series.c.object_id)
                .where(metric_objects.c.uid == run)
            ).scalar_one()
        )

    async def test_many_new_series_in_one_call(self, stores: Sequence[SqlMetricStore]) -> None:
        run, other = new_id(ObjectKind.RUN), new_id(ObjectKind.RUN)
        series: dict[str, Sequence[Point]] = {f"k{number}": [(1, NOW_US, float(number))] for number in range(1300)}
        assert await log(stores[0], run, series) == LoggedPoints(stored=1300, repeated=0)
        # One that has never heard of them.
        again: dict[str, Sequence[Point]] = {key: [(1, NOW_US, 0.0), (2, NOW_US, 0.5)] for key in series}
        assert await log(stores[1], run, again) == LoggedPoints(stored=1300, repeated=1300)
        refused, taken = await stores[1].append(
            [
                [points_of(other, {"new": [(1, 1, 1.0)]}), points_of(run, {"k7": [(1, 1, "text")]})],
                [points_of(other, {"next": [(1, 1, 1.0)]})],
            ]
        )
        assert isinstance(refused, InvalidError)
        assert taken == LoggedPoints(stored=1, repeated=0)
        assert await stores[0].key_names(other, limit=10) == ("next",)
        summaries = await stores[1].summaries([run], [])
        assert [(one.count, one.max) for one in summaries if one.key == "k1299"] == [(2, 1299.0)]

    @pytest.mark.parametrize("count", [150, 3000])
    async def test_all_numbers_come_back_from_many_points(self, stores: Sequence[SqlMetricStore], count: int) -> None:
        run, seeded = new_id(ObjectKind.RUN), random.Random(count)
        odd = [math.nan, math.inf, -math.inf, 1.7976931348623157e308, -5e-324, 0.1, 1e22, -123456789.125]
        model = Model()
        series: dict[str, Sequence[Point]] = {
            key: [
                (step, seeded.choice([NOW_US, -5, 7_258_118_400_000_000]), seeded.choice(odd)) for step in range(count)
            ]
            for key in ("a", "b")
        }
        assert await log(stores[0], run, series) == model.log(run, series)
        for key in series:
            assert same(await read_all(stores[1], run, key, limit=700), model.points(run, key))
            assert same(await stores[1].find_summary(run, key), model.summary(run, key))

    async def test_samples_are_those_of_sqlite(self, stores: Sequence[SqlMetricStore], tmp_path: Path) -> None:
        run, seeded = new_id(ObjectKind.RUN), random.Random(3)
        values = [math.nan, math.inf, -math.inf, 1e300, -1e300, *(seeded.uniform(-9, 9) for _ in range(40))]
        points: list[Point] = [
            (seeded.randrange(-500, 4000), NOW_US + number % 3, seeded.choice(values)) for number in range(3000)
        ]
        points += [(step, NOW_US, float(step)) for step in range(10_000, 10_400)]
        async with SqliteDatabase(tmp_path / "reference") as reference:
            embedded = SqlMetricStore(reference.metrics)
            for store in (embedded, stores[0]):
                await log(store, run, {"a": points, "b": [(2**63 - 1, 1, 1.0), (-(2**63), 1, 2.0)]})
            for key, low, high, buckets in (
                ("a", None, None, 500),
                ("a", None, None, 1),
                ("a", None, None, 7),
                ("a", -500, 3000, 20_000),
                ("a", 17, 1017, 100),
                ("a", 4000, 9999, 10),
                ("a", 10_399, None, 10),
                ("b", None, None, 5),
            ):
                left, right = [
                    await store.sample(run, key, from_step=low, to_step=high, buckets=buckets)
                    for store in (embedded, stores[1])
                ]
                _assert_alike(left, right)

    async def test_a_long_series_is_sampled_in_parts(
        self, stores: Sequence[SqlMetricStore], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = new_id(ObjectKind.RUN)
        await log(stores[0], run, {"a": [(step, NOW_US, float(step % 10)) for step in range(5000)]})
        whole = await stores[0].sample(run, "a", from_step=None, to_step=None, buckets=50)
        monkeypatch.setattr("modelbox.runtime.store.metric_samples._PART_POINTS", 300)
        monkeypatch.setattr("modelbox.runtime.store.metrics._SAMPLE_PART_S", 0.0)
        assert await stores[0].sample(run, "a", from_step=None, to_step=None, buckets=50) == whole
        assert np.frombuffer(whole.counts, "<i8").tolist() == [100] * 50

    async def test_connections_that_end_lose_no_point(
        self, stores: Sequence[SqlMetricStore], cut: Callable[[], Awaitable[None]]
    ) -> None:
        run, stopping = new_id(ObjectKind.RUN), anyio.Event()
        said: dict[int, set[int]] = {0: set(), 1: set()}

        async def write(place: int) -> None:
            step = place
            while not stopping.is_set():
                try:
                    await log(stores[place], run, {"a": [(step, NOW_US, float(step))], "b": [(step, NOW_US, 1.0)]})
                except (ServerBusy, Unavailable):
                    continue
                said[place].add(step)
                step += 2

        async with anyio.create_task_group() as tasks:
            for place in said:
                tasks.start_soon(write, place)
            for wanted in (3, 6, 9, 12):
                while any(len(steps) < wanted for steps in said.values()):
                    await anyio.sleep(0.005)
                await cut()
            stopping.set()
        for key in ("a", "b"):
            found = await read_all(stores[0], run, key, limit=10_000)
            assert {step for step, *_ in found} >= said[0] | said[1]
            summary = await stores[1].find_summary(run, key)
            assert summary is not None
            assert summary.count == len(found)

    async def test_a_replica_that_is_killed_leaves_whole_batches(
        self, stores: Sequence[SqlMetricStore], metrics_url: str
    ) -> None:
        seeded, mine = random.Random(8), 0
        for turn in range(2):
            process = await anyio.open_process(
                [sys.executable, "-m", "tests.integration.metric_writer", metrics_url], cwd=ROOT, stderr=None
            )
            assert process.stdout is not None
            said, wanted, killed = b"", seeded.randint(5, 60), anyio.Event()

            async def go_on(killed: anyio.Event = killed) -> None:
                """The same series from here, whose points are between those of the other process."""
                nonlocal mine
                while not killed.is_set():
                    await log(stores[0], run_of(WRITERS), {"all": [(-1 - mine, 1, 1.0)]})
                    mine += 1

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(go_on)
                with anyio.fail_after(60):
                    async for data in process.stdout:
                        said += data
                        if said.count(b"\n") >= wanted:
                            process.kill()
                            break
                    async for data in process.stdout:
                        said += data
                    await process.wait()
                await process.aclose()
                killed.set()
            # What it had sent last may be carried out after its end.
            kept: object = None
            while kept != (found := await _all_of(stores[0])):
                kept = found
                await anyio.sleep(0.1)
            heard = [tuple(map(int, line.split())) for line in said.decode().split("\n")[:-1]]
            shared = await read_all(stores[1], run_of(WRITERS), "all", limit=10_000)
            steps_of_all = {step for step, *_ in shared}
            assert set(range(-mine, 0)) <= steps_of_all, turn
            summary = await stores[0].find_summary(run_of(WRITERS), "all")
            assert summary is not None
            assert (summary.count, summary.first_step) == (len(shared), -mine)
            for number in range(WRITERS):
                steps = [step for step, *_ in await read_all(stores[0], run_of(number), "loss", limit=10_000)]
                assert steps == list(range(len(steps)))
                assert {step for writer, step in heard if writer == number} <= set(steps)
                notes = [step for step, *_ in await read_all(stores[1], run_of(number), "note", limit=10_000)]
                assert notes == steps

    async def test_calls_of_one_object_keep_their_order(self, stores: Sequence[SqlMetricStore]) -> None:
        """The first value of a point stays, so whose call came first decides."""
        runs = [new_id(ObjectKind.RUN) for _ in range(3)]
        outcomes: list[tuple[int, LoggedPoints | ModelBoxError]] = []
        done = anyio.Event()

        def told(number: int, answer: Sequence[LoggedPoints | ModelBoxError] | Exception) -> None:
            assert not isinstance(answer, Exception)
            outcomes.append((number, answer[0]))
            if len(outcomes) == 60:
                done.set()

        for number in range(60):
            points = points_of(runs[number % 3], {"a": [(number // 6, NOW_US, float(number))]})
            stores[0].append_soon([[points]], partial(told, number))
            if not number % 7:
                await anyio.lowlevel.checkpoint()
        await done.wait()
        for place, run in enumerate(runs):
            mine = [number for number, _ in outcomes if number % 3 == place]
            assert mine == sorted(mine)
            found = await read_all(stores[1], run, "a")
            assert [value for *_, value in found] == [float(6 * step + place) for step in range(10)]


async def _all_of(store: SqlMetricStore) -> list[list[Point]]:
    """What `tests.integration.metric_writer` has logged."""
    series = [(WRITERS, "all"), *((number, key) for number in range(WRITERS) for key in ("loss", "note"))]
    return [await read_all(store, run_of(number), key, limit=10_000) for number, key in series]


def _assert_alike(left: SampledSeries, right: SampledSeries) -> None:
    for name in ("first_steps", "last_steps", "counts", "mins", "maxs", "lasts"):
        assert getattr(left, name) == getattr(right, name), name
    np.testing.assert_allclose(
        np.frombuffer(left.means, "<f8"), np.frombuffer(right.means, "<f8"), rtol=1e-9, atol=1e-9
    )

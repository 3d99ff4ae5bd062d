"""What every database under the metrics must do. Subclass the suite and give the fixture ``metrics_database``.

The suite looks behind the port, too: the tables must hold what the answers say.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from sqlalchemy import func, select

from modelbox.errors import InvalidError, ModelBoxError
from modelbox.runtime.metric_ports import LoggedPoints, MetricPoints
from modelbox.runtime.services.metric_points import check_columns
from modelbox.runtime.store.database import MetricsDatabase
from modelbox.runtime.store.metric_schema import metric_objects, metric_points, metric_series
from modelbox.runtime.store.metrics import SqlMetricStore
from modelbox.tracking import MetricColumns, MetricKind, MetricSummary, ObjectKind, SampledSeries, new_id

Point = tuple[int, int, float | str | bytes]
"""Step, time in microseconds, value."""

INT64 = (-(2**63), 2**63 - 1)
NOW_US = 1_700_000_000_000_000


def metric_columns(object_id: str, series: dict[str, Sequence[Point]]) -> MetricColumns:
    """Points of several keys in turn, as a caller packs them."""
    keys = tuple(series)
    # One of each key after the other, as training does.
    rows = [
        (place, *series[key][number])
        for number in range(max(map(len, series.values())))
        for place, key in enumerate(keys)
        if number < len(series[key])
    ]
    kinds = [{float: 0, int: 0, str: 1, bytes: 2}[type(value)] for *_, value in rows]
    return MetricColumns(
        object=object_id,
        keys=keys,
        key_index=np.array([row[0] for row in rows], "<u4").tobytes(),
        steps=np.array([row[1] for row in rows], "<i8").tobytes(),
        times_us=np.array([row[2] for row in rows], "<i8").tobytes(),
        values=np.array([0.0 if kind else row[3] for kind, row in zip(kinds, rows, strict=True)], "<f8").tobytes(),
        kinds=bytes(kinds) if any(kinds) else b"",
        payloads=tuple(
            value.encode() if isinstance(value, str) else value for *_, value in rows if isinstance(value, str | bytes)
        ),
    )


def points_of(object_id: str, series: dict[str, Sequence[Point]]) -> MetricPoints:
    """The same, checked."""
    points = check_columns(metric_columns(object_id, series), object_id)
    assert points is not None
    return points


async def log(store: SqlMetricStore, object_id: str, series: dict[str, Sequence[Point]]) -> LoggedPoints:
    """Logs, and raises what the store says."""
    (outcome,) = await store.append([[points_of(object_id, series)]])
    if isinstance(outcome, ModelBoxError):
        raise outcome
    return outcome


def unpacked(part: MetricColumns) -> list[Point]:
    """The points of columns of one key."""
    count = len(part)
    kinds = part.kinds or bytes(count)
    payloads = iter(part.payloads)
    values: list[float | str | bytes] = [
        number if kind == 0 else next(payloads) for number, kind in zip(_floats(part.values), kinds, strict=True)
    ]
    values = [
        value.decode() if kind == 1 and isinstance(value, bytes) else value
        for value, kind in zip(values, kinds, strict=True)
    ]
    return list(zip(_ints(part.steps), _ints(part.times_us), values, strict=True))


def _ints(column: bytes) -> list[int]:
    found: list[int] = np.frombuffer(column, "<i8").tolist()
    return found


def _floats(column: bytes) -> list[float]:
    found: list[float] = np.frombuffer(column, "<f8").tolist()
    return found


async def read_all(
    store: SqlMetricStore,
    object_id: str,
    key: str,
    *,
    from_step: int | None = None,
    to_step: int | None = None,
    limit: int = 100,
) -> list[Point]:
    """A series in small parts."""
    found: list[Point] = []
    while True:
        after = found[-1][:2] if found else None
        part = await store.read_chunk(object_id, key, from_step=from_step, to_step=to_step, after=after, limit=limit)
        found.extend(unpacked(part))
        if len(part) < limit:
            return found


def same(left: object, right: object) -> bool:
    """Equality in which NaN equals itself."""
    return repr(left) == repr(right)


class Model:
    """What a store should hold, in plain Python."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], dict[tuple[int, int], float | str | bytes]] = {}

    def log(self, object_id: str, series: dict[str, Sequence[Point]]) -> LoggedPoints:
        stored = repeated = 0
        for key, points in series.items():
            held = self.series.setdefault((object_id, key), {})
            for step, time_us, value in points:
                if (step, time_us) in held:
                    repeated += 1
                else:
                    held[step, time_us] = value
                    stored += 1
        return LoggedPoints(stored=stored, repeated=repeated)

    def points(self, object_id: str, key: str, low: int = INT64[0], high: int = INT64[1]) -> list[Point]:
        held = self.series.get((object_id, key), {})
        return [(*place, held[place]) for place in sorted(held) if low <= place[0] <= high]

    def summary(self, object_id: str, key: str) -> MetricSummary:
        points = self.points(object_id, key)
        latest_step, latest_us, latest = points[-1]
        kind = {float: MetricKind.NUMBER, str: MetricKind.TEXT, bytes: MetricKind.BYTES}[type(latest)]
        numbers = [value for *_, value in points if isinstance(value, float) and not math.isnan(value)]
        return MetricSummary(
            object=object_id,
            key=key,
            kind=kind,
            count=len(points),
            min=min(numbers, default=None),
            max=max(numbers, default=None),
            latest=latest if isinstance(latest, float) else None,
            latest_step=latest_step,
            latest_at=datetime.fromtimestamp(latest_us // 1_000_000, UTC).replace(microsecond=latest_us % 1_000_000),
            first_step=points[0][0],
        )


class MetricStoreContract:
    """`modelbox.runtime.metric_ports.MetricStore`."""

    @pytest.fixture
    def store(self, metrics_database: MetricsDatabase) -> SqlMetricStore:
        return SqlMetricStore(metrics_database)

    async def test_what_is_logged_is_read(self, store: SqlMetricStore) -> None:
        run = new_id(ObjectKind.RUN)
        points: list[Point] = [
            (INT64[0], NOW_US, 1.5),
            (-1, NOW_US, -2.0),
            (0, NOW_US, math.nan),
            (0, NOW_US + 1, math.inf),
            (1, -5, -math.inf),
            (2, NOW_US, 5e-324),
            (INT64[1], NOW_US, 1.7976931348623157e308),
        ]
        assert await log(store, run, {"loss": points}) == LoggedPoints(stored=7, repeated=0)
        assert same(await read_all(store, run, "loss"), points)
        assert same(await read_all(store, run, "loss", limit=2), points)
        assert same(await read_all(store, run, "loss", from_step=0, to_step=1), points[2:5])
        assert await read_all(store, run, "other") == []
        assert await read_all(store, new_id(ObjectKind.RUN), "loss") == []

    async def test_texts_and_bytes(self, store: SqlMetricStore) -> None:
        run = new_id(ObjectKind.RUN)
        texts: list[Point] = [(1, NOW_US, "ä\0b"), (2, NOW_US, ""), (3, NOW_US, "x" * 100_000)]
        blobs: list[Point] = [(1, NOW_US, b"\xff\0"), (2, NOW_US, b"")]
        numbers: list[Point] = [(1, NOW_US, 1.0), (2, NOW_US, math.nan)]
        series: dict[str, Sequence[Point]] = {"t": texts, "n": numbers, "b": blobs}
        assert await log(store, run, series) == LoggedPoints(stored=7, repeated=0)
        for key, points in series.items():
            assert same(await read_all(store, run, key), points)
        of = {one.key: one for one in await store.summaries([run], [])}
        assert [of[key].kind for key in "tnb"] == [MetricKind.TEXT, MetricKind.NUMBER, MetricKind.BYTES]
        assert (of["t"].count, of["t"].min, of["t"].latest, of["t"].latest_step) == (3, None, None, 3)

    async def test_the_value_that_came_first_stays(self, store: SqlMetricStore) -> None:
        run = new_id(ObjectKind.RUN)
        assert await log(store, run, {"a": [(1, 1, 1.0), (1, 1, 2.0), (2, 1, 3.0)]}) == LoggedPoints(
            stored=2, repeated=1
        )
        assert await log(store, run, {"a": [(2, 1, 9.0), (1, 1, 9.0), (1, 0, 4.0), (3, 1, 5.0)]}) == LoggedPoints(
            stored=2, repeated=2
        )
        assert await read_all(store, run, "a") == [(1, 0, 4.0), (1, 1, 1.0), (2, 1, 3.0), (3, 1, 5.0)]
        summary = await store.find_summary(run, "a")
        assert summary is not None
        assert (summary.count, summary.min, summary.max, summary.latest) == (4, 1.0, 5.0, 5.0)

    async def test_a_repeat_far_apart_or_at_one_step(self, store: SqlMetricStore) -> None:
        """Both ways of looking up what is there."""
        run = new_id(ObjectKind.RUN)
        await log(store, run, {"a": [(step, 1, 0.5) for step in range(0, 10_000, 7)]})
        assert await log(store, run, {"a": [(0, 1, 1.0), (5, 1, 1.0), (9996, 1, 1.0)]}) == LoggedPoints(
            stored=1, repeated=2
        )
        await log(store, run, {"b": [(0, time_us, 0.5) for time_us in range(5000)]})
        again: list[Point] = [(0, time_us, 1.0) for time_us in range(4000, 5500)]
        assert await log(store, run, {"b": again}) == LoggedPoints(stored=500, repeated=1000)
        assert len(await read_all(store, run, "b", limit=1000)) == 5500

    async def test_a_few_points_at_a_time_come_to_the_same_as_all_at_once(self, store: SqlMetricStore) -> None:
        rng = np.random.default_rng(7)
        odd = [math.nan, math.inf, -math.inf, 0.0, 1.5]
        drawn = rng.integers((0, 0, 0), (40, 3, 5), (300, 3)).tolist()
        rows: list[Point] = [(step, NOW_US + late, odd[which]) for step, late, which in drawn]
        whole, pieces = new_id(ObjectKind.RUN), new_id(ObjectKind.RUN)
        # Far more than are handled one by one, and fewer.
        at_once = await log(store, whole, {"a": rows})
        in_pieces = [await log(store, pieces, {"a": rows[at : at + 7]}) for at in range(0, len(rows), 7)]
        assert sum(one.stored for one in in_pieces) == at_once.stored
        assert sum(one.repeated for one in in_pieces) == at_once.repeated
        assert same(await read_all(store, pieces, "a"), await read_all(store, whole, "a"))
        first, second = [await store.find_summary(run, "a") for run in (whole, pieces)]
        assert first is not None
        assert second is not None
        assert same(replace(second, object=whole), first)

    async def test_another_kind_is_refused_by_itself(self, store: SqlMetricStore) -> None:
        run, other = new_id(ObjectKind.RUN), new_id(ObjectKind.RUN)
        await log(store, run, {"a": [(1, 1, 1.0)]})
        good = points_of(other, {"x": [(1, 1, 1.0)]})
        mixed = points_of(run, {"new": [(1, 1, 1.0)], "a": [(2, 1, "text")]})
        # The second takes a key as text in the same transaction, in which the fourth has numbers for it.
        outcomes = await store.append(
            [[mixed], [points_of(run, {"fresh": [(1, 1, "t")]})], [good], [points_of(run, {"fresh": [(2, 1, 2.0)]})]]
        )
        assert isinstance(outcomes[0], InvalidError)
        assert "'a'" in outcomes[0].message
        assert "numbers" in outcomes[0].message
        assert outcomes[1] == outcomes[2] == LoggedPoints(stored=1, repeated=0)
        assert isinstance(outcomes[3], InvalidError)
        assert await store.key_names(run, limit=10) == ("a", "fresh")
        assert await read_all(store, run, "a") == [(1, 1, 1.0)]

    async def test_summaries(self, store: SqlMetricStore) -> None:
        runs = sorted(new_id(ObjectKind.RUN) for _ in range(3))
        for run in runs:
            await log(store, run, {key: [(1, NOW_US, 1.0)] for key in ("b", "a", "C")})
        asked = [runs[2], runs[0]]
        assert [(one.object, one.key) for one in await store.summaries(asked, [])] == [
            (run, key) for run in asked for key in ("C", "a", "b")
        ]
        assert [(one.object, one.key) for one in await store.summaries(asked, ["b", "c"])] == [
            (run, "b") for run in asked
        ]
        assert await store.find_summary(runs[0], "c") is None
        assert await store.key_names(runs[0], limit=2) == ("C", "a")

    @pytest.mark.parametrize(
        ("values", "low", "high"),
        [
            ([math.nan], None, None),
            ([math.inf], math.inf, math.inf),
            ([-math.inf, math.nan], -math.inf, -math.inf),
            ([math.inf, -math.inf, 3.0], -math.inf, math.inf),
            ([1.7976931348623157e308, math.nan], 1.7976931348623157e308, 1.7976931348623157e308),
        ],
    )
    async def test_bounds_beyond_numbers(
        self, metrics_database: MetricsDatabase, values: list[float], low: float | None, high: float | None
    ) -> None:
        run = new_id(ObjectKind.RUN)
        await log(SqlMetricStore(metrics_database), run, {"a": [(n, 1, value) for n, value in enumerate(values)]})
        # One that remembers nothing goes on from what the database holds.
        store = SqlMetricStore(metrics_database)
        await log(store, run, {"a": [(1000, 1, math.nan)]})
        summary = await store.find_summary(run, "a")
        assert summary is not None
        assert (summary.min, summary.max, summary.count) == (low, high, len(values) + 1)
        assert summary.latest is not None
        assert math.isnan(summary.latest)

    async def test_sample(self, store: SqlMetricStore) -> None:
        run = new_id(ObjectKind.RUN)
        values = [math.nan, 2.0, 4.0, math.inf, -1.0, math.nan, math.nan, -math.inf, 1.0, 3.0]
        await log(store, run, {"a": [(10 + step, 7, value) for step, value in enumerate(values)]})
        # The last of a step is the one with the greatest time.
        await log(store, run, {"a": [(12, 8, 5.0)]})
        found = await store.sample(run, "a", from_step=None, to_step=None, buckets=5)
        assert _ints(found.first_steps) == [10, 12, 14, 16, 18]
        assert _ints(found.last_steps) == [11, 13, 15, 17, 19]
        assert _ints(found.counts) == [2, 3, 2, 2, 2]
        assert same(_floats(found.mins), [2.0, 4.0, -1.0, -math.inf, 1.0])
        assert same(_floats(found.maxs), [2.0, math.inf, -1.0, -math.inf, 3.0])
        assert same(_floats(found.means), [2.0, math.inf, -1.0, -math.inf, 2.0])
        assert same(_floats(found.lasts), [2.0, math.inf, math.nan, -math.inf, 3.0])
        part = await store.sample(run, "a", from_step=12, to_step=12, buckets=500)
        assert (_ints(part.counts), _floats(part.lasts)) == ([2], [5.0])
        empty = await store.sample(run, "a", from_step=100, to_step=None, buckets=5)
        assert empty == SampledSeries(
            first_steps=b"", last_steps=b"", counts=b"", mins=b"", maxs=b"", means=b"", lasts=b""
        )

    async def test_the_mean_of_huge_numbers_is_none_of_them_too_huge(self, store: SqlMetricStore) -> None:
        run = new_id(ObjectKind.RUN)
        values = [1.5e308, 1.5e308, 1.5e308, 1e-300, -1.5e308, -1.5e308, math.inf, 1.5e308]
        await log(store, run, {"a": [(step, 7, value) for step, value in enumerate(values)]})
        found = await store.sample(run, "a", from_step=None, to_step=None, buckets=4)
        assert same(_floats(found.means), [1.5e308, 7.5e307, -1.5e308, math.inf])
        assert same(_floats(found.maxs), [1.5e308, 1.5e308, -1.5e308, math.inf])

    @pytest.mark.parametrize("buckets", [1, 2, 3, 10, 1000])
    async def test_a_sample_over_all_steps(self, store: SqlMetricStore, buckets: int) -> None:
        run = new_id(ObjectKind.RUN)
        steps = [INT64[0], INT64[0] + 1, -1, 0, 1, 2**62, INT64[1]]
        await log(store, run, {"a": [(step, 7, float(n)) for n, step in enumerate(steps)]})
        found = await store.sample(run, "a", from_step=None, to_step=None, buckets=buckets)
        firsts, lasts = _ints(found.first_steps), _ints(found.last_steps)
        assert 1 <= len(firsts) <= buckets
        assert (firsts[0], lasts[-1]) == INT64
        assert firsts == sorted(firsts)
        assert all(last < first for last, first in zip(lasts, firsts[1:], strict=False))
        assert sum(_ints(found.counts)) == 7

    async def test_calls_at_once_share_and_all_are_kept(
        self, store: SqlMetricStore, metrics_database: MetricsDatabase
    ) -> None:
        runs = [new_id(ObjectKind.RUN) for _ in range(4)]
        results: list[LoggedPoints] = []

        async def write(number: int) -> None:
            # All write the same points: each is stored once.
            for step in range(20):
                results.append(await log(store, runs[number % 4], {"a": [(step, 1, float(step))]}))

        async with anyio.create_task_group() as tasks:
            for number in range(16):
                tasks.start_soon(write, number)
        assert sum(one.stored for one in results) == 80
        assert sum(one.repeated for one in results) == 240
        held = await metrics_database.read(
            lambda conn: conn.execute(select(func.count()).select_from(metric_points)).scalar()
        )
        assert held == 80

    async def test_a_cancelled_call_takes_no_other_along(self, store: SqlMetricStore) -> None:
        run = new_id(ObjectKind.RUN)
        kept: list[int] = []

        async def write(number: int) -> None:
            await log(store, run, {"a": [(number, 1, 1.0)]})
            kept.append(number)

        for start in range(0, 200, 20):
            async with anyio.create_task_group() as tasks:
                for number in range(start, start + 20):
                    tasks.start_soon(write, number)
                async with anyio.create_task_group() as doomed:
                    for number in range(1000 + start, 1000 + start + 20):
                        doomed.start_soon(write, number)
                    await anyio.lowlevel.checkpoint()
                    doomed.cancel_scope.cancel()
        assert {number for number in kept if number < 1000} == set(range(200))
        there = {step for step, *_ in await read_all(store, run, "a", limit=1000)}
        assert set(kept) <= there

    async def test_a_cancelled_leader_hands_over(self, store: SqlMetricStore) -> None:
        run = new_id(ObjectKind.RUN)
        async with anyio.create_task_group() as tasks:
            with anyio.move_on_after(0):
                await log(store, run, {"a": [(1, 1, 1.0)]})
            following: dict[str, Sequence[Point]] = {"a": [(2, 1, 1.0)]}
            tasks.start_soon(log, store, run, following)
        assert (2, 1, 1.0) in await read_all(store, run, "a")

    async def test_two_stores_on_one_database(self, metrics_database: MetricsDatabase) -> None:
        """What one remembers is stale when the other has written; it notices."""
        left, right = SqlMetricStore(metrics_database), SqlMetricStore(metrics_database)
        run = new_id(ObjectKind.RUN)
        for step in range(10):
            assert await log(left, run, {"a": [(2 * step, 1, 1.0)]}) == LoggedPoints(stored=1, repeated=0)
            assert await log(right, run, {"a": [(2 * step + 1, 1, 2.0), (2 * step, 1, 9.0)]}) == LoggedPoints(
                stored=1, repeated=1
            )
        summary = await left.find_summary(run, "a")
        assert summary is not None
        assert (summary.count, summary.min, summary.max, summary.latest_step) == (20, 1.0, 2.0, 19)
        await right.delete_series([run])
        assert await log(left, run, {"a": [(5, 1, 1.0)]}) == LoggedPoints(stored=1, repeated=0)
        assert await read_all(left, run, "a") == [(5, 1, 1.0)]

    async def test_delete_series(self, store: SqlMetricStore, metrics_database: MetricsDatabase) -> None:
        gone, stays = new_id(ObjectKind.RUN), new_id(ObjectKind.RUN)
        for run in (gone, stays):
            await log(store, run, {"a": [(step, 1, 1.0) for step in range(25_000)], "t": [(1, 1, "x")]})
        assert await store.delete_series([gone, new_id(ObjectKind.RUN)]) == 25_001
        assert await store.summaries([gone], []) == ()
        assert len(await store.summaries([stays], [])) == 2

        def left(conn: object) -> list[int]:
            return [
                conn.execute(select(func.count()).select_from(table)).scalar()  # type: ignore[attr-defined]
                for table in (metric_objects, metric_series, metric_points)
            ]

        assert await metrics_database.read(left) == [1, 2, 25_001]
        assert await log(store, gone, {"a": [(1, 1, 2.0)]}) == LoggedPoints(stored=1, repeated=0)

    @pytest.mark.parametrize("seed", range(4))
    async def test_as_a_model_in_memory(self, metrics_database: MetricsDatabase, seed: int) -> None:
        seeded = random.Random(seed)
        model, store = Model(), SqlMetricStore(metrics_database)
        runs = [new_id(ObjectKind.RUN) for _ in range(3)]
        makers: dict[str, Callable[[], float | str | bytes]] = {
            "loss": lambda: seeded.choice([math.nan, math.inf, -math.inf, seeded.uniform(-5, 5), 0.0]),
            "acc": lambda: seeded.random(),
            "text": lambda: seeded.choice(["", "a", "ä"]),
            "bytes": lambda: seeded.randbytes(3),
        }
        top = 30
        for _ in range(60):
            if seeded.random() < 0.05:
                run = seeded.choice(runs)
                held = sum(len(points) for (uid, _), points in model.series.items() if uid == run)
                assert await store.delete_series([run]) == held
                model.series = {name: points for name, points in model.series.items() if name[0] != run}
            if seeded.random() < 0.1:
                store = SqlMetricStore(metrics_database)
            top += seeded.choice([0, 0, 20])
            batches, wanted = [], []
            for _ in range(seeded.randint(1, 4)):
                run = seeded.choice(runs)
                series: dict[str, Sequence[Point]] = {
                    key: [
                        (seeded.randint(top - 30, top), seeded.choice([1, 2]), makers[key]())
                        for _ in range(seeded.randint(1, 12))
                    ]
                    for key in seeded.sample(sorted(makers), seeded.randint(1, 4))
                }
                batches.append([points_of(run, series)])
                wanted.append(model.log(run, series))
            assert list(await store.append(batches)) == wanted
        for run in runs:
            for key in makers:
                points = model.points(run, key)
                assert same(await read_all(store, run, key, limit=17), points)
                summary = await store.find_summary(run, key)
                assert same(summary, model.summary(run, key) if points else None)
                low = seeded.randint(0, top)
                assert same(
                    await read_all(store, run, key, from_step=low, to_step=low + 20),
                    model.points(run, key, low, low + 20),
                )

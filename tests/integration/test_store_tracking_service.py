"""The tracking service over the real stores: what it refuses, and what it takes over from a spool."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import select

from modelbox.errors import InvalidError, LimitError, NotFoundError
from modelbox.objects import ArtifactFile, NewArtifact, NewModel
from modelbox.refs import Digest
from modelbox.runtime.blobs.filesystem import FilesystemBlobs
from modelbox.runtime.services.artifacts import ArtifactService
from modelbox.runtime.services.metrics import MetricService
from modelbox.runtime.services.registry import RegistryService
from modelbox.runtime.services.tracking import MAX_IDS, MAX_OPERATIONS, TrackingService
from modelbox.runtime.store.artifacts import SqlArtifactStore
from modelbox.runtime.store.history import verify_chain
from modelbox.runtime.store.metrics import SqlMetricStore
from modelbox.runtime.store.registry import SqlRegistryStore
from modelbox.runtime.store.schema import attributes
from modelbox.runtime.store.sqlite import SqliteDatabase
from modelbox.runtime.store.tracking import SqlTrackingStore
from modelbox.tracking import (
    AttributeKind,
    AttributesEdit,
    ExperimentPatch,
    MetricColumns,
    NewCheckpoint,
    NewComment,
    NewDatasetVersion,
    NewEdge,
    NewEdges,
    NewEvent,
    NewExperiment,
    NewRun,
    ObjectKind,
    Operation,
    OperationPayload,
    ReadmeEdit,
    Run,
    RunEdit,
    RunPatch,
    RunStatus,
    new_id,
)
from tests.contract.metric_stores import log as log_points

from .server_core import Clock, write_databases

AT = datetime(2026, 5, 3, 12, tzinfo=UTC)
SPOOL = "0f" * 16


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The services of tracking over one database."""

    database: SqliteDatabase
    tracking: TrackingService
    metrics: MetricService
    clock: Clock

    async def run(self, **given: Any) -> Run:
        """A new run."""
        new = NewRun(**{"experiment": "ns/e", "started_at": AT, **given})
        return (await self.tracking.create_run(new, actor="ann")).item

    async def counts(self, *objects: str) -> dict[str, int]:
        """Points by key."""
        return {one.key: one.count for one in await self.metrics.summaries(objects)}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    write_databases(tmp_path)
    async with SqliteDatabase(tmp_path) as database:
        store, clock = SqlTrackingStore(database), Clock()
        metrics = MetricService(SqlMetricStore(database.metrics), store)
        yield Served(
            database=database, tracking=TrackingService(store, metrics, clock=clock), metrics=metrics, clock=clock
        )


def points(uid: str, *steps: int, key: str = "loss") -> MetricColumns:
    """Points of one key at these steps."""
    return MetricColumns(
        object=uid,
        keys=(key,),
        steps=struct.pack(f"<{len(steps)}q", *steps),
        times_us=struct.pack(f"<{len(steps)}q", *steps),
        values=struct.pack(f"<{len(steps)}d", *steps),
    )


BAD_RUNS: list[dict[str, Any]] = [
    {"id": "run_1"},
    {"id": new_id(ObjectKind.EXPERIMENT)},
    {"experiment": "e"},
    {"experiment": "ns/"},
    {"experiment": "Ns/e"},
    {"experiment": new_id(ObjectKind.RUN)},
    {"name": "a\nb"},
    {"name": "x" * 256},
    {"status": "running"},
    {"started_at": datetime(2026, 1, 1)},
    {"started_at": datetime(1969, 1, 1, tzinfo=UTC)},
    {"parent_id": "x"},
    {"cloned_from": new_id(ObjectKind.CHECKPOINT)},
    {"params": {"x": float("nan")}},
    {"params": {"": 1}},
    {"params": {f"p{number}": 1 for number in range(2001)}},
    {"tags": {"x": 1}},
    {"tags": {f"t{number}": "" for number in range(1_000_000)}},
    {"metadata": {"x": "y" * 70_000}},
]


@pytest.mark.parametrize("given", BAD_RUNS, ids=lambda given: next(iter(given)))
async def test_a_bad_run_is_refused_with_a_reason(served: Served, given: dict[str, Any]) -> None:
    with pytest.raises((InvalidError, LimitError)) as raised:
        await served.run(**given)
    assert len(str(raised.value)) < 300
    assert (await served.tracking.list_experiments()).items == ()


async def test_what_can_never_be_right_is_refused(served: Served) -> None:
    tracking, run = served.tracking, await served.run()
    for call in (
        tracking.create_experiment(NewExperiment(namespace="ns", name=""), actor=""),
        tracking.create_experiment(NewExperiment(namespace="ns", name="e", owner="x" * 300), actor=""),
        tracking.create_experiment(NewExperiment(namespace="ns", name="e"), actor="x" * 300),
        tracking.update_experiment("ns/e", ExperimentPatch(description="\0"), actor=""),
        tracking.get_experiment("e"),
        tracking.get_run("ns/e"),
        tracking.update_run(run.id, RunPatch(reason="x" * 5000), actor=""),
        tracking.update_run(run.id, RunPatch(status="done"), actor=""),  # type: ignore[arg-type]
        tracking.list_runs("NS"),
        tracking.list_runs(new_id(ObjectKind.CHECKPOINT)),
        tracking.list_runs("ns", page_token="x"),
        tracking.list_runs("ns", page_size=1001),
        tracking.clone_run(run.id, id="x", actor=""),
        tracking.create_checkpoint(NewCheckpoint(parent_id=run.id, epoch=-1), actor=""),
        tracking.create_checkpoint(NewCheckpoint(parent_id=run.id, epoch=0, step=2**63), actor=""),
        tracking.create_checkpoint(NewCheckpoint(parent_id="ns", epoch=0), actor=""),
        tracking.create_checkpoint(NewCheckpoint(parent_id=run.id, epoch=0, metrics={"k" * 251: 1.0}), actor=""),
        tracking.delete_objects([], actor=""),
        tracking.delete_objects(["ns"], actor=""),
        tracking.delete_objects([new_id(ObjectKind.RUN) for _ in range(MAX_IDS + 1)], actor=""),
        tracking.purge("", AT.replace(tzinfo=None), actor=""),
        tracking.set_attributes("not a name", AttributeKind.TAG, {}, actor=""),
        tracking.set_attributes(run.id, "metric", {}, actor=""),  # type: ignore[arg-type]
        tracking.set_attributes(run.id, AttributeKind.TAG, {}, ["k" * 251], actor=""),
        tracking.get_attributes([run.id] * (MAX_IDS + 1)),
        tracking.get_attributes([""]),
        tracking.list_attribute_history(run.id, AttributeKind.TAG, "\n"),
        tracking.deliver("spool", [Operation(seq=1, payload=NewRun(experiment="ns/e", started_at=AT))], actor=""),
        tracking.deliver(SPOOL, [], actor=""),
        tracking.deliver(SPOOL, [Operation(seq=0, payload=points(run.id, 1))], actor=""),
        tracking.deliver(SPOOL, [Operation(seq=2, payload=points(run.id, 1))] * 2, actor=""),
        tracking.deliver(
            SPOOL, [Operation(seq=n + 1, payload=points(run.id, 1)) for n in range(MAX_OPERATIONS + 1)], actor=""
        ),
    ):
        with pytest.raises((InvalidError, LimitError)):
            await call
    assert await served.counts(run.id) == {}


async def test_pages_belong_to_their_list(served: Served) -> None:
    for _ in range(3):
        await served.run()
    first = await served.tracking.list_runs("ns", page_size=2)
    rest = await served.tracking.list_runs("ns", page_size=2, page_token=first.next_token)
    assert (len(first.items), len(rest.items), rest.next_token) == (2, 1, "")
    for parent, deleted in (("ns/e", False), ("ns", True)):
        with pytest.raises(InvalidError):
            await served.tracking.list_runs(parent, include_deleted=deleted, page_token=first.next_token)


# -- deliveries ----------------------------------------------------------------------------------------------------


def session(uid: str) -> list[OperationPayload]:
    """What a short training says."""
    return [
        NewRun(id=uid, experiment="ns/e", started_at=AT, params={"lr": 0.1}),
        points(uid, *range(10)),
        AttributesEdit(object=uid, kind=AttributeKind.TAG, values={"t": "x"}),
        points(uid, *range(10, 20)),
        points(uid, 1, key="acc"),
        NewCheckpoint(parent_id=uid, epoch=0),
        RunEdit(id=uid, patch=RunPatch(status=RunStatus.FINISHED)),
    ]


async def test_a_spool_is_taken_over_once(served: Served) -> None:
    uid = new_id(ObjectKind.RUN)
    operations = [Operation(seq=seq, payload=payload) for seq, payload in enumerate(session(uid), start=1)]
    for _ in range(3):
        delivered = await served.tracking.deliver(SPOOL, operations, actor="ann")
        assert (delivered.seq, delivered.rejections) == (7, ())
    assert await served.counts(uid) == {"acc": 1, "loss": 20}
    assert (await served.tracking.get_run(uid)).status is RunStatus.FINISHED
    assert await served.database.read(verify_chain) == 4


async def test_points_come_again_after_what_else_did_not(served: Served) -> None:
    """The server stops between the two parts of a delivery: the watermark is there, the points are not."""
    uid = new_id(ObjectKind.RUN)
    operations = [Operation(seq=seq, payload=payload) for seq, payload in enumerate(session(uid), start=1)]
    others = [one for one in operations if not isinstance(one.payload, MetricColumns)]
    assert await SqlTrackingStore(served.database).deliver(SPOOL, 1, 7, others, actor="", at=AT) == ()
    assert await served.counts(uid) == {}
    delivered = await served.tracking.deliver(SPOOL, operations, actor="")
    assert delivered.rejections == ()
    assert await served.counts(uid) == {"acc": 1, "loss": 20}


async def test_every_kind_of_fault_is_told_and_holds_up_nothing(served: Served) -> None:
    uid = new_id(ObjectKind.RUN)
    unknown = new_id(ObjectKind.RUN)
    broken = points(uid, 1, 2)
    bad: list[OperationPayload] = [
        NewExperiment(namespace="NS", name="e"),
        NewRun(experiment="nothing", started_at=AT),
        RunEdit(id=unknown, patch=RunPatch(name="x")),
        NewCheckpoint(parent_id=uid, epoch=-1),
        AttributesEdit(object=uid, kind=AttributeKind.METADATA, values={"x": "y" * 70_000}),
        AttributesEdit(object=uid, kind=AttributeKind.PARAM, values={"lr": 5}),
        NewEvent(object=unknown, name="n", at=AT),
        NewComment(object=uid, text=" "),
        NewEdges(edges=(NewEdge(source=uid, target=uid, type="used"),)),
        NewDatasetVersion(namespace="ns", dataset="d", components=()),
        ReadmeEdit(object=unknown, text="x"),
        points(unknown, 1),
        MetricColumns(object=uid, keys=("k",), steps=broken.steps, times_us=b"", values=broken.values),
        points(uid, 1, key="k" * 251),
    ]
    payloads = session(uid)
    mixed: list[OperationPayload] = [payloads[0]]
    for number, payload in enumerate(bad):
        mixed.append(payload)
        if number + 1 < len(payloads):
            mixed.append(payloads[number + 1])
    operations = [Operation(seq=seq, payload=payload) for seq, payload in enumerate(mixed, start=1)]
    delivered = await served.tracking.deliver(SPOOL, operations, actor="ann")
    assert [one.seq for one in delivered.rejections] == [
        one.seq for one in operations if any(one.payload is payload for payload in bad)
    ]
    assert delivered.seq == len(mixed)
    assert all(
        one.message and one.code.split(".")[0] in ("invalid", "limit", "not_found", "conflict")
        for one in delivered.rejections
    )
    assert await served.counts(uid) == {"acc": 1, "loss": 20}
    run = await served.tracking.get_run(uid)
    assert run.status is RunStatus.FINISHED
    assert len((await served.tracking.list_checkpoints(uid)).items) == 1


async def test_many_spools_at_once(served: Served) -> None:
    uids = [new_id(ObjectKind.RUN) for _ in range(12)]

    async def push(number: int, uid: str) -> None:
        operations = [Operation(seq=seq, payload=payload) for seq, payload in enumerate(session(uid), start=1)]
        for cut in (2, 5, 7):
            delivered = await served.tracking.deliver(f"{number:032x}", operations[:cut], actor="ann")
            assert (delivered.seq, delivered.rejections) == (cut, ())

    async with anyio.create_task_group() as tasks:
        for number, uid in enumerate(uids):
            tasks.start_soon(push, number, uid)
    for uid in uids:
        assert await served.counts(uid) == {"acc": 1, "loss": 20}
        assert (await served.tracking.get_run(uid)).status is RunStatus.FINISHED
    # A namespace and an experiment come with the first run.
    assert await served.database.read(verify_chain) == 12 * 4


# -- the bin -------------------------------------------------------------------------------------------------------


async def test_a_purge_takes_metrics_along(served: Served) -> None:
    kept, gone = await served.run(), await served.run(experiment="ns/gone")
    for uid in (kept.id, gone.id):
        await served.metrics.log([points(uid, 1, 2)])
    before = served.clock() + timedelta(minutes=1)
    await served.tracking.delete_objects([gone.experiment_id], actor="ann")
    assert await served.tracking.purge("ns", served.clock(), actor="op") == 0
    assert await served.tracking.purge("ns", before, dry_run=True, actor="op") == 2
    assert await served.counts(gone.id) == {"loss": 2}
    assert await served.tracking.purge("other", before, actor="op") == 0
    assert await served.tracking.purge("", before, actor="op") == 2
    with pytest.raises(NotFoundError):
        await served.counts(gone.id)
    with pytest.raises(NotFoundError):
        await served.metrics.log([points(gone.id, 3)])
    assert await served.counts(kept.id) == {"loss": 2}
    assert await served.tracking.purge("", before, actor="op") == 0


async def test_deleted_versions_take_metrics_along(served: Served, tmp_path: Path) -> None:
    async with FilesystemBlobs(tmp_path / "blobs") as blobs:
        registry = RegistryService(SqlRegistryStore(served.database), blobs, metrics=served.metrics)
        await registry.create_model(NewModel(namespace="ns", name="m"), actor="ann")
        model = (await registry.get_model("ns", "m")).id
        await served.metrics.log([points("ns/m", 1), points(model, 2)])
        assert await served.counts("ns/m") == {"loss": 2}
        await registry.delete_model("ns", "m", actor="ann")
        for name in ("ns/m", model):
            with pytest.raises(NotFoundError):
                await served.metrics.log([points(name, 3)])
        await registry.create_model(NewModel(namespace="ns", name="m"), actor="ann")
        assert await served.counts("ns/m") == {}


async def test_deleted_artifacts_take_metrics_along(served: Served, tmp_path: Path) -> None:
    async with FilesystemBlobs(tmp_path / "blobs") as blobs:
        artifacts = ArtifactService(SqlArtifactStore(served.database), blobs, metrics=served.metrics)
        run = (await served.run()).id
        file = ArtifactFile(path="f", size_bytes=1, digest=Digest(f"sha256:{0:064x}"), uri="s3://bucket/f")
        new = NewArtifact(parent=run, name="a", files=(file,))
        artifact = (await artifacts.create_artifact(new, actor="ann")).item.id
        await served.metrics.log([points(artifact, 1, 2), points(run, 1)])
        await served.tracking.set_attributes(artifact, AttributeKind.TAG, {"a": ""}, actor="ann")
        await artifacts.delete_artifact(artifact, actor="ann")
    assert await metric_objects(served) == {run}
    assert await served.counts(run) == {"loss": 1}
    left = await served.database.read(lambda conn: conn.execute(select(attributes.c.key)).all())
    assert left == []


async def metric_objects(served: Served) -> set[str]:
    """Ids of what has rows among the metrics."""
    store = SqlMetricStore(served.database.metrics)
    return {uid for _, uid in await store.objects_after(0, limit=10_000)}


# -- what a kill leaves behind ---------------------------------------------------------------------------------------


async def test_metrics_of_what_was_deleted_are_swept_away(served: Served) -> None:
    runs = [(await served.run()).id for _ in range(3)]
    gone = [new_id(ObjectKind.RUN) for _ in range(1200)]
    store = SqlMetricStore(served.database.metrics)
    # As after a kill between a purge and the removal of its metrics.
    for uid in [*gone[:600], *runs, *gone[600:]]:
        await log_points(store, uid, {"loss": [(1, 1, 0.5), (2, 2, 0.25)]})
    service = MetricService(store, SqlTrackingStore(served.database))
    await service.log([points(runs[0], 3)])
    assert await service.sweep() == 1200
    assert await metric_objects(served) == set(runs)
    assert [(await service.summaries([uid]))[0].count for uid in runs] == [3, 2, 2]
    assert await service.sweep() == 0


async def test_a_sweep_leaves_the_points_of_an_object_that_is_made_meanwhile(served: Served) -> None:
    class Slow(SqlTrackingStore):
        """Holds up the answer until a run has been made, and somebody has begun to log to it."""

        asked = 0

        async def find_objects(self, names: Sequence[str]) -> dict[str, str]:
            found = await super().find_objects(names)
            Slow.asked += 1
            if Slow.asked == 1:
                await served.run(id=again)
                tasks.start_soon(service.log, [points(again, 7)])
                await logging.wait()
            else:
                logging.set()
            return found

    logging = anyio.Event()
    again, never = new_id(ObjectKind.RUN), new_id(ObjectKind.RUN)
    store = SqlMetricStore(served.database.metrics)
    for uid in (again, never):
        await log_points(store, uid, {"loss": [(1, 1, 0.5)]})
    service = MetricService(store, Slow(served.database))
    async with anyio.create_task_group() as tasks:
        # The new run's log call found it after the sweep did not: its id is known, and nothing of it is removed.
        assert await service.sweep() == 1
    assert await metric_objects(served) == {again}
    assert [one.latest_step for one in await service.summaries([again])] == [7]


async def test_points_wait_while_their_object_is_swept(served: Served) -> None:
    class Held(SqlMetricStore):
        """Removes series when it is told to."""

        async def delete_series(self, objects: Sequence[str]) -> int:
            deleting.set()
            await go_on.wait()
            return await super().delete_series(objects)

    deleting, go_on, logged = anyio.Event(), anyio.Event(), anyio.Event()
    store = Held(served.database.metrics)
    again, other = new_id(ObjectKind.RUN), (await served.run()).id
    await log_points(store, again, {"old": [(1, 1, 0.5)]})
    service = MetricService(store, SqlTrackingStore(served.database))

    async def log() -> None:
        await service.log([points(again, 7)])
        logged.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(service.sweep)
        await deleting.wait()
        await served.run(id=again)
        tasks.start_soon(log)
        # Others go on.
        await service.log([points(other, 1)])
        assert not logged.is_set()
        go_on.set()
    assert {one.key: one.latest_step for one in await service.summaries([again])} == {"loss": 7}

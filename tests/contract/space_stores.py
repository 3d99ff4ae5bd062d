"""What every database must do about retention and space. Subclass the suites and give the fixture ``database``.

Bytes are in a directory here, whatever the database is; a store that removes them step by step shows what happens
between two steps. Each proof that no row loses its bytes comes with a planted bug that it must catch.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import anyio
import anyio.lowlevel
import pytest
from sqlalchemy import Connection, delete, func, insert, select, update

from modelbox.errors import ConflictError, InUseError, LimitError, NotFoundError, ServerBusy, StorageError
from modelbox.objects import ArtifactFile, InstanceReport, InstanceState, NewArtifact, NewVersion, VersionPatch
from modelbox.refs import Digest, ModelRef
from modelbox.retention import Best, BestMode, Planned, Retained, RetentionPolicy
from modelbox.runtime.blobs import filesystem
from modelbox.runtime.blobs.filesystem import FilesystemBlobs
from modelbox.runtime.ports import BlobEntry, BlobStore
from modelbox.runtime.services.artifacts import ArtifactService, Upload
from modelbox.runtime.services.metrics import MetricService
from modelbox.runtime.services.registry import RegistryService
from modelbox.runtime.services.retention import RetentionService
from modelbox.runtime.services.space import SpaceService
from modelbox.runtime.services.tracking import TrackingService
from modelbox.runtime.store import artifacts as artifact_store
from modelbox.runtime.store import metric_schema, removal, schema
from modelbox.runtime.store.artifacts import SqlArtifactStore
from modelbox.runtime.store.database import MainDatabase
from modelbox.runtime.store.fleet import SqlFleetStore
from modelbox.runtime.store.lineage import SqlLineageStore
from modelbox.runtime.store.metrics import SqlMetricStore
from modelbox.runtime.store.registry import SqlRegistryStore
from modelbox.runtime.store.retention import SqlRetentionStore
from modelbox.runtime.store.space import SqlSpaceStore
from modelbox.runtime.store.tracking import SqlTrackingStore
from modelbox.space import Collected, FindingKind, Quota
from modelbox.tracking import (
    MetricColumns,
    NewCheckpoint,
    NewEdge,
    NewEdges,
    NewExperiment,
    NewRun,
    RunPatch,
    RunStatus,
)
from tests.faults.registry import fault
from tests.integration.server_core import chunks, digest_of, manifest

AT_ONCE_S = -60.0
"""A grace time that is over before it begins, whatever a database's clock is good for."""
DAY_S = 86400.0


class Stepped:
    """A store in which looks and deletions wait for the test: the first base of such a class."""

    before_look: Callable[[Digest], Awaitable[None]] | None = None
    before_delete: Callable[[BlobEntry], Awaitable[None]] | None = None

    async def find_blob(self, digest: Digest) -> BlobEntry | None:
        if self.before_look is not None:
            await self.before_look(digest)
        found: BlobEntry | None = await super().find_blob(digest)  # type: ignore[misc]
        return found

    async def delete(self, entry: BlobEntry) -> bool:
        if self.before_delete is not None:
            await self.before_delete(entry)
        deleted: bool = await super().delete(entry)  # type: ignore[misc]
        return deleted


class SteppedBlobs(Stepped, FilesystemBlobs):
    """A directory in which looks and deletions wait for the test."""


class SteppedStore(BlobStore, Protocol):
    """Any store in which they do."""

    before_look: Callable[[Digest], Awaitable[None]] | None
    before_delete: Callable[[BlobEntry], Awaitable[None]] | None


async def last(said: AsyncIterator[Collected]) -> Collected:
    """How a collection ended."""
    every = [one async for one in said]
    assert [one.done for one in every] == [False] * (len(every) - 1) + [True]
    return every[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything that makes, uses and removes bytes."""

    database: MainDatabase
    blobs: SteppedStore
    artifacts: ArtifactService
    registry: RegistryService
    tracking: TrackingService
    metrics: MetricService
    retention: RetentionService

    def space(self, *, grace_s: float = AT_ONCE_S, take_over_s: float = 1200.0) -> SpaceService:
        return SpaceService(SqlSpaceStore(self.database), self.blobs, grace_s=grace_s, take_over_s=take_over_s)

    async def upload(self, data: bytes, namespace: str = "ns") -> Upload:
        begun = await self.artifacts.begin_upload(namespace, digest_of(data), len(data))
        if begun.complete:
            return begun
        return await self.artifacts.write_upload(begun.id, begun.offset, chunks(data[begun.offset :]))

    async def publish(self, *contents: bytes, model: str = "m", namespace: str = "ns", **said: object) -> int:
        for data in contents:
            await self.upload(data, namespace)
        new = NewVersion(namespace=namespace, model=model, manifest=manifest(*contents), **said)  # type: ignore[arg-type]
        return (await self.registry.publish_version(new, actor="ann")).item.version

    async def collect(self, *, grace_s: float = AT_ONCE_S, dry_run: bool = False) -> Collected:
        return await last(self.space(grace_s=grace_s).collect(dry_run=dry_run))

    async def findings(self, *, checksums: bool = True, repair: bool = False) -> list[tuple[FindingKind, str, bool]]:
        found = []
        async for said in self.space().check(checksums=checksums, repair=repair):
            found += [(one.kind, one.subject, one.repaired) for one in said.findings]
        assert said.done
        return sorted(found)

    async def here(self, data: bytes) -> bool:
        return await self.blobs.find_size(digest_of(data)) == len(data)

    async def versions(self, model: str = "m") -> list[int]:
        page = await self.registry.list_versions("ns", model, page_size=1000)
        return [one.version for one in page.items]


@pytest.fixture
async def stepped(tmp_path: Path) -> AsyncIterator[SteppedStore]:
    async with SteppedBlobs(tmp_path / "bytes", reserve_bytes=0) as blobs:
        yield blobs


@pytest.fixture
def world(database: MainDatabase, stepped: SteppedStore) -> World:
    tracking_store = SqlTrackingStore(database)
    metrics = MetricService(SqlMetricStore(database.metrics), tracking_store)
    tracking = TrackingService(tracking_store, metrics)
    return World(
        database=database,
        blobs=stepped,
        artifacts=ArtifactService(SqlArtifactStore(database), stepped, metrics=metrics),
        registry=RegistryService(SqlRegistryStore(database), stepped, metrics=metrics),
        tracking=tracking,
        metrics=metrics,
        retention=RetentionService(SqlRetentionStore(database), tracking, metrics=metrics),
    )


class CollectionContract:
    """Removing bytes: `modelbox.runtime.store.removal` and what calls it."""

    async def test_bytes_in_use_stay_and_others_go_after_the_grace_time(self, world: World) -> None:
        await world.publish(b"one", b"shared")
        await world.publish(b"two", b"shared")
        await world.upload(b"never used")
        await world.registry.delete_version("ns", "m", 1, actor="ann")
        assert (await world.collect(grace_s=DAY_S)).blobs == 0
        planned = await world.collect(dry_run=True)
        assert (planned.holdings, planned.blobs, planned.bytes, planned.dry_run) == (2, 2, 13, True)
        assert await world.here(b"one")
        done = await world.collect()
        assert (done.holdings, done.blobs, done.bytes, done.orphans) == (2, 2, 13, 0)
        assert [await world.here(one) for one in (b"one", b"never used", b"two", b"shared")] == [
            False,
            False,
            True,
            True,
        ]
        assert await world.findings() == []
        assert (await world.collect()).blobs == 0

    async def test_the_grace_time_counts_from_the_end_of_the_last_use(self, world: World) -> None:
        await world.publish(b"one")
        await world.publish(b"two")

        def age(conn: Connection) -> None:
            conn.execute(update(schema.holdings).values(used_at_us=schema.holdings.c.used_at_us - 3 * 86_400_000_000))

        await world.database.write(age)
        await world.registry.delete_version("ns", "m", 1, actor="ann")
        assert (await world.collect(grace_s=DAY_S)).blobs == 0
        await world.database.write(age)
        assert (await world.collect(grace_s=DAY_S)).blobs == 1
        assert not await world.here(b"one")

    async def test_whoever_is_told_that_bytes_are_held_can_still_publish_them(self, world: World) -> None:
        await world.upload(b"one")
        await world.database.write(lambda conn: conn.execute(update(schema.holdings).values(used_at_us=1)).rowcount)
        assert (await world.upload(b"one")).complete
        assert (await world.collect(grace_s=DAY_S)).blobs == 0
        assert await world.publish(b"one") == 1

    async def test_rows_of_an_earlier_release_count_from_their_upload(self, world: World) -> None:
        await world.upload(b"one")
        await world.database.write(lambda conn: conn.execute(update(schema.holdings).values(used_at_us=None)).rowcount)
        assert (await world.collect(grace_s=DAY_S)).blobs == 0
        await world.database.write(lambda conn: conn.execute(update(schema.holdings).values(created_at_us=1)).rowcount)
        assert (await world.collect(grace_s=DAY_S)).blobs == 1

    async def test_a_namespace_gives_up_what_another_one_uses(self, world: World) -> None:
        await world.publish(b"one", namespace="ns")
        await world.upload(b"one", "other")
        done = await world.collect()
        assert (done.holdings, done.blobs) == (1, 0)
        assert await world.here(b"one")
        with pytest.raises(NotFoundError, match="upload"):
            await _publish_only(world, b"one", "other")
        assert await world.publish(b"one", namespace="other") == 1

    async def test_artifacts_use_bytes_too(self, world: World) -> None:
        await world.upload(b"one")
        file = ArtifactFile(path="f", size_bytes=3, digest=digest_of(b"one"))
        made = await world.artifacts.create_artifact(NewArtifact(parent="ns", name="a", files=(file,)), actor="ann")
        assert (await world.collect()).blobs == 0
        await world.artifacts.delete_artifact(made.item.id, actor="ann")
        assert (await world.collect(grace_s=DAY_S)).blobs == 0
        assert (await world.collect()).blobs == 1

    @fault(34)
    async def test_orphans_go_and_unfinished_uploads_stay(self, world: World) -> None:
        async with world.blobs.open_upload("upl_00000000000000000000ffff") as writer:
            await writer.write(b"orphan")
            await writer.commit(digest_of(b"orphan"), 6)
        begun = await world.artifacts.begin_upload("ns", digest_of(b"half"), 4)
        await world.artifacts.write_upload(begun.id, 0, chunks(b"ha"))
        assert (await world.collect(grace_s=DAY_S)).orphans == 0
        assert await world.findings() == [(FindingKind.ORPHAN, digest_of(b"orphan"), False)]
        done = await world.collect()
        assert (done.orphans, done.blobs, done.bytes, done.seen) == (1, 1, 6, 1)
        assert (await world.artifacts.write_upload(begun.id, 2, chunks(b"lf"))).complete

    async def test_a_removal_that_was_broken_off_is_taken_over(self, world: World) -> None:
        await world.upload(b"one")
        row = await world.database.read(lambda conn: conn.execute(select(schema.blobs.c.id)).scalar_one())
        await SqlSpaceStore(world.database).give_up([row], grace_s=AT_ONCE_S, batch="rmv_dead")
        with pytest.raises(ServerBusy):
            await world.upload(b"one")
        assert (await world.collect()).blobs == 0
        done = await last(world.space(take_over_s=AT_ONCE_S).collect())
        assert (done.blobs, done.bytes) == (1, 3)
        assert await world.publish(b"one") == 1
        assert await world.findings() == []

    async def test_a_store_that_fails_keeps_uploads_away_until_somebody_takes_over(self, world: World) -> None:
        await world.upload(b"one")
        await world.upload(b"two")

        async def fail(entry: BlobEntry) -> None:
            if entry.digest == digest_of(b"one"):
                raise StorageError("the store is away")

        world.blobs.before_delete = fail
        with pytest.raises(StorageError, match="away"):
            await world.collect()
        world.blobs.before_delete = None
        assert (await world.upload(b"two")).complete
        with pytest.raises(ServerBusy):
            await world.upload(b"one")
        await last(world.space(take_over_s=AT_ONCE_S).collect())
        assert (await world.upload(b"one")).complete

    # -- races -----------------------------------------------------------------------------------------------------

    async def test_a_publication_between_the_look_and_the_removal_wins(self, world: World) -> None:
        await world.upload(b"one")
        store = SqlSpaceStore(world.database)
        found = await store.find_idle(grace_s=AT_ONCE_S, limit=10, after=None)
        assert len(found.items) == 1
        assert await world.publish(b"one") == 1
        given = await store.give_up([found.items[0].row_id], grace_s=AT_ONCE_S, batch="rmv_1")
        assert (given.holdings, given.blobs) == (0, ())

    async def test_an_upload_while_bytes_are_removed_waits_and_is_whole(self, world: World) -> None:
        await upload_during_removal(world)
        assert await world.findings() == []

    async def test_bytes_put_into_place_during_a_collection_stay(self, world: World) -> None:
        await collection_during_upload(world)
        await _publish_only(world, b"one", "ns")
        assert await world.findings() == []

    async def test_a_remover_that_was_stopped_before_the_look_removes_nothing(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It looks at its clock after the look: an hour has gone by."""
        await world.upload(b"one")
        look = world.blobs.find_blob
        clock = anyio.current_time
        gone_by = 0.0

        async def find_late(digest: Digest) -> BlobEntry | None:
            nonlocal gone_by
            gone_by = 3600.0
            return await look(digest)

        monkeypatch.setattr(world.blobs, "find_blob", find_late)
        monkeypatch.setattr("modelbox.runtime.services.space.anyio.current_time", lambda: clock() + gone_by)
        await world.collect()
        assert await world.here(b"one")

    async def test_uploads_publications_and_two_collectors_at_random(self, world: World) -> None:
        """Whatever is published has its bytes, and they are right."""
        dice = random.Random(5)
        contents = [f"content {number}".encode() for number in range(6)]
        unlucky: set[str] = set()
        ended = anyio.Event()

        async def step(entry: BlobEntry) -> None:
            for _ in range(dice.randrange(4)):
                await anyio.lowlevel.checkpoint()

        async def collect() -> None:
            while not ended.is_set():
                await world.collect()
                # However slow the store is, publications are in time sooner or later: who was too late thrice is let.
                while unlucky:
                    await anyio.sleep(0.002)

        async def write(model: str, namespace: str) -> None:
            published = lost = 0
            while published < 4:
                some = dice.sample(contents, 2)
                try:
                    version = await world.publish(*some, model=model, namespace=namespace)
                    published, lost = published + 1, 0
                    unlucky.discard(model)
                    if dice.random() < 0.7:
                        await world.registry.delete_version(namespace, model, version, actor="ann")
                except (ServerBusy, NotFoundError, ConflictError):
                    # Collected between its upload and its publication, for there is no grace time here; or another
                    # writer went on with the same upload.
                    lost += 1
                    if lost == 3:
                        unlucky.add(model)
                    await anyio.lowlevel.checkpoint()

        world.blobs.before_delete = step
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect)
            tasks.start_soon(collect)
            async with anyio.create_task_group() as writers:
                for number in range(4):
                    writers.start_soon(write, f"m{number}", f"ns{number % 2}")
            ended.set()
        assert await world.findings() == []
        await world.collect()
        used = await world.database.read(
            lambda conn: set(
                conn.execute(
                    select(schema.blobs.c.digest).join(
                        schema.version_blobs, schema.version_blobs.c.blob_id == schema.blobs.c.id
                    )
                ).scalars()
            )
        )
        assert {entry.digest async for entry in world.blobs.iter_blobs()} == used


async def _publish_only(world: World, data: bytes, namespace: str) -> None:
    new = NewVersion(namespace=namespace, model="m", manifest=manifest(data))
    await world.registry.publish_version(new, actor="ann")


async def upload_during_removal(world: World) -> None:
    """Bytes are uploaded and published while their removal stands before the look at them."""
    await world.upload(b"one")
    reached, go_on = anyio.Event(), anyio.Event()

    async def wait(digest: Digest) -> None:
        reached.set()
        await go_on.wait()

    world.blobs.before_look = wait
    refused = False
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.collect)
        await reached.wait()
        try:
            await world.publish(b"one")
        except ServerBusy:
            refused = True
        go_on.set()
    world.blobs.before_look = None
    if refused:
        await world.publish(b"one")
    assert await world.versions() == [1]


async def collection_during_upload(world: World) -> None:
    """A whole collection runs between the moment that bytes are in place and the row that tells of them.

    The bytes are known already and out of use, so that there is something to collect.
    """
    await world.upload(b"one", "other")
    begun = await world.artifacts.begin_upload("ns", digest_of(b"one"), 3)
    async with world.blobs.open_upload(begun.id) as writer:
        await writer.write(b"one")
        await writer.commit(digest_of(b"one"), 3)
    await world.collect()
    await SqlArtifactStore(world.database).finish_upload(begun.id, at=datetime.now(UTC))


async def late_remover(world: World) -> None:
    """A remover stands still; another one takes over and ends; the bytes are uploaded again; the first one goes on."""
    await world.upload(b"one")
    reached, go_on = anyio.Event(), anyio.Event()

    async def wait(entry: BlobEntry) -> None:
        world.blobs.before_delete = None
        reached.set()
        await go_on.wait()

    world.blobs.before_delete = wait
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.collect)
        await reached.wait()
        await last(world.space(take_over_s=AT_ONCE_S).collect())
        assert not await world.here(b"one")
        await world.publish(b"one")
        go_on.set()


class RemoverContract:
    """What a store owes that tells generations of the same bytes apart exactly; and the planted bugs."""

    async def test_a_remover_that_wakes_up_late_removes_nothing(self, world: World) -> None:
        await late_remover(world)
        assert await world.findings() == []

    @pytest.mark.parametrize("bug", ["uploads are not asked", "removals are not asked", "generations are not asked"])
    async def test_each_of_these_proofs_catches_a_planted_bug(
        self, world: World, monkeypatch: pytest.MonkeyPatch, bug: str
    ) -> None:
        if bug == "uploads are not asked":
            asked = removal._free
            monkeypatch.setattr(removal, "_free", lambda: asked()[:-1])
            scenario = collection_during_upload
        elif bug == "removals are not asked":
            monkeypatch.setattr(artifact_store, "check_not_removed", lambda conn, digest: None)
            scenario = upload_during_removal
        else:

            def take(blobs: FilesystemBlobs, entry: BlobEntry) -> bool:
                filesystem._unlink(blobs._path(entry.digest))
                return True

            monkeypatch.setattr(FilesystemBlobs, "_delete", take)
            scenario = late_remover
        await scenario(world)
        assert FindingKind.MISSING in {kind for kind, _, _ in await world.findings()}


class QuotaContract:
    """How much a namespace may hold."""

    async def test_a_quota_counts_what_is_held_and_refuses_more(self, world: World) -> None:
        await world.upload(b"x" * 60)
        space = world.space()
        quota = await space.set_quota("ns", 100, actor="ann")
        assert (quota.limit_bytes, quota.used_bytes, quota.updated_by) == (100, 60, "ann")
        with pytest.raises(LimitError, match="quota") as caught:
            await world.upload(b"y" * 41)
        assert {key: caught.value.fields[key] for key in ("limit", "used", "wanted")} == {
            "limit": 100,
            "used": 60,
            "wanted": 41,
        }
        await world.upload(b"z" * 40)
        assert (await world.upload(b"x" * 60)).complete
        await world.upload(b"y" * 41, "other")
        assert [one.used_bytes for one in await space.list_quotas()] == [100]
        await world.collect()
        assert [one.used_bytes for one in await space.list_quotas("ns")] == [0]
        await world.upload(b"y" * 41)
        await space.delete_quota("ns")
        assert await space.list_quotas() == ()
        await world.upload(b"w" * 200)

    async def test_two_uploads_that_fit_only_one_by_one(self, world: World) -> None:
        """Both were let in; the row is what counts."""
        await world.space().set_quota("ns", 100, actor="ann")
        begun = [await world.artifacts.begin_upload("ns", digest_of(data), 60) for data in (b"x" * 60, b"y" * 60)]
        assert (await world.artifacts.write_upload(begun[0].id, 0, chunks(b"x" * 60))).complete
        with pytest.raises(LimitError, match="quota"):
            await world.artifacts.write_upload(begun[1].id, 0, chunks(b"y" * 60))
        assert [one.used_bytes for one in await world.space().list_quotas()] == [60]

    async def test_usage_is_told_by_namespace_and_model(self, world: World) -> None:
        await world.publish(b"a" * 10, b"b" * 5, model="m1")
        await world.publish(b"a" * 10, b"c" * 7, model="m2")
        await world.upload(b"d" * 3)
        file = ArtifactFile(path="f", size_bytes=5, digest=digest_of(b"b" * 5))
        await world.artifacts.create_artifact(NewArtifact(parent="ns/m1", name="a", files=(file,)), actor="ann")
        await world.upload(b"e" * 2, "upload-only")
        space = world.space()
        await space.set_quota("ns", 1000, actor="ann")
        first = await space.list_usage(page_size=1)
        second = await space.list_usage(page_size=1, page_token=first.next_token)
        assert second.next_token == ""
        (ns,), (other,) = first.items, second.items
        assert (ns.path, ns.versions, ns.bytes_versions, ns.bytes_artifacts) == ("ns", 2, 22, 5)
        assert (ns.bytes_held, ns.bytes_unused, ns.quota_bytes) == (25, 3, 1000)
        assert (other.path, other.versions, other.bytes_held, other.bytes_unused) == ("upload-only", 0, 2, 2)
        models = await space.list_usage("ns")
        assert [(one.path, one.versions, one.bytes_versions, one.bytes_artifacts) for one in models.items] == [
            ("ns/m1", 1, 15, 5),
            ("ns/m2", 1, 17, 0),
        ]
        totals = await space.totals()
        assert (totals.blobs, totals.bytes_blobs, totals.uploads, totals.removals) == (5, 27, 0, 0)


class CheckContract:
    """fsck: rows and bytes compared."""

    async def test_every_kind_of_damage_is_found(self, world: World) -> None:
        await world.publish(b"missing", b"short", b"rotten", b"good")
        assert await world.findings() == []
        for data, damaged in ((b"short", b"shor"), (b"rotten", b"rotteN"), (b"missing", None)):
            path = world.blobs.local_path(digest_of(data))
            assert path is not None
            path.chmod(0o600)
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
        wanted = [
            (FindingKind.CORRUPT, digest_of(b"rotten"), False),
            (FindingKind.MISSING, digest_of(b"missing"), False),
            (FindingKind.SIZE, digest_of(b"short"), False),
        ]
        assert await world.findings() == wanted
        assert await world.findings(checksums=False) == wanted[1:]
        said = [one async for one in world.space().check()]
        assert {user for one in said for finding in one.findings for user in finding.used_by} == {"ns/m@1"}

    async def test_files_that_do_not_count_as_in_use_are_repaired(self, world: World) -> None:
        await world.publish(b"one")
        await world.publish(b"two")

        def spoil(conn: Connection) -> None:
            conn.execute(delete(schema.version_blobs))
            one = select(schema.blobs.c.id).where(schema.blobs.c.digest == digest_of(b"one"))
            conn.execute(delete(schema.holdings).where(schema.holdings.c.blob_id.in_(one)))

        await world.database.write(spoil)
        wrong = sorted((FindingKind.UNLISTED, digest_of(data), False) for data in (b"one", b"two"))
        assert await world.findings() == wrong
        assert await world.findings(repair=True) == [(kind, subject, True) for kind, subject, _ in wrong]
        assert await world.findings() == []
        assert (await world.collect()).blobs == 0

    async def test_a_wrong_counter_is_repaired(self, world: World) -> None:
        await world.upload(b"four")
        await world.space().set_quota("ns", 100, actor="ann")
        await world.database.write(lambda conn: conn.execute(update(schema.quotas).values(used_bytes=99)).rowcount)
        assert await world.findings() == [(FindingKind.QUOTA, "ns", False)]
        assert await world.findings(repair=True) == [(FindingKind.QUOTA, "ns", True)]
        quotas: list[Quota] = list(await world.space().list_quotas())
        assert [one.used_bytes for one in quotas] == [4]

    async def test_totals_of_metrics_are_compared_with_the_points(self, world: World) -> None:
        experiment = (await world.tracking.create_experiment(NewExperiment(namespace="ns", name="e"), actor="ann")).item
        new = NewRun(experiment=experiment.id, name="r", started_at=datetime.now(UTC))
        run = (await world.tracking.create_run(new, actor="ann")).item
        values = {"loss": [0.5, math.nan, -math.inf, 2.0], "acc": [0.1], "nothing": [math.nan], "huge": [math.inf]}
        for key, points in values.items():
            columns = MetricColumns(
                object=run.id,
                keys=(key,),
                steps=array("q", range(len(points))).tobytes(),
                times_us=array("q", [7] * len(points)).tobytes(),
                values=array("d", points).tobytes(),
            )
            await world.metrics.log([columns])
        assert await world.findings() == []
        series, points_table = metric_schema.metric_series, metric_schema.metric_points

        def spoil(conn: Connection) -> None:
            loss = select(metric_schema.metric_keys.c.id).where(metric_schema.metric_keys.c.name == "loss")
            row_id = conn.execute(select(series.c.id).where(series.c.key_id.in_(loss))).scalar_one()
            conn.execute(delete(points_table).where(points_table.c.series_id == row_id, points_table.c.step == 3))

        await world.database.metrics.write(spoil)
        assert await world.findings() == [(FindingKind.METRICS, f"{run.id} loss", False)]
        assert await world.findings(checksums=False) == []
        # What is on its way out is nobody's business.
        await world.tracking.delete_objects([run.id], actor="ann")
        now = datetime.now(UTC)
        purged = await SqlTrackingStore(world.database).purge(
            "", now + timedelta(minutes=1), batch=10, actor="ann", at=now
        )
        assert purged.ids
        assert await world.findings() == []

    async def test_an_altered_feed_is_found(self, world: World) -> None:
        await world.publish(b"one")
        await world.publish(b"two")
        changes = schema.feed_changes
        await world.database.write(
            lambda conn: conn.execute(update(changes).where(changes.c.rev == 1).values(actor="eve")).rowcount
        )
        assert await world.findings() == [(FindingKind.FEED, "feed", False)]


class RetentionContract:
    """Policies, plans, and what they delete."""

    async def _plan(self, world: World, scope: str = "ns", kind: Retained = Retained.VERSIONS) -> dict[str, Planned]:
        page = await world.retention.plan(scope, kind, page_size=1000)
        assert not page.next_token
        return {one.name: one for one in page.items}

    async def test_policies_are_kept_replaced_and_removed(self, world: World) -> None:
        policy = RetentionPolicy(
            scope="ns",
            keep_last=5,
            keep_younger_s=0.5,
            keep_best=(Best(metric="acc", count=2), Best(metric="wer", count=1, mode=BestMode.MIN)),
        )
        made = await world.retention.set_policy(policy, actor="ann")
        assert (made.keep_last, made.keep_younger_s, made.keep_best, made.updated_by) == (
            5,
            0.5,
            policy.keep_best,
            "ann",
        )
        await world.retention.set_policy(RetentionPolicy(scope="ns", keep_last=3), actor="bob")
        await world.retention.set_policy(
            RetentionPolicy(scope="ns", kind=Retained.BIN, keep_younger_s=DAY_S), actor="bob"
        )
        await world.retention.set_policy(RetentionPolicy(scope="ns/m", keep_all=True), actor="bob")
        await world.retention.set_policy(RetentionPolicy(scope="other", keep_last=1), actor="bob")
        found = await world.retention.list_policies("ns")
        assert [(one.scope, one.kind, one.keep_last, one.keep_all) for one in found] == [
            ("ns", "bin", None, False),
            ("ns", "versions", 3, False),
            ("ns/m", "versions", None, True),
        ]
        assert len(await world.retention.list_policies()) == 4
        assert (await world.retention.get_policy("ns")).updated_by == "bob"
        await world.retention.delete_policy("ns")
        for call in (world.retention.get_policy, world.retention.delete_policy):
            with pytest.raises(NotFoundError, match="no policy"):
                await call("ns")

    async def test_a_run_does_what_the_plan_says(self, world: World) -> None:
        for number in range(1, 9):
            await world.publish(f"v{number}".encode(), aliases=("prod",) if number == 2 else ())
        await world.retention.lock_version("ns", "m", 3, reason="audit", actor="ann")
        plan = await self._plan(world)
        assert len(plan) == 8
        assert all(one.keep and one.reasons[-1] == "no policy is set" for one in plan.values())
        await world.retention.set_policy(RetentionPolicy(scope="ns", keep_last=2), actor="ann")
        plan = await self._plan(world)
        assert {name for name, one in plan.items() if one.keep} == {"ns/m@8", "ns/m@7", "ns/m@3", "ns/m@2"}
        assert plan["ns/m@2"].reasons == ("held: alias prod",)
        assert plan["ns/m@3"].reasons == ("held: locked by ann: audit",)
        assert plan["ns/m@8"].reasons == ("held: alias latest", "one of the newest 2")
        assert plan["ns/m@1"].reasons == ("not one of the newest 2 (number 8)",)
        assert (plan["ns/m@1"].policy, plan["ns/m@1"].size_bytes) == ("ns", 2)
        done = await world.retention.run("ns")
        assert (done.versions, done.more) == (4, False)
        assert await world.versions() == [8, 7, 3, 2]
        assert (await world.retention.run()).versions == 0
        assert (await world.collect()).blobs == 4
        assert await world.findings() == []

    async def test_a_plan_comes_in_pages_and_can_be_asked_for_another_policy(self, world: World) -> None:
        for model in ("a", "b", "c"):
            for number in range(3):
                await world.publish(f"{model}{number}".encode(), model=model)
        what_if = RetentionPolicy(scope="ns", keep_last=1)
        names: list[str] = []
        token, pages = "", 0
        while pages == 0 or token:
            page = await world.retention.plan("ns", policy=what_if, page_size=2, page_token=token)
            names += [one.name for one in page.items if not one.keep]
            token, pages = page.next_token, pages + 1
        assert pages == 5
        assert names == [f"ns/{model}@{number}" for model in "abc" for number in (2, 1)]
        assert (await world.retention.run()).versions == 0
        only = await world.retention.plan("ns/b", policy=RetentionPolicy(scope="ns/b", keep_last=2))
        assert [(one.name, one.keep) for one in only.items] == [
            ("ns/b@3", True),
            ("ns/b@2", True),
            ("ns/b@1", False),
        ]

    async def test_the_policy_of_a_model_is_stronger_than_that_of_its_namespace(self, world: World) -> None:
        for model in ("a", "b", "c"):
            for number in range(3):
                await world.publish(f"{model}{number}".encode(), model=model)
        await world.retention.set_policy(RetentionPolicy(scope="ns", keep_last=1), actor="ann")
        await world.retention.set_policy(RetentionPolicy(scope="ns/a", keep_all=True), actor="ann")
        await world.retention.set_policy(RetentionPolicy(scope="ns/b", keep_last=2), actor="ann")
        assert (await world.retention.run()).versions == 3
        assert [await world.versions(model) for model in ("a", "b", "c")] == [[3, 2, 1], [3, 2], [3]]

    async def test_the_best_by_a_metric_stay(self, world: World) -> None:
        for number, wer in enumerate((0.3, 0.1, 0.2, 0.5), start=1):
            await world.publish(f"v{number}".encode())
            await world.registry.update_version("ns", "m", number, VersionPatch(metrics={"wer": wer}), actor="ann")
        best = Best(metric="wer", count=2, mode=BestMode.MIN)
        await world.retention.set_policy(RetentionPolicy(scope="ns", keep_best=(best,)), actor="ann")
        await world.retention.run()
        assert await world.versions() == [4, 3, 2]

    async def test_what_was_made_of_a_version_and_who_serves_it_hold_it(self, world: World) -> None:
        for number in range(1, 6):
            await world.publish(f"v{number}".encode())
        await world.publish(b"tuned", model="tuned")
        await SqlLineageStore(world.database).add_edges(
            NewEdges(edges=(NewEdge(source="ns/m@1", target="ns/tuned@1", type="derived"),)),
            actor="ann",
            at=datetime.now(UTC),
        )
        now = datetime.now(UTC)
        for number, seen_at in ((2, now), (3, now - timedelta(days=3))):
            report = InstanceReport(
                instance_id=f"i{number}",
                host="h",
                pid=1,
                ref=f"ns/m@{number}",
                state=InstanceState.ACTIVE,
                version=number,
                target_version=number,
            )
            await SqlFleetStore(world.database).report([report], at=seen_at, forget_before=now - timedelta(days=9))
        await world.retention.set_policy(RetentionPolicy(scope="ns", keep_last=1), actor="ann")
        plan = await self._plan(world, "ns/m")
        assert plan["ns/m@1"].reasons == ("held: lineage: 1 object made from it",)
        assert plan["ns/m@2"].reasons == ("held: served by 1 instance",)
        await world.retention.run()
        assert await world.versions() == [5, 2, 1]

    async def test_what_is_held_after_the_plan_stays(self, world: World) -> None:
        """An alias moves between the look and the deletion."""
        for number in range(1, 4):
            await world.publish(f"v{number}".encode())
        await world.retention.set_policy(RetentionPolicy(scope="ns", keep_last=1), actor="ann")
        store = SqlRetentionStore(world.database)
        (group,) = (await store.find_groups("ns", Retained.VERSIONS, limit=10, after=None)).items
        assert group.to_go == 2
        await world.registry.move_alias("ns", "m", "prod", 1, actor="bob")
        applied = await store.apply(group, limit=10, actor="retention", at=datetime.now(UTC))
        assert (applied.versions, applied.more) == (1, False)
        assert await world.versions() == [3, 1]
        await world.registry.delete_alias("ns", "m", "prod", actor="bob")
        await world.registry.delete_model("ns", "m", actor="bob")
        assert (await store.apply(group, limit=10, actor="retention", at=datetime.now(UTC))).versions == 0

    async def test_locked_versions_are_deleted_by_nobody(self, world: World) -> None:
        await world.publish(b"one")
        await world.publish(b"two")
        lock = await world.retention.lock_version("ns", "m", 1, reason="audit", actor="ann")
        again = await world.retention.lock_version("ns", "m", 1, reason="other", actor="bob")
        assert again == lock
        assert (lock.reason, lock.locked_by) == ("audit", "ann")
        for scope in ("", "ns", "ns/m"):
            assert await world.retention.list_locks(scope) == (lock,)
        assert await world.retention.list_locks("ns/other") == ()
        with pytest.raises(InUseError, match="locked by ann"):
            await world.registry.delete_version("ns", "m", 1, actor="bob")
        with pytest.raises(InUseError, match="unlock"):
            await world.registry.delete_model("ns", "m", actor="bob")
        assert await world.retention.unlock_version("ns", "m", 1)
        assert not await world.retention.unlock_version("ns", "m", 1)
        await world.registry.delete_version("ns", "m", 1, actor="bob")
        with pytest.raises(NotFoundError):
            await world.retention.lock_version("ns", "m", 1, actor="ann")

    async def test_checkpoints_and_runs_go_into_the_bin_and_from_there(self, world: World) -> None:
        tracking = world.tracking
        experiment = (await tracking.create_experiment(NewExperiment(namespace="ns", name="e"), actor="ann")).item
        runs = []
        for number in range(3):
            new = NewRun(experiment=experiment.id, name=f"r{number}", started_at=datetime.now(UTC))
            runs.append((await tracking.create_run(new, actor="ann")).item)
        epochs: dict[int, str] = {}
        for epoch, loss in enumerate((0.9, 0.2, 0.5, 0.4)):
            new_checkpoint = NewCheckpoint(parent_id=runs[0].id, epoch=epoch, metrics={"loss": loss})
            epochs[epoch] = (await tracking.create_checkpoint(new_checkpoint, actor="ann")).item.id
        await world.publish(b"of epoch 0", checkpoint=epochs[0])
        best = Best(metric="loss", count=1, mode=BestMode.MIN)
        await world.retention.set_policy(
            RetentionPolicy(scope="ns", kind=Retained.CHECKPOINTS, keep_last=1, keep_best=(best,)), actor="ann"
        )
        plan = await self._plan(world, kind=Retained.CHECKPOINTS)
        assert all(one.keep and "held: its run goes on" in one.reasons for one in plan.values())
        assert (await world.retention.run()).binned == 0
        for run in runs[:2]:
            await tracking.update_run(run.id, RunPatch(status=RunStatus.FINISHED), actor="ann")
        assert (await world.retention.run()).binned == 1
        page = await tracking.list_checkpoints(runs[0].id)
        assert {one.id for one in page.items} == {epochs[0], epochs[1], epochs[3]}
        await world.retention.set_policy(
            RetentionPolicy(scope="ns", kind=Retained.RUNS, keep_younger_s=1e-6), actor="ann"
        )
        plan = await self._plan(world, kind=Retained.RUNS)
        assert {name: one.keep for name, one in plan.items()} == {
            runs[0].id: True,
            runs[1].id: False,
            runs[2].id: True,
        }
        assert (await world.retention.run()).binned == 1
        await world.retention.set_policy(
            RetentionPolicy(scope="ns", kind=Retained.BIN, keep_younger_s=1e-6), actor="ann"
        )
        (line,) = (await world.retention.plan("ns", Retained.BIN)).items
        assert (line.keep, line.reasons[0].split()[0]) == (False, "2")
        assert (await world.retention.run()).purged == 2
        assert (await world.retention.plan("ns", Retained.BIN)).items[0].keep

    async def test_many_versions_go_in_parts_and_each_is_a_revision(self, world: World) -> None:
        await world.publish(b"same")

        def copy(conn: Connection) -> None:
            """45 more versions, by rows: what publishing would do takes long."""
            first = dict(conn.execute(select(schema.versions)).mappings().one())
            thing = dict(
                conn.execute(select(schema.objects).where(schema.objects.c.uid == first["uid"])).mappings().one()
            )
            del first["id"], thing["id"]
            blob_id = conn.execute(select(schema.blobs.c.id)).scalar_one()
            for number in range(2, 47):
                uid = f"ver_{number:024x}"
                conn.execute(insert(schema.objects).values({**thing, "uid": uid}))
                conn.execute(insert(schema.versions).values({**first, "uid": uid, "version": number}))
                row_id = conn.execute(select(func.max(schema.versions.c.id))).scalar_one()
                conn.execute(insert(schema.version_blobs).values(version_id=row_id, blob_id=blob_id))
            conn.execute(update(schema.models).values(latest_version=46, last_version=46))

        await world.database.write(copy)
        await world.publish(b"newest")
        await world.retention.set_policy(RetentionPolicy(scope="ns/m", keep_last=2), actor="ann")
        done = await world.retention.run("ns/m")
        assert done.versions == 45
        assert await world.versions() == [47, 46]
        assert await world.findings() == []
        assert (await world.registry.get_version(ModelRef.parse("ns/m@latest"))).version == 47

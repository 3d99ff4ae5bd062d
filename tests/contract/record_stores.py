"""What every database must do for events, comments, readmes, datasets and lineage. Subclass with a ``database``."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise

import anyio
import pytest
from sqlalchemy import func, select

from modelbox.errors import ConflictError, InvalidError, NotFoundError
from modelbox.objects import ArtifactFile, NewArtifact, NewModel, NewVersion, from_json
from modelbox.refs import Digest, ModelRef
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.store import schema
from modelbox.runtime.store.artifacts import SqlArtifactStore
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.datasets import SqlDatasetStore
from modelbox.runtime.store.lineage import SqlLineageStore
from modelbox.runtime.store.notes import SqlNoteStore
from modelbox.runtime.store.registry import SqlRegistryStore
from modelbox.runtime.store.tracking import SqlTrackingStore
from modelbox.tracking import (
    Comment,
    DatasetComponent,
    DatasetVersion,
    Event,
    LineageEdge,
    NewCheckpoint,
    NewComment,
    NewDataset,
    NewDatasetVersion,
    NewEdge,
    NewEdges,
    NewEvent,
    NewRun,
    ObjectKind,
    Readme,
    ReadmeEdit,
    new_id,
)

from .metadata_stores import AT, digest_of, history, hold, manifest

LATER = AT + timedelta(hours=1)


async def make_model(database: Database, name: str = "m", namespace: str = "ns") -> str:
    """A model's id."""
    created = await SqlRegistryStore(database).create_model(
        NewModel(namespace=namespace, name=name), actor="ann", at=AT
    )
    return created.item.id


async def make_run(database: Database, experiment: str = "ns/digits") -> str:
    """A run's id."""
    new = NewRun(experiment=experiment, started_at=AT)
    return (await SqlTrackingStore(database).create_run(new, actor="ann", at=AT)).item.id


async def make_checkpoint(database: Database, parent: str, epoch: int = 1) -> str:
    """A checkpoint's id."""
    new = NewCheckpoint(parent_id=parent, epoch=epoch)
    return (await SqlTrackingStore(database).create_checkpoint(new, actor="ann", at=AT)).item.id


async def last_changes(database: Database) -> list[tuple[str, str, str]]:
    """Kind, object and action of the changes of the newest revision."""
    return [(c.kind, c.object, c.action) for c in (await history(database)).revisions[-1].changes]


class NoteStoreContract:
    """`modelbox.runtime.record_ports.NoteStore`."""

    async def test_an_event_is_kept_once(self, database: Database) -> None:
        model = await make_model(database)
        store = SqlNoteStore(database)
        new = NewEvent(object="ns/m", name="gpu.lost", source="scheduler", at=AT, metadata={"gpu": [1, {"x": None}]})
        first = await store.log_event(new, actor="ann", at=LATER)
        again = await store.log_event(new, actor="bob", at=LATER + timedelta(days=1))
        assert (first.existed, again.existed) == (False, True)
        assert again.item == first.item
        assert (first.item.object, first.item.namespace) == (model, "ns")
        assert (first.item.at, first.item.received_at, first.item.created_by) == (AT, LATER, "ann")
        assert first.item.metadata == {"gpu": [1, {"x": None}]}
        assert await last_changes(database) == [("event", new.id, "created")]
        state = (await history(database)).revisions[-1].changes[0].state
        assert from_json(Event, state) == first.item

    async def test_an_id_is_not_given_to_another_event(self, database: Database) -> None:
        await make_model(database)
        await make_model(database, "other")
        store = SqlNoteStore(database)
        new = NewEvent(object="ns/m", name="a", at=AT)
        await store.log_event(new, actor="", at=AT)
        for other in (
            NewEvent(id=new.id, object="ns/other", name="a", at=AT),
            NewEvent(id=new.id, object="ns/m", name="b", at=AT),
            NewEvent(id=new.id, object="ns/m", name="a", at=LATER),
        ):
            with pytest.raises(ConflictError):
                await store.log_event(other, actor="", at=AT)
        with pytest.raises(NotFoundError):
            await store.log_event(NewEvent(object=new_id(ObjectKind.RUN), name="a", at=AT), actor="", at=AT)

    async def test_events_by_the_reporters_clock(self, database: Database) -> None:
        await make_model(database)
        await make_model(database, "other")
        await make_model(database, "far", "elsewhere")
        store = SqlNoteStore(database)
        chance = random.Random(7)
        minutes = [chance.randrange(30) for _ in range(60)]
        for number, minute in enumerate(minutes):
            new = NewEvent(
                object=("ns/m", "ns/other", "elsewhere/far")[number % 3],
                name=("a", "b")[number % 2],
                source=("x", "y")[number // 2 % 2],
                at=AT + timedelta(minutes=minute),
            )
            await store.log_event(new, actor="", at=AT)

        async def read(text: str, since: int | None, until: int | None, name: str, source: str) -> list[Event]:
            found: list[Event] = []
            after: Key | None = None
            while True:
                listed = await store.list_events(
                    text,
                    since=None if since is None else AT + timedelta(minutes=since),
                    until=None if until is None else AT + timedelta(minutes=until),
                    name=name,
                    source=source,
                    limit=3,
                    after=after,
                )
                found += listed.items
                after = listed.next_key
                if after is None:
                    return found

        everything = await read("ns", None, None, "", "")
        assert len(everything) == 40
        assert len({event.id for event in everything}) == 40
        assert [event.at for event in everything] == sorted((event.at for event in everything), reverse=True)
        one = (await SqlRegistryStore(database).get_model("ns", "m")).id
        for since, until, name, source in [(10, None, "", ""), (None, 10, "a", ""), (5, 20, "b", "x"), (20, 5, "", "")]:
            found = await read("ns/m", since, until, name, source)
            wanted = [
                event
                for event in everything
                if event.object == one
                and (since is None or event.at >= AT + timedelta(minutes=since))
                and (until is None or event.at < AT + timedelta(minutes=until))
                and (not name or event.name == name)
                and (not source or event.source == source)
            ]
            assert found == wanted

    async def test_pages_of_events_stay_while_events_arrive(self, database: Database) -> None:
        await make_model(database)
        store = SqlNoteStore(database)

        async def log(minute: int) -> None:
            new = NewEvent(object="ns/m", name="a", at=AT + timedelta(minutes=minute))
            await store.log_event(new, actor="", at=AT)

        for minute in range(4):
            await log(minute)

        async def page(after: Key | None) -> tuple[list[int], Key | None]:
            listed = await store.list_events("ns/m", since=None, until=None, name="", source="", limit=2, after=after)
            return [(event.at - AT) // timedelta(minutes=1) for event in listed.items], listed.next_key

        first, key = await page(None)
        await log(9)
        await log(2)
        assert first == [3, 2]
        # What comes late takes its place on a page that was read: the next one begins where it would have begun.
        assert await page(key) == ([1, 0], None)

    async def test_a_comment_is_written_edited_binned_and_restored(self, database: Database) -> None:
        model = await make_model(database)
        store = SqlNoteStore(database)
        new = NewComment(object="ns/m", text="looks *good*")
        first = await store.add_comment(new, actor="ann", at=AT)
        assert (await store.add_comment(new, actor="bob", at=LATER)).existed
        assert (first.item.object, first.item.created_by, first.item.edited_at) == (model, "ann", None)
        edited = await store.edit_comment(new.id, "bad", actor="ann", at=LATER)
        assert (edited.text, edited.edited_at, edited.created_at) == ("bad", LATER, AT)
        assert await store.edit_comment(new.id, "bad", actor="ann", at=LATER + timedelta(days=1)) == edited
        deleted = await store.delete_comment(new.id, actor="ann", at=LATER)
        assert deleted.deleted_at == LATER
        assert await store.delete_comment(new.id, actor="ann", at=AT) == deleted
        with pytest.raises(NotFoundError, match="bin"):
            await store.edit_comment(new.id, "worse", actor="ann", at=LATER)
        assert (await store.list_comments(model, include_deleted=False, limit=10, after=None)).items == ()
        assert (await store.list_comments(model, include_deleted=True, limit=10, after=None)).items == (deleted,)
        restored = await store.restore_comment(new.id, actor="ann", at=LATER)
        assert restored.deleted_at is None
        assert await store.restore_comment(new.id, actor="ann", at=LATER) == restored
        changes = [(c.kind, c.object, c.action) for r in (await history(database)).revisions for c in r.changes][2:]
        assert changes == [("comment", new.id, action) for action in ("created", "updated", "deleted", "restored")]
        assert from_json(Comment, (await history(database)).revisions[-1].changes[0].state) == restored

    async def test_comments_go_into_the_bin_beside_other_objects(self, database: Database) -> None:
        notes, tracking = SqlNoteStore(database), SqlTrackingStore(database)
        run = await make_run(database)
        new = [NewComment(object=run, text=str(number)) for number in range(3)]
        for one in new:
            await notes.add_comment(one, actor="", at=AT)
        ids = [new[0].id, run, new[1].id, new[0].id]
        with pytest.raises(NotFoundError):
            await tracking.delete_objects([*ids, new_id(ObjectKind.COMMENT)], actor="", at=AT)
        assert len((await notes.list_comments(run, include_deleted=False, limit=9, after=None)).items) == 3
        assert await tracking.delete_objects(ids, actor="", at=AT) == 3
        assert await tracking.delete_objects(ids, actor="", at=AT) == 0
        left = await notes.list_comments(run, include_deleted=False, limit=9, after=None)
        assert [comment.id for comment in left.items] == [new[2].id]
        # What is in the bin still takes what is said of it.
        assert not (await notes.add_comment(NewComment(object=run, text="late"), actor="", at=AT)).existed
        assert await tracking.restore_objects([new[0].id, run], actor="", at=AT) == 2
        await tracking.purge("", LATER, batch=10, actor="", at=LATER)
        kept = await notes.list_comments(run, include_deleted=True, limit=9, after=None)
        assert [comment.text for comment in kept.items] == ["0", "2", "late"]

    async def test_events_go_with_their_object_and_what_is_known_of_them_too(self, database: Database) -> None:
        notes, tracking = SqlNoteStore(database), SqlTrackingStore(database)
        gone, kept = await make_run(database), await make_model(database)
        for of in (gone, kept):
            new = NewEvent(object=of, name="cost", at=AT, metadata={"eur": 1.5, "by": [{"host": "a"}]})
            await notes.log_event(new, actor="", at=AT)
        paths = select(schema.event_values.c.path).order_by(schema.event_values.c.path)
        every = ["by", "by.0", "by.0.host", "eur"]
        assert await database.read(lambda conn: conn.execute(paths).scalars().all()) == sorted([*every, *every])
        await tracking.delete_objects([gone], actor="", at=AT)
        await tracking.purge("", LATER, batch=10, actor="", at=LATER)
        assert await database.read(lambda conn: conn.execute(paths).scalars().all()) == every

    async def test_comments_come_in_order_and_in_pages(self, database: Database) -> None:
        await make_model(database)
        store = SqlNoteStore(database)
        for number in range(5):
            await store.add_comment(NewComment(object="ns", text=str(number)), actor="", at=AT)
        first = await store.list_comments("ns", include_deleted=False, limit=3, after=None)
        rest = await store.list_comments("ns", include_deleted=False, limit=3, after=first.next_key)
        assert [comment.text for comment in first.items + rest.items] == ["0", "1", "2", "3", "4"]
        assert rest.next_key is None
        with pytest.raises(NotFoundError):
            await store.edit_comment(new_id(ObjectKind.COMMENT), "x", actor="", at=AT)
        with pytest.raises(NotFoundError):
            await store.list_comments("nowhere", include_deleted=False, limit=3, after=None)

    async def test_a_readme_is_set_changed_and_removed(self, database: Database) -> None:
        model = await make_model(database)
        store = SqlNoteStore(database)
        with pytest.raises(NotFoundError, match="readme"):
            await store.get_readme("ns/m")
        before = (await history(database)).head.rev
        assert (await store.set_readme(ReadmeEdit(object="ns/m", text=""), actor="ann", at=AT)).text == ""
        assert (await history(database)).head.rev == before
        made = await store.set_readme(ReadmeEdit(object="ns/m", text="# One"), actor="ann", at=AT)
        assert await last_changes(database) == [("readme", f"{model}/readme", "created")]
        assert made == await store.get_readme(model)
        assert await store.set_readme(ReadmeEdit(object=model, text="# One"), actor="bob", at=LATER) == made
        changed = await store.set_readme(ReadmeEdit(object=model, text="# Two"), actor="bob", at=LATER)
        assert await last_changes(database) == [("readme", f"{model}/readme", "updated")]
        assert (changed.text, changed.updated_by, changed.updated_at) == ("# Two", "bob", LATER)
        gone = await store.set_readme(ReadmeEdit(object=model, text=""), actor="bob", at=LATER)
        assert gone.text == ""
        assert await last_changes(database) == [("readme", f"{model}/readme", "deleted")]
        assert from_json(Readme, (await history(database)).revisions[-1].changes[0].state) == changed
        with pytest.raises(NotFoundError, match="readme"):
            await store.get_readme("ns/m")

    async def test_what_is_hard_deleted_takes_its_notes_along(self, database: Database) -> None:
        model = await make_model(database)
        store = SqlNoteStore(database)
        await store.log_event(NewEvent(object=model, name="a", at=AT), actor="", at=AT)
        await store.add_comment(NewComment(object=model, text="x"), actor="", at=AT)
        await store.set_readme(ReadmeEdit(object=model, text="x"), actor="", at=AT)
        await SqlRegistryStore(database).delete_model("ns", "m", actor="", at=AT)
        for table in (schema.events, schema.comments, schema.readmes):
            query = select(func.count()).select_from(table)
            assert await database.read(lambda conn, query=query: conn.execute(query).scalar()) == 0  # type: ignore[misc]


def part(location: str, **fields: object) -> DatasetComponent:
    return DatasetComponent(type="path", location=location, **fields)  # type: ignore[arg-type]


class DatasetStoreContract:
    """`modelbox.runtime.record_ports.DatasetStore`."""

    async def test_a_dataset_is_made_once(self, database: Database) -> None:
        store = SqlDatasetStore(database)
        new = NewDataset(namespace="ns", name="digits", owner="ann", description="0 to 9")
        first = await store.create_dataset(new, actor="ann", at=AT)
        assert await last_changes(database) == [("namespace", "ns", "created"), ("dataset", new.id, "created")]
        again = await store.create_dataset(NewDataset(namespace="ns", name="digits"), actor="bob", at=LATER)
        renamed = await store.create_dataset(NewDataset(id=new.id, namespace="ns", name="x"), actor="bob", at=LATER)
        assert (first.existed, again.existed, renamed.existed) == (False, True, True)
        assert first.item == again.item == renamed.item
        assert first.item == await store.get_dataset("ns/digits") == await store.get_dataset(new.id)
        assert (first.item.owner, first.item.latest_version, first.item.created_by) == ("ann", 0, "ann")

    async def test_versions_count_up_and_the_newest_content_again_is_the_same(self, database: Database) -> None:
        store = SqlDatasetStore(database)
        one = NewDatasetVersion(namespace="ns", dataset="digits", components=(part("/a", rows=5), part("/b")))
        first = await store.create_version(one, actor="ann", at=AT)
        assert (first.existed, first.item.version, first.item.id) == (False, 1, one.id)
        dataset = await store.get_dataset("ns/digits")
        assert (dataset.latest_version, first.item.dataset_id) == (1, dataset.id)
        assert await last_changes(database) == [
            ("namespace", "ns", "created"),
            ("dataset", dataset.id, "created"),
            ("dataset_version", one.id, "created"),
        ]
        swapped = NewDatasetVersion(namespace="ns", dataset="digits", components=(part("/b"), part("/a", rows=5)))
        again = await store.create_version(swapped, actor="bob", at=LATER)
        assert again.existed
        assert again.item == first.item
        two = NewDatasetVersion(namespace="ns", dataset="digits", components=(part("/a", rows=6), part("/b")))
        second = await store.create_version(two, actor="ann", at=LATER)
        assert (second.existed, second.item.version) == (False, 2)
        state = (await history(database)).revisions[-1].changes
        assert [(c.kind, c.action) for c in state] == [("dataset", "updated"), ("dataset_version", "created")]
        assert from_json(DatasetVersion, state[1].state) == second.item
        # The id decides before the content: a spool that is sent twice makes no third version.
        replayed = await store.create_version(one, actor="ann", at=LATER)
        assert replayed.existed
        assert replayed.item == first.item
        third = await store.create_version(
            NewDatasetVersion(namespace="ns", dataset="digits", components=one.components), actor="ann", at=LATER
        )
        assert (third.existed, third.item.version, third.item.digest) == (False, 3, first.item.digest)

    async def test_versions_by_id_number_and_newest(self, database: Database) -> None:
        store = SqlDatasetStore(database)
        made = [
            (
                await store.create_version(
                    NewDatasetVersion(namespace="ns", dataset="digits", components=(part(f"/{number}"),)),
                    actor="ann",
                    at=AT,
                )
            ).item
            for number in range(5)
        ]
        assert await store.get_version(made[1].id) == made[1]
        assert await store.get_version("ns/digits@2") == made[1]
        assert await store.get_version("ns/digits") == made[4]
        first = await store.list_versions("ns/digits", include_deleted=False, limit=3, after=None)
        rest = await store.list_versions(made[0].dataset_id, include_deleted=False, limit=3, after=first.next_key)
        assert [*first.items, *rest.items] == made[::-1]
        assert rest.next_key is None
        with pytest.raises(NotFoundError) as caught:
            await store.get_version("ns/digits@9")
        assert caught.value.fields["exists"] == [f"ns/digits@{number}" for number in (5, 4, 3, 2, 1)]
        with pytest.raises(NotFoundError) as caught:
            await store.get_version("ns/digit@1")
        assert caught.value.fields["exists"] == ["ns/digits"]
        for text in (new_id(ObjectKind.DATASET_VERSION), "nowhere/x"):
            with pytest.raises(NotFoundError):
                await store.get_version(text)

    async def test_an_id_is_not_given_to_something_else(self, database: Database) -> None:
        store = SqlDatasetStore(database)
        model = await make_model(database)
        one = NewDatasetVersion(namespace="ns", dataset="digits", components=(part("/a"),))
        await store.create_version(one, actor="", at=AT)
        before = (await history(database)).head.rev
        for new in (
            NewDatasetVersion(id=one.id, namespace="ns", dataset="digits", components=(part("/b"),)),
            NewDatasetVersion(id=one.id, namespace="ns", dataset="other", components=(part("/a"),)),
            NewDatasetVersion(id=model, namespace="ns", dataset="other", components=(part("/a"),)),
        ):
            with pytest.raises(ConflictError):
                await store.create_version(new, actor="", at=AT)
        with pytest.raises(ConflictError):
            await store.create_dataset(NewDataset(id=model, namespace="ns", name="new"), actor="", at=AT)
        assert (await history(database)).head.rev == before

    async def test_datasets_in_pages(self, database: Database) -> None:
        store = SqlDatasetStore(database)
        for path in ("b/x", "a/y", "a/x", "b/w"):
            namespace, _, name = path.partition("/")
            await store.create_dataset(NewDataset(namespace=namespace, name=name), actor="", at=AT)
        first = await store.list_datasets(namespace="", include_deleted=False, limit=3, after=None)
        rest = await store.list_datasets(namespace="", include_deleted=False, limit=3, after=first.next_key)
        found = [f"{dataset.namespace}/{dataset.name}" for dataset in first.items + rest.items]
        assert (found, rest.next_key) == (["a/x", "a/y", "b/w", "b/x"], None)
        one = await store.list_datasets(namespace="b", include_deleted=False, limit=3, after=None)
        assert [dataset.name for dataset in one.items] == ["w", "x"]
        none = await store.list_datasets(namespace="nowhere", include_deleted=False, limit=3, after=None)
        assert none.items == ()

    async def test_versions_made_at_once_have_numbers_of_their_own(self, database: Database) -> None:
        store = SqlDatasetStore(database)
        numbers: list[int] = []

        async def make(number: int) -> None:
            new = NewDatasetVersion(namespace="ns", dataset="digits", components=(part(f"/{number}"),))
            numbers.append((await store.create_version(new, actor="", at=AT)).item.version)

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(make, number)
        assert sorted(numbers) == list(range(1, 9))
        assert (await store.get_dataset("ns/digits")).latest_version == 8


class Graph:
    """Datasets as the nodes of a graph, and what the edges between them should be."""

    def __init__(self, database: Database, ids: Sequence[str]) -> None:
        self.store = SqlLineageStore(database)
        self.ids = ids
        self.edges: set[tuple[int, int, str]] = set()

    @classmethod
    async def make(cls, database: Database, count: int) -> Graph:
        store = SqlDatasetStore(database)
        ids = []
        for number in range(count):
            new = NewDataset(namespace="ns", name=f"d{number}")
            ids.append((await store.create_dataset(new, actor="", at=AT)).item.id)
        return cls(database, ids)

    async def add(self, *pairs: tuple[int, int], type: str = "derived") -> int:
        edges = tuple(NewEdge(source=self.ids[a], target=self.ids[b], type=type) for a, b in pairs)
        added = await self.store.add_edges(NewEdges(edges=edges), actor="ann", at=AT)
        self.edges |= {(a, b, type) for a, b in pairs}
        return added

    def reach(self, starts: Sequence[int], *, down: bool, max_depth: int = 0) -> dict[int, int]:
        depths = dict.fromkeys(starts, 0)
        frontier, depth = set(starts), 0
        while frontier and (not max_depth or depth < max_depth):
            depth += 1
            ends = {(b if down else a) for a, b, _ in self.edges if (a if down else b) in frontier}
            frontier = ends - depths.keys()
            depths |= dict.fromkeys(frontier, depth)
        return depths

    def closes(self, pairs: Sequence[tuple[int, int]]) -> bool:
        other = Graph.__new__(Graph)
        other.edges = self.edges | {(a, b, "") for a, b in pairs}
        return any(a in other.reach([b], down=True) for a, b in pairs)


class LineageStoreContract:
    """`modelbox.runtime.record_ports.LineageStore`."""

    async def test_edges_are_added_once_and_removed(self, database: Database) -> None:
        graph = await Graph.make(database, 3)
        assert await graph.add((0, 1), (1, 2), (0, 1)) == 2
        assert await graph.add((0, 1)) == 0
        assert await graph.add((0, 1), (0, 2)) == 1
        assert await graph.add((0, 1), type="used") == 1
        zero, one, two = graph.ids
        assert await last_changes(database) == [("lineage", f"{zero}->{one}:used", "created")]
        lineage = await graph.store.get_lineage([two], up=True, down=False, max_depth=0, max_nodes=100)
        assert [(node.id, node.kind, node.title, node.depth) for node in lineage.nodes] == [
            (two, "dataset", "ns/d2", 0),
            (zero, "dataset", "ns/d0", 1),
            (one, "dataset", "ns/d1", 1),
        ]
        assert {(edge.source, edge.target, edge.type) for edge in lineage.edges} == {
            (zero, one, "derived"),
            (zero, one, "used"),
            (one, two, "derived"),
            (zero, two, "derived"),
        }
        assert {edge.created_by for edge in lineage.edges} == {"ann"}
        gone = [NewEdge(source=zero, target=one, type="used"), NewEdge(source=two, target=zero, type="used")]
        assert await graph.store.remove_edges(gone, actor="", at=AT) == 1
        assert await last_changes(database) == [("lineage", f"{zero}->{one}:used", "deleted")]
        state = (await history(database)).revisions[-1].changes[0].state
        assert from_json(LineageEdge, state) == LineageEdge(
            source=zero, target=one, type="used", created_at=AT, created_by="ann"
        )
        before = (await history(database)).head.rev
        assert await graph.store.remove_edges(gone, actor="", at=AT) == 0
        assert (await history(database)).head.rev == before

    async def test_a_cycle_is_refused_with_its_path(self, database: Database) -> None:
        graph = await Graph.make(database, 5)
        await graph.add((0, 1), (1, 2), (2, 3), (0, 4))
        before = (await history(database)).head.rev
        with pytest.raises(ConflictError, match="ns/d3 → ns/d1 → ns/d2 → ns/d3") as caught:
            edges = NewEdges(
                edges=(
                    NewEdge(source=graph.ids[4], target=graph.ids[2], type="used"),
                    NewEdge(source=graph.ids[3], target=graph.ids[1], type="used"),
                )
            )
            await graph.store.add_edges(edges, actor="", at=AT)
        assert caught.value.fields["cycle"] == [graph.ids[number] for number in (3, 1, 2, 3)]
        # All or none.
        assert (await history(database)).head.rev == before
        lineage = await graph.store.get_lineage([graph.ids[2]], up=True, down=False, max_depth=0, max_nodes=100)
        assert {node.id for node in lineage.nodes} == {graph.ids[number] for number in (0, 1, 2)}

    async def test_cycles_inside_one_call_and_through_one_object(self, database: Database) -> None:
        graph = await Graph.make(database, 2)
        with pytest.raises(ConflictError):
            await graph.add((0, 1), (1, 0))
        model = await make_model(database)
        with pytest.raises(InvalidError, match="itself"):
            edge = NewEdge(source=model, target="ns/m", type="derived")
            await graph.store.add_edges(NewEdges(edges=(edge,)), actor="", at=AT)
        with pytest.raises(NotFoundError):
            edge = NewEdge(source=model, target=new_id(ObjectKind.RUN), type="derived")
            await graph.store.add_edges(NewEdges(edges=(edge,)), actor="", at=AT)
        query = select(func.count()).select_from(schema.lineage_edges)
        assert await database.read(lambda conn: conn.execute(query).scalar()) == 0

    @pytest.mark.parametrize("seed", range(4))
    async def test_any_graph_against_a_plain_one(self, database: Database, seed: int) -> None:
        chance = random.Random(seed)
        graph = await Graph.make(database, 25)
        for _ in range(60):
            count = chance.choice([1, 1, 2, 4])
            pairs = [tuple(chance.sample(range(25), 2)) for _ in range(count)]
            if graph.closes(pairs):  # type: ignore[arg-type]
                with pytest.raises(ConflictError) as caught:
                    await graph.add(*pairs)  # type: ignore[arg-type]
                cycle = caught.value.fields["cycle"]
                assert isinstance(cycle, list)
                numbers = [graph.ids.index(one) for one in cycle]
                assert numbers[0] == numbers[-1]
                known = {(a, b) for a, b, _ in graph.edges} | set(pairs)
                assert all(step in known for step in pairwise(numbers))
            else:
                await graph.add(*pairs)  # type: ignore[arg-type]
        assert graph.edges
        for _ in range(10):
            starts = chance.sample(range(25), chance.choice([1, 3]))
            max_depth = chance.choice([0, 1, 2])
            up, down = chance.choice([(True, False), (False, True), (True, True)])
            lineage = await graph.store.get_lineage(
                [graph.ids[start] for start in starts], up=up, down=down, max_depth=max_depth, max_nodes=1000
            )
            above = graph.reach(starts, down=False, max_depth=max_depth) if up else {}
            below = graph.reach(starts, down=True, max_depth=max_depth) if down else {}
            wanted = {
                number: min(above.get(number, 99), below.get(number, 99)) for number in above.keys() | below.keys()
            }
            assert {node.id: node.depth for node in lineage.nodes} == {
                graph.ids[number]: depth for number, depth in wanted.items()
            }
            assert [node.depth for node in lineage.nodes] == sorted(node.depth for node in lineage.nodes)
            assert {(edge.source, edge.target, edge.type) for edge in lineage.edges} == {
                (graph.ids[a], graph.ids[b], type)
                for a, b, type in graph.edges
                if {a, b} <= above.keys() or {a, b} <= below.keys()
            }
            assert not lineage.truncated

    async def test_a_long_chain_and_a_wide_fan(self, database: Database) -> None:
        graph = await Graph.make(database, 150)
        await graph.add(*((number, number + 1) for number in range(100)))
        lineage = await graph.store.get_lineage([graph.ids[0]], up=False, down=True, max_depth=0, max_nodes=1000)
        assert [node.depth for node in lineage.nodes] == list(range(101))
        cut = await graph.store.get_lineage([graph.ids[100]], up=True, down=False, max_depth=0, max_nodes=70)
        assert [node.id for node in cut.nodes] == [graph.ids[number] for number in range(100, 30, -1)]
        assert cut.truncated
        assert len(cut.edges) == 69
        with pytest.raises(ConflictError) as caught:
            await graph.add((100, 0))
        assert len(caught.value.fields["cycle"]) == 102  # type: ignore[arg-type]
        assert "…" in str(caught.value)
        await graph.add(*((0, number) for number in range(101, 150)))
        fan = await graph.store.get_lineage([graph.ids[0]], up=False, down=True, max_depth=1, max_nodes=20)
        assert (len(fan.nodes), fan.truncated) == (20, True)
        assert {node.depth for node in fan.nodes} == {0, 1}

    async def test_many_paths_to_one_object(self, database: Database) -> None:
        """A ladder has more paths than anybody could walk: two objects on each rung, each made from both below."""
        graph = await Graph.make(database, 120)
        await graph.add(*((2 * rung + a, 2 * rung + 2 + b) for rung in range(59) for a in (0, 1) for b in (0, 1)))
        lineage = await graph.store.get_lineage([graph.ids[0]], up=False, down=True, max_depth=0, max_nodes=1000)
        assert len(lineage.nodes) == 119
        assert len(lineage.edges) == 2 + 58 * 4
        with pytest.raises(ConflictError):
            await graph.add((119, 0))

    async def test_writers_at_once_close_no_cycle(self, database: Database) -> None:
        graph = await Graph.make(database, 6)
        outcomes: list[bool] = []

        async def add(source: int, target: int) -> None:
            try:
                await graph.add((source, target))
            except ConflictError:
                outcomes.append(False)
            else:
                outcomes.append(True)

        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(add, number, (number + 1) % 6)
        assert sorted(outcomes) == [False] + [True] * 5

    async def test_titles_of_models_and_versions(self, database: Database) -> None:
        registry = SqlRegistryStore(database)
        await hold(database, "ns", "one")
        version = (
            await registry.publish_version(
                NewVersion(namespace="ns", model="m", manifest=manifest("one")), actor="", at=AT
            )
        ).item
        graph = await Graph.make(database, 1)
        edges = (
            NewEdge(source=graph.ids[0], target="ns/m@1", type="produced"),
            NewEdge(source="ns", target=graph.ids[0], type="holds"),
            NewEdge(source="ns/m@1", target="ns/m", type="part"),
        )
        assert await graph.store.add_edges(NewEdges(edges=edges), actor="", at=AT) == 3
        lineage = await graph.store.get_lineage(["ns/m"], up=True, down=False, max_depth=0, max_nodes=10)
        assert [(node.title, node.kind) for node in lineage.nodes] == [
            ("ns/m", "model"),
            ("ns/m@1", "version"),
            ("ns/d0", "dataset"),
            ("ns", "namespace"),
        ]
        assert lineage.nodes[1].id == version.id
        await registry.delete_version("ns", "m", 1, actor="", at=AT)
        lineage = await graph.store.get_lineage(["ns/m"], up=True, down=False, max_depth=0, max_nodes=10)
        assert (len(lineage.nodes), lineage.edges) == (1, ())


def tracked(name: str, parent: str) -> NewArtifact:
    file = ArtifactFile(path="w.bin", size_bytes=3, digest=digest_of("one"), uri="s3://bucket/w.bin")
    return NewArtifact(parent=parent, name=name, files=(file,))


class AttachmentContract:
    """Artifacts of any object, and versions that say where they come from."""

    async def test_an_artifact_belongs_to_any_object(self, database: Database) -> None:
        store = SqlArtifactStore(database)
        run = await make_run(database)
        checkpoint = await make_checkpoint(database, run)
        version = NewDatasetVersion(namespace="ns", dataset="digits", components=(part("/a"),))
        made = (await SqlDatasetStore(database).create_version(version, actor="", at=AT)).item
        artifact = ""
        for parent in (run, checkpoint, made.id, made.dataset_id):
            created = await store.create_artifact(tracked("weights", parent), actor="ann", at=AT)
            assert (created.existed, created.item.parent, created.item.namespace) == (False, parent, "ns")
            assert (await store.create_artifact(tracked("weights", parent), actor="ann", at=AT)).existed
            listed = await store.list_artifacts(parent=parent, namespace="", limit=9, after=None)
            assert listed.items == (created.item,)
            with pytest.raises(ConflictError, match="another name"):
                other = ArtifactFile(path="v.bin", size_bytes=3, digest=digest_of("one"), uri="s3://bucket/v.bin")
                new = NewArtifact(parent=parent, name="weights", files=(other,))
                await store.create_artifact(new, actor="ann", at=AT)
            artifact = created.item.id
        with pytest.raises(InvalidError, match="is an artifact"):
            await store.create_artifact(tracked("more", artifact), actor="", at=AT)
        gone = new_id(ObjectKind.RUN)
        with pytest.raises(NotFoundError):
            await store.create_artifact(tracked("more", gone), actor="", at=AT)
        with pytest.raises(NotFoundError):
            await store.list_artifacts(parent=gone, namespace="", limit=9, after=None)

    async def test_an_object_has_one_set_of_names_however_it_is_called(self, database: Database) -> None:
        store, registry = SqlArtifactStore(database), SqlRegistryStore(database)
        await hold(database, "ns", "one")
        new = NewVersion(namespace="ns", model="m", manifest=manifest("one"))
        version = (await registry.publish_version(new, actor="", at=AT)).item
        model = await registry.get_model("ns", "m")
        for path, uid in (("ns/m", model.id), ("ns/m@1", version.id)):
            created = await store.create_artifact(tracked("card", uid), actor="", at=AT)
            assert created.item.parent == path
            assert (await store.create_artifact(tracked("card", path), actor="", at=AT)).existed
            for text in (path, uid):
                listed = await store.list_artifacts(parent=text, namespace="", limit=9, after=None)
                assert listed.items == (created.item,)
        await registry.delete_version("ns", "m", 1, actor="", at=AT)
        left = await store.list_artifacts(parent="", namespace="ns", limit=9, after=None)
        assert [artifact.parent for artifact in left.items] == ["ns/m"]

    async def test_files_must_be_held_by_the_objects_namespace(self, database: Database) -> None:
        store = SqlArtifactStore(database)
        run = await make_run(database)
        await hold(database, "elsewhere", "one")
        file = ArtifactFile(path="w.bin", size_bytes=3, digest=digest_of("one"))
        new = NewArtifact(parent=run, name="weights", files=(file,))
        with pytest.raises(NotFoundError, match="not uploaded to ns"):
            await store.create_artifact(new, actor="", at=AT)
        await hold(database, "ns", "one")
        created = await store.create_artifact(new, actor="", at=AT)
        stored = await store.find_artifact_file(created.item.id, "w.bin")
        assert (stored.namespace, stored.size_bytes, stored.digest) == ("ns", 3, Digest(digest_of("one")))

    async def test_artifacts_go_into_the_bin_with_their_object(self, database: Database) -> None:
        store, tracking = SqlArtifactStore(database), SqlTrackingStore(database)
        run = await make_run(database)
        await store.create_artifact(tracked("early", run), actor="", at=AT)
        await tracking.delete_objects([run], actor="", at=AT)
        await store.create_artifact(tracked("late", run), actor="", at=AT)
        assert (await store.list_artifacts(parent="", namespace="ns", limit=9, after=None)).items == ()
        assert len((await store.list_artifacts(parent=run, namespace="", limit=9, after=None)).items) == 2
        # The run and both artifacts.
        assert await tracking.restore_objects([run], actor="", at=AT) == 3
        assert len((await store.list_artifacts(parent="", namespace="ns", limit=9, after=None)).items) == 2
        await tracking.delete_objects([run], actor="", at=AT)
        purged = await tracking.purge("", LATER, batch=10, actor="", at=LATER)
        assert len(purged.ids) == 3
        query = select(func.count()).select_from(schema.artifacts)
        assert await database.read(lambda conn: conn.execute(query).scalar()) == 0

    async def test_versions_of_a_dataset_in_the_bin_are_there_with_it(self, database: Database) -> None:
        store, tracking = SqlDatasetStore(database), SqlTrackingStore(database)

        def of(location: str) -> NewDatasetVersion:
            return NewDatasetVersion(namespace="ns", dataset="digits", components=(part(location),))

        first = (await store.create_version(of("/1"), actor="", at=AT)).item
        second = (await store.create_version(of("/2"), actor="", at=AT)).item
        await tracking.delete_objects([second.id], actor="", at=AT)
        dataset = await store.get_dataset("ns/digits")
        changes = (await history(database)).revisions[-1].changes
        assert [(c.kind, c.action) for c in changes] == [("dataset_version", "deleted"), ("dataset", "updated")]
        assert (changes[1].state["latest_version"], dataset.mod_rev) == (1, changes[1].rev)
        assert (dataset.latest_version, (await store.get_version("ns/digits")).id) == (1, first.id)
        assert (await store.create_version(of("/1"), actor="", at=AT)).existed
        assert [v.version for v in (await self._versions(store)).items] == [1]
        await tracking.delete_objects([dataset.id], actor="", at=AT)
        assert (await store.create_dataset(NewDataset(namespace="ns", name="digits"), actor="", at=AT)).existed
        assert (await store.get_dataset("ns/digits")).deleted_at == AT
        assert (await store.list_datasets(namespace="ns", include_deleted=False, limit=9, after=None)).items == ()
        assert len((await store.list_datasets(namespace="ns", include_deleted=True, limit=9, after=None)).items) == 1
        # The content of what is in the bin with its dataset is known again; what was deleted before it is not.
        assert (await store.create_version(of("/1"), actor="", at=AT)).item.version == 1
        third = (await store.create_version(of("/2"), actor="", at=AT)).item
        assert (third.version, third.deleted_at) == (3, AT)
        assert await tracking.restore_objects([dataset.id], actor="", at=AT) == 3
        assert [v.version for v in (await self._versions(store)).items] == [3, 1]
        await tracking.delete_objects([third.id], actor="", at=AT)
        await tracking.purge("", LATER, batch=10, actor="", at=LATER)
        assert (await store.create_version(of("/4"), actor="", at=AT)).item.version == 4

    @staticmethod
    async def _versions(store: SqlDatasetStore) -> Listed[DatasetVersion]:
        return await store.list_versions("ns/digits", include_deleted=False, limit=9, after=None)

    async def test_a_version_says_which_checkpoint_it_came_from(self, database: Database) -> None:
        registry, lineage = SqlRegistryStore(database), SqlLineageStore(database)
        run = await make_run(database)
        checkpoint = await make_checkpoint(database, run, epoch=3)
        await hold(database, "ns", "one", "two")
        new = NewVersion(namespace="ns", model="m", manifest=manifest("one"), checkpoint=checkpoint)
        version = (await registry.publish_version(new, actor="ann", at=AT)).item
        changes = await last_changes(database)
        assert [change for change in changes if change[0] in ("version", "lineage")] == [
            ("version", "ns/m@1", "created"),
            ("lineage", f"{run}->{checkpoint}:produced", "created"),
            ("lineage", f"{checkpoint}->{version.id}:produced", "created"),
        ]
        found = await lineage.get_lineage(["ns/m@1"], up=True, down=False, max_depth=0, max_nodes=9)
        assert [(node.kind, node.depth) for node in found.nodes] == [("version", 0), ("checkpoint", 1), ("run", 2)]
        assert found.nodes[1].title.startswith("ns/digits: ")
        assert found.nodes[1].title.endswith(", epoch 3")
        before = (await history(database)).head.rev
        assert (await registry.publish_version(new, actor="ann", at=AT)).existed
        assert (await history(database)).head.rev == before

    async def test_a_version_says_which_run_made_it(self, database: Database) -> None:
        registry, lineage = SqlRegistryStore(database), SqlLineageStore(database)
        run, other = await make_run(database), await make_run(database)
        await hold(database, "ns", "one")
        plain = NewVersion(namespace="ns", model="m", manifest=manifest("one"))
        await registry.publish_version(plain, actor="", at=AT)
        for made_by in (run, other, run):
            new = NewVersion(namespace="ns", model="m", manifest=manifest("one"), run=made_by)
            assert (await registry.publish_version(new, actor="", at=AT)).existed
        found = await lineage.get_lineage(["ns/m@1"], up=True, down=False, max_depth=0, max_nodes=9)
        assert {node.id for node in found.nodes[1:]} == {run, other}
        # A checkpoint of the experiment itself has no run.
        experiment = (await SqlTrackingStore(database).get_experiment("ns/digits")).id
        alone = await make_checkpoint(database, experiment)
        new = NewVersion(namespace="ns", model="n", manifest=manifest("one"), checkpoint=alone)
        await registry.publish_version(new, actor="", at=AT)
        found = await lineage.get_lineage(["ns/n@1"], up=True, down=False, max_depth=0, max_nodes=9)
        assert [node.id for node in found.nodes[1:]] == [alone]

    async def test_where_a_version_comes_from_must_be_there_and_fit(self, database: Database) -> None:
        registry = SqlRegistryStore(database)
        run, other = await make_run(database), await make_run(database)
        checkpoint = await make_checkpoint(database, run)
        await hold(database, "ns", "one")
        before = (await history(database)).head.rev
        for origin in ({"run": new_id(ObjectKind.RUN)}, {"checkpoint": new_id(ObjectKind.CHECKPOINT)}):
            with pytest.raises(NotFoundError):
                new = NewVersion(namespace="ns", model="m", manifest=manifest("one"), **origin)  # type: ignore[arg-type]
                await registry.publish_version(new, actor="", at=AT)
        with pytest.raises(InvalidError, match="belongs to"):
            new = NewVersion(namespace="ns", model="m", manifest=manifest("one"), run=other, checkpoint=checkpoint)
            await registry.publish_version(new, actor="", at=AT)
        assert (await history(database)).head.rev == before
        with pytest.raises(NotFoundError):
            await registry.get_version(ModelRef.parse("ns/m@1"))
        new = NewVersion(namespace="ns", model="m", manifest=manifest("one"), run=run, checkpoint=checkpoint)
        await registry.publish_version(new, actor="", at=AT)

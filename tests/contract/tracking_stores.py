"""What every database must do for experiments, runs, checkpoints, attributes, the bin and deliveries.

Subclass the suite and give the fixture ``database``.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import anyio
import pytest
from sqlalchemy import func, select

from modelbox.errors import ConflictError, InvalidError, LimitError, NotFoundError, StorageError
from modelbox.feed import Change, Filter
from modelbox.objects import ArtifactFile, JsonValue, ModelPatch, NewArtifact, NewModel, NewVersion, from_json
from modelbox.refs import ModelRef
from modelbox.runtime.ports import Key
from modelbox.runtime.store import bin as bin_module
from modelbox.runtime.store import deliver as deliver_module
from modelbox.runtime.store import schema
from modelbox.runtime.store import tracking as tracking_module
from modelbox.runtime.store.artifacts import SqlArtifactStore
from modelbox.runtime.store.attributes import METRIC
from modelbox.runtime.store.bin import delete_objects, hide, unhidden
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.datasets import SqlDatasetStore
from modelbox.runtime.store.feed import SqlFeedStore
from modelbox.runtime.store.lineage import SqlLineageStore
from modelbox.runtime.store.notes import SqlNoteStore
from modelbox.runtime.store.registry import SqlRegistryStore
from modelbox.runtime.store.tracking import SqlTrackingStore
from modelbox.tracking import (
    AttributeKind,
    AttributesEdit,
    Checkpoint,
    DatasetComponent,
    Experiment,
    ExperimentPatch,
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

from .metadata_stores import AT, digest_of, history, hold, manifest

LATER = AT + timedelta(hours=1)
SPOOL = "5" * 32


async def make_run(database: Database, experiment: str = "ns/e", **given: Any) -> Run:
    """A new run."""
    new = NewRun(experiment=experiment, started_at=AT, **given)
    return (await SqlTrackingStore(database).create_run(new, actor="ann", at=AT)).item


async def last_changes(database: Database) -> list[tuple[str, str, str]]:
    """Kind, object and action of the changes of the newest revision."""
    return [(c.kind, c.object, c.action) for c in (await history(database)).revisions[-1].changes]


async def count(database: Database, table: str) -> int:
    """Rows of a table."""
    return await database.read(
        lambda conn: conn.execute(select(func.count()).select_from(schema.metadata.tables[table])).scalar_one()
    )


async def values(database: Database, uid: str, kind: AttributeKind) -> dict[str, JsonValue]:
    """Values by key of one kind."""
    return {one.key: one.value for one in await SqlTrackingStore(database).get_attributes([uid], [kind])}


async def edit(
    database: Database,
    uid: str,
    kind: AttributeKind,
    given: Mapping[str, JsonValue],
    *remove: str,
    overwrite: bool = False,
) -> int:
    """Sets and removes attributes."""
    return await SqlTrackingStore(database).set_attributes(
        AttributesEdit(object=uid, kind=kind, values=given, remove=remove, overwrite=overwrite), actor="ann", at=AT
    )


async def projected(database: Database, uid: str) -> list[tuple[str, str, JsonValue, float | None, str | None]]:
    """Everything that find knows of an object."""
    query = (
        select(schema.attributes)
        .join(schema.objects, schema.attributes.c.object_id == schema.objects.c.id)
        .where(schema.objects.c.uid == uid)
        .order_by(schema.attributes.c.kind, schema.attributes.c.key)
    )
    rows = await database.read(lambda conn: conn.execute(query).all())
    return [(row.kind, row.key, json.loads(row.value), row.number, row.text) for row in rows]


async def leaves(database: Database, uid: str) -> dict[str, JsonValue]:
    """The scalars inside nested values that find knows."""
    query = (
        select(schema.attribute_leaves)
        .join(schema.objects, schema.attribute_leaves.c.object_id == schema.objects.c.id)
        .where(schema.objects.c.uid == uid)
    )
    rows = await database.read(lambda conn: conn.execute(query).all())
    return {row.path: json.loads(row.value) for row in rows}


async def states(database: Database, wanted: Filter | None = None, limit: int = 1000) -> list[Change]:
    """Everything that a reader of the feed lists, page by page."""
    found: list[Change] = []
    after: Key | None = None
    while True:
        page = await SqlFeedStore(database).list_states(wanted or Filter(), limit=limit, after=after)
        assert len(page.items) <= limit
        found.extend(page.items)
        after = page.next_key
        if after is None:
            return found


class TrackingStoreContract:
    """`modelbox.runtime.tracking_ports.TrackingStore`."""

    # -- experiments -----------------------------------------------------------------------------------------------

    async def test_an_experiment_is_made_once(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        new = NewExperiment(namespace="ns", name="e", owner="ann", framework="torch", task="asr", external_id="x/1")
        first = await store.create_experiment(new, actor="ann", at=AT)
        again = await store.create_experiment(new, actor="bob", at=LATER)
        other = await store.create_experiment(NewExperiment(namespace="ns", name="e"), actor="bob", at=LATER)
        assert [first.existed, again.existed, other.existed] == [False, True, True]
        assert first.item == again.item == other.item
        assert (first.item.created_by, first.item.created_at, first.item.path) == ("ann", AT, "ns/e")
        assert await last_changes(database) == [("namespace", "ns", "created"), ("experiment", new.id, "created")]
        state = (await history(database)).revisions[-1].changes[-1].state
        assert from_json(Experiment, state) == first.item
        assert await store.get_experiment(new.id) == await store.get_experiment("ns/e") == first.item

    async def test_what_there_is_instead_of_an_experiment(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        await store.create_experiment(NewExperiment(namespace="ns", name="e"), actor="", at=AT)
        with pytest.raises(NotFoundError) as raised:
            await store.get_experiment("ns/other")
        assert raised.value.fields["exists"] == ["ns/e"]
        with pytest.raises(NotFoundError):
            await store.get_experiment(new_id(ObjectKind.EXPERIMENT))

    async def test_an_edit_changes_what_it_names(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        new = NewExperiment(namespace="ns", name="e", owner="ann", task="asr")
        made = (await store.create_experiment(new, actor="", at=AT)).item
        changed = await store.update_experiment("ns/e", ExperimentPatch(owner="bob"), actor="bob", at=LATER)
        assert (changed.owner, changed.task, changed.mod_rev) == ("bob", "asr", made.mod_rev + 1)
        assert await last_changes(database) == [("experiment", new.id, "updated")]
        same = await store.update_experiment(new.id, ExperimentPatch(owner="bob"), actor="", at=LATER)
        assert same == changed
        assert (await history(database)).head.rev == changed.mod_rev

    async def test_experiments_are_listed_by_path(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        for path in ("b/y", "a/z", "b/x", "a/a"):
            namespace, name = path.split("/")
            await store.create_experiment(NewExperiment(namespace=namespace, name=name), actor="", at=AT)
        found: list[str] = []
        after: Key | None = None
        while True:
            page = await store.list_experiments(namespace="", include_deleted=False, limit=3, after=after)
            found.extend(item.path for item in page.items)
            after = page.next_key
            if after is None:
                break
        assert found == ["a/a", "a/z", "b/x", "b/y"]
        one = await store.list_experiments(namespace="b", include_deleted=False, limit=9, after=None)
        assert [item.path for item in one.items] == ["b/x", "b/y"]
        none = await store.list_experiments(namespace="c", include_deleted=False, limit=9, after=None)
        assert none.items == ()

    # -- runs ------------------------------------------------------------------------------------------------------

    async def test_a_run_makes_what_it_needs_in_one_revision(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        new = NewRun(
            experiment="ns/e",
            started_at=AT - timedelta(seconds=1),
            params={"lr": 0.1, "net": {"layers": [1, 2]}},
            tags={"best": ""},
            metadata={"host": "h"},
        )
        first = await store.create_run(new, actor="ann", at=AT)
        again = await store.create_run(new, actor="bob", at=LATER)
        assert (first.existed, again.existed) == (False, True)
        assert first.item == again.item == await store.get_run(new.id)
        assert (first.item.experiment, first.item.namespace, first.item.name) == ("e", "ns", new.id[4:])
        assert (first.item.started_at, first.item.created_at) == (new.started_at, AT)
        batch = await history(database)
        assert batch.head.rev == 1
        experiment = await store.get_experiment("ns/e")
        assert first.item.experiment_id == experiment.id
        assert await last_changes(database) == [
            ("namespace", "ns", "created"),
            ("experiment", experiment.id, "created"),
            ("run", new.id, "created"),
            ("attributes", f"{new.id}/param", "created"),
            ("attributes", f"{new.id}/tag", "created"),
            ("attributes", f"{new.id}/metadata", "created"),
        ]
        assert batch.revisions[0].changes[3].state == {"object": new.id, "kind": "param", "values": dict(new.params)}
        assert from_json(Run, batch.revisions[0].changes[2].state) == first.item
        assert await values(database, new.id, AttributeKind.PARAM) == new.params
        assert await leaves(database, new.id) == {"net.layers.0": 1, "net.layers.1": 2}

    async def test_the_second_run_needs_no_experiment(self, database: Database) -> None:
        first = await make_run(database)
        second = await make_run(database, first.experiment_id)
        third = await make_run(database, "ns/e")
        assert {first.experiment_id, second.experiment_id, third.experiment_id} == {first.experiment_id}
        assert await last_changes(database) == [("run", third.id, "created")]

    async def test_a_run_of_nothing_is_refused(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        for new in (
            NewRun(experiment=new_id(ObjectKind.EXPERIMENT), started_at=AT),
            NewRun(experiment="ns/e", started_at=AT, parent_id=new_id(ObjectKind.RUN)),
        ):
            with pytest.raises(NotFoundError):
                await store.create_run(new, actor="", at=AT)
        assert await count(database, "objects") == 0
        assert (await history(database)).head.rev == 0

    async def test_how_a_run_ends_and_goes_on(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        run = await make_run(database)
        failed = await store.update_run(
            run.id, RunPatch(status=RunStatus.FAILED, reason="CUDA out of memory"), actor="", at=LATER
        )
        assert (failed.status, failed.ended_at, failed.reason) == (RunStatus.FAILED, LATER, "CUDA out of memory")
        again = await store.update_run(run.id, RunPatch(status=RunStatus.FAILED), actor="", at=LATER + timedelta(1))
        assert again == failed
        resumed = await store.update_run(run.id, RunPatch(status=RunStatus.RUNNING), actor="", at=LATER)
        assert (resumed.status, resumed.ended_at, resumed.reason) == (RunStatus.RUNNING, None, "")
        end = LATER + timedelta(minutes=3)
        done = await store.update_run(
            run.id, RunPatch(status=RunStatus.FINISHED, ended_at=end, name="good"), actor="", at=LATER
        )
        assert (done.ended_at, done.name) == (end, "good")
        assert await store.get_run(run.id) == done
        assert await last_changes(database) == [("run", run.id, "updated")]
        with pytest.raises(InvalidError):
            await store.update_run(run.id, RunPatch(status=RunStatus.RUNNING, ended_at=end), actor="", at=LATER)

    async def test_runs_are_listed_newest_first(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        first = await make_run(database)
        child = await make_run(database, parent_id=first.id)
        other = await make_run(database, "ns/other")
        far = await make_run(database, "far/e")

        async def listed(parent: str, limit: int = 2) -> list[str]:
            found: list[str] = []
            after: Key | None = None
            while True:
                page = await store.list_runs(parent, include_deleted=False, limit=limit, after=after)
                found.extend(item.id for item in page.items)
                after = page.next_key
                if after is None:
                    return found

        assert await listed("") == [far.id, other.id, child.id, first.id]
        assert await listed("ns") == [other.id, child.id, first.id]
        assert await listed("ns/e", limit=1) == [child.id, first.id]
        assert await listed(first.experiment_id) == [child.id, first.id]
        assert await listed(first.id) == [child.id]
        assert (await store.get_run(child.id)).parent_id == first.id
        with pytest.raises(NotFoundError):
            await listed("ns/none")

    async def test_a_clone_has_what_was_told_but_not_what_came_of_it(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        run = await make_run(database, params={"lr": 1}, tags={"t": "x"}, metadata={"m": [1]}, name="first")
        await edit(database, run.id, AttributeKind.LABEL, {"l": "v"})
        uid = new_id(ObjectKind.RUN)
        made = await store.clone_run(run.id, uid, "", actor="bob", at=LATER)
        again = await store.clone_run(run.id, uid, "", actor="bob", at=LATER)
        assert (made.existed, again.existed, again.item) == (False, True, made.item)
        assert (made.item.cloned_from, made.item.status, made.item.name) == (run.id, RunStatus.SCHEDULED, "first")
        for kind in AttributeKind:
            assert await values(database, uid, kind) == await values(database, run.id, kind) != {}

    # -- checkpoints -----------------------------------------------------------------------------------------------

    async def test_a_checkpoint_is_made_once_for_an_epoch(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        run = await make_run(database)
        new = NewCheckpoint(parent_id=run.id, epoch=3, step=-5, path="/x", metrics={"loss": math.nan, "acc": 1})
        first = await store.create_checkpoint(new, actor="ann", at=AT)
        again = await store.create_checkpoint(new, actor="", at=LATER)
        other = await store.create_checkpoint(NewCheckpoint(parent_id=run.id, epoch=3), actor="", at=LATER)
        assert [first.existed, again.existed, other.existed] == [False, True, True]
        assert first.item.id == again.item.id == other.item.id == new.id
        assert (first.item.step, first.item.path, first.item.metrics["acc"]) == (-5, "/x", 1.0)
        assert math.isnan((await store.get_checkpoint(new.id)).metrics["loss"])
        assert await last_changes(database) == [("checkpoint", new.id, "created")]
        state = from_json(Checkpoint, (await history(database)).revisions[-1].changes[0].state)
        assert math.isnan(state.metrics["loss"])
        assert await projected(database, new.id) == [
            (METRIC, "acc", 1.0, 1.0, None),
            (METRIC, "loss", "NaN", None, "NaN"),
        ]

    async def test_checkpoints_belong_to_runs_and_experiments(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        run = await make_run(database)
        for epoch in (2, 0, 1):
            await store.create_checkpoint(NewCheckpoint(parent_id=run.id, epoch=epoch), actor="", at=AT)
        of_experiment = NewCheckpoint(parent_id=run.experiment_id, epoch=1)
        assert not (await store.create_checkpoint(of_experiment, actor="", at=AT)).existed
        page = await store.list_checkpoints(run.id, include_deleted=False, limit=2, after=None)
        assert [item.epoch for item in page.items] == [0, 1]
        page = await store.list_checkpoints(run.id, include_deleted=False, limit=2, after=page.next_key)
        assert ([item.epoch for item in page.items], page.next_key) == ([2], None)
        with pytest.raises(InvalidError):
            await store.create_checkpoint(NewCheckpoint(parent_id=of_experiment.id, epoch=1), actor="", at=AT)
        with pytest.raises(NotFoundError):
            await store.create_checkpoint(NewCheckpoint(parent_id=new_id(ObjectKind.RUN), epoch=1), actor="", at=AT)

    # -- attributes ------------------------------------------------------------------------------------------------

    async def test_what_find_compares(self, database: Database) -> None:
        run = await make_run(database)
        given = {
            "a": 1,
            "b": 2.5,
            "c": True,
            "d": "x" * 300,
            "e": None,
            "f": {"x.y": 1, "x": {"y": 2}, "l": ["t", False]},
            "g": 10**40,
        }
        await edit(database, run.id, AttributeKind.METADATA, given)
        assert await projected(database, run.id) == [
            ("metadata", "a", 1, 1.0, None),
            ("metadata", "b", 2.5, 2.5, None),
            ("metadata", "c", True, None, "true"),
            ("metadata", "d", "x" * 300, None, "x" * 255),
            ("metadata", "e", None, None, None),
            ("metadata", "f", given["f"], None, None),
            ("metadata", "g", 10**40, 1e40, None),
        ]
        assert await leaves(database, run.id) == {"f.x.y": 1, "f.l.0": "t", "f.l.1": False}
        await edit(database, run.id, AttributeKind.METADATA, {"f": {"z": 1}}, "a")
        assert await leaves(database, run.id) == {"f.z": 1}
        await edit(database, run.id, AttributeKind.METADATA, {"f": list(range(5000))})
        assert len(await leaves(database, run.id)) == 1000
        await edit(database, run.id, AttributeKind.METADATA, {}, "f")
        assert await leaves(database, run.id) == {}
        assert "a" not in await values(database, run.id, AttributeKind.METADATA)

    async def test_a_parameter_is_overwritten_only_if_said(self, database: Database) -> None:
        run = await make_run(database, params={"lr": 0.1, "n": 1})
        rev = (await history(database)).head.rev
        assert await edit(database, run.id, AttributeKind.PARAM, {"lr": 0.1, "n": 1.0}) == 0
        with pytest.raises(ConflictError) as raised:
            await edit(database, run.id, AttributeKind.PARAM, {"new": 1, "n": True})
        assert raised.value.fields == {"object": run.id, "key": "n", "current": 1, "given": True}
        assert (await history(database)).head.rev == rev
        assert await values(database, run.id, AttributeKind.PARAM) == {"lr": 0.1, "n": 1}
        assert await edit(database, run.id, AttributeKind.PARAM, {"new": 1, "lr": 0.2}, overwrite=True) == rev + 1
        assert await last_changes(database) == [("attributes", f"{run.id}/param", "updated")]
        state = (await history(database)).revisions[-1].changes[0].state
        assert state == {"object": run.id, "kind": "param", "values": {"lr": 0.2, "n": 1, "new": 1}}
        assert await edit(database, run.id, AttributeKind.TAG, {"lr": "x"}) == rev + 2
        assert await edit(database, run.id, AttributeKind.TAG, {"lr": "y"}) == rev + 3

    async def test_a_key_that_is_set_and_removed_is_set(self, database: Database) -> None:
        run = await make_run(database, tags={"a": "1", "b": "2"})
        await edit(database, run.id, AttributeKind.TAG, {"a": "3"}, "a", "b", "c")
        assert await values(database, run.id, AttributeKind.TAG) == {"a": "3"}
        assert await edit(database, run.id, AttributeKind.TAG, {}, "c") == 0

    async def test_history_tells_every_set_and_removal(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        run = await make_run(database, tags={"a": "1"})
        await edit(database, run.id, AttributeKind.TAG, {"a": "2", "b": "x"})
        last = await edit(database, run.id, AttributeKind.TAG, {}, "a")
        first = await store.list_attribute_history(run.id, AttributeKind.TAG, key="a", limit=2, after=None)
        assert [(one.value, one.deleted, one.rev) for one in first.items] == [
            (None, True, last),
            ("2", False, last - 1),
        ]
        rest = await store.list_attribute_history(run.id, AttributeKind.TAG, key="a", limit=2, after=first.next_key)
        assert ([one.value for one in rest.items], rest.next_key) == (["1"], None)
        assert (rest.items[0].by, rest.items[0].at) == ("ann", AT)
        every = await store.list_attribute_history(run.id, AttributeKind.TAG, key="", limit=9, after=None)
        assert [one.key for one in every.items] == ["a", "b", "a", "a"]

    async def test_an_object_has_only_so_many_attributes(self, database: Database) -> None:
        run = await make_run(database, tags={f"t{number}": "" for number in range(1000)})
        with pytest.raises(LimitError):
            await edit(database, run.id, AttributeKind.TAG, {"one more": ""})
        assert await edit(database, run.id, AttributeKind.TAG, {"one more": ""}, "t0") > 0

    async def test_values_of_models_and_versions_have_one_truth(self, database: Database) -> None:
        registry = SqlRegistryStore(database)
        model = (
            await registry.create_model(
                NewModel(namespace="ns", name="m", labels={"a": "1"}, metadata={"x": {"y": 1}}), actor="", at=AT
            )
        ).item
        assert await values(database, "ns/m", AttributeKind.LABEL) == {"a": "1"}
        assert await leaves(database, model.id) == {"x.y": 1}
        rev = await edit(database, "ns/m", AttributeKind.LABEL, {"b": "2"}, "a")
        changed = await registry.get_model("ns", "m")
        assert (changed.labels, changed.mod_rev) == ({"b": "2"}, rev)
        assert await last_changes(database) == [("model", "ns/m", "updated")]
        assert await edit(database, model.id, AttributeKind.LABEL, {"b": "2"}) == 0
        await registry.update_model("ns", "m", ModelPatch(remove_metadata=("x",)), actor="", at=AT)
        assert await leaves(database, model.id) == {}
        await hold(database, "ns", "one")
        new = NewVersion(namespace="ns", model="m", manifest=manifest("one"), metrics={"wer": 0.1}, labels={"l": ""})
        version = (await registry.publish_version(new, actor="bob", at=AT)).item
        assert await projected(database, version.id) == [
            ("label", "l", "", None, ""),
            (METRIC, "wer", 0.1, 0.1, None),
        ]
        await edit(database, "ns/m@1", AttributeKind.METADATA, {"k": [1]})
        assert (await registry.get_version(ModelRef.parse("ns/m@1"))).metadata == {"k": [1]}
        await edit(database, version.id, AttributeKind.PARAM, {"p": 1})
        assert await values(database, "ns/m@1", AttributeKind.PARAM) == {"p": 1}
        await registry.delete_model("ns", "m", actor="", at=AT)
        for table in ("attributes", "attribute_leaves", "attribute_history"):
            assert await count(database, table) == 0
        assert await count(database, "objects") == 1

    async def test_values_of_an_artifact_have_one_truth(self, database: Database) -> None:
        await hold(database, "ns", "one")
        artifacts = SqlArtifactStore(database)
        file = ArtifactFile(path="f", size_bytes=3, digest=digest_of("one"))
        new = NewArtifact(parent="ns", name="a", files=(file,), labels={"a": "1"})
        made = (await artifacts.create_artifact(new, actor="", at=AT)).item
        rev = await edit(database, made.id, AttributeKind.LABEL, {"b": "2"})
        changed = await artifacts.get_artifact(made.id)
        assert (changed.labels, changed.mod_rev) == ({"a": "1", "b": "2"}, rev)
        assert await last_changes(database) == [("artifact", made.id, "updated")]
        await artifacts.delete_artifact(made.id, actor="", at=AT)
        assert await count(database, "attributes") == 0

    async def test_attributes_of_several_objects(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        one, two = await make_run(database, tags={"b": "", "a": ""}), await make_run(database, params={"p": 1})
        await edit(database, "ns", AttributeKind.LABEL, {"n": "x"})
        found = await store.get_attributes([two.id, "ns", one.id, two.id], [])
        assert [(item.object[:3], item.kind.value, item.key) for item in found] == [
            ("run", "param", "p"),
            ("nsp", "label", "n"),
            ("run", "tag", "a"),
            ("run", "tag", "b"),
        ]
        assert [item.object for item in await store.get_attributes([two.id, one.id], [AttributeKind.PARAM])] == [two.id]
        with pytest.raises(NotFoundError):
            await store.get_attributes([one.id, new_id(ObjectKind.RUN)], [])

    async def test_objects_are_found_by_all_their_names(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        run = await make_run(database)
        await SqlRegistryStore(database).create_model(NewModel(namespace="ns", name="m"), actor="", at=AT)
        names = [run.id, "ns", "ns/m", "ns/none", "none", new_id(ObjectKind.RUN), "not a name", run.experiment_id]
        found = await store.find_objects(names)
        assert set(found) == {run.id, "ns", "ns/m", run.experiment_id}
        assert found[run.id] == run.id
        assert found["ns/m"].startswith("mdl_")

    # -- the bin ---------------------------------------------------------------------------------------------------

    async def test_what_is_deleted_takes_what_is_below_along(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        run = await make_run(database, tags={"a": ""})
        child = await make_run(database, "ns/other", parent_id=run.id)
        point = (await store.create_checkpoint(NewCheckpoint(parent_id=child.id, epoch=1), actor="", at=AT)).item
        gone = await make_run(database)
        assert await store.delete_objects([gone.id], actor="ann", at=AT) == 1
        assert await store.delete_objects([run.experiment_id, run.id], actor="bob", at=LATER) == 4
        assert await last_changes(database) == [("experiment", run.experiment_id, "deleted")]
        assert await store.delete_objects([run.id], actor="", at=LATER) == 0
        for uid in (run.id, child.id):
            assert (await store.get_run(uid)).deleted_at == LATER
        assert (await store.get_checkpoint(point.id)).deleted_at == LATER
        assert (await store.get_run(gone.id)).deleted_at == AT
        assert (await store.list_runs("ns", include_deleted=False, limit=9, after=None)).items == ()
        assert len((await store.list_runs("ns", include_deleted=True, limit=9, after=None)).items) == 3
        assert [change.kind for change in await states(database)] == ["namespace", "experiment"]
        with pytest.raises(ConflictError) as raised:
            await store.restore_objects([child.id], actor="", at=LATER)
        assert raised.value.fields["held_by"] == [run.experiment_id]
        with pytest.raises(ConflictError):
            await store.restore_objects([gone.id], actor="", at=LATER)
        assert await store.restore_objects([run.experiment_id], actor="", at=LATER) == 4
        assert await last_changes(database) == [("experiment", run.experiment_id, "restored")]
        assert (await store.get_run(child.id)).deleted_at is None
        assert (await store.get_run(gone.id)).deleted_at == AT
        assert await store.restore_objects([gone.id, run.id], actor="", at=LATER) == 1

    async def test_the_bin_takes_all_or_nothing(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        run = await make_run(database)
        await SqlRegistryStore(database).create_model(NewModel(namespace="ns", name="m"), actor="", at=AT)
        model = (await store.find_objects(["ns/m"]))["ns/m"]
        with pytest.raises(NotFoundError):
            await store.delete_objects([run.id, new_id(ObjectKind.RUN)], actor="", at=AT)
        with pytest.raises(InvalidError):
            await store.delete_objects([run.id, model], actor="", at=AT)
        assert (await store.get_run(run.id)).deleted_at is None

    async def test_a_run_in_the_bin_goes_on_recording(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        run = await make_run(database)
        await store.delete_objects([run.experiment_id], actor="", at=AT)
        await edit(database, run.id, AttributeKind.PARAM, {"p": 1})
        point = await store.create_checkpoint(NewCheckpoint(parent_id=run.id, epoch=1), actor="", at=LATER)
        other = await make_run(database, "ns/e")
        ended = await store.update_run(run.id, RunPatch(status=RunStatus.FINISHED), actor="", at=LATER)
        assert ended.deleted_at == point.item.deleted_at == other.deleted_at == AT
        again = await store.create_experiment(NewExperiment(namespace="ns", name="e"), actor="", at=LATER)
        assert (again.existed, again.item.deleted_at) == (True, AT)
        assert await store.restore_objects([run.experiment_id], actor="", at=LATER) == 4
        assert (await store.get_run(run.id)).status is RunStatus.FINISHED
        assert (await store.get_run(other.id)).deleted_at is None
        assert (await store.get_checkpoint(point.item.id)).deleted_at is None

    async def test_much_goes_into_the_bin_in_parts(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bin_module, "_AT_ONCE", 3)
        monkeypatch.setattr(tracking_module, "_HIDE_AT_ONCE", 2)
        store = SqlTrackingStore(database)
        tree = [await make_run(database, "ns/many") for _ in range(4)]
        for _ in range(2):
            tree += [await make_run(database, "ns/many", parent_id=run.id) for run in tree]
        for run in tree[:3]:
            await store.create_checkpoint(NewCheckpoint(parent_id=run.id, epoch=0), actor="", at=AT)
        experiment = tree[0].experiment_id
        everything = 1 + len(tree) + 3

        async def live() -> int:
            return len((await store.list_runs("ns/many", include_deleted=False, limit=100, after=None)).items)

        # To its end; asked for together with something far below.
        count = await store.delete_objects([experiment, tree[-1].id], actor="ann", at=AT)
        assert (count, await live()) == (everything, 0)
        assert await store.finish_deletions() == 0
        assert await store.restore_objects([experiment], actor="ann", at=AT) == everything
        assert await live() == len(tree)

        # Broken off behind the first part, and gone on with by the next server.
        first, left = await database.write(lambda conn: delete_objects(conn, [experiment], actor="ann", at=AT))
        assert (first, len(left)) == (4, 1)
        assert await live() > 0
        late = await make_run(database, "ns/many", parent_id=tree[-1].id)
        assert (await store.get_run(late.id)).deleted_at is not None
        assert await store.finish_deletions() == everything - 4
        assert await live() == 0
        assert await store.finish_deletions() == 0
        assert await store.restore_objects([experiment], actor="ann", at=AT) == everything + 1

        # Taken back before it came to its end: what follows does nothing.
        _, (deletion,) = await database.write(lambda conn: delete_objects(conn, [experiment], actor="ann", at=LATER))
        rest = await database.read(lambda conn: unhidden(conn, deletion))
        assert await store.restore_objects([experiment], actor="ann", at=LATER) == 4
        assert await database.write(lambda conn: hide(conn, deletion, rest)) is None
        assert await store.finish_deletions() == 0
        assert await live() == len(tree) + 1

    async def test_a_purge_leaves_nothing(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        kept = await make_run(database, "ns/kept", tags={"k": ""})
        empty = {table: await count(database, table) for table in schema.metadata.tables}
        run = await make_run(database, params={"p": {"q": 1}})
        child = await make_run(database, "ns/kept", parent_id=run.id)
        await make_run(database, "ns/kept", cloned_from=run.id)
        await store.create_checkpoint(NewCheckpoint(parent_id=child.id, epoch=1, metrics={"a": 1.0}), actor="", at=AT)
        notes = SqlNoteStore(database)
        await notes.log_event(NewEvent(object=run.id, name="n", at=AT), actor="", at=AT)
        await notes.add_comment(NewComment(object=child.id, text="t"), actor="", at=AT)
        await notes.set_readme(ReadmeEdit(object=run.id, text="r"), actor="", at=AT)
        edges = NewEdges(edges=(NewEdge(source=kept.id, target=run.id, type="derived"),))
        await SqlLineageStore(database).add_edges(edges, actor="", at=AT)
        new = NewDatasetVersion(namespace="ns", dataset="d", components=(DatasetComponent(type="path", location="/x"),))
        data = (await SqlDatasetStore(database).create_version(new, actor="", at=AT)).item
        await store.delete_objects([run.experiment_id, data.dataset_id], actor="", at=AT)
        assert await store.count_purgeable("", AT) == 0
        assert await store.count_purgeable("ns", LATER) == 6
        assert await store.count_purgeable("none", LATER) == 0
        gone: set[str] = set()
        while True:
            batch = await store.purge("ns", LATER, batch=1, actor="op", at=LATER)
            gone |= set(batch.ids)
            if not batch.more:
                break
        assert {run.id, child.id, run.experiment_id, data.id, data.dataset_id} < gone
        assert len(gone) == 6
        clone = (await store.list_runs("ns/kept", include_deleted=True, limit=1, after=None)).items[0]
        assert clone.cloned_from == run.id
        after = {table: await count(database, table) for table in schema.metadata.tables}
        changed = {table for table in empty if after[table] != empty[table]}
        # Besides the feed: the clone, which stays.
        assert changed == {"feed_changes", "objects", "runs"}
        assert (after["objects"], after["runs"]) == (empty["objects"] + 1, empty["runs"] + 1)
        with pytest.raises(NotFoundError):
            await store.get_run(run.id)
        fresh = await make_run(database, "ns/e")
        number = select(schema.objects.c.id).where(schema.objects.c.uid == fresh.id)
        assert await database.read(lambda conn: conn.execute(number).scalar_one()) > len(gone) + 3

    # -- deliveries ------------------------------------------------------------------------------------------------

    async def test_a_delivery_is_carried_out_once(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        run = NewRun(experiment="ns/e", started_at=AT)
        payloads: list[OperationPayload] = [
            NewExperiment(namespace="ns", name="e"),
            run,
            RunEdit(id=run.id, patch=RunPatch(name="n")),
            NewCheckpoint(parent_id=run.id, epoch=0),
            AttributesEdit(object=run.id, kind=AttributeKind.PARAM, values={"lr": 1}),
            NewEvent(object=run.id, name="ev", at=AT),
            NewComment(object=run.id, text="c"),
            NewDatasetVersion(namespace="ns", dataset="d", components=(DatasetComponent(type="path", location="/x"),)),
            ReadmeEdit(object=run.id, text="r"),
        ]
        data = payloads[7]
        assert isinstance(data, NewDatasetVersion)
        payloads.append(NewEdges(edges=(NewEdge(source=data.id, target=run.id, type="used"),)))
        assert {type(payload) for payload in payloads} == set(deliver_module._APPLY)
        operations = [Operation(seq=2 * number + 1, payload=payload) for number, payload in enumerate(payloads)]
        assert await store.deliver(SPOOL, 1, 19, operations, actor="ann", at=AT) == ()
        rev = (await history(database)).head.rev
        assert rev == len(payloads)
        assert await store.deliver(SPOOL, 1, 19, operations, actor="ann", at=LATER) == ()
        assert (await history(database)).head.rev == rev
        # What somebody changed in between stays changed when the same comes again.
        await store.update_run(run.id, RunPatch(name="other"), actor="", at=AT)
        more = [*operations, Operation(seq=20, payload=RunEdit(id=run.id, patch=RunPatch(status=RunStatus.FINISHED)))]
        assert await store.deliver(SPOOL, 1, 20, more, actor="ann", at=LATER) == ()
        now = await store.get_run(run.id)
        assert (now.name, now.status) == ("other", RunStatus.FINISHED)

    async def test_what_can_never_succeed_holds_up_nothing(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        run = NewRun(experiment="ns/e", started_at=AT, params={"lr": 1})
        payloads: list[OperationPayload] = [
            NewCheckpoint(parent_id=new_id(ObjectKind.RUN), epoch=0),
            run,
            AttributesEdit(object=run.id, kind=AttributeKind.PARAM, values={"a": 1, "lr": 2}),
            AttributesEdit(object=run.id, kind=AttributeKind.PARAM, values={"b": 1}),
        ]
        operations = [Operation(seq=number, payload=payload) for number, payload in enumerate(payloads, start=7)]
        refused = await store.deliver(SPOOL, 1, 10, operations, actor="", at=AT)
        assert [(one.seq, one.code) for one in refused] == [(7, "not_found"), (9, "conflict")]
        assert "lr" in refused[1].message
        assert await values(database, run.id, AttributeKind.PARAM) == {"lr": 1, "b": 1}
        await history(database)

    async def test_what_was_refused_is_told_again_to_who_lost_the_answer(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        run = (await make_run(database)).id

        def unknown(first: int, count: int) -> list[Operation]:
            bad = NewCheckpoint(parent_id=new_id(ObjectKind.RUN), epoch=0)
            good = AttributesEdit(object=run, kind=AttributeKind.TAG, values={"a": ""})
            return [Operation(seq=seq, payload=bad if seq % 2 else good) for seq in range(first, first + count)]

        async def seqs(first: int, upto: int, operations: Sequence[Operation]) -> list[int]:
            refused = await store.deliver(SPOOL, first, upto, operations, actor="", at=AT)
            assert {one.code for one in refused} <= {"not_found"}
            return [one.seq for one in refused]

        # One delivery in two parts, the second of them after a break; then all of it again, and a part.
        early, late = unknown(1, 4), unknown(5, 4)
        assert await seqs(1, 4, early) == [1, 3]
        assert await seqs(1, 4, early) == [1, 3]
        assert await seqs(1, 8, late) == [5, 7]
        assert await seqs(1, 4, early) == [1, 3]
        assert await seqs(1, 8, late) == [5, 7]
        # The next one has nothing to do with it.
        assert await seqs(9, 12, unknown(9, 4)) == [9, 11]
        assert await seqs(1, 8, late) == []
        many = unknown(13, 3000)
        assert await seqs(13, 3012, many) == [*range(13, 3013, 2)]
        assert await seqs(13, 3012, many) == [*range(13, 3013, 2)][-1000:]

    async def test_our_own_fault_is_told_and_holds_up_nothing(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(conn: object, new: NewExperiment, **_: object) -> None:
            raise KeyError(new.name)

        monkeypatch.setitem(deliver_module._APPLY, NewExperiment, broken)
        run = NewRun(experiment="ns/e", started_at=AT)
        operations = [
            Operation(seq=1, payload=NewExperiment(namespace="ns", name="x")),
            Operation(seq=2, payload=run),
        ]
        refused = await SqlTrackingStore(database).deliver(SPOOL, 1, 2, operations, actor="", at=AT)
        assert [(one.seq, one.code) for one in refused] == [(1, "modelbox")]
        assert (await SqlTrackingStore(database).get_run(run.id)).experiment == "e"

    async def test_what_may_succeed_later_fails_the_whole(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(conn: object, new: NewEvent, **_: object) -> None:
            raise StorageError("the disk is gone for a while")

        store = SqlTrackingStore(database)
        run = NewRun(experiment="ns/e", started_at=AT)
        operations = [Operation(seq=1, payload=run), Operation(seq=2, payload=NewEvent(object="ns", name="n", at=AT))]
        with monkeypatch.context() as patched:
            patched.setitem(deliver_module._APPLY, NewEvent, failing)
            with pytest.raises(StorageError):
                await store.deliver(SPOOL, 1, 2, operations, actor="", at=AT)
        assert await count(database, "runs") == await count(database, "spools") == 0
        assert await store.deliver(SPOOL, 1, 2, operations, actor="", at=AT) == ()
        assert await count(database, "events") == 1

    async def test_deliveries_of_many_at_once(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        run = await make_run(database)

        async def push(number: int) -> None:
            for seq in range(1, 6):
                edit_ = AttributesEdit(object=run.id, kind=AttributeKind.TAG, values={f"{number}.{seq}": "x"})
                for _ in range(2):
                    await store.deliver(
                        f"{number:032x}", seq, seq, [Operation(seq=seq, payload=edit_)], actor="", at=AT
                    )

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(push, number)
        assert len(await values(database, run.id, AttributeKind.TAG)) == 40
        assert (await history(database)).head.rev == 41

    # -- the feed --------------------------------------------------------------------------------------------------

    async def test_what_is_listed_is_what_was_told(self, database: Database) -> None:
        store = SqlTrackingStore(database)
        run = await make_run(database, params={"p": 1}, tags={"a": ""}, metadata={"m": 1})
        await store.create_checkpoint(NewCheckpoint(parent_id=run.id, epoch=1, metrics={"x": 1.0}), actor="", at=AT)
        await make_run(database, "far/e", tags={"b": ""})
        await SqlRegistryStore(database).create_model(
            NewModel(namespace="ns", name="m", labels={"l": ""}), actor="", at=AT
        )
        await edit(database, "ns/m", AttributeKind.TAG, {"t": ""})
        await SqlNoteStore(database).set_readme(ReadmeEdit(object=run.id, text="r"), actor="", at=AT)
        new = NewDatasetVersion(namespace="ns", dataset="d", components=(DatasetComponent(type="path", location="/x"),))
        await SqlDatasetStore(database).create_version(new, actor="", at=AT)
        newest = {
            (change.kind, change.object): change
            for revision in (await history(database)).revisions
            for change in revision.changes
        }
        for limit in (1, 2, 1000):
            listed = await states(database, limit=limit)
            assert {(item.kind, item.object) for item in listed} == set(newest)
            assert len(listed) == len(newest)
            for item in listed:
                assert (item.state, item.rev) == (newest[item.kind, item.object].state, item.rev)

        async def seen(**parts: Any) -> list[tuple[str, str]]:
            return [(item.kind, item.object) for item in await states(database, Filter(**parts))]

        assert await seen(objects=(run.id,)) == [
            ("run", run.id),
            ("attributes", f"{run.id}/param"),
            ("attributes", f"{run.id}/tag"),
            ("attributes", f"{run.id}/metadata"),
            ("readme", f"{run.id}/readme"),
        ]
        assert await seen(objects=(f"{run.id}/tag",)) == [("attributes", f"{run.id}/tag")]
        assert [kind for kind, _ in await seen(namespace="far")] == ["namespace", "experiment", "run", "attributes"]
        assert [kind for kind, _ in await seen(kinds=("run", "readme"))] == ["run", "run", "readme"]

    async def test_any_edits_against_a_plain_dictionary(self, database: Database) -> None:
        chance = random.Random(3)
        run = await make_run(database)
        plain: dict[AttributeKind, dict[str, JsonValue]] = {kind: {} for kind in AttributeKind}
        told: dict[str, JsonValue] = {}
        for _ in range(120):
            kind = chance.choice(list(AttributeKind))
            textual = kind in (AttributeKind.TAG, AttributeKind.LABEL)
            choices: Sequence[JsonValue] = (
                ["", "x", "é" * 3] if textual else [0, 1, 1.5, True, False, None, "1", [1, {"a": None}], {"b": [True]}]
            )
            given = {chance.choice("abcdef"): chance.choice(choices) for _ in range(chance.randrange(3))}
            remove = [chance.choice("abcdef") for _ in range(chance.randrange(3))]
            await edit(database, run.id, kind, given, *remove, overwrite=True)
            plain[kind] = {key: value for key, value in plain[kind].items() if key not in remove} | given
        for kind in AttributeKind:
            assert json.dumps(await values(database, run.id, kind), sort_keys=True) == json.dumps(
                plain[kind], sort_keys=True
            )
        for revision in (await history(database)).revisions:
            for change in revision.changes:
                if change.kind == "attributes":
                    told[change.object] = change.state["values"]
        assert json.dumps(told, sort_keys=True) == json.dumps(
            {f"{run.id}/{kind.value}": found for kind, found in plain.items()}, sort_keys=True
        )
        expected: dict[str, JsonValue] = {}

        def walk(path: str, value: JsonValue) -> None:
            if isinstance(value, dict):
                for key, inner in value.items():
                    walk(f"{path}.{key}", inner)
            elif isinstance(value, list):
                for place, inner in enumerate(value):
                    walk(f"{path}.{place}", inner)
            else:
                expected[path] = value

        for kind in (AttributeKind.PARAM, AttributeKind.METADATA):
            for key, value in plain[kind].items():
                if isinstance(value, dict | list):
                    walk(key, value)
        found = await leaves(database, run.id)
        assert found.keys() == expected.keys()

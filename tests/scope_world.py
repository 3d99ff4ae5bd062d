"""A server's contents in several namespaces, with who owns what written down beside it.

What may be seen of it is judged here by itself: nothing of the server's own rules is asked.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from modelbox.access import Scope
from modelbox.feed import Action, Change, Kind
from modelbox.objects import ArtifactFile, InstanceReport, InstanceState, NewArtifact, NewVersion
from modelbox.retention import Retained, RetentionPolicy
from modelbox.runtime.store.artifacts import SqlArtifactStore
from modelbox.runtime.store.database import MainDatabase
from modelbox.runtime.store.datasets import SqlDatasetStore
from modelbox.runtime.store.fleet import SqlFleetStore
from modelbox.runtime.store.lineage import SqlLineageStore
from modelbox.runtime.store.notes import SqlNoteStore
from modelbox.runtime.store.registry import SqlRegistryStore
from modelbox.runtime.store.retention import SqlRetentionStore
from modelbox.runtime.store.space import SqlSpaceStore
from modelbox.runtime.store.tracking import SqlTrackingStore
from modelbox.runtime.store.writing import Writing
from modelbox.tracking import (
    AttributeKind,
    AttributesEdit,
    DatasetComponent,
    NewCheckpoint,
    NewComment,
    NewDatasetVersion,
    NewEdge,
    NewEdges,
    NewEvent,
    NewRun,
    ReadmeEdit,
)
from tests.contract.metadata_stores import hold, manifest

__all__ = ("AT", "CASES", "Allowed", "ScopeWorld", "build_world")

AT = datetime(2026, 5, 3, 12, tzinfo=UTC)
NAMESPACES = ("alpha", "beta", "gamma")
MODELS = ("m", "n")

Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Allowed:
    """Which places somebody may see, as the tests judge it.

    Attributes:
        whole: Namespaces.
        alone: Models of other namespaces.
        admin_of: Namespaces where access may be seen.
        all: Everything; then the first two are empty.
    """

    name: str
    whole: frozenset[str] = frozenset()
    alone: frozenset[Place] = frozenset()
    admin_of: frozenset[str] = frozenset()
    all: bool = False

    @property
    def scope(self) -> Scope:
        """The same for the server."""
        return Scope(everything=self.all, namespaces=self.whole, models=self.alone, administers=self.admin_of)

    def sees(self, namespace: str, model: str = "") -> bool:
        """Whether what is there may be seen; what is of no model has an empty one."""
        return self.all or namespace in self.whole or (model != "" and (namespace, model) in self.alone)

    def names(self, namespace: str) -> bool:
        """Whether the namespace may be known by name."""
        return self.all or namespace in self.whole or namespace in {one for one, _ in self.alone}


CASES = (
    Allowed("nothing"),
    Allowed("what is not there", frozenset({"delta"}), frozenset({("alpha", "zzz")})),
    Allowed("one namespace", frozenset({"alpha"})),
    Allowed("two namespaces", frozenset({"alpha", "gamma"})),
    Allowed("an admin of one", frozenset({"beta"}), frozenset(), frozenset({"beta"})),
    Allowed("one model", frozenset(), frozenset({("beta", "m")})),
    Allowed("a namespace and models", frozenset({"gamma"}), frozenset({("alpha", "m"), ("beta", "n")})),
    Allowed("all namespaces", frozenset(NAMESPACES)),
    Allowed("a reader of everything", all=True),
)


@dataclass(slots=True)
class ScopeWorld:
    """What was made.

    Attributes:
        places: Namespace and model of each object, event and comment, by id; also of what was deleted.
        runs: Their ids by namespace.
        edges: Source and target of each edge.
        objects: Ids in the order in which they were made.
    """

    database: MainDatabase
    places: dict[str, Place] = field(default_factory=dict)
    runs: dict[str, list[str]] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)

    def shows(self, allowed: Allowed, change: Change) -> bool:
        """Whether a change of the feed may be seen."""
        state = change.state
        assert isinstance(state, Mapping)
        match change.kind:
            case "access" | "rule" | "denial":
                return change.namespace in allowed.admin_of if change.namespace else "" in allowed.admin_of
            case "namespace":
                return allowed.names(change.namespace)
            case "model":
                return allowed.sees(change.namespace, str(state["name"]))
            case "version" | "alias" | "download":
                return allowed.sees(change.namespace, str(state["model"]))
            case "lineage":
                ends = (self.places[str(state["source"])], self.places[str(state["target"])])
                return all(allowed.sees(*place) for place in ends)
            case "attributes" | "readme":
                return allowed.sees(*self.places[str(state["object"])])
            case _:
                return allowed.sees(*self.places[str(state["id"])])


async def build_world(database: MainDatabase) -> ScopeWorld:
    """Three namespaces with two models each, and something of every kind at each of them."""
    world = ScopeWorld(database)
    for number, namespace in enumerate(NAMESPACES):
        await _add_tracking(world, namespace, number)
        for place, model in enumerate(MODELS):
            await _add_model(world, namespace, model, 2 * number + place)
        await _annotate(world, namespace, (namespace, ""))
        await SqlSpaceStore(database).set_quota(namespace, 10_000 + number, actor="ann")
        for kind in (Retained.VERSIONS, Retained.RUNS):
            policy = RetentionPolicy(scope=namespace, kind=kind, keep_last=1)
            await SqlRetentionStore(database).set_policy(policy, actor="ann")
    await _add_edges(world)
    await database.write(_note_access)
    await SqlTrackingStore(database).delete_objects([world.runs["beta"][0]], actor="ann", at=AT)
    return world


async def _add_tracking(world: ScopeWorld, namespace: str, number: int) -> None:
    tracking = SqlTrackingStore(world.database)
    runs = world.runs[namespace] = []
    for place in range(3):
        # The last one is below a run of another namespace.
        above = [run for other in NAMESPACES[:number] for run in world.runs[other]][-1:] if place == 2 else runs[:1]
        new = NewRun(
            experiment=f"{namespace}/e{place % 2}",
            started_at=AT + timedelta(minutes=7 * place + number),
            parent_id=above[0] if above else "",
            params={"lr": 0.1 * (3 * place + number), "deep": {"a": place}},
            tags={"team": namespace},
        )
        run = (await tracking.create_run(new, actor="ann", at=AT)).item
        runs.append(run.id)
        _place(world, run.experiment_id, (namespace, ""))
        _place(world, run.id, (namespace, ""))
    checkpoint = NewCheckpoint(parent_id=runs[1], epoch=number, metrics={"loss": float(number)})
    _place(world, (await tracking.create_checkpoint(checkpoint, actor="ann", at=AT)).item.id, (namespace, ""))
    datasets = SqlDatasetStore(world.database)
    for place in range(2):
        component = DatasetComponent(type="path", location=f"/{place}")
        new_version = NewDatasetVersion(namespace=namespace, dataset="d", components=(component,))
        version = (await datasets.create_version(new_version, actor="ann", at=AT)).item
        _place(world, version.id, (namespace, ""))
        _place(world, version.dataset_id, (namespace, ""))
    await _annotate(world, runs[0], (namespace, ""))
    await _attach(world, runs[1], (namespace, ""))


async def _add_model(world: ScopeWorld, namespace: str, model: str, number: int) -> None:
    registry, path = SqlRegistryStore(world.database), f"{namespace}/{model}"
    at_place = (namespace, model)
    for place in range(3):
        content = f"{path} {place}"
        await hold(world.database, namespace, content)
        new = NewVersion(
            namespace=namespace,
            model=model,
            manifest=manifest(content),
            labels={"from": f"{number}"},
            metadata={"n": number},
            metrics={"accuracy": ((number * 5 + place * 3) % 11) / 10},
            aliases=("prod",) if place == 0 else (),
            run=world.runs[namespace][0] if place == 1 else "",
        )
        version = (await registry.publish_version(new, actor="ann", at=AT)).item
        if place == 0:
            _place(world, (await registry.get_model(namespace, model)).id, at_place)
        _place(world, version.id, at_place)
        if place == 1:
            world.edges.append((world.runs[namespace][0], version.id))
            await _annotate(world, f"{path}@2", at_place)
            await _attach(world, f"{path}@2", at_place)
        if place == 2:
            # What is gone stays in history.
            await registry.delete_version(namespace, model, version.version, actor="ann", at=AT)
    artifacts, artifact = SqlArtifactStore(world.database), await _attach(world, path, at_place)
    await _annotate(world, artifact, at_place)
    gone = await _attach(world, path, at_place, name="gone")
    await artifacts.delete_artifact(gone, actor="ann", at=AT)
    world.objects.remove(gone)
    await _annotate(world, path, at_place)
    newest = (await registry.list_versions(namespace, model, limit=1, after=None)).items[0]
    await artifacts.begin_download(newest.ref, actor="ann", at=AT)
    retention = SqlRetentionStore(world.database)
    await retention.lock_version(namespace, model, 1, reason="kept", actor="ann")
    await retention.set_policy(RetentionPolicy(scope=path, keep_last=2), actor="ann")
    report = InstanceReport(
        instance_id=f"i{number}", host="h", pid=1, ref=f"{path}@prod", state=InstanceState.ACTIVE, version=1
    )
    await SqlFleetStore(world.database).report([report], at=AT, forget_before=AT - timedelta(days=7))


async def _attach(world: ScopeWorld, parent: str, place: Place, *, name: str = "files") -> str:
    file = ArtifactFile(path="f", size_bytes=1, digest=manifest("x").files[0].digest, media_type="", uri="s3://b/f")
    new = NewArtifact(parent=parent, name=name, files=(file,))
    made = (await SqlArtifactStore(world.database).create_artifact(new, actor="ann", at=AT)).item
    _place(world, made.id, place)
    return made.id


async def _annotate(world: ScopeWorld, name: str, place: Place) -> None:
    """Says something of every kind about an object."""
    notes, tracking = SqlNoteStore(world.database), SqlTrackingStore(world.database)
    new_event = NewEvent(object=name, name="seen", at=AT + timedelta(seconds=len(world.places)), metadata={"n": 1})
    event = (await notes.log_event(new_event, actor="ann", at=AT)).item
    comment = (await notes.add_comment(NewComment(object=name, text="hm"), actor="ann", at=AT)).item
    await notes.set_readme(ReadmeEdit(object=name, text="# read"), actor="ann", at=AT)
    edit = AttributesEdit(object=name, kind=AttributeKind.TAG, values={"color": f"c{len(world.places) % 4}"})
    await tracking.set_attributes(edit, actor="ann", at=AT)
    world.places |= {event.id: place, comment.id: place, event.object: place}


async def _add_edges(world: ScopeWorld) -> None:
    """Edges from what is older to what is younger, in and between namespaces."""
    rng = random.Random(11)
    lineage = SqlLineageStore(world.database)
    alive = await SqlTrackingStore(world.database).find_objects(world.objects)
    names = [name for name in world.objects if name in alive]
    for _ in range(45):
        first, second = sorted(rng.sample(range(len(names)), 2))
        edge = (names[first], names[second])
        if edge in world.edges or (names[second], names[first]) in world.edges:
            continue
        new = NewEdges(edges=(NewEdge(source=edge[0], target=edge[1], type="made"),))
        await lineage.add_edges(new, actor="ann", at=AT)
        world.edges.append(edge)


def _note_access(conn: Connection) -> None:
    """Changes of access, as they are in the feed."""
    for namespace in ("", *NAMESPACES):
        for kind in (Kind.ACCESS, Kind.RULE, Kind.DENIAL):
            writing = Writing(conn, actor="root", at=AT)
            writing.note(namespace, "account:ada", kind, Action.UPDATED, {"name": "ada"})
            writing.finish()


def _place(world: ScopeWorld, uid: str, place: Place) -> None:
    if uid not in world.places:
        world.places[uid] = place
        world.objects.append(uid)

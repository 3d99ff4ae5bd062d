"""Something in every table, made through the services, for tests of copies: and what two databases have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy import Connection, Table, func, select

from modelbox.access import Caller, Grant, Role
from modelbox.accounts import AccountPatch, NewToken
from modelbox.errors import ApprovalNeeded
from modelbox.manifest import Manifest, ManifestFile
from modelbox.objects import ArtifactFile, InstanceReport, InstanceState, NewArtifact, NewVersion, VersionPatch
from modelbox.refs import ModelRef
from modelbox.rules import Rule
from modelbox.runtime.moving.tables import copied_tables, last_id
from modelbox.runtime.ports import BlobStore
from modelbox.runtime.services.access import AccessService
from modelbox.runtime.services.artifacts import ArtifactService
from modelbox.runtime.services.datasets import DatasetService
from modelbox.runtime.services.fleet import FleetService
from modelbox.runtime.services.lineage import LineageService
from modelbox.runtime.services.metrics import MetricService
from modelbox.runtime.services.notes import NoteService
from modelbox.runtime.services.registry import RegistryService
from modelbox.runtime.services.rules import RuleService
from modelbox.runtime.services.tracking import TrackingService
from modelbox.runtime.store.access import SqlAccessStore
from modelbox.runtime.store.approvals import SqlRuleStore
from modelbox.runtime.store.artifacts import SqlArtifactStore
from modelbox.runtime.store.database import MainDatabase
from modelbox.runtime.store.datasets import SqlDatasetStore
from modelbox.runtime.store.fleet import SqlFleetStore
from modelbox.runtime.store.history import verify_chain
from modelbox.runtime.store.lineage import SqlLineageStore
from modelbox.runtime.store.metrics import SqlMetricStore
from modelbox.runtime.store.notes import SqlNoteStore
from modelbox.runtime.store.registry import SqlRegistryStore
from modelbox.runtime.store.schema import feed_head
from modelbox.runtime.store.tracking import SqlTrackingStore
from modelbox.signing import Bundle, statement_of
from modelbox.tracking import (
    AttributeKind,
    DatasetComponent,
    MetricColumns,
    NewCheckpoint,
    NewComment,
    NewDataset,
    NewDatasetVersion,
    NewEdge,
    NewEdges,
    NewEvent,
    NewExperiment,
    NewRun,
    ObjectKind,
    Operation,
    ReadmeEdit,
    RunPatch,
    RunStatus,
    new_id,
)
from tests.integration.server_core import chunks, digest_of

_ROOT = Caller(name="root", grants=(Grant(role=Role.ADMIN),))
AT = datetime(2026, 5, 3, 12, 0, 0, 123456, tzinfo=UTC)
_LATER = AT + timedelta(hours=1)
_FILES = (b"", b"weights", bytes(range(256)) * 5000, "größe".encode())


async def fill(database: MainDatabase, blobs: BlobStore) -> None:
    """Puts something of everything into a database, with all that is hard to carry over."""
    clock = _Clock()
    metrics = MetricService(SqlMetricStore(database.metrics), SqlTrackingStore(database))
    registry = RegistryService(SqlRegistryStore(database), blobs, metrics=metrics, clock=clock)
    artifacts = ArtifactService(SqlArtifactStore(database), blobs, metrics=metrics, clock=clock)
    tracking = TrackingService(SqlTrackingStore(database), metrics, clock=clock)
    await _registry(registry, artifacts)
    await FleetService(SqlFleetStore(database), clock=clock).report(
        [InstanceReport(instance_id="i-1", host="h", pid=7, ref="ns/m@prod", state=InstanceState.ACTIVE, version=2)]
    )
    runs = await _tracking(tracking)
    await _records(database, clock, runs)
    await _metrics(metrics, runs)
    await _rules(registry, RuleService(SqlRuleStore(database), clock=clock))
    await _access(AccessService(SqlAccessStore(database), on=True, clock=lambda: clock.now.timestamp()))
    # Its number is never given again, nor is that of what is purged below.
    await registry.publish_version(_version("gone", b"weights"), actor="ann")
    await registry.delete_version("ns", "gone", 1, actor="bob")
    await registry.delete_model("ns", "gone", actor="bob")
    hidden = await _run(tracking, "hidden")
    # The last ones of all: no row tells how far their numbers went.
    doomed = [await _run(tracking, f"doomed-{number}") for number in range(3)]
    await tracking.delete_objects(doomed, actor="ann")
    clock.now += timedelta(days=100)
    await tracking.delete_objects([hidden], actor="ann")
    assert await tracking.purge("ns", clock.now - timedelta(days=1), actor="ann")
    await database.write(_what_services_do_not_make)


class _Clock:
    def __init__(self) -> None:
        self.now = AT

    def __call__(self) -> datetime:
        return self.now


def _version(model: str, *contents: bytes, aliases: tuple[str, ...] = (), **given: Any) -> NewVersion:
    files = tuple(
        ManifestFile(path=f"file{number}.bin", size_bytes=len(data), digest=digest_of(data))
        for number, data in enumerate(contents)
    )
    return NewVersion(namespace="ns", model=model, manifest=Manifest(files=files), aliases=aliases, **given)


async def _registry(registry: RegistryService, artifacts: ArtifactService) -> None:
    for data in _FILES:
        begun = await artifacts.begin_upload("ns", digest_of(data), len(data))
        if not begun.complete:
            await artifacts.write_upload(begun.id, 0, chunks(data))
    await artifacts.begin_upload("ns", digest_of(b"never sent"), 10)
    labels, metadata = {"ß": "Ü\n\t\"'\\"}, {"k": [1, {"x": None}], "🎈": 1.5, "long": "x" * 3000}
    await registry.publish_version(
        _version("m", *_FILES, aliases=("prod",), labels=labels, metadata=metadata), actor="ann"
    )
    await registry.publish_version(_version("m", b"weights", metrics={"acc": 0.1 + 0.2, "tiny": 5e-324}), actor="ann")
    signed = statement_of("ns/m@2", _version("m", b"weights").manifest)
    bundle = Bundle(payload=signed, signature=b"whoever").to_json()
    await registry.update_version("ns", "m", 2, VersionPatch(bundle=bundle), actor="ann")
    await registry.move_alias("ns", "m", "prod", version=2, actor="bob", reason="better; „ja“")
    await registry.rollback_alias("ns", "m", "prod", actor="bob", reason="was not")
    await registry.move_alias("ns", "m", "prod", version=2, actor="bob")
    await artifacts.begin_download(ModelRef.parse("ns/m@prod"), actor="host-1")
    for parent in ("ns", "ns/m", "ns/m@2"):
        file = ArtifactFile(path="a/b.bin", size_bytes=7, digest=digest_of(b"weights"))
        await artifacts.create_artifact(
            NewArtifact(parent=parent, name="report", files=(file,), labels=labels, metadata=metadata), actor="ann"
        )


async def _rules(registry: RegistryService, rules: RuleService) -> None:
    await rules.set_rule(Rule(scope="later", labels=("ß", "team"), metadata=("k",), owner=True), actor="ada")
    await rules.set_rule(Rule(scope="ns/m", alias="prod*", description=True, dataset=True, signed=True), actor="ada")
    await rules.protect_alias("ns/m", "blue?", approval=True, actor="ada")
    try:
        await registry.move_alias("ns", "m", "blue1", version=1, actor="bob", reason="„ja“")
    except ApprovalNeeded as waits:
        await rules.reject_request("ns", "m", str(waits.fields["request"]), comment="no", actor="ann")


async def _access(access: AccessService) -> None:
    await access.create_account("root", description="„ja“ 🎈", certificate_names=("ß.example", "b"), caller=_ROOT)
    await access.grant_role("root", Grant(role=Role.ADMIN), caller=_ROOT)
    await access.grant_role("root", Grant(namespace="ns", model="m", role=Role.READER), caller=_ROOT)
    new = NewToken(account="ci", role=Role.WRITER, namespaces=("ns", "later"), create_account=True)
    kept = await access.create_token(new, caller=_ROOT)
    ended = await access.create_token(NewToken(account="root"), caller=_ROOT)
    await access.revoke_token(ended.info.id, caller=_ROOT)
    await access.update_account("ci", AccountPatch(disabled=True), caller=_ROOT)
    await access.update_account("ci", AccountPatch(disabled=False), caller=_ROOT)
    access.caller(access.credentials(f"Bearer {kept.token}"))
    await access.note_uses()


async def _run(tracking: TrackingService, name: str, **given: Any) -> str:
    new = NewRun(experiment="ns/digits", name=name, started_at=AT, **given)
    return (await tracking.create_run(new, actor="ann")).item.id


async def _tracking(tracking: TrackingService) -> list[str]:
    experiment = NewExperiment(namespace="ns", name="digits", owner="ana", framework="torch", description="d" * 500)
    await tracking.create_experiment(experiment, actor="ann")
    parent = await _run(tracking, "parent", params={"lr": 1e-3, "deep": {"a": [1, "b", None, True], "z": 1e308}})
    child = await _run(tracking, "child", parent_id=parent, tags={"t": "v"})
    await tracking.clone_run(parent, id=new_id(ObjectKind.RUN), name="clone", actor="bob")
    await tracking.update_run(child, RunPatch(status=RunStatus.FAILED, reason="out of memory"), actor="ann")
    await tracking.create_checkpoint(
        NewCheckpoint(parent_id=child, epoch=3, step=300, path="/tmp/c", metrics={"acc": 0.5}), actor="ann"
    )
    label = AttributeKind.LABEL
    await tracking.set_attributes(child, label, {"a": "1", "A": "2", "ä": "3"}, actor="ann")
    await tracking.set_attributes(child, label, {"a": "9"}, remove=["A"], overwrite=True, actor="bob")
    await tracking.deliver(
        "5" * 32,
        [
            Operation(seq=1, payload=NewEvent(object=child, name="epoch", at=AT)),
            Operation(seq=2, payload=NewEvent(object=new_id(ObjectKind.RUN), name="refused", at=AT)),
        ],
        actor="ann",
    )
    return [parent, child]


async def _records(database: MainDatabase, clock: _Clock, runs: list[str]) -> None:
    notes = NoteService(SqlNoteStore(database), clock=clock)
    event = NewEvent(
        object=runs[0], name="gpu.lost", source="s", at=_LATER, metadata={"gpu": [1, {"x": None, "y": "é"}]}
    )
    await notes.log_event(event, actor="ann")
    first = await notes.add_comment(NewComment(object=runs[0], text="first\r\nline"), actor="ann")
    await notes.edit_comment(first.id, "second", actor="ann")
    second = await notes.add_comment(NewComment(object="ns/m", text="gone"), actor="ann")
    await notes.delete_comment(second.id, actor="ann")
    await notes.set_readme(ReadmeEdit(object="ns/m", text="# Model\n" + "text ✓ " * 1000), actor="ann")
    datasets = DatasetService(SqlDatasetStore(database), clock=clock)
    await datasets.create_dataset(NewDataset(namespace="ns", name="mnist", owner="ana"), actor="ann")
    component = DatasetComponent(type="s3", location="s3://bucket/key", size_bytes=1 << 40, rows=7)
    version = await datasets.create_version(
        NewDatasetVersion(namespace="ns", dataset="mnist", components=(component,)), actor="ann"
    )
    lineage = LineageService(SqlLineageStore(database), clock=clock)
    edges = (
        NewEdge(source=version.item.id, target=runs[0], type="used"),
        NewEdge(source=runs[0], target="ns/m@2", type="produced"),
    )
    await lineage.add_edges(NewEdges(edges=edges), actor="ann")


async def _metrics(metrics: MetricService, runs: list[str]) -> None:
    numbers = [0.0, -0.0, 0.1, 5e-324, 1.7976931348623157e308, -1e308, math.nan, math.inf, -math.inf, 1 / 3, -2.5e-308]
    for run in runs:
        await metrics.log([_columns(run, "loss", [*range(-2, 9)], numbers)])
        await metrics.log([_columns(run, "Loss", [0], [1.0])])
        await metrics.log(
            [
                _columns(run, "note", [1, 2], payloads=("text ✓".encode(), b"")),
            ]
        )
        await metrics.log([_columns(run, "raw", [1, 2], kind=2, payloads=(bytes(range(256)), b"\0"))])
    many = np.arange(10_500)
    await metrics.log(
        [_columns(runs[0], "many", many[part::3].tolist(), np.sin(many[part::3]).tolist()) for part in range(3)]
    )


def _columns(
    run: str,
    key: str,
    steps: list[int],
    values: list[float] | None = None,
    *,
    kind: int = 1,
    payloads: tuple[bytes, ...] = (),
) -> MetricColumns:
    at_us = int(AT.timestamp() * 1_000_000)
    count = len(steps)
    return MetricColumns(
        object=run,
        keys=(key,),
        steps=np.array(steps, "<i8").tobytes(),
        times_us=np.array([at_us + step * 1000 for step in steps], "<i8").tobytes(),
        values=np.array(values or [0.0] * count, "<f8").tobytes(),
        kinds=np.full(count, kind, "u1").tobytes() if payloads else b"",
        payloads=payloads,
    )


def _what_services_do_not_make(conn: Connection) -> None:
    """Rows of tables whose services are asked for elsewhere; copies do not care how they came about."""
    tables = {copied.table.name: copied.table for copied in copied_tables()}
    at_us = 1_777_777_777_000_000
    version = conn.execute(select(func.max(tables["versions"].c.id))).scalar_one()
    rows: Mapping[str, Mapping[str, Any]] = {
        "retention_policies": {
            "scope": "ns/m",
            "kind": "version",
            "keep_all": False,
            "keep_last": 3,
            "keep_younger_s": 0.5,
            "keep_best": "[]",
            "updated_at_us": at_us,
            "updated_by": "ann",
        },
        "version_locks": {"version_id": version, "reason": "audit", "locked_at_us": at_us, "locked_by": "ann"},
        "quotas": {
            "namespace": "ns",
            "limit_bytes": 1 << 50,
            "used_bytes": 7,
            "updated_at_us": at_us,
            "updated_by": "",
        },
    }
    for name, row in rows.items():
        conn.execute(tables[name].insert().values(**row))


# -- comparing -------------------------------------------------------------------------------------------------------


async def contents(database: MainDatabase) -> dict[str, Any]:
    """All rows of all tables, in no order, and the numbers that are given next; without the feed's epoch."""
    found: dict[str, Any] = {}
    for copied in copied_tables():
        where = database if copied.database == "main" else database.metrics
        found[copied.table.name] = await where.read(partial(_rows, table=copied.table))
    found["rev"] = await database.read(verify_chain)
    return found


def _rows(conn: Connection, table: Table) -> tuple[set[tuple[Any, ...]], int | None]:
    columns = [column for column in table.c if column is not feed_head.c.epoch]
    rows = conn.execute(select(*columns)).all()
    return {tuple(_plain(value) for value in row) for row in rows}, last_id(conn, table)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | memoryview | bytearray):
        return bytes(value)
    # Databases differ in the sign of a zero.
    return value + 0.0 if isinstance(value, float) else value


async def epoch_of(database: MainDatabase) -> str:
    """Of the feed."""
    return await database.read(lambda conn: str(conn.execute(select(feed_head.c.epoch)).scalar_one()))

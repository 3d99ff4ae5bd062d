"""Runs and checkpoints in SQL.

A run that is in the bin, alone or with its experiment, goes on recording: a training program must not lose what it
says because somebody tidied up. What is made below something in the bin is in the bin with it, and comes back with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from modelbox.access import ALL, Scope
from modelbox.errors import InvalidError, NotFoundError
from modelbox.feed import Action, Kind
from modelbox.objects import Created, JsonValue, to_json
from modelbox.refs import check_name, shown
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.store.attributes import METRIC, AttributeWrites, encode, read_values
from modelbox.runtime.store.experiments import experiment_row, make_experiment
from modelbox.runtime.store.objects import ObjectRow, object_row, seen_object
from modelbox.runtime.store.prepared import Prepared
from modelbox.runtime.store.rows import from_us, to_us
from modelbox.runtime.store.schema import checkpoints, experiments, namespaces, objects, runs
from modelbox.runtime.store.visible import Visible, find_visible
from modelbox.runtime.store.writing import Writing
from modelbox.tracking import (
    AttributeKind,
    Checkpoint,
    NewCheckpoint,
    NewExperiment,
    NewRun,
    ObjectKind,
    Run,
    RunPatch,
    RunStatus,
    kind_of_id,
)

__all__ = (
    "CHECKPOINTS",
    "RUNS",
    "checkpoint_of",
    "checkpoint_row",
    "clone_run",
    "create_checkpoint",
    "create_run",
    "list_checkpoints",
    "list_runs",
    "run_of",
    "run_row",
    "update_run",
)

_experiment_objects = objects.alias("experiment_objects")
_parent_objects = objects.alias("parent_objects")

RUNS = (
    select(
        runs,
        objects.c.uid,
        objects.c.created_at_us,
        objects.c.created_by,
        objects.c.deleted_at_us,
        objects.c.deleted_root,
        objects.c.mod_rev,
        experiments.c.name.label("experiment"),
        _experiment_objects.c.uid.label("experiment_uid"),
        _parent_objects.c.uid.label("parent_uid"),
        namespaces.c.name.label("namespace"),
    )
    .join(objects, runs.c.id == objects.c.id)
    .join(experiments, runs.c.experiment_id == experiments.c.id)
    .join(_experiment_objects, experiments.c.id == _experiment_objects.c.id)
    .join(namespaces, objects.c.namespace_id == namespaces.c.id)
    .outerjoin(_parent_objects, runs.c.parent_run_id == _parent_objects.c.id)
)
CHECKPOINTS = (
    select(
        checkpoints,
        objects.c.uid,
        objects.c.created_at_us,
        objects.c.created_by,
        objects.c.deleted_at_us,
        objects.c.deleted_root,
        objects.c.mod_rev,
        _parent_objects.c.uid.label("parent_uid"),
        namespaces.c.name.label("namespace"),
    )
    .join(objects, checkpoints.c.id == objects.c.id)
    .join(_parent_objects, checkpoints.c.parent_id == _parent_objects.c.id)
    .join(namespaces, objects.c.namespace_id == namespaces.c.id)
)
_RUN = RUNS.where(objects.c.uid == bindparam("the_uid"))
_RUN_LOCKED = _RUN.with_for_update(of=objects)
_CHECKPOINT = CHECKPOINTS.where(objects.c.uid == bindparam("the_uid"))
_AT_EPOCH = CHECKPOINTS.where(
    checkpoints.c.parent_id == bindparam("the_parent"), checkpoints.c.epoch == bindparam("the_epoch")
)

# What a new run needs to know of its experiment, in as few steps as can be: creating runs is a hot path.
_KNOWN = Prepared(select(objects.c.id).where(objects.c.uid == bindparam("the_uid")))
_EXPERIMENT = (
    select(
        experiments.c.id,
        experiments.c.namespace_id,
        namespaces.c.name.label("namespace"),
        experiments.c.name,
        objects.c.uid,
        objects.c.deleted_at_us,
        objects.c.deleted_root,
    )
    .join(objects, experiments.c.id == objects.c.id)
    .join(namespaces, experiments.c.namespace_id == namespaces.c.id)
)
_EXPERIMENT_BY_UID = Prepared(_EXPERIMENT.where(objects.c.uid == bindparam("the_uid")))
_EXPERIMENT_BY_NAME = Prepared(
    _EXPERIMENT.where(namespaces.c.name == bindparam("ns"), experiments.c.name == bindparam("name"))
)
_ADD_RUN = Prepared(insert(runs), [column.name for column in runs.c])
_ADD_CHECKPOINT = Prepared(insert(checkpoints), [column.name for column in checkpoints.c])
_HIDE = (
    update(objects)
    .where(objects.c.id == bindparam("row_id"))
    .values(deleted_at_us=bindparam("new_at_us"), deleted_root=bindparam("new_root"))
)


def run_of(row: Any) -> Run:
    """Of a row of `RUNS`."""
    return Run(
        id=row.uid,
        namespace=row.namespace,
        experiment_id=row.experiment_uid,
        experiment=row.experiment,
        name=row.name,
        status=RunStatus(row.status),
        started_at=from_us(row.started_at_us),
        ended_at=None if row.ended_at_us is None else from_us(row.ended_at_us),
        parent_id=row.parent_uid or "",
        cloned_from=row.cloned_from,
        reason=row.reason,
        created_at=from_us(row.created_at_us),
        created_by=row.created_by,
        deleted_at=None if row.deleted_at_us is None else from_us(row.deleted_at_us),
        mod_rev=row.mod_rev,
    )


def run_row(conn: Connection, uid: str, *, lock: bool = False, visible: Visible | None = None) -> Any:
    """The row (`RUNS`) of a run, in the bin or not; what the caller may not see is not there.

    Raises:
        NotFoundError: There is none.
    """
    row = conn.execute(_RUN_LOCKED if lock else _RUN, {"the_uid": uid}).first()
    if row is None or (visible is not None and not visible.shows_object(conn, row.id)):
        raise NotFoundError(f"no run {shown(uid)}: was it made on this server, or purged?", what="run", name=uid)
    return row


# -- runs ----------------------------------------------------------------------------------------------------------


def create_run(conn: Connection, new: NewRun, *, actor: str, at: datetime) -> Created[Run]:
    """Makes a run with its first attributes, and the experiment where it is named by path and new; idempotent by id."""
    if _KNOWN.first(conn, {"the_uid": new.id}) is not None:
        return Created(item=run_of(run_row(conn, new.id)), existed=True)
    by_id = kind_of_id(new.experiment) is not None
    namespace, _, name = new.experiment.partition("/")
    if by_id:
        experiment = _EXPERIMENT_BY_UID.first(conn, {"the_uid": new.experiment})
        if experiment is None:
            experiment_row(conn, new.experiment)
    else:
        experiment = _EXPERIMENT_BY_NAME.first(conn, {"ns": namespace, "name": name})
    hidden = None if experiment is None or experiment[5] is None else (experiment[5], experiment[6])
    parent_id = None
    if new.parent_id:
        parent = run_row(conn, new.parent_id)
        parent_id = parent.id
        if hidden is None and parent.deleted_at_us is not None:
            hidden = (parent.deleted_at_us, parent.deleted_root)
    writing = Writing(conn, actor=actor, at=at)
    if experiment is None:
        check_name(namespace, "namespace")
        made = NewExperiment(namespace=namespace, name=check_name(name, "experiment"))
        experiment_id, _ = make_experiment(writing, made)
        namespace_id, experiment_uid = writing.namespace_id(namespace), made.id
    else:
        experiment_id, namespace_id, namespace, name, experiment_uid = experiment[:5]
    row_id = writing.add_object(new.id, ObjectKind.RUN, namespace_id=namespace_id, parent_id=experiment_id)
    started_at_us = to_us(new.started_at)
    run = Run(
        id=new.id,
        namespace=namespace,
        experiment_id=experiment_uid,
        experiment=name,
        name=new.name or new.id.rpartition("_")[2],
        status=new.status,
        started_at=from_us(started_at_us),
        ended_at=at if new.status.ended else None,
        parent_id=new.parent_id,
        cloned_from=new.cloned_from,
        created_at=at,
        created_by=actor,
        deleted_at=None if hidden is None else from_us(hidden[0]),
        mod_rev=writing.rev,
    )
    _ADD_RUN.run(
        conn,
        {
            "id": row_id,
            "experiment_id": experiment_id,
            "name": run.name,
            "status": run.status.value,
            "started_at_us": started_at_us,
            "ended_at_us": None if run.ended_at is None else writing.at_us,
            "parent_run_id": parent_id,
            "cloned_from": run.cloned_from,
            "reason": "",
        },
    )
    if hidden is not None:
        conn.execute(_HIDE, {"row_id": row_id, "new_at_us": hidden[0], "new_root": hidden[1]})
    writing.note(namespace, new.id, Kind.RUN, Action.CREATED, run)
    first: dict[AttributeKind, Mapping[str, JsonValue]] = {
        AttributeKind.PARAM: new.params,
        AttributeKind.TAG: new.tags,
        AttributeKind.METADATA: new.metadata,
    }
    _begin_attributes(writing, row_id, namespace, new.id, first)
    writing.finish()
    return Created(item=run, existed=False)


def _begin_attributes(
    writing: Writing, row_id: int, namespace: str, uid: str, first: Mapping[AttributeKind, Mapping[str, JsonValue]]
) -> None:
    writes = AttributeWrites(at_us=writing.at_us, actor=writing.actor, rev=writing.rev)
    some = False
    for kind, values in first.items():
        for key, value in values.items():
            writes.add(row_id, kind.value, key, value)
        if values:
            some = True
            state = {"object": uid, "kind": kind.value, "values": dict(values)}
            writing.note(namespace, f"{uid}/{kind.value}", Kind.ATTRIBUTES, Action.CREATED, state)
    if some:
        writes.write(writing.conn)


def update_run(conn: Connection, uid: str, patch: RunPatch, *, actor: str, at: datetime) -> Run:
    """Edits a run; a patch that changes nothing makes no revision.

    A run that ends without a time ends now; one that is set back to a status before the end has no end and no reason.
    """
    row = run_row(conn, uid, lock=True)
    status = RunStatus(row.status) if patch.status is None else patch.status
    values: dict[str, Any] = {"status": status.value}
    if patch.name is not None:
        values["name"] = patch.name or uid.rpartition("_")[2]
    if status.ended:
        if patch.ended_at is not None:
            values["ended_at_us"] = to_us(patch.ended_at)
        elif row.ended_at_us is None:
            values["ended_at_us"] = to_us(at)
        if patch.reason is not None:
            values["reason"] = patch.reason
    else:
        if patch.ended_at is not None:
            raise InvalidError(f"a run that is {status.value} has no end: set its status, too", what="ended_at")
        values |= {"ended_at_us": None, "reason": patch.reason or ""}
    if all(getattr(row, name) == value for name, value in values.items()):
        return run_of(row)
    writing = Writing(conn, actor=actor, at=at)
    conn.execute(update(runs).where(runs.c.id == row.id).values(**values))
    conn.execute(update(objects).where(objects.c.id == row.id).values(mod_rev=writing.rev))
    run = run_of(run_row(conn, uid))
    writing.note(run.namespace, run.id, Kind.RUN, Action.UPDATED, run)
    writing.finish()
    return run


def clone_run(conn: Connection, source_id: str, uid: str, name: str, *, actor: str, at: datetime) -> Created[Run]:
    """Makes a scheduled run in the same experiment with the source's params, tags, labels and metadata."""
    source = run_row(conn, source_id)
    if _KNOWN.first(conn, {"the_uid": uid}) is not None:
        return Created(item=run_of(run_row(conn, uid)), existed=True)
    new = NewRun(
        id=uid,
        experiment=source.experiment_uid,
        name=name or source.name,
        status=RunStatus.SCHEDULED,
        started_at=at,
        cloned_from=source_id,
        params=read_values(conn, source.id, AttributeKind.PARAM),
        tags=read_values(conn, source.id, AttributeKind.TAG),
        metadata=read_values(conn, source.id, AttributeKind.METADATA),
    )
    created = create_run(conn, new, actor=actor, at=at)
    labels = read_values(conn, source.id, AttributeKind.LABEL)
    if labels:
        made = object_row(conn, uid, deleted_ok=True)
        writing = Writing(conn, actor=actor, at=at)
        _begin_attributes(writing, made.id, made.namespace, uid, {AttributeKind.LABEL: labels})
        writing.finish()
    return created


def list_runs(
    conn: Connection, parent: str, include_deleted: bool, limit: int, after: Key | None, scope: Scope = ALL
) -> Listed[Run]:
    """Runs of an experiment (id or path), of a namespace, or the child runs of a run, newest first.

    Key: (internal number,).
    """
    number = runs.c.id
    query = RUNS.limit(limit + 1)
    visible = find_visible(conn, scope)
    if visible is not None:
        # A run may be below one of another namespace.
        query = query.where(visible.of_namespace(objects.c.namespace_id))
    if kind_of_id(parent) is ObjectKind.RUN:
        query = query.where(runs.c.parent_run_id == run_row(conn, parent, visible=visible).id)
    elif "/" in parent or kind_of_id(parent) is ObjectKind.EXPERIMENT:
        query = query.where(runs.c.experiment_id == experiment_row(conn, parent, visible=visible).id)
    elif parent:
        found = seen_object(conn, parent, visible)
        # By the column of the index that knows namespace and kind.
        number = objects.c.id
        query = query.where(objects.c.namespace_id == found.namespace_id, objects.c.kind == ObjectKind.RUN.value)
    if not include_deleted:
        query = query.where(objects.c.deleted_at_us.is_(None))
    if after is not None:
        query = query.where(number < after[0])
    rows = conn.execute(query.order_by(number.desc())).all()
    page = rows[:limit]
    return Listed(items=tuple(run_of(row) for row in page), next_key=(page[-1].id,) if len(rows) > limit else None)


# -- checkpoints ---------------------------------------------------------------------------------------------------


def checkpoint_of(row: Any) -> Checkpoint:
    """Of a row of `CHECKPOINTS`."""
    return Checkpoint(
        id=row.uid,
        namespace=row.namespace,
        parent_id=row.parent_uid,
        epoch=row.epoch,
        step=row.step,
        path=row.path,
        metrics={key: float(value) for key, value in json.loads(row.metrics).items()},
        created_at=from_us(row.created_at_us),
        created_by=row.created_by,
        deleted_at=None if row.deleted_at_us is None else from_us(row.deleted_at_us),
        mod_rev=row.mod_rev,
    )


def checkpoint_row(conn: Connection, uid: str) -> Any:
    """The row (`CHECKPOINTS`) of a checkpoint, in the bin or not.

    Raises:
        NotFoundError: There is none.
    """
    row = conn.execute(_CHECKPOINT, {"the_uid": uid}).first()
    if row is None:
        raise NotFoundError(
            f"no checkpoint {shown(uid)}: was it made on this server, or purged?", what="checkpoint", name=uid
        )
    return row


def _parent_row(conn: Connection, uid: str, *, lock: bool = False) -> ObjectRow:
    return _check_parent(uid, object_row(conn, uid, lock=lock, deleted_ok=True))


def _check_parent(uid: str, parent: ObjectRow) -> ObjectRow:
    if parent.kind not in (ObjectKind.RUN, ObjectKind.EXPERIMENT):
        raise InvalidError(
            f"{shown(uid)} is a {parent.kind.value}: checkpoints belong to runs and experiments", what="parent_id"
        )
    return parent


def create_checkpoint(conn: Connection, new: NewCheckpoint, *, actor: str, at: datetime) -> Created[Checkpoint]:
    """Makes a checkpoint; idempotent by id, and by parent and epoch."""
    row = conn.execute(_CHECKPOINT, {"the_uid": new.id}).first()
    if row is not None:
        return Created(item=checkpoint_of(row), existed=True)
    parent = _parent_row(conn, new.parent_id, lock=True)
    row = conn.execute(_AT_EPOCH, {"the_parent": parent.id, "the_epoch": new.epoch}).first()
    if row is not None:
        return Created(item=checkpoint_of(row), existed=True)
    writing = Writing(conn, actor=actor, at=at)
    row_id = writing.add_object(new.id, ObjectKind.CHECKPOINT, namespace_id=parent.namespace_id, parent_id=parent.id)
    metrics = {key: float(value) for key, value in new.metrics.items()}
    plain = to_json(metrics)
    _ADD_CHECKPOINT.run(
        conn,
        {
            "id": row_id,
            "parent_id": parent.id,
            "epoch": new.epoch,
            "step": new.step,
            "path": new.path,
            "metrics": encode(plain),
        },
    )
    if parent.deleted:
        above = conn.execute(
            select(objects.c.deleted_at_us, objects.c.deleted_root).where(objects.c.id == parent.id)
        ).one()
        conn.execute(_HIDE, {"row_id": row_id, "new_at_us": above[0], "new_root": above[1]})
    writes = AttributeWrites(at_us=writing.at_us, actor=actor, rev=writing.rev)
    for key, value in plain.items():
        writes.add(row_id, METRIC, key, value)
    writes.write(conn)
    made = checkpoint_of(checkpoint_row(conn, new.id))
    writing.note(made.namespace, made.id, Kind.CHECKPOINT, Action.CREATED, made)
    writing.finish()
    return Created(item=made, existed=False)


def list_checkpoints(
    conn: Connection, parent_id: str, include_deleted: bool, limit: int, after: Key | None, scope: Scope = ALL
) -> Listed[Checkpoint]:
    """Checkpoints of a run or experiment by epoch. Key: (epoch,)."""
    parent = _check_parent(parent_id, seen_object(conn, parent_id, find_visible(conn, scope), deleted_ok=True))
    query = CHECKPOINTS.where(checkpoints.c.parent_id == parent.id).order_by(checkpoints.c.epoch).limit(limit + 1)
    if not include_deleted:
        query = query.where(objects.c.deleted_at_us.is_(None))
    if after is not None:
        query = query.where(checkpoints.c.epoch > after[0])
    found = [checkpoint_of(row) for row in conn.execute(query)]
    page = found[:limit]
    return Listed(items=tuple(page), next_key=(page[-1].epoch,) if len(found) > limit else None)

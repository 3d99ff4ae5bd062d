"""The bin: deleting objects so that they can be restored, and removing them for good.

What is deleted takes everything below it along: runs of an experiment, child runs and checkpoints of a run, versions of
a dataset, artifacts of each. Every row that goes says in ``deleted_root`` whose deletion took it; restoring that object
brings all of them back, and nothing that was in the bin before. Everything below something in the bin is in the bin.

The feed tells of the object that was asked for; those below follow from it. Comments go into the bin alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from modelbox.errors import ConflictError, InvalidError, NotFoundError
from modelbox.feed import Action, Kind
from modelbox.refs import shown
from modelbox.runtime.store.datasets import DATASET_VERSIONS, DATASETS, dataset_of, dataset_version_of
from modelbox.runtime.store.experiments import EXPERIMENTS, experiment_of
from modelbox.runtime.store.notes import delete_comments, purge_comments, restore_comments
from modelbox.runtime.store.objects import OBJECTS, remove_objects
from modelbox.runtime.store.rows import ARTIFACTS, artifact_of, to_us
from modelbox.runtime.store.runs import CHECKPOINTS, RUNS, checkpoint_of, run_of
from modelbox.runtime.store.schema import (
    artifact_blobs,
    artifacts,
    checkpoints,
    dataset_versions,
    datasets,
    experiments,
    namespaces,
    objects,
    runs,
)
from modelbox.runtime.store.writing import Writing
from modelbox.runtime.tracking_ports import Purged
from modelbox.tracking import ObjectKind, kind_of_id

__all__ = ("count_purgeable", "delete_objects", "purge", "restore_objects")

_IN_CHUNK = 500

_STATES = {
    ObjectKind.EXPERIMENT: (Kind.EXPERIMENT, EXPERIMENTS, experiments, experiment_of),
    ObjectKind.RUN: (Kind.RUN, RUNS, runs, run_of),
    ObjectKind.CHECKPOINT: (Kind.CHECKPOINT, CHECKPOINTS, checkpoints, checkpoint_of),
    ObjectKind.DATASET: (Kind.DATASET, DATASETS, datasets, dataset_of),
    ObjectKind.DATASET_VERSION: (Kind.DATASET_VERSION, DATASET_VERSIONS, dataset_versions, dataset_version_of),
}
"""What can be in the bin by itself, and how its state is read."""


def _chunks(ids: Sequence[int]) -> Iterable[Sequence[int]]:
    return (ids[start : start + _IN_CHUNK] for start in range(0, len(ids), _IN_CHUNK))


def _asked(conn: Connection, uids: Sequence[str]) -> list[Any]:
    """Rows (`OBJECTS`) of what was asked for, locked in the order of their numbers."""
    unique = list(dict.fromkeys(uids))
    query = OBJECTS.where(objects.c.uid.in_(unique)).order_by(objects.c.id).with_for_update(of=objects)
    rows = conn.execute(query).all()
    known = {row.uid for row in rows}
    missing = [uid for uid in unique if uid not in known]
    if missing:
        raise NotFoundError(
            f"no object {shown(missing[0])}: was it made on this server, or purged?",
            what="object",
            name=missing[0],
            missing=missing,
        )
    for row in rows:
        if ObjectKind(row.kind) not in _STATES:
            raise InvalidError(
                f"{row.uid} is a {row.kind}, which has no bin: delete it by the call of its own", what="id"
            )
    return list(rows)


def _below(conn: Connection, ids: Sequence[int], *, live_only: bool) -> list[int]:
    """Row numbers of everything below some objects, without these; parents before their children."""
    found = dict.fromkeys(ids)
    level = list(ids)
    while level:
        below: list[int] = []
        for some in _chunks(level):
            direct = select(objects.c.id).where(objects.c.parent_id.in_(some))
            children = select(objects.c.id).join(runs, runs.c.id == objects.c.id).where(runs.c.parent_run_id.in_(some))
            for query in (direct, children):
                if live_only:
                    query = query.where(objects.c.deleted_at_us.is_(None))
                below.extend(row_id for row_id in conn.execute(query).scalars() if row_id not in found)
        level = list(dict.fromkeys(below))
        found.update(dict.fromkeys(level))
    return list(found)[len(ids) :]


def _note(writing: Writing, row: Any, action: Action) -> None:
    kind, base, table, make = _STATES[ObjectKind(row.kind)]
    state = make(writing.conn.execute(base.where(table.c.id == row.id)).one())
    writing.note(row.namespace, row.uid, kind, action, state)


def _note_latest(writing: Writing, row: Any) -> None:
    """Tells of the dataset whose latest version may be another one now."""
    if row.kind != ObjectKind.DATASET_VERSION.value:
        return
    dataset = writing.conn.execute(OBJECTS.where(objects.c.id == row.parent_id)).one()
    writing.conn.execute(update(objects).where(objects.c.id == dataset.id).values(mod_rev=writing.rev))
    _note(writing, dataset, Action.UPDATED)


def delete_objects(conn: Connection, uids: Sequence[str], *, actor: str, at: datetime) -> int:
    """Puts objects and all below them into the bin, all or none; returns how many were not in it.

    Raises:
        NotFoundError: One of them does not exist.
        InvalidError: One of them is of a kind that has no bin.
    """
    said, uids = _comments_apart(uids)
    return delete_comments(conn, said, actor=actor, at=at) + _delete_objects(conn, uids, actor, at)


def _comments_apart(uids: Sequence[str]) -> tuple[list[str], list[str]]:
    """Ids of comments, which have no row in ``objects``, and those of everything else."""
    said = [uid for uid in uids if kind_of_id(uid) is ObjectKind.COMMENT]
    return said, [uid for uid in uids if kind_of_id(uid) is not ObjectKind.COMMENT]


def _delete_objects(conn: Connection, uids: Sequence[str], actor: str, at: datetime) -> int:
    asked = [row for row in _asked(conn, uids) if row.deleted_at_us is None]
    if not asked:
        return 0
    writing = Writing(conn, actor=actor, at=at)
    count = 0
    gone: set[int] = set()
    for row in asked:
        if row.id in gone:
            # Below another one that was asked for.
            continue
        ids = [row.id, *_below(conn, [row.id], live_only=True)]
        for some in _chunks(ids):
            conn.execute(
                update(objects).where(objects.c.id.in_(some)).values(deleted_at_us=writing.at_us, deleted_root=row.id)
            )
        conn.execute(update(objects).where(objects.c.id == row.id).values(mod_rev=writing.rev))
        gone.update(ids)
        count += len(ids)
        _note(writing, row, Action.DELETED)
        _note_latest(writing, row)
    writing.finish()
    return count


def restore_objects(conn: Connection, uids: Sequence[str], *, actor: str, at: datetime) -> int:
    """Takes objects out of the bin with all that went there with them, all or none; returns how many.

    Raises:
        NotFoundError: One of them does not exist.
        ConflictError: What one of them belongs to is in the bin; ``held_by`` says what is to be restored.
    """
    said, uids = _comments_apart(uids)
    return restore_comments(conn, said, actor=actor, at=at) + _restore_objects(conn, uids, actor, at)


def _restore_objects(conn: Connection, uids: Sequence[str], actor: str, at: datetime) -> int:
    asked = [row for row in _asked(conn, uids) if row.deleted_at_us is not None]
    if not asked:
        return 0
    roots = {row.id for row in asked}
    for row in asked:
        if row.deleted_root != row.id and row.deleted_root not in roots:
            _refuse(conn, row, row.deleted_root)
    asked = [row for row in asked if row.deleted_root == row.id]
    writing = Writing(conn, actor=actor, at=at)
    count = 0
    for row in asked:
        for above in _above(conn, row):
            _refuse(conn, row, above)
        count += conn.execute(
            update(objects)
            .where(objects.c.deleted_at_us == row.deleted_at_us, objects.c.deleted_root == row.id)
            .values(deleted_at_us=None, deleted_root=None)
        ).rowcount
        conn.execute(update(objects).where(objects.c.id == row.id).values(mod_rev=writing.rev))
        _note(writing, row, Action.RESTORED)
        _note_latest(writing, row)
    writing.finish()
    return count


def _above(conn: Connection, row: Any) -> list[int]:
    """Those of what an object belongs to that are in the bin; what was restored before it in this call is not."""
    parents = [row.parent_id]
    if row.kind == ObjectKind.RUN.value:
        parents.append(conn.execute(select(runs.c.parent_run_id).where(runs.c.id == row.id)).scalar())
    query = select(objects.c.id).where(
        objects.c.id.in_([parent for parent in parents if parent is not None]), objects.c.deleted_at_us.is_not(None)
    )
    return list(conn.execute(query).scalars())


def _refuse(conn: Connection, row: Any, holder_id: int) -> None:
    holder = conn.execute(select(objects.c.uid).where(objects.c.id == holder_id)).scalar_one()
    raise ConflictError(
        f"{row.uid} is in the bin below {holder}: restore that first, or both at once", held_by=[holder]
    )


# -- for good ------------------------------------------------------------------------------------------------------


def _purgeable(columns: Any, namespace: str, before: datetime) -> Any:
    query = select(columns).where(objects.c.deleted_at_us < to_us(before))
    if namespace:
        query = query.join(namespaces, objects.c.namespace_id == namespaces.c.id).where(namespaces.c.name == namespace)
    return query


def count_purgeable(conn: Connection, namespace: str, before: datetime) -> int:
    """How many objects were put into the bin before a time; in all namespaces for an empty one."""
    return int(conn.execute(_purgeable(func.count(objects.c.id), namespace, before)).scalar_one())


def purge(conn: Connection, namespace: str, before: datetime, batch: int, *, actor: str, at: datetime) -> Purged:
    """Removes about ``batch`` objects for good that were put into the bin before a time, youngest first.

    What belongs to one of them goes in the same transaction, so a batch may be larger. The feed tells once more of each
    object that was deleted by itself, and of artifacts. Comments that were in the bin go, too; they are not counted.
    """
    purge_comments(conn, namespace, before)
    first = list(
        conn.execute(_purgeable(objects.c.id, namespace, before).order_by(objects.c.id.desc()).limit(batch)).scalars()
    )
    if not first:
        return Purged(ids=(), more=False)
    # Children have greater numbers than what they belong to.
    ids = sorted({*first, *_below(conn, first, live_only=False)}, reverse=True)
    rows = [
        row
        for some in _chunks(ids)
        for row in conn.execute(OBJECTS.where(objects.c.id.in_(some)).order_by(objects.c.id.desc()))
    ]
    writing = Writing(conn, actor=actor, at=at)
    by_kind: dict[ObjectKind, list[Any]] = {}
    for row in rows:
        by_kind.setdefault(ObjectKind(row.kind), []).append(row)
        if ObjectKind(row.kind) in _STATES and (row.deleted_root == row.id or row.id == ids[0]):
            _note(writing, row, Action.DELETED)
    for row in by_kind.pop(ObjectKind.ARTIFACT, ()):
        found = conn.execute(ARTIFACTS.where(artifacts.c.uid == row.uid)).first()
        if found is not None:
            writing.note(row.namespace, row.uid, Kind.ARTIFACT, Action.DELETED, artifact_of(found))
            conn.execute(delete(artifact_blobs).where(artifact_blobs.c.artifact_id == found.id))
            conn.execute(delete(artifacts).where(artifacts.c.id == found.id))
    # What refers to others of its kind lets go of them first: not every database waits for the end of a statement.
    for some in _chunks(ids):
        conn.execute(update(runs).where(runs.c.parent_run_id.in_(some)).values(parent_run_id=None))
    # Each kind after what refers to it.
    for kind in (
        ObjectKind.CHECKPOINT,
        ObjectKind.RUN,
        ObjectKind.EXPERIMENT,
        ObjectKind.DATASET_VERSION,
        ObjectKind.DATASET,
    ):
        table = _STATES[kind][2]
        for some in _chunks([row.id for row in by_kind.get(kind, ())]):
            conn.execute(delete(table).where(table.c.id.in_(some)))
    for some in _chunks(ids):
        conn.execute(update(objects).where(objects.c.parent_id.in_(some)).values(parent_id=None))
    remove_objects(conn, ids)
    writing.finish()
    return Purged(ids=tuple(row.uid for row in rows), more=True)

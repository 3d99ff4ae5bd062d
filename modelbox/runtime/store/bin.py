"""The bin: deleting objects so that they can be restored, and removing them for good.

What is deleted takes everything below it along: runs of an experiment, child runs and checkpoints of a run, versions of
a dataset, artifacts of each. Every row that goes says in ``deleted_root`` whose deletion took it; restoring that object
brings all of them back, and nothing that was in the bin before. Everything below something in the bin is in the bin.

The feed tells of the object that was asked for; those below follow from it. Comments go into the bin alone.

A deletion that takes thousands along is done in parts, so that nobody else waits long for the writer: `delete_objects`
takes what was asked for and the first ones below, `unhidden` finds the others and `hide` takes them, some at a time.
Each part looks whether the deletion still stands; `unfinished` finds those that a kill broke off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, or_, select, update

from modelbox.errors import ConflictError, InvalidError, NotFoundError
from modelbox.feed import Action, Kind
from modelbox.refs import shown
from modelbox.runtime.store.datasets import DATASET_VERSIONS, DATASETS, dataset_of, dataset_version_of
from modelbox.runtime.store.experiments import EXPERIMENTS, experiment_of
from modelbox.runtime.store.holdings import release_artifact
from modelbox.runtime.store.notes import delete_comments, purge_comments, restore_comments
from modelbox.runtime.store.objects import OBJECTS, remove_objects
from modelbox.runtime.store.rows import ARTIFACTS, artifact_of, to_us
from modelbox.runtime.store.runs import CHECKPOINTS, RUNS, checkpoint_of, run_of
from modelbox.runtime.store.schema import (
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

__all__ = (
    "Deletion",
    "count_purgeable",
    "delete_objects",
    "hide",
    "purge",
    "restore_objects",
    "unfinished",
    "unhidden",
)

_IN_CHUNK = 500
_AT_ONCE = 1000
"""Objects that one transaction puts into the bin below what was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """An object that was put into the bin by itself, by its row's number, and when."""

    root_id: int
    at_us: int


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


def _below(conn: Connection, ids: Sequence[int], *, live_only: bool, enough: int | None = None) -> list[int]:
    """Row numbers of everything below some objects, without these; parents before their children.

    Looks no further once there are ``enough``.
    """
    found = dict.fromkeys(ids)
    level = list(ids)
    while level and (enough is None or len(found) <= enough):
        below: list[int] = []
        for some in _chunks(level):
            direct = select(objects.c.id).where(objects.c.parent_id.in_(some))
            children = select(objects.c.id).join(runs, runs.c.id == objects.c.id).where(runs.c.parent_run_id.in_(some))
            for query in (direct, children):
                if live_only:
                    query = query.where(objects.c.deleted_at_us.is_(None))
                if enough is not None:
                    query = query.limit(enough + 1)
                below.extend(row_id for row_id in conn.execute(query).scalars() if row_id not in found)
        level = list(dict.fromkeys(below))
        found.update(dict.fromkeys(level))
    return list(found)[len(ids) :]


def _is_below(conn: Connection, row: Any, roots: set[int]) -> bool:
    seen, level = {row.id}, {row.id}
    while level:
        query = (
            select(objects.c.parent_id, runs.c.parent_run_id)
            .outerjoin(runs, runs.c.id == objects.c.id)
            .where(objects.c.id.in_(level))
        )
        level = {one for above in conn.execute(query) for one in above if one is not None} - seen
        if not level.isdisjoint(roots):
            return True
        seen |= level
    return False


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


def delete_objects(
    conn: Connection, uids: Sequence[str], *, actor: str, at: datetime
) -> tuple[int, Sequence[Deletion]]:
    """Puts objects and what is below them into the bin, all or none.

    Returns:
        How many there are now that were not before, and the deletions that are to be finished by `hide`.

    Raises:
        NotFoundError: One of them does not exist.
        InvalidError: One of them is of a kind that has no bin.
    """
    said, uids = _comments_apart(uids)
    count = delete_comments(conn, said, actor=actor, at=at)
    more, left = _delete_objects(conn, uids, actor, at)
    return count + more, left


def _comments_apart(uids: Sequence[str]) -> tuple[list[str], list[str]]:
    """Ids of comments, which have no row in ``objects``, and those of everything else."""
    said = [uid for uid in uids if kind_of_id(uid) is ObjectKind.COMMENT]
    return said, [uid for uid in uids if kind_of_id(uid) is not ObjectKind.COMMENT]


def _delete_objects(conn: Connection, uids: Sequence[str], actor: str, at: datetime) -> tuple[int, Sequence[Deletion]]:
    asked = [row for row in _asked(conn, uids) if row.deleted_at_us is None]
    if not asked:
        return 0, ()
    left: list[Deletion] = []
    writing = Writing(conn, actor=actor, at=at)
    count = 0
    gone: set[int] = set()
    for row in asked:
        if row.id in gone or (left and _is_below(conn, row, {deletion.root_id for deletion in left})):
            # Below another one that was asked for.
            continue
        below = _below(conn, [row.id], live_only=True, enough=_AT_ONCE)
        if len(below) > _AT_ONCE or (gone and len(gone) + len(below) > _AT_ONCE):
            below = below[: max(0, _AT_ONCE - len(gone))]
            left.append(Deletion(root_id=row.id, at_us=writing.at_us))
        ids = [row.id, *below]
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
    return count, left


def _stands(conn: Connection, deletion: Deletion) -> bool:
    query = select(objects.c.deleted_at_us, objects.c.deleted_root).where(objects.c.id == deletion.root_id)
    row = conn.execute(query.with_for_update()).first()
    return row is not None and tuple(row) == (deletion.at_us, deletion.root_id)


def unhidden(conn: Connection, deletion: Deletion) -> list[int]:
    """Row numbers of what a deletion has not taken yet, parents before their children."""
    seen = {deletion.root_id: None}
    level = [deletion.root_id]
    left: list[int] = []
    on_the_way = or_(objects.c.deleted_at_us.is_(None), objects.c.deleted_root == deletion.root_id)
    columns = select(objects.c.id, objects.c.deleted_at_us).where(on_the_way)
    while level:
        below: dict[int, None] = {}
        for some in _chunks(level):
            direct = columns.where(objects.c.parent_id.in_(some))
            children = columns.join(runs, runs.c.id == objects.c.id).where(runs.c.parent_run_id.in_(some))
            for query in (direct, children):
                for row_id, deleted_at_us in conn.execute(query):
                    if row_id in seen or row_id in below:
                        continue
                    below[row_id] = None
                    if deleted_at_us is None:
                        left.append(row_id)
        seen.update(below)
        level = list(below)
    return left


def hide(conn: Connection, deletion: Deletion, ids: Sequence[int]) -> int | None:
    """Takes some of `unhidden` along; returns how many, None if the deletion does not stand any more."""
    if not _stands(conn, deletion):
        return None
    count = 0
    for some in _chunks(ids):
        count += conn.execute(
            update(objects)
            .where(objects.c.id.in_(some), objects.c.deleted_at_us.is_(None))
            .values(deleted_at_us=deletion.at_us, deleted_root=deletion.root_id)
        ).rowcount
    return count


def unfinished(conn: Connection) -> list[Deletion]:
    """Deletions that have not taken everything along."""
    above, root = objects.alias("above"), objects.alias("root")
    deletions = (
        select(root.c.id, root.c.deleted_at_us)
        .select_from(above)
        .join(root, above.c.deleted_root == root.c.id)
        .where(above.c.deleted_at_us.is_not(None), root.c.deleted_at_us.is_not(None), objects.c.deleted_at_us.is_(None))
        .distinct()
        .limit(_AT_ONCE)
    )
    direct = deletions.join(objects, objects.c.parent_id == above.c.id)
    children = deletions.join(runs, runs.c.parent_run_id == above.c.id).join(objects, objects.c.id == runs.c.id)
    found = {tuple(row) for query in (direct, children) for row in conn.execute(query)}
    return [Deletion(root_id=row_id, at_us=at_us) for row_id, at_us in sorted(found)]


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
            release_artifact(conn, row.namespace, found.id)
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

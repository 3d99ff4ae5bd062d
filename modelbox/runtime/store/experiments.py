"""Experiments in SQL.

The bin hides, it does not refuse: what was named before can still be written to, and making an experiment whose name is
in the bin returns it as it is, with ``deleted_at``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, insert, or_, select, update

from modelbox.access import ALL, Scope
from modelbox.errors import NotFoundError
from modelbox.feed import Action, Kind
from modelbox.objects import Created
from modelbox.refs import shown
from modelbox.runtime.absence import missing
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.store.lookups import find_namespace_id
from modelbox.runtime.store.prepared import Prepared
from modelbox.runtime.store.rows import from_us
from modelbox.runtime.store.schema import experiments, namespaces, objects
from modelbox.runtime.store.visible import Visible, find_visible
from modelbox.runtime.store.writing import Writing
from modelbox.tracking import Experiment, ExperimentPatch, NewExperiment, ObjectKind, kind_of_id

__all__ = (
    "EXPERIMENTS",
    "create_experiment",
    "experiment_of",
    "experiment_row",
    "find_experiment_row",
    "list_experiments",
    "make_experiment",
    "update_experiment",
)

_SHOWN = 10

EXPERIMENTS = (
    select(
        experiments,
        objects.c.uid,
        objects.c.created_at_us,
        objects.c.created_by,
        objects.c.deleted_at_us,
        objects.c.deleted_root,
        objects.c.mod_rev,
        namespaces.c.name.label("namespace"),
    )
    .join(objects, experiments.c.id == objects.c.id)
    .join(namespaces, experiments.c.namespace_id == namespaces.c.id)
)
_BY_UID = EXPERIMENTS.where(objects.c.uid == bindparam("the_uid"))
_BY_NAME = EXPERIMENTS.where(namespaces.c.name == bindparam("ns"), experiments.c.name == bindparam("name"))
_LOCKED_BY_UID = _BY_UID.with_for_update(of=objects)
_LOCKED_BY_NAME = _BY_NAME.with_for_update(of=objects)
_ADD = Prepared(insert(experiments), [column.name for column in experiments.c])


def experiment_of(row: Any) -> Experiment:
    """Of a row of `EXPERIMENTS`."""
    return Experiment(
        id=row.uid,
        namespace=row.namespace,
        name=row.name,
        owner=row.owner,
        framework=row.framework,
        task=row.task,
        external_id=row.external_id,
        description=row.description,
        created_at=from_us(row.created_at_us),
        created_by=row.created_by,
        deleted_at=None if row.deleted_at_us is None else from_us(row.deleted_at_us),
        mod_rev=row.mod_rev,
    )


def find_experiment_row(conn: Connection, text: str, *, lock: bool = False) -> Any | None:
    """The row (`EXPERIMENTS`) by id or ``namespace/name``, in the bin or not."""
    if kind_of_id(text) is not None:
        return conn.execute(_LOCKED_BY_UID if lock else _BY_UID, {"the_uid": text}).first()
    namespace, _, name = text.partition("/")
    return conn.execute(_LOCKED_BY_NAME if lock else _BY_NAME, {"ns": namespace, "name": name}).first()


def experiment_row(conn: Connection, text: str, *, lock: bool = False, visible: Visible | None = None) -> Any:
    """As `find_experiment_row`; what the caller may not see is not there.

    Raises:
        NotFoundError: There is none; for a path, ``exists`` lists those of its namespace.
    """
    row = find_experiment_row(conn, text, lock=lock)
    if row is None or (visible is not None and row.namespace_id not in visible.namespace_ids):
        namespace, slash, _ = text.partition("/")
        if not slash:
            raise NotFoundError(
                f"no experiment {shown(text)}: was it made on this server, or purged?", what="experiment", name=text
            )
        some = (
            select(experiments.c.name)
            .join(objects, experiments.c.id == objects.c.id)
            .join(namespaces, experiments.c.namespace_id == namespaces.c.id)
            .where(namespaces.c.name == namespace, objects.c.deleted_at_us.is_(None))
            .order_by(experiments.c.name)
            .limit(_SHOWN)
        )
        if visible is not None:
            some = some.where(visible.of_namespace(experiments.c.namespace_id))
        exists = [f"{namespace}/{name}" for name in conn.execute(some).scalars()]
        raise missing("experiment", text, "experiments", exists)
    return row


def make_experiment(writing: Writing, new: NewExperiment) -> tuple[int, Experiment]:
    """Makes an experiment that is known to be new, and notes it; returns its row's number, too."""
    namespace_id = writing.namespace_id(new.namespace)
    row_id = writing.add_object(new.id, ObjectKind.EXPERIMENT, namespace_id=namespace_id)
    _ADD.run(
        writing.conn,
        {
            "id": row_id,
            "namespace_id": namespace_id,
            "name": new.name,
            "owner": new.owner,
            "framework": new.framework,
            "task": new.task,
            "external_id": new.external_id,
            "description": new.description,
        },
    )
    made = Experiment(
        id=new.id,
        namespace=new.namespace,
        name=new.name,
        owner=new.owner,
        framework=new.framework,
        task=new.task,
        external_id=new.external_id,
        description=new.description,
        created_at=writing.at,
        created_by=writing.actor,
        mod_rev=writing.rev,
    )
    writing.note(new.namespace, new.id, Kind.EXPERIMENT, Action.CREATED, made)
    return row_id, made


def create_experiment(conn: Connection, new: NewExperiment, *, actor: str, at: datetime) -> Created[Experiment]:
    """Makes an experiment and, if need be, its namespace; idempotent by id and by name."""
    row = find_experiment_row(conn, new.id) or find_experiment_row(conn, f"{new.namespace}/{new.name}")
    if row is not None:
        return Created(item=experiment_of(row), existed=True)
    writing = Writing(conn, actor=actor, at=at)
    _, made = make_experiment(writing, new)
    writing.finish()
    return Created(item=made, existed=False)


def update_experiment(conn: Connection, text: str, patch: ExperimentPatch, *, actor: str, at: datetime) -> Experiment:
    """Edits an experiment; a patch that changes nothing makes no revision."""
    row = experiment_row(conn, text, lock=True)
    given = {
        "owner": patch.owner,
        "framework": patch.framework,
        "task": patch.task,
        "external_id": patch.external_id,
        "description": patch.description,
    }
    values = {name: value for name, value in given.items() if value is not None and value != getattr(row, name)}
    if not values:
        return experiment_of(row)
    writing = Writing(conn, actor=actor, at=at)
    conn.execute(update(experiments).where(experiments.c.id == row.id).values(**values))
    conn.execute(update(objects).where(objects.c.id == row.id).values(mod_rev=writing.rev))
    changed = experiment_of(experiment_row(conn, row.uid))
    writing.note(changed.namespace, changed.id, Kind.EXPERIMENT, Action.UPDATED, changed)
    writing.finish()
    return changed


def list_experiments(
    conn: Connection, namespace: str, include_deleted: bool, limit: int, after: Key | None, scope: Scope = ALL
) -> Listed[Experiment]:
    """Experiments by namespace and name; of all namespaces for an empty one. Key: (namespace, name)."""
    query = EXPERIMENTS.order_by(namespaces.c.name, experiments.c.name).limit(limit + 1)
    visible = find_visible(conn, scope)
    if visible is not None:
        query = query.where(visible.of_namespace(experiments.c.namespace_id))
    if namespace:
        if find_namespace_id(conn, namespace) is None:
            return Listed(items=(), next_key=None)
        query = query.where(namespaces.c.name == namespace)
    if not include_deleted:
        query = query.where(objects.c.deleted_at_us.is_(None))
    if after is not None:
        first, second = after
        query = query.where(
            or_(namespaces.c.name > first, and_(namespaces.c.name == first, experiments.c.name > second))
        )
    found = [experiment_of(row) for row in conn.execute(query)]
    page = found[:limit]
    return Listed(items=tuple(page), next_key=(page[-1].namespace, page[-1].name) if len(found) > limit else None)

"""Datasets and their versions in SQL.

Numbers of versions count from 1 in each dataset and are never given again: ``datasets.latest_version`` is the last one
that was given. What callers see as a dataset's latest version is the newest that is not in the bin.

The bin hides, it does not refuse: what is made below a dataset in the bin is in the bin with it and comes back with it.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, and_, bindparam, func, insert, or_, select, update
from sqlalchemy.sql import ColumnElement

from modelbox.access import ALL, Scope
from modelbox.errors import ConflictError, NotFoundError
from modelbox.feed import Action, Kind
from modelbox.objects import Created, to_json
from modelbox.refs import shown
from modelbox.runtime.absence import missing
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.lookups import find_namespace_id
from modelbox.runtime.store.objects import hide_with
from modelbox.runtime.store.rows import from_us
from modelbox.runtime.store.schema import dataset_versions, datasets, namespaces, objects
from modelbox.runtime.store.visible import Visible, find_visible
from modelbox.runtime.store.writing import Writing
from modelbox.tracking import (
    Dataset,
    DatasetComponent,
    DatasetVersion,
    NewDataset,
    NewDatasetVersion,
    ObjectKind,
    digest_of_components,
    new_id,
)

__all__ = (
    "DATASETS",
    "DATASET_VERSIONS",
    "SqlDatasetStore",
    "create_dataset",
    "create_dataset_version",
    "dataset_of",
    "dataset_version_of",
)

_SHOWN = 10

_version_objects = objects.alias("version_objects")
_newest = (
    select(func.max(dataset_versions.c.version))
    .join(_version_objects, dataset_versions.c.id == _version_objects.c.id)
    .where(dataset_versions.c.dataset_id == datasets.c.id, _version_objects.c.deleted_at_us.is_(None))
    .correlate(datasets)
    .scalar_subquery()
)
_OBJECT_COLUMNS = (
    objects.c.uid,
    objects.c.created_at_us,
    objects.c.created_by,
    objects.c.deleted_at_us,
    objects.c.deleted_root,
    objects.c.mod_rev,
)

DATASETS = (
    select(datasets, *_OBJECT_COLUMNS, namespaces.c.name.label("namespace"), _newest.label("newest"))
    .join(objects, datasets.c.id == objects.c.id)
    .join(namespaces, datasets.c.namespace_id == namespaces.c.id)
)
_dataset_objects = objects.alias("dataset_objects")
DATASET_VERSIONS = (
    select(
        dataset_versions,
        *_OBJECT_COLUMNS,
        datasets.c.name.label("dataset"),
        _dataset_objects.c.uid.label("dataset_uid"),
        namespaces.c.name.label("namespace"),
    )
    .join(objects, dataset_versions.c.id == objects.c.id)
    .join(datasets, dataset_versions.c.dataset_id == datasets.c.id)
    .join(_dataset_objects, datasets.c.id == _dataset_objects.c.id)
    .join(namespaces, datasets.c.namespace_id == namespaces.c.id)
)

_BY_UID = DATASETS.where(objects.c.uid == bindparam("the_uid"))
_BY_NAME = DATASETS.where(namespaces.c.name == bindparam("ns"), datasets.c.name == bindparam("dataset_name"))
_BY_NAME_LOCKED = _BY_NAME.with_for_update(of=datasets)
_BY_ID = DATASETS.where(datasets.c.id == bindparam("row_id"))
_VERSION_BY_UID = DATASET_VERSIONS.where(objects.c.uid == bindparam("the_uid"))
_VERSION = DATASET_VERSIONS.where(
    dataset_versions.c.dataset_id == bindparam("the_dataset"), dataset_versions.c.version == bindparam("number")
)
_ADD_VERSION = insert(dataset_versions)


def dataset_of(row: Any) -> Dataset:
    """Of a row of `DATASETS`."""
    return Dataset(
        id=row.uid,
        namespace=row.namespace,
        name=row.name,
        owner=row.owner,
        description=row.description,
        latest_version=row.newest or 0,
        created_at=from_us(row.created_at_us),
        created_by=row.created_by,
        deleted_at=None if row.deleted_at_us is None else from_us(row.deleted_at_us),
        mod_rev=row.mod_rev,
    )


def dataset_version_of(row: Any) -> DatasetVersion:
    """Of a row of `DATASET_VERSIONS`."""
    return DatasetVersion(
        id=row.uid,
        namespace=row.namespace,
        dataset=row.dataset,
        dataset_id=row.dataset_uid,
        version=row.version,
        digest=row.digest,
        components=tuple(DatasetComponent(**part) for part in json.loads(row.components)),
        description=row.description,
        created_at=from_us(row.created_at_us),
        created_by=row.created_by,
        deleted_at=None if row.deleted_at_us is None else from_us(row.deleted_at_us),
        mod_rev=row.mod_rev,
    )


# -- datasets --------------------------------------------------------------------------------------------------------


def create_dataset(conn: Connection, new: NewDataset, *, actor: str, at: datetime) -> Created[Dataset]:
    """See `modelbox.runtime.record_ports.DatasetStore.create_dataset`."""
    row = conn.execute(_BY_UID, {"the_uid": new.id}).first()
    if row is None:
        row = conn.execute(_BY_NAME_LOCKED, {"ns": new.namespace, "dataset_name": new.name}).first()
    if row is not None:
        return Created(item=dataset_of(row), existed=True)
    _check_free(conn, new.id)
    writing = Writing(conn, actor=actor, at=at)
    row_id = _make(writing, new)
    dataset = _note(writing, row_id, Action.CREATED)
    writing.finish()
    return Created(item=dataset, existed=False)


def _make(writing: Writing, new: NewDataset) -> int:
    """Inserts a dataset and returns its row's number; the caller notes the change once the state is final."""
    namespace_id = writing.namespace_id(new.namespace)
    row_id = writing.add_object(new.id, ObjectKind.DATASET, namespace_id=namespace_id)
    writing.conn.execute(
        insert(datasets).values(
            id=row_id,
            namespace_id=namespace_id,
            name=new.name,
            owner=new.owner,
            description=new.description,
            latest_version=0,
        )
    )
    return row_id


def _note(writing: Writing, row_id: int, action: Action) -> Dataset:
    dataset = dataset_of(writing.conn.execute(_BY_ID, {"row_id": row_id}).one())
    writing.note(dataset.namespace, dataset.id, Kind.DATASET, action, dataset)
    return dataset


def _check_free(conn: Connection, uid: str) -> None:
    there = conn.execute(select(objects.c.kind).where(objects.c.uid == uid)).scalar()
    if there is not None:
        raise ConflictError(f"{uid} is the id of something else: make a new one", current=None)


def _find_dataset(conn: Connection, text: str) -> Any | None:
    if "/" not in text:
        return conn.execute(_BY_UID, {"the_uid": text}).first()
    namespace, _, name = text.partition("/")
    return conn.execute(_BY_NAME, {"ns": namespace, "dataset_name": name}).first()


def _dataset_row(conn: Connection, text: str, visible: Visible | None = None) -> Any:
    row = _find_dataset(conn, text)
    if row is not None and (visible is None or row.namespace_id in visible.namespace_ids):
        return row
    namespace, slash, _ = text.partition("/")
    if not slash:
        raise NotFoundError(f"no dataset {shown(text)}", what="dataset", name=text)
    some = (
        select(datasets.c.name)
        .join(objects, datasets.c.id == objects.c.id)
        .where(datasets.c.namespace_id == find_namespace_id(conn, namespace), objects.c.deleted_at_us.is_(None))
        .order_by(datasets.c.name)
        .limit(_SHOWN)
    )
    if visible is not None:
        some = some.where(visible.of_namespace(datasets.c.namespace_id))
    raise missing("dataset", text, "datasets", [f"{namespace}/{name}" for name in conn.execute(some).scalars()])


def _list_datasets(
    conn: Connection, namespace: str, include_deleted: bool, limit: int, after: Key | None, scope: Scope
) -> Listed[Dataset]:
    query = DATASETS.order_by(namespaces.c.name, datasets.c.name).limit(limit + 1)
    visible = find_visible(conn, scope)
    if visible is not None:
        query = query.where(visible.of_namespace(datasets.c.namespace_id))
    if namespace:
        query = query.where(namespaces.c.name == namespace)
    if not include_deleted:
        query = query.where(objects.c.deleted_at_us.is_(None))
    if after is not None:
        last_namespace, last = after
        query = query.where(
            or_(
                namespaces.c.name > last_namespace,
                and_(namespaces.c.name == last_namespace, datasets.c.name > last),
            )
        )
    found = [dataset_of(row) for row in conn.execute(query)]
    items = tuple(found[:limit])
    return Listed(items=items, next_key=(items[-1].namespace, items[-1].name) if len(found) > limit else None)


# -- versions --------------------------------------------------------------------------------------------------------


def create_dataset_version(
    conn: Connection, new: NewDatasetVersion, *, actor: str, at: datetime
) -> Created[DatasetVersion]:
    """See `modelbox.runtime.record_ports.DatasetStore.create_version`."""
    digest = digest_of_components(new.components)
    row = conn.execute(_BY_NAME_LOCKED, {"ns": new.namespace, "dataset_name": new.dataset}).first()
    there = conn.execute(_VERSION_BY_UID, {"the_uid": new.id}).first()
    if there is not None:
        version = dataset_version_of(there)
        if (version.namespace, version.dataset, version.digest) != (new.namespace, new.dataset, digest):
            raise ConflictError(
                f"{new.id} is the id of another dataset version: make a new one", current=to_json(version)
            )
        return Created(item=version, existed=True)
    action = Action.UPDATED
    if row is not None:
        newest = conn.execute(_newest_below(row)).first()
        if newest is not None and newest.digest == digest:
            return Created(item=dataset_version_of(newest), existed=True)
    _check_free(conn, new.id)
    writing = Writing(conn, actor=actor, at=at)
    if row is None:
        made = NewDataset(id=new_id(ObjectKind.DATASET), namespace=new.namespace, name=new.dataset)
        dataset_id, number, action = _make(writing, made), 1, Action.CREATED
    else:
        dataset_id, number = row.id, row.latest_version + 1
    row_id = writing.add_object(
        new.id, ObjectKind.DATASET_VERSION, namespace_id=writing.namespace_id(new.namespace), parent_id=dataset_id
    )
    conn.execute(
        _ADD_VERSION,
        {
            "id": row_id,
            "dataset_id": dataset_id,
            "version": number,
            "digest": digest,
            "components": json.dumps(to_json(new.components), ensure_ascii=False, separators=(",", ":")),
            "description": new.description,
        },
    )
    if row is not None and row.deleted_at_us is not None:
        hide_with(conn, row_id, dataset_id)
    conn.execute(update(datasets).where(datasets.c.id == dataset_id).values(latest_version=number))
    conn.execute(update(objects).where(objects.c.id == dataset_id).values(mod_rev=writing.rev))
    _note(writing, dataset_id, action)
    version = dataset_version_of(conn.execute(_VERSION_BY_UID, {"the_uid": new.id}).one())
    writing.note(version.namespace, version.id, Kind.DATASET_VERSION, Action.CREATED, version)
    writing.finish()
    return Created(item=version, existed=False)


def _newest_below(dataset: Any) -> Select[Any]:
    """The newest version that is in the bin no sooner than its dataset."""
    visible: ColumnElement[bool] = objects.c.deleted_at_us.is_(None)
    if dataset.deleted_at_us is not None:
        visible = or_(visible, objects.c.deleted_root == dataset.deleted_root)
    return _versions_of(dataset.id, include_deleted=True).where(visible).limit(1)


def _get_version(conn: Connection, text: str) -> DatasetVersion:
    if "/" not in text:
        row = conn.execute(_VERSION_BY_UID, {"the_uid": text}).first()
        if row is None:
            raise NotFoundError(f"no dataset version {shown(text)}", what="dataset version", name=text)
        return dataset_version_of(row)
    path, _, number = text.partition("@")
    dataset = _dataset_row(conn, path)
    wanted = int(number) if number else dataset.newest
    row = conn.execute(_VERSION, {"the_dataset": dataset.id, "number": wanted}).first() if wanted else None
    if row is None:
        newest = _versions_of(dataset.id, include_deleted=False).limit(_SHOWN)
        found = [f"{path}@{other.version}" for other in conn.execute(newest)]
        raise missing("dataset version", text, "versions", found)
    return dataset_version_of(row)


def _versions_of(dataset_id: int, *, include_deleted: bool) -> Select[Any]:
    query = DATASET_VERSIONS.where(dataset_versions.c.dataset_id == dataset_id).order_by(
        dataset_versions.c.version.desc()
    )
    return query if include_deleted else query.where(objects.c.deleted_at_us.is_(None))


def _list_versions(
    conn: Connection, dataset: str, include_deleted: bool, limit: int, after: Key | None, scope: Scope
) -> Listed[DatasetVersion]:
    row = _dataset_row(conn, dataset, find_visible(conn, scope))
    query = _versions_of(row.id, include_deleted=include_deleted).limit(limit + 1)
    if after is not None:
        query = query.where(dataset_versions.c.version < after[0])
    found = [dataset_version_of(version) for version in conn.execute(query)]
    items = tuple(found[:limit])
    return Listed(items=items, next_key=(items[-1].version,) if len(found) > limit else None)


class SqlDatasetStore:
    """`modelbox.runtime.record_ports.DatasetStore` over a database; see there for each method."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def create_dataset(self, new: NewDataset, *, actor: str, at: datetime) -> Created[Dataset]:
        """See the port."""
        return await self._db.write(lambda conn: create_dataset(conn, new, actor=actor, at=at))

    async def get_dataset(self, text: str) -> Dataset:
        """See the port."""
        return await self._db.read(lambda conn: dataset_of(_dataset_row(conn, text)))

    async def list_datasets(
        self, *, namespace: str, include_deleted: bool, limit: int, after: Key | None, scope: Scope = ALL
    ) -> Listed[Dataset]:
        """See the port."""
        return await self._db.scan(lambda conn: _list_datasets(conn, namespace, include_deleted, limit, after, scope))

    async def create_version(self, new: NewDatasetVersion, *, actor: str, at: datetime) -> Created[DatasetVersion]:
        """See the port."""
        return await self._db.write(lambda conn: create_dataset_version(conn, new, actor=actor, at=at))

    async def get_version(self, text: str) -> DatasetVersion:
        """See the port."""
        return await self._db.read(lambda conn: _get_version(conn, text))

    async def list_versions(
        self, dataset: str, *, include_deleted: bool, limit: int, after: Key | None, scope: Scope = ALL
    ) -> Listed[DatasetVersion]:
        """See the port."""
        return await self._db.scan(lambda conn: _list_versions(conn, dataset, include_deleted, limit, after, scope))

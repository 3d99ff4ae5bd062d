"""The registry in SQL: transaction functions, and the store that runs them.

Every function that changes something keeps one order: lock the model's row, read and check, take the next revision,
write, append to the feed. What it writes carries that revision as ``mod_rev``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, insert, or_, update

from modelbox.access import ALL, ANYBODY, Caller, Scope
from modelbox.errors import ConflictError, InUseError, InvalidError, NotFoundError
from modelbox.feed import Action, Kind
from modelbox.objects import (
    Alias,
    AliasMove,
    Created,
    Model,
    ModelPatch,
    ModelVersion,
    Namespace,
    NewModel,
    NewVersion,
    Resolved,
    VersionPatch,
)
from modelbox.refs import LATEST, ModelRef, shown
from modelbox.rules import AliasRequest
from modelbox.runtime.limits import check_labels, check_metadata, check_metrics
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.store.aliases import (
    AliasWriting,
    delete_alias,
    list_alias_moves,
    list_aliases,
    move_alias,
    rollback_alias,
)
from modelbox.runtime.store.artifacts import delete_artifacts_of, held_blobs
from modelbox.runtime.store.attributes import METRIC, project
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.guard import (
    Guard,
    check_kept,
    check_owned,
    check_promotion,
    check_publication,
    check_published_aliases,
)
from modelbox.runtime.store.history import read_head, token_of
from modelbox.runtime.store.holdings import release_version
from modelbox.runtime.store.lineage import find_missing, write_edges
from modelbox.runtime.store.locks import check_unlocked
from modelbox.runtime.store.lookups import (
    find_alias_row,
    find_model_row,
    find_namespace_id,
    model_row,
    ref_row,
    version_row,
)
from modelbox.runtime.store.objects import ObjectRow, object_id, object_row, remove_objects
from modelbox.runtime.store.origins import find_origins, links_from
from modelbox.runtime.store.rows import (
    ALIASES,
    MODELS,
    NAMESPACES,
    VERSIONS,
    dump,
    from_us,
    model_of,
    namespace_of,
    new_uid,
    version_of,
)
from modelbox.runtime.store.schema import (
    alias_moves,
    alias_requests,
    aliases,
    models,
    namespaces,
    version_blobs,
    versions,
)
from modelbox.runtime.store.visible import find_visible
from modelbox.tracking import ObjectKind

__all__ = ("SqlRegistryStore", "delete_version", "update_model", "update_version")

APPROVAL_WAIT = timedelta(days=7)
"""How long a move waits for a second person."""

_Values = Mapping[str, Mapping[str, Any]]

_MODEL_BY_ID = MODELS.where(models.c.id == bindparam("row_id"))
_VERSION_BY_ID = VERSIONS.where(versions.c.id == bindparam("row_id"))


class _Writing(AliasWriting):
    """A revision of the registry's."""

    def make_model(self, new: NewModel) -> Any:
        """Inserts a model and returns its row; the caller notes the change once the state is final."""
        namespace_id = self.namespace_id(new.namespace)
        uid = new_uid("mdl")
        object_id = self.add_object(uid, ObjectKind.MODEL, namespace_id=namespace_id)
        self.conn.execute(
            insert(models).values(
                uid=uid,
                namespace_id=namespace_id,
                name=new.name,
                owner=new.owner,
                task=new.task,
                description=new.description,
                labels=dump(new.labels),
                metadata=dump(new.metadata),
                latest_version=0,
                last_version=0,
                created_at_us=self.at_us,
                mod_rev=self.rev,
            )
        )
        self.project(object_id, {}, {"label": new.labels, "metadata": new.metadata})
        return find_model_row(self.conn, new.namespace, new.name)

    def project(self, object_id: int, old: _Values, new: _Values) -> None:
        """Repeats values by kind and key for `find`; see `modelbox.runtime.store.attributes`."""
        for kind, values in new.items():
            before = old.get(kind, {})
            if before or values:
                project(
                    self.conn,
                    object_id,
                    kind,
                    before,
                    values,
                    at_us=self.at_us,
                    actor=self.actor,
                    rev=self.rev,
                )

    def note_model(self, model_id: int, action: Action) -> Model:
        """Notes the model's state as it is now."""
        model = model_of(self.conn.execute(_MODEL_BY_ID, {"row_id": model_id}).one())
        self.note(model.namespace, model.path, Kind.MODEL, action, model)
        return model

    def drop_version(self, row: Any) -> list[str]:
        """Deletes a version's row (`VERSIONS`) with its artifacts, and notes it; returns the ids that are no more."""
        gone = [row.uid]
        path = f"{row.namespace}/{row.model}@{row.version}"
        for artifact in delete_artifacts_of(self.conn, path):
            self.note(row.namespace, artifact.id, Kind.ARTIFACT, Action.DELETED, artifact)
            gone.append(artifact.id)
        release_version(self.conn, row.namespace, row.id)
        self.conn.execute(delete(versions).where(versions.c.id == row.id))
        remove_objects(self.conn, [object_id(self.conn, row.uid)])
        self.note(row.namespace, path, Kind.VERSION, Action.DELETED, version_of(row))
        return gone


# -- models --------------------------------------------------------------------------------------------------------


def _create_model(conn: Connection, new: NewModel, actor: str, at: datetime) -> Created[Model]:
    row = find_model_row(conn, new.namespace, new.name, lock=True)
    if row is not None:
        return Created(item=model_of(row), existed=True)
    writing = _Writing(conn, actor=actor, at=at)
    made = writing.make_model(new)
    model = writing.note_model(made.id, Action.CREATED)
    writing.finish()
    return Created(item=model, existed=False)


def _patched(old: Mapping[str, Any], new: Mapping[str, Any], remove: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in {**old, **new}.items() if key not in remove or key in new}


def update_model(conn: Connection, namespace: str, name: str, patch: ModelPatch, actor: str, at: datetime) -> Model:
    """Applies a patch; one that changes nothing makes no revision."""
    row = model_row(conn, namespace, name, lock=True)
    old = model_of(row)
    values = {
        "owner": old.owner if patch.owner is None else patch.owner,
        "task": old.task if patch.task is None else patch.task,
        "description": old.description if patch.description is None else patch.description,
        "labels": dump(check_labels(_patched(old.labels, patch.labels, patch.remove_labels))),
        "metadata": dump(check_metadata(_patched(old.metadata, patch.metadata, patch.remove_metadata))),
    }
    if all(getattr(row, key) == value for key, value in values.items()):
        return old
    if old.owner and not values["owner"] and old.latest_version:
        check_owned(conn, row)
    writing = _Writing(conn, actor=actor, at=at)
    conn.execute(update(models).where(models.c.id == row.id).values(mod_rev=writing.rev, **values))
    model = writing.note_model(row.id, Action.UPDATED)
    writing.project(object_id(conn, row.uid), _values_of(old), _values_of(model))
    writing.finish()
    return model


def _values_of(item: Model | ModelVersion) -> _Values:
    """What of a model or version is projected."""
    values: dict[str, Mapping[str, Any]] = {"label": item.labels, "metadata": item.metadata}
    return {**values, METRIC: item.metrics} if isinstance(item, ModelVersion) else values


def _held_by(conn: Connection, row: Any, *, version_id: int | None = None) -> list[str]:
    query = ALIASES.where(aliases.c.model_id == row.id, aliases.c.name != LATEST).order_by(aliases.c.name)
    if version_id is not None:
        query = query.where(aliases.c.version_id == version_id)
    return [f"{alias.namespace}/{alias.model}@{alias.name}" for alias in conn.execute(query)]


def _delete_model(conn: Connection, namespace: str, name: str, actor: str, at: datetime) -> tuple[str, ...]:
    row = model_row(conn, namespace, name, lock=True)
    held_by = _held_by(conn, row)
    check_unlocked(conn, model_id=row.id)
    if held_by:
        raise InUseError(
            f"{namespace}/{name} is in use by {', '.join(held_by)}: delete these aliases first", held_by=held_by
        )
    latest = find_alias_row(conn, row, LATEST)
    writing = _Writing(conn, actor=actor, at=at)
    gone = [row.uid]
    if latest is not None:
        writing.drop_alias(row, latest, "the model was deleted")
    query = VERSIONS.where(versions.c.model_id == row.id).order_by(versions.c.version)
    for version in conn.execute(query).all():
        gone.extend(writing.drop_version(version))
    for artifact in delete_artifacts_of(conn, f"{namespace}/{name}"):
        writing.note(namespace, artifact.id, Kind.ARTIFACT, Action.DELETED, artifact)
        gone.append(artifact.id)
    conn.execute(delete(alias_moves).where(alias_moves.c.model_id == row.id))
    conn.execute(delete(alias_requests).where(alias_requests.c.model_id == row.id))
    conn.execute(delete(models).where(models.c.id == row.id))
    remove_objects(conn, [object_id(conn, row.uid)])
    writing.note(namespace, f"{namespace}/{name}", Kind.MODEL, Action.DELETED, model_of(row))
    writing.finish()
    return tuple(gone)


def _list_models(conn: Connection, namespace: str, limit: int, after: Key | None, scope: Scope) -> Listed[Model]:
    query = MODELS.order_by(namespaces.c.name, models.c.name).limit(limit + 1)
    visible = find_visible(conn, scope)
    if visible is not None:
        query = query.where(visible.of_model(models.c.namespace_id, models.c.id))
    if namespace:
        if find_namespace_id(conn, namespace) is None:
            return Listed(items=(), next_key=None)
        query = query.where(namespaces.c.name == namespace)
    if after is not None:
        last_namespace, last = after
        query = query.where(
            or_(
                namespaces.c.name > last_namespace,
                and_(namespaces.c.name == last_namespace, models.c.name > last),
            )
        )
    found = [model_of(row) for row in conn.execute(query)]
    return _listed(found, limit, lambda model: (model.namespace, model.name))


def _list_namespaces(conn: Connection, limit: int, after: Key | None, scope: Scope) -> Listed[Namespace]:
    query = NAMESPACES.order_by(namespaces.c.name).limit(limit + 1)
    visible = find_visible(conn, scope)
    if visible is not None:
        query = query.where(visible.named(namespaces.c.id))
    if after is not None:
        query = query.where(namespaces.c.name > after[0])
    found = [namespace_of(row) for row in conn.execute(query)]
    return _listed(found, limit, lambda namespace: (namespace.name,))


def _listed(found: list[Any], limit: int, key: Any) -> Listed[Any]:
    items = tuple(found[:limit])
    return Listed(items=items, next_key=key(items[-1]) if len(found) > limit else None)


# -- versions ------------------------------------------------------------------------------------------------------


def _publish_version(
    conn: Connection, new: NewVersion, actor: str, at: datetime, guard: Guard
) -> Created[ModelVersion]:
    row = find_model_row(conn, new.namespace, new.model, lock=True)
    blob_ids = _check_files(conn, new, guard.caller)
    origins = find_origins(conn, new)
    digest = new.manifest.digest
    newest = version_row(conn, row, row.latest_version) if row is not None and row.latest_version else None
    again = newest is not None and newest.digest == digest
    _check_number(new, newest.version if newest is not None and again else 1 if row is None else row.last_version + 1)
    if newest is not None and again:
        return _publish_again(conn, new, row, newest, origins, actor, at, guard)
    check_published_aliases(conn, guard, new.namespace, new.model, new.aliases)
    check_publication(conn, guard, new, row, origins)
    writing = _Writing(conn, actor=actor, at=at)
    action = Action.UPDATED
    if row is None:
        row = writing.make_model(NewModel(namespace=new.namespace, name=new.model))
        action = Action.CREATED
    number = row.last_version + 1
    uid = new_uid("ver")
    conn.execute(
        insert(versions).values(
            uid=uid,
            model_id=row.id,
            version=number,
            digest=digest,
            manifest=new.manifest.to_json().decode(),
            description=new.description,
            labels=dump(new.labels),
            metadata=dump(new.metadata),
            metrics=dump({key: float(value) for key, value in new.metrics.items()}),
            created_at_us=writing.at_us,
            created_by=actor,
            mod_rev=writing.rev,
            bundle=new.bundle or None,
        )
    )
    target = version_row(conn, row, number)
    conn.execute(insert(version_blobs), [{"version_id": target.id, "blob_id": blob_id} for blob_id in blob_ids])
    conn.execute(
        update(models)
        .where(models.c.id == row.id)
        .values(latest_version=number, last_version=number, mod_rev=writing.rev)
    )
    version = version_of(target)
    version_object = writing.add_object(
        uid, ObjectKind.VERSION, namespace_id=row.namespace_id, parent_id=object_id(conn, row.uid)
    )
    writing.project(version_object, {}, _values_of(version))
    writing.note_model(row.id, action)
    writing.note(new.namespace, str(version.ref), Kind.VERSION, Action.CREATED, version)
    writing.point(row, LATEST, find_alias_row(conn, row, LATEST), target, "published")
    for alias in dict.fromkeys(new.aliases):
        writing.point(row, alias, find_alias_row(conn, row, alias), target, new.reason)
    if origins:
        write_edges(writing, find_missing(conn, links_from(origins, object_row(conn, uid))))
    writing.finish()
    return Created(item=version, existed=False)


def _check_number(new: NewVersion, number: int) -> None:
    """That the version gets (or has) the number which its signature names."""
    if new.expected_version not in (None, number):
        raise ConflictError(
            f"this would be version {number} of {new.namespace}/{new.model}, not {new.expected_version}: sign and "
            "publish it under that number",
            current={"version": number},
        )


def _check_files(conn: Connection, new: NewVersion, caller: Caller) -> list[int]:
    """Row ids of the manifest's blobs, all of them held by the namespace and of the right size."""
    held = held_blobs(conn, new.namespace, [file.digest for file in new.manifest.files], caller)
    missing = [file.path for file in new.manifest.files if file.digest not in held]
    if missing:
        raise NotFoundError(
            f"{len(missing)} of the manifest's files were not uploaded to {new.namespace}, such as "
            f"{shown(missing[0])}: upload them first",
            what="file",
            missing=missing[:10],
        )
    for file in new.manifest.files:
        if held[file.digest][1] != file.size_bytes:
            raise InvalidError(
                f"the manifest says that {shown(file.path)} has {file.size_bytes} bytes, but they are "
                f"{held[file.digest][1]}",
                expected=held[file.digest][1],
                actual=file.size_bytes,
            )
    return [blob_id for blob_id, _ in held.values()]


def _publish_again(
    conn: Connection,
    new: NewVersion,
    row: Any,
    newest: Any,
    origins: list[ObjectRow],
    actor: str,
    at: datetime,
    guard: Guard,
) -> Created[ModelVersion]:
    there = {alias: find_alias_row(conn, row, alias) for alias in new.aliases}
    to_move = {alias: old for alias, old in there.items() if old is None or old.version_id != newest.id}
    check_published_aliases(conn, guard, new.namespace, new.model, list(to_move))
    check_promotion(conn, guard, row, newest, list(to_move), origins=origins, signed=bool(new.bundle))
    links = find_missing(conn, links_from(origins, object_row(conn, newest.uid))) if origins else []
    sign = bool(new.bundle) and not newest.bundle
    if to_move or links or sign:
        writing = _Writing(conn, actor=actor, at=at)
        if sign:
            values = {"bundle": new.bundle, "mod_rev": writing.rev}
            conn.execute(update(versions).where(versions.c.id == newest.id).values(values))
            newest = conn.execute(_VERSION_BY_ID, {"row_id": newest.id}).one()
            version = version_of(newest)
            writing.note(new.namespace, str(version.ref), Kind.VERSION, Action.UPDATED, version)
        for alias, old in to_move.items():
            writing.point(row, alias, old, newest, new.reason)
        write_edges(writing, links)
        writing.finish()
    return Created(item=version_of(newest), existed=True)


def update_version(
    conn: Connection, namespace: str, model: str, version: int, patch: VersionPatch, actor: str, at: datetime
) -> ModelVersion:
    """Applies a patch; one that changes nothing makes no revision."""
    owner = model_row(conn, namespace, model, lock=True)
    row = version_row(conn, owner, version)
    old = version_of(row)
    metrics = check_metrics(_patched(old.metrics, patch.metrics, patch.remove_metrics))
    edited = replace(
        old,
        description=old.description if patch.description is None else patch.description,
        labels=check_labels(_patched(old.labels, patch.labels, patch.remove_labels)),
        metadata=check_metadata(_patched(old.metadata, patch.metadata, patch.remove_metadata)),
        bundle=old.bundle if patch.bundle is None else patch.bundle,
    )
    values = {
        "description": edited.description,
        "labels": dump(edited.labels),
        "metadata": dump(edited.metadata),
        "metrics": dump({key: float(value) for key, value in metrics.items()}),
        "bundle": edited.bundle or None,
    }
    if all(getattr(row, key) == value for key, value in values.items()):
        return old
    check_kept(conn, owner, row, old, edited)
    writing = _Writing(conn, actor=actor, at=at)
    conn.execute(update(versions).where(versions.c.id == row.id).values(mod_rev=writing.rev, **values))
    new = version_of(conn.execute(_VERSION_BY_ID, {"row_id": row.id}).one())
    writing.project(object_id(conn, row.uid), _values_of(old), _values_of(new))
    writing.note(namespace, str(new.ref), Kind.VERSION, Action.UPDATED, new)
    writing.finish()
    return new


def delete_version(
    conn: Connection, namespace: str, model: str, version: int, actor: str, at: datetime
) -> tuple[str, ...]:
    """Deletes a version with its artifacts, unless something holds it; returns the ids that are no more."""
    owner = model_row(conn, namespace, model, lock=True)
    row = version_row(conn, owner, version)
    held_by = _held_by(conn, owner, version_id=row.id)
    if held_by:
        raise InUseError(
            f"{namespace}/{model}@{version} is in use by {', '.join(held_by)}: move or delete these aliases first",
            held_by=held_by,
        )
    check_unlocked(conn, version_id=row.id)
    latest = find_alias_row(conn, owner, LATEST)
    was_latest = latest is not None and latest.version_id == row.id
    successor = None
    if was_latest:
        others = VERSIONS.where(versions.c.model_id == owner.id, versions.c.version < version)
        successor = conn.execute(others.order_by(versions.c.version.desc()).limit(1)).first()
    writing = _Writing(conn, actor=actor, at=at)
    if was_latest and successor is None:
        writing.drop_alias(owner, latest, f"version {version} was deleted")
    elif was_latest:
        writing.point(owner, LATEST, latest, successor, f"version {version} was deleted")
    gone = writing.drop_version(row)
    if was_latest:
        conn.execute(
            update(models)
            .where(models.c.id == owner.id)
            .values(latest_version=0 if successor is None else successor.version, mod_rev=writing.rev)
        )
        writing.note_model(owner.id, Action.UPDATED)
    writing.finish()
    return tuple(gone)


def _list_versions(conn: Connection, namespace: str, model: str, limit: int, after: Key | None) -> Listed[ModelVersion]:
    row = model_row(conn, namespace, model)
    query = VERSIONS.where(versions.c.model_id == row.id).order_by(versions.c.version.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(versions.c.version < after[0])
    found = [version_of(version) for version in conn.execute(query)]
    return _listed(found, limit, lambda version: (version.version,))


def _resolve(conn: Connection, ref: ModelRef, scope: Scope) -> Resolved:
    head = read_head(conn)
    row = ref_row(conn, ref)
    version = version_of(row)
    alias = None
    if ref.alias is not None:
        alias = Alias(
            namespace=version.namespace,
            model=version.model,
            name=row.alias_name,
            version=version.version,
            digest=version.digest,
            moved_at=from_us(row.alias_moved_at_us),
            moved_by=row.alias_moved_by,
            reason=row.alias_reason,
            mod_rev=row.alias_mod_rev,
        )
    return Resolved(ref=ref, version=version, alias=alias, token=token_of(head, scope), server_id=head.server_id)


class SqlRegistryStore:
    """`modelbox.runtime.ports.RegistryStore` over a database; see there for each method."""

    def __init__(
        self, database: Database, *, protected: Sequence[str] = (), approval_wait: timedelta = APPROVAL_WAIT
    ) -> None:
        self._db = database
        self._protected = tuple(protected)
        self._wait = approval_wait

    def _guard(self, caller: Caller) -> Guard:
        return Guard(caller=caller, protected=self._protected)

    async def create_model(self, new: NewModel, *, actor: str, at: datetime) -> Created[Model]:
        """See the port."""
        return await self._db.write(lambda conn: _create_model(conn, new, actor, at))

    async def get_model(self, namespace: str, name: str) -> Model:
        """See the port."""
        return await self._db.read(lambda conn: model_of(model_row(conn, namespace, name)))

    async def update_model(self, namespace: str, name: str, patch: ModelPatch, *, actor: str, at: datetime) -> Model:
        """See the port."""
        return await self._db.write(lambda conn: update_model(conn, namespace, name, patch, actor, at))

    async def delete_model(self, namespace: str, name: str, *, actor: str, at: datetime) -> tuple[str, ...]:
        """See the port."""
        return await self._db.write(lambda conn: _delete_model(conn, namespace, name, actor, at))

    async def list_models(self, *, namespace: str, limit: int, after: Key | None, scope: Scope = ALL) -> Listed[Model]:
        """See the port."""
        return await self._db.scan(lambda conn: _list_models(conn, namespace, limit, after, scope))

    async def list_namespaces(self, *, limit: int, after: Key | None, scope: Scope = ALL) -> Listed[Namespace]:
        """See the port."""
        return await self._db.scan(lambda conn: _list_namespaces(conn, limit, after, scope))

    async def publish_version(
        self, new: NewVersion, *, actor: str, at: datetime, caller: Caller = ANYBODY
    ) -> Created[ModelVersion]:
        """See the port."""
        guard = self._guard(caller)
        return await self._db.write(lambda conn: _publish_version(conn, new, actor, at, guard))

    async def get_version(self, ref: ModelRef) -> ModelVersion:
        """See the port."""
        return await self._db.read(lambda conn: version_of(ref_row(conn, ref)))

    async def update_version(
        self, namespace: str, model: str, version: int, patch: VersionPatch, *, actor: str, at: datetime
    ) -> ModelVersion:
        """See the port."""
        return await self._db.write(lambda conn: update_version(conn, namespace, model, version, patch, actor, at))

    async def delete_version(
        self, namespace: str, model: str, version: int, *, actor: str, at: datetime
    ) -> tuple[str, ...]:
        """See the port."""
        return await self._db.write(lambda conn: delete_version(conn, namespace, model, version, actor, at))

    async def list_versions(self, namespace: str, model: str, *, limit: int, after: Key | None) -> Listed[ModelVersion]:
        """See the port."""
        return await self._db.scan(lambda conn: _list_versions(conn, namespace, model, limit, after))

    async def resolve(self, ref: ModelRef, *, scope: Scope = ALL) -> Resolved:
        """See the port."""
        return await self._db.read(lambda conn: _resolve(conn, ref, scope))

    async def move_alias(
        self,
        namespace: str,
        model: str,
        alias: str,
        version: int,
        *,
        expected_mod_rev: int | None,
        reason: str,
        actor: str,
        at: datetime,
        caller: Caller = ANYBODY,
    ) -> Alias | AliasRequest:
        """See the port."""
        guard, wait = self._guard(caller), self._wait
        return await self._db.write(
            lambda conn: move_alias(
                conn, namespace, model, alias, version, expected_mod_rev, reason, actor, at, guard, wait
            )
        )

    async def rollback_alias(
        self,
        namespace: str,
        model: str,
        alias: str,
        *,
        expected_mod_rev: int | None,
        reason: str,
        actor: str,
        at: datetime,
        caller: Caller = ANYBODY,
    ) -> Alias:
        """See the port."""
        guard = self._guard(caller)
        return await self._db.write(
            lambda conn: rollback_alias(conn, namespace, model, alias, expected_mod_rev, reason, actor, at, guard)
        )

    async def delete_alias(
        self,
        namespace: str,
        model: str,
        alias: str,
        *,
        expected_mod_rev: int | None,
        reason: str,
        actor: str,
        at: datetime,
        caller: Caller = ANYBODY,
    ) -> AliasRequest | None:
        """See the port."""
        guard, wait = self._guard(caller), self._wait
        return await self._db.write(
            lambda conn: delete_alias(conn, namespace, model, alias, expected_mod_rev, reason, actor, at, guard, wait)
        )

    async def list_aliases(self, namespace: str, model: str) -> tuple[Alias, ...]:
        """See the port."""
        return await self._db.read(lambda conn: list_aliases(conn, namespace, model))

    async def list_alias_moves(
        self, namespace: str, model: str, *, alias: str, at: datetime | None, limit: int, after: Key | None
    ) -> Listed[AliasMove]:
        """See the port."""
        return await self._db.scan(lambda conn: list_alias_moves(conn, namespace, model, alias, at, limit, after))

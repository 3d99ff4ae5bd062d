"""Uploads, holdings, downloads and artifacts in SQL.

Uploads and holdings are not in the change feed: they become visible by what is published or attached.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update
from sqlalchemy.sql import ColumnElement

from modelbox.access import ALL, ANYBODY, Caller, Scope
from modelbox.errors import ConflictError, InvalidError, NotFoundError
from modelbox.feed import Action, Kind
from modelbox.objects import Artifact, Created, Download, NewArtifact, to_json
from modelbox.refs import Digest, ModelRef, shown
from modelbox.runtime.ports import Key, Listed, StoredFile, UploadRecord
from modelbox.runtime.store.attributes import project
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.holdings import check_quota, find_fresh, hold, known_blobs, release_artifact, touch
from modelbox.runtime.store.lookups import model_row, ref_row
from modelbox.runtime.store.objects import (
    ObjectRow,
    find_object,
    hide_with,
    object_id,
    object_row,
    remove_objects,
    seen_object,
)
from modelbox.runtime.store.removal import check_not_removed
from modelbox.runtime.store.rows import ARTIFACTS, artifact_of, dump, new_uid, to_us, version_of
from modelbox.runtime.store.schema import (
    artifact_blobs,
    artifacts,
    blobs,
    downloads,
    holdings,
    namespaces,
    objects,
    uploads,
)
from modelbox.runtime.store.titles import titles_of
from modelbox.runtime.store.visible import Visible, find_visible
from modelbox.runtime.store.writing import Writing
from modelbox.tracking import ObjectKind, kind_of_id

__all__ = ("SqlArtifactStore", "delete_artifacts_of", "held_blobs", "not_binned")

_IN_CHUNK = 500

_HELD = (
    select(blobs.c.digest, blobs.c.id, blobs.c.size_bytes)
    .join(holdings, holdings.c.blob_id == blobs.c.id)
    .where(holdings.c.namespace == bindparam("ns"), blobs.c.digest.in_(bindparam("digests", expanding=True)))
)
_UPLOAD = select(uploads).where(uploads.c.uid == bindparam("the_uid"))
_DOWNLOAD = select(downloads.c.id).where(
    downloads.c.uid == bindparam("the_uid"),
    downloads.c.namespace == bindparam("ns"),
    downloads.c.model == bindparam("name"),
    downloads.c.version == bindparam("number"),
)
_ARTIFACT = ARTIFACTS.where(artifacts.c.uid == bindparam("the_uid"))


def held_blobs(
    conn: Connection, namespace: str, digests: Sequence[Digest], caller: Caller = ANYBODY
) -> dict[Digest, tuple[int, int]]:
    """Row id and size of each of these blobs that the namespace holds, and of which the caller may know."""
    unique = list(dict.fromkeys(digests))
    held: dict[Digest, tuple[int, int]] = {}
    for start in range(0, len(unique), _IN_CHUNK):
        rows = conn.execute(_HELD, {"ns": namespace, "digests": unique[start : start + _IN_CHUNK]})
        held |= {Digest(row.digest): (row.id, row.size_bytes) for row in rows}
    if not caller.scope.shows(namespace):
        known = known_blobs(conn, namespace, [blob_id for blob_id, _ in held.values()], caller)
        held = {digest: blob for digest, blob in held.items() if blob[0] in known}
    return held


def not_binned() -> ColumnElement[bool]:
    """That an artifact is not in the bin, where it lies with what it belongs to."""
    binned = select(objects.c.id).where(objects.c.uid == artifacts.c.uid, objects.c.deleted_at_us.is_not(None))
    return ~binned.exists()


def delete_artifacts_of(conn: Connection, parent: str) -> list[Artifact]:
    """Deletes the artifacts of one object, and returns what they were; the caller notes the changes."""
    rows = conn.execute(ARTIFACTS.where(artifacts.c.parent == parent).order_by(artifacts.c.id)).all()
    for row in rows:
        _delete_row(conn, row)
    return [artifact_of(row) for row in rows]


def _delete_row(conn: Connection, row: Any) -> None:
    release_artifact(conn, row.namespace, row.id)
    conn.execute(delete(artifacts).where(artifacts.c.id == row.id))
    remove_objects(conn, [object_id(conn, row.uid)])


# -- uploads -------------------------------------------------------------------------------------------------------


def _find_fresh(conn: Connection, namespace: str, digest: Digest, caller: Caller) -> tuple[int | None, bool]:
    if not caller.scope.shows(namespace) and not held_blobs(conn, namespace, [digest], caller):
        return None, False
    return find_fresh(conn, namespace, digest)


def _record(row: Any) -> UploadRecord:
    return UploadRecord(
        id=row.uid,
        namespace=row.namespace,
        digest=Digest(row.digest),
        size_bytes=row.size_bytes,
        done=bool(row.done),
    )


def _open_upload(
    conn: Connection, namespace: str, digest: Digest, size_bytes: int, uid: str, at_us: int, caller: Caller
) -> UploadRecord:
    account = None if caller.scope.shows(namespace) else caller.name
    query = select(uploads).where(
        uploads.c.namespace == namespace,
        uploads.c.digest == digest,
        uploads.c.size_bytes == size_bytes,
        uploads.c.done.is_(False),
        # Whoever sends the last byte of another's upload would have shown that other to have had them all.
        uploads.c.account.is_(None) if account is None else uploads.c.account == account,
    )
    row = conn.execute(query.order_by(uploads.c.id).limit(1)).first()
    if row is not None:
        return _record(row)
    # From here on the row of the upload keeps the bytes from being removed; see `modelbox.runtime.store.removal`.
    check_not_removed(conn, digest)
    check_quota(conn, namespace, size_bytes)
    conn.execute(
        insert(uploads).values(
            uid=uid,
            namespace=namespace,
            digest=digest,
            size_bytes=size_bytes,
            done=False,
            created_at_us=at_us,
            account=account,
        )
    )
    return UploadRecord(id=uid, namespace=namespace, digest=digest, size_bytes=size_bytes, done=False)


def _get_upload(conn: Connection, upload_id: str) -> UploadRecord:
    row = conn.execute(_UPLOAD, {"the_uid": upload_id}).first()
    if row is None:
        raise NotFoundError(
            f"no upload {shown(upload_id)}: it was discarded or idle for too long; begin again", what="upload"
        )
    return _record(row)


def _finish_upload(conn: Connection, upload_id: str, at_us: int) -> None:
    record = _get_upload(conn, upload_id)
    check_not_removed(conn, record.digest)
    hold(conn, record.namespace, record.digest, record.size_bytes, at_us)
    # Remembered for a day from now on, however long it took: it shows whose bytes these are.
    conn.execute(update(uploads).where(uploads.c.uid == upload_id).values(done=True, created_at_us=at_us))


def _drop_uploads(conn: Connection, before_us: int, keep: frozenset[str]) -> int:
    rows = conn.execute(select(uploads.c.id, uploads.c.uid).where(uploads.c.created_at_us < before_us)).all()
    gone = [{"row_id": row.id} for row in rows if row.uid not in keep]
    if gone:
        conn.execute(delete(uploads).where(uploads.c.id == bindparam("row_id")), gone)
    return len(gone)


# -- downloads -----------------------------------------------------------------------------------------------------


def _begin_download(conn: Connection, ref: ModelRef, uid: str, actor: str, at: datetime) -> Download:
    row = ref_row(conn, ref)
    writing = Writing(conn, actor=actor, at=at)
    download = Download(
        id=uid,
        namespace=row.namespace,
        model=row.model,
        version=row.version,
        by=actor,
        started_at=at,
        mod_rev=writing.rev,
    )
    conn.execute(
        insert(downloads).values(
            uid=uid,
            namespace=row.namespace,
            model=row.model,
            version=row.version,
            actor=actor,
            started_at_us=writing.at_us,
            mod_rev=writing.rev,
        )
    )
    path = f"{row.namespace}/{row.model}@{row.version}"
    writing.note(row.namespace, path, Kind.DOWNLOAD, Action.CREATED, download)
    writing.finish()
    return download


def _find_version_file(conn: Connection, ref: ModelRef, path: str, download_id: str) -> StoredFile:
    version = version_of(ref_row(conn, ref))
    file = version.manifest.file(path)
    if file is None:
        raise _no_file(str(version.ref), path, [other.path for other in version.manifest.files])
    known = (
        download_id
        and conn.execute(
            _DOWNLOAD,
            {"the_uid": download_id, "ns": version.namespace, "name": version.model, "number": version.version},
        ).first()
    )
    return StoredFile(
        namespace=version.namespace,
        size_bytes=file.size_bytes,
        digest=file.digest,
        media_type=file.media_type,
        download_known=bool(known),
    )


def _find_artifact_file(conn: Connection, artifact_id: str, path: str) -> StoredFile:
    artifact = artifact_of(_artifact_row(conn, artifact_id))
    file = next((other for other in artifact.files if other.path == path), None)
    if file is None:
        raise _no_file(artifact.id, path, [other.path for other in artifact.files])
    return StoredFile(
        namespace=artifact.namespace,
        size_bytes=file.size_bytes,
        digest=file.digest,
        media_type=file.media_type,
        uri=file.uri,
    )


def _no_file(owner: str, path: str, exists: list[str]) -> NotFoundError:
    some = exists[:10]
    return NotFoundError(
        f"{owner} has no file {shown(path)}: files there are: {', '.join(shown(other) for other in some)}",
        what="file",
        name=path,
        exists=some,
    )


# -- artifacts -----------------------------------------------------------------------------------------------------


def _artifact_row(conn: Connection, artifact_id: str) -> Any:
    row = conn.execute(_ARTIFACT, {"the_uid": artifact_id}).first()
    if row is None:
        raise NotFoundError(f"no artifact {shown(artifact_id)}", what="artifact", name=artifact_id)
    return row


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parent:
    """What an artifact belongs to.

    Attributes:
        name: As it stands in ``artifacts.parent``, the same however the caller named it: the path of a namespace,
            model or version, the id of everything else.
        object: Its row; None for a namespace that is still to be made.
        model_id: Of a model or version: the model's row.
    """

    name: str
    namespace: str
    object: ObjectRow | None
    model_id: int | None


def _find_parent(conn: Connection, text: str, *, lock: bool, visible: Visible | None = None) -> _Parent:
    """The parent that ``text`` names, in the bin or not.

    Raises:
        NotFoundError: There is no such object that may be seen; a namespace need not exist.
        InvalidError: It is an artifact, which has files and no artifacts.
    """
    if kind_of_id(text) is None and "/" not in text:
        return _Parent(name=text, namespace=text, object=find_object(conn, text), model_id=None)
    found = seen_object(conn, text, visible, deleted_ok=True)
    name, model_id = found.uid, None
    if found.kind is ObjectKind.ARTIFACT:
        raise InvalidError(f"{shown(text)} is an artifact: attach files to what it belongs to", what="parent")
    if found.kind in (ObjectKind.NAMESPACE, ObjectKind.MODEL, ObjectKind.VERSION):
        name = titles_of(conn, {found.id: found.kind})[found.id]
    if "/" in name:
        model_id = model_row(conn, found.namespace, ModelRef.parse(name).model, lock=lock).id
    elif lock:
        # Two writers of one name wait for each other here.
        object_row(conn, found.uid, lock=True, deleted_ok=True)
    return _Parent(name=name, namespace=found.namespace, object=found, model_id=model_id)


def _create_artifact(
    conn: Connection, new: NewArtifact, uid: str, actor: str, at: datetime, caller: Caller
) -> Created[Artifact]:
    parent = _find_parent(conn, new.parent, lock=True)
    namespace = parent.namespace
    there = conn.execute(ARTIFACTS.where(artifacts.c.parent == parent.name, artifacts.c.name == new.name)).first()
    files = tuple(sorted(new.files, key=lambda file: file.path))
    if there is not None:
        artifact = artifact_of(there)
        if artifact.files == files:
            return Created(item=artifact, existed=True)
        raise ConflictError(
            f"{parent.name} has an artifact {new.name} of other files: choose another name, or delete it first",
            current=to_json(artifact),
        )
    stored = [file for file in files if not file.uri]
    held = held_blobs(conn, namespace, [file.digest for file in stored], caller)
    missing = [file.path for file in stored if file.digest not in held]
    if missing:
        raise NotFoundError(
            f"{len(missing)} files were not uploaded to {namespace}, such as {shown(missing[0])}: upload them first",
            what="file",
            missing=missing[:10],
        )
    for file in stored:
        if held[file.digest][1] != file.size_bytes:
            raise InvalidError(
                f"{shown(file.path)} is said to have {file.size_bytes} bytes, but they are {held[file.digest][1]}",
                expected=held[file.digest][1],
                actual=file.size_bytes,
            )
    writing = Writing(conn, actor=actor, at=at)
    namespace_id = writing.namespace_id(namespace)
    of = parent.object or object_row(conn, namespace)
    row_id = writing.add_object(uid, ObjectKind.ARTIFACT, namespace_id=namespace_id, parent_id=of.id)
    if of.deleted:
        hide_with(conn, row_id, of.id)
    for kind, values in (("label", new.labels), ("metadata", new.metadata)):
        project(conn, row_id, kind, {}, values, at_us=writing.at_us, actor=actor, rev=writing.rev)
    conn.execute(
        insert(artifacts).values(
            uid=uid,
            namespace_id=namespace_id,
            model_id=parent.model_id,
            parent=parent.name,
            name=new.name,
            files=json.dumps(to_json(files), ensure_ascii=False, separators=(",", ":")),
            labels=dump(new.labels),
            metadata=dump(new.metadata),
            created_at_us=writing.at_us,
            created_by=actor,
            mod_rev=writing.rev,
        )
    )
    row = _artifact_row(conn, uid)
    if held:
        conn.execute(
            insert(artifact_blobs), [{"artifact_id": row.id, "blob_id": blob_id} for blob_id, _ in held.values()]
        )
    artifact = artifact_of(row)
    writing.note(namespace, uid, Kind.ARTIFACT, Action.CREATED, artifact)
    writing.finish()
    return Created(item=artifact, existed=False)


def _list_artifacts(
    conn: Connection, parent: str, namespace: str, limit: int, after: Key | None, scope: Scope
) -> Listed[Artifact]:
    query = ARTIFACTS.order_by(artifacts.c.id).limit(limit + 1)
    visible = find_visible(conn, scope)
    if visible is not None:
        query = query.where(visible.of_model(artifacts.c.namespace_id, artifacts.c.model_id))
    if parent:
        try:
            query = query.where(artifacts.c.parent == _find_parent(conn, parent, lock=False, visible=visible).name)
        except NotFoundError:
            if kind_of_id(parent) is not None:
                raise
            return Listed(items=(), next_key=None)
    else:
        # What is in the bin shows on its own object alone.
        query = query.where(not_binned())
    if namespace:
        query = query.where(namespaces.c.name == namespace)
    if after is not None:
        query = query.where(artifacts.c.id > after[0])
    found = conn.execute(query).all()
    page = found[:limit]
    return Listed(
        items=tuple(artifact_of(row) for row in page), next_key=(page[-1].id,) if len(found) > limit else None
    )


def _delete_artifact(conn: Connection, artifact_id: str, actor: str, at: datetime) -> None:
    row = conn.execute(_ARTIFACT.with_for_update(of=artifacts), {"the_uid": artifact_id}).first()
    if row is None:
        row = _artifact_row(conn, artifact_id)
    writing = Writing(conn, actor=actor, at=at)
    artifact = artifact_of(row)
    _delete_row(conn, row)
    writing.note(artifact.namespace, artifact.id, Kind.ARTIFACT, Action.DELETED, artifact)
    writing.finish()


class SqlArtifactStore:
    """`modelbox.runtime.ports.ArtifactStore` over a database; see there for each method."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def namespace_of(self, object_id: str) -> str:
        """See the port."""
        return await self._db.read(lambda conn: object_row(conn, object_id, deleted_ok=True).namespace)

    async def find_held(self, namespace: str, digest: Digest, *, caller: Caller = ANYBODY) -> int | None:
        """See the port."""
        size_bytes, fresh = await self._db.read(lambda conn: _find_fresh(conn, namespace, digest, caller))
        if size_bytes is None or fresh:
            return size_bytes
        return await self._db.write(lambda conn: touch(conn, namespace, digest))

    async def open_upload(
        self, namespace: str, digest: Digest, size_bytes: int, *, at: datetime, caller: Caller = ANYBODY
    ) -> UploadRecord:
        """See the port."""
        uid = new_uid("upl")
        return await self._db.write(
            lambda conn: _open_upload(conn, namespace, digest, size_bytes, uid, to_us(at), caller)
        )

    async def get_upload(self, upload_id: str) -> UploadRecord:
        """See the port."""
        return await self._db.read(lambda conn: _get_upload(conn, upload_id))

    async def finish_upload(self, upload_id: str, *, at: datetime) -> None:
        """See the port."""
        await self._db.write(lambda conn: _finish_upload(conn, upload_id, to_us(at)))

    async def delete_upload(self, upload_id: str) -> None:
        """See the port."""
        await self._db.write(lambda conn: conn.execute(delete(uploads).where(uploads.c.uid == upload_id)).rowcount)

    async def drop_uploads(self, *, before: datetime, keep: frozenset[str]) -> int:
        """See the port."""
        return await self._db.write(lambda conn: _drop_uploads(conn, to_us(before), keep))

    async def begin_download(self, ref: ModelRef, *, actor: str, at: datetime) -> Download:
        """See the port."""
        uid = new_uid("dnl")
        return await self._db.write(lambda conn: _begin_download(conn, ref, uid, actor, at))

    async def find_version_file(self, ref: ModelRef, path: str, download_id: str) -> StoredFile:
        """See the port."""
        return await self._db.read(lambda conn: _find_version_file(conn, ref, path, download_id))

    async def find_artifact_file(self, artifact_id: str, path: str) -> StoredFile:
        """See the port."""
        return await self._db.read(lambda conn: _find_artifact_file(conn, artifact_id, path))

    async def create_artifact(
        self, new: NewArtifact, *, actor: str, at: datetime, caller: Caller = ANYBODY
    ) -> Created[Artifact]:
        """See the port."""
        uid = new_uid("art")
        return await self._db.write(lambda conn: _create_artifact(conn, new, uid, actor, at, caller))

    async def get_artifact(self, artifact_id: str) -> Artifact:
        """See the port."""
        return await self._db.read(lambda conn: artifact_of(_artifact_row(conn, artifact_id)))

    async def list_artifacts(
        self, *, parent: str, namespace: str, limit: int, after: Key | None, scope: Scope = ALL
    ) -> Listed[Artifact]:
        """See the port."""
        return await self._db.scan(lambda conn: _list_artifacts(conn, parent, namespace, limit, after, scope))

    async def delete_artifact(self, artifact_id: str, *, actor: str, at: datetime) -> None:
        """See the port."""
        await self._db.write(lambda conn: _delete_artifact(conn, artifact_id, actor, at))

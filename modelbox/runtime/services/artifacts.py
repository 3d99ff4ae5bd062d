"""Bytes: uploads that resume, downloads, and artifacts.

Owns the order "bytes first, then the row": bytes are verified and on disk before the database says that a namespace
holds them. Knowing a digest grants nothing: bytes can be published or attached only where they were uploaded to, by
those who see them there or have uploaded them, and are read only through a version or an artifact.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio

from modelbox.access import ALL, ANYBODY, Caller, Scope
from modelbox.errors import ConflictError, IntegrityError, InvalidError, LimitError, NotFoundError, StorageError
from modelbox.manifest import MAX_FILES, check_path
from modelbox.objects import Artifact, Created, Download, NewArtifact, Page
from modelbox.refs import Digest, ModelRef, check_name, parse_digest, shown
from modelbox.runtime.limits import check_labels, check_metadata, check_text
from modelbox.runtime.ports import ArtifactStore, BlobStore, SignedPart, StoredFile, UploadRecord
from modelbox.runtime.services.naming import check_object
from modelbox.runtime.services.paging import decode_key, page_of, page_size_of
from modelbox.runtime.tracking_ports import MetricSink
from modelbox.tracking import kind_of_id

__all__ = ("MAX_FILE_BYTES", "UPLOAD_IDLE_S", "ArtifactService", "OpenFile", "Upload")

MAX_FILE_BYTES = 50 << 30
UPLOAD_IDLE_S = 24 * 3600.0
"""An unfinished upload without a write for this long is removed."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Where an upload stands.

    Attributes:
        id: Opaque; lets its holder append.
        offset: Bytes that are here: continue with this one.
        complete: All bytes are here, verified and on disk; nothing is left to send.
    """

    id: str
    namespace: str
    digest: Digest
    size_bytes: int
    offset: int
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """A stored file, ready to be sent.

    Attributes:
        local_path: For sendfile where the blob is a local file. It may be opened only while this object is used.
        download: The download that opening the file recorded, None where it belongs to one that was recorded before.
    """

    size_bytes: int
    digest: Digest
    media_type: str
    local_path: Path | None
    download: Download | None = None
    _blobs: BlobStore

    def read(self, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Bytes from ``offset`` on, ``length`` of them or to the end, in chunks of at most 1 MiB.

        Raises:
            InvalidError: The range is outside of the file.
            StorageError: The bytes cannot be read.
        """
        if not 0 <= offset <= self.size_bytes or (length is not None and not 0 <= length <= self.size_bytes - offset):
            raise InvalidError(f"the range {offset}+{length} is outside of a file of {self.size_bytes} bytes")
        return self._blobs.read(self.digest, offset=offset, length=length)

    async def sign(self) -> str:
        """Where the bytes can be read for a while without this server; empty where that is not possible."""
        return await self._blobs.sign_read(self.digest)


class _Turn:
    """Who writes an upload. A newer writer displaces the older one: the connection of that one broke unnoticed."""

    __slots__ = ("lock", "scope", "users")

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.scope: anyio.CancelScope | None = None
        self.users = 0


class ArtifactService:
    """Uploads, downloads and artifacts.

    Args:
        store: Who holds which bytes.
        blobs: The bytes.
        metrics: Where series of what is deleted are removed.
        clock: Gives the time of a change, aware and in UTC.

    Concurrency: everything may be called by many tasks at once; of two writers of one upload the newer one wins.
    """

    def __init__(
        self,
        store: ArtifactStore,
        blobs: BlobStore,
        *,
        metrics: MetricSink | None = None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._metrics = metrics
        self._clock = clock
        self._turns: dict[str, _Turn] = {}

    # -- uploads ---------------------------------------------------------------------------------------------------

    async def begin_upload(self, namespace: str, digest: str, size_bytes: int, *, caller: Caller = ANYBODY) -> Upload:
        """Begins or resumes the upload of one file's bytes.

        The upload is complete at once only if this namespace holds the bytes already, and the caller may know that.

        Args:
            namespace: Its name, or the id of an object in it.
            digest: Of the bytes.
            size_bytes: How many there are.
            caller: Who sees only some models of the namespace has to send what these do not have.

        Raises:
            NotFoundError: There is no object of that id.
            InvalidError: A name, digest or size is not valid, or the bytes with this digest have another size.
            LimitError: The file is too large, or the disk is too full for it.
        """
        if kind_of_id(namespace) is not None:
            namespace = await self._store.namespace_of(namespace)
        check_name(namespace, "namespace")
        wanted = parse_digest(digest)
        _check_size(size_bytes)
        held = await self._store.find_held(namespace, wanted, caller=caller)
        if held is not None and await self._blobs.find_size(wanted) is not None:
            if held != size_bytes:
                raise InvalidError(f"the bytes of {digest} are {held} long, not {size_bytes}", expected=held)
            return Upload(id="", namespace=namespace, digest=wanted, size_bytes=held, offset=held, complete=True)
        record = await self._store.open_upload(namespace, wanted, size_bytes, at=self._clock(), caller=caller)
        upload = await self._as_upload(record)
        await self._blobs.check_room(size_bytes - upload.offset)
        return upload

    async def upload_offset(self, upload_id: str) -> Upload:
        """Where an upload stands.

        Raises:
            NotFoundError: There is no such upload, or it was idle for too long; begin again.
        """
        return await self._as_upload(await self._store.get_upload(check_text(upload_id, "upload id", max_chars=64)))

    async def sign_upload(self, upload_id: str) -> tuple[SignedPart, ...]:
        """Where the next bytes may be sent to without this server; nothing where that is not possible.

        After the last of them `write_upload` without bytes, at the end of the file, completes the upload.

        Raises:
            NotFoundError: There is no such upload.
        """
        record = await self._store.get_upload(check_text(upload_id, "upload id", max_chars=64))
        if record.done:
            return ()
        return await self._blobs.sign_upload(record.id, record.digest, record.size_bytes)

    async def write_upload(self, upload_id: str, offset: int, chunks: AsyncIterator[bytes]) -> Upload:
        """Appends bytes; the last one completes the upload: checked, on disk, held by the namespace.

        Args:
            upload_id: From `begin_upload`.
            offset: Where the bytes belong; must be what the server holds.
            chunks: In order, of any size. An exception of the iterator passes through; what it gave before is kept.

        Raises:
            NotFoundError: There is no such upload.
            ConflictError: The offset is another one (``current``), or a newer writer took over.
            IntegrityError: More bytes than announced, or bytes of another digest; the upload is discarded.
            LimitError: The disk is full; what was written is kept.

        Cancellation: bytes that arrived are kept; a check that has begun is carried out, so the upload may complete.
        """
        # An unknown id ends here, before it could take a turn.
        await self._store.get_upload(check_text(upload_id, "upload id", max_chars=64))
        turn = self._turns.setdefault(upload_id, _Turn())
        turn.users += 1
        try:
            if turn.scope is not None:
                turn.scope.cancel()
            async with turn.lock:
                with anyio.CancelScope() as turn.scope:
                    # The writer before may have completed it.
                    record = await self._store.get_upload(upload_id)
                    if record.done:
                        return await self._as_upload(record)
                    return await self._write(record, offset, chunks)
                raise ConflictError("a newer request continues this upload", current=None)
        finally:
            turn.users -= 1
            if not turn.users:
                self._turns.pop(upload_id, None)

    async def _write(self, record: UploadRecord, offset: int, chunks: AsyncIterator[bytes]) -> Upload:
        try:
            async with self._blobs.open_upload(record.id) as writer:
                if offset != writer.offset:
                    raise ConflictError(
                        f"the upload stands at byte {writer.offset}, not at {offset}: continue there",
                        current=writer.offset,
                    )
                received = offset
                async for chunk in chunks:
                    received += len(chunk)
                    if received > record.size_bytes:
                        raise IntegrityError(
                            f"more than the {record.size_bytes} bytes that were announced for {record.digest}",
                            expected=record.size_bytes,
                        )
                    await writer.write(chunk)
                if received < record.size_bytes:
                    await writer.flush()
                    return _upload(record, offset=writer.offset, complete=False)
                # From here on nothing depends on the peer, and a blob without its row helps nobody.
                with anyio.CancelScope(shield=True):
                    await writer.commit(record.digest, record.size_bytes)
                    await self._store.finish_upload(record.id, at=self._clock())
        except IntegrityError:
            with anyio.CancelScope(shield=True):
                await self._blobs.discard_upload(record.id)
                await self._store.delete_upload(record.id)
            raise
        return _upload(record, offset=record.size_bytes, complete=True)

    async def _as_upload(self, record: UploadRecord) -> Upload:
        if record.done:
            return _upload(record, offset=record.size_bytes, complete=True)
        return _upload(record, offset=await self._blobs.upload_offset(record.id), complete=False)

    async def sweep_uploads(self, *, idle_s: float = UPLOAD_IDLE_S) -> int:
        """Removes uploads that nobody continued for ``idle_s`` seconds; call it at start and now and then.

        Returns:
            How many were forgotten.
        """
        before = self._clock() - timedelta(seconds=idle_s)
        keep = await self._blobs.sweep_uploads(idle_s=idle_s)
        return await self._store.drop_uploads(before=before, keep=keep)

    # -- downloads -------------------------------------------------------------------------------------------------

    async def begin_download(self, ref: ModelRef, *, actor: str) -> Download:
        """Records that a download of a version begins: one change in the feed, however many files follow.

        Raises:
            NotFoundError: No such model, alias or version; ``exists`` lists what there is instead.
        """
        return await self._store.begin_download(ref, actor=_actor(actor), at=self._clock())

    async def open_version_file(
        self, ref: ModelRef, path: str, *, download_id: str = "", actor: str, offset: int = 0
    ) -> OpenFile:
        """Opens a file of a version.

        Without the id of a recorded download of this version, the call counts as a download of its own where it begins
        at offset 0.

        Raises:
            NotFoundError: No such version, or no such file in it; ``exists`` lists its files.
            StorageError: The bytes are lost.
        """
        check_text(download_id, "download id", max_chars=64)
        file = await self._store.find_version_file(ref, check_path(path), download_id)
        opened = await self._open(file)
        if file.download_known or offset != 0:
            return opened
        download = await self._store.begin_download(ref, actor=_actor(actor), at=self._clock())
        return await self._open(file, download)

    async def open_artifact_file(self, artifact_id: str, path: str) -> OpenFile:
        """Opens a stored file of an artifact.

        Raises:
            NotFoundError: No such artifact, or no such file in it; ``exists`` lists its files.
            InvalidError: The file is tracked: its bytes are at its URI, not here.
            StorageError: The bytes are lost.
        """
        file = await self._store.find_artifact_file(_artifact_id(artifact_id), check_path(path))
        if file.uri:
            raise InvalidError(f"{shown(path)} is tracked, not stored: read it at its URI", uri=file.uri)
        return await self._open(file)

    async def _open(self, file: StoredFile, download: Download | None = None) -> OpenFile:
        size = await self._blobs.find_size(file.digest)
        if size != file.size_bytes:
            raise StorageError(
                f"the bytes of {file.digest} are not in the blob store: restore them, or upload the file again",
                digest=file.digest,
            )
        return OpenFile(
            size_bytes=file.size_bytes,
            digest=file.digest,
            media_type=file.media_type,
            local_path=self._blobs.local_path(file.digest),
            download=download,
            _blobs=self._blobs,
        )

    # -- artifacts -------------------------------------------------------------------------------------------------

    async def create_artifact(self, new: NewArtifact, *, actor: str, caller: Caller = ANYBODY) -> Created[Artifact]:
        """Attaches a group of files to an object, named by its id or path; a namespace is made if need be.

        Idempotent by parent and name: the same files again return it unchanged with ``existed``. Of the bytes of a
        namespace, ``caller`` may attach those that `begin_upload` calls complete.

        Raises:
            InvalidError: A name, path, digest, size or URI is not valid.
            NotFoundError: No such object, or stored files were not uploaded to this namespace (``missing``).
            ConflictError: The name is taken by other files; ``current`` is that artifact.
        """
        check_object(new.parent)
        check_name(new.name, "artifact")
        if not 1 <= len(new.files) <= MAX_FILES:
            raise InvalidError(f"an artifact lists 1 to {MAX_FILES} files, got {len(new.files)}")
        seen: set[str] = set()
        for file in new.files:
            if check_path(file.path) in seen:
                raise InvalidError(f"the artifact names {shown(file.path)} twice")
            seen.add(file.path)
            parse_digest(file.digest)
            _check_size(file.size_bytes)
            check_text(file.media_type, "media type", max_chars=255)
            check_text(file.uri, "URI", max_chars=4096)
            if file.uri and not (file.uri.isprintable() and file.uri.partition(":")[0].isascii() and ":" in file.uri):
                raise InvalidError(f"{shown(file.uri)} is not a URI: expected a scheme, such as s3://bucket/key")
        check_labels(new.labels)
        check_metadata(new.metadata)
        stored = [file for file in new.files if not file.uri]
        sizes = await self._blobs.find_sizes([file.digest for file in stored])
        missing = [file.path for file in stored if file.digest not in sizes]
        if missing:
            raise NotFoundError(
                f"{len(missing)} files are not here, such as {shown(missing[0])}: upload them first",
                what="file",
                missing=missing[:10],
            )
        return await self._store.create_artifact(new, actor=_actor(actor), at=self._clock(), caller=caller)

    async def get_artifact(self, artifact_id: str) -> Artifact:
        """Reads an artifact.

        Raises:
            NotFoundError: There is none with this id.
        """
        return await self._store.get_artifact(_artifact_id(artifact_id))

    async def list_artifacts(
        self, *, parent: str = "", namespace: str = "", page_size: int = 0, page_token: str = "", scope: Scope = ALL
    ) -> Page[Artifact]:
        """Artifacts of one object, or of a whole namespace, oldest first.

        Those of a namespace leave out what is in the bin.

        Raises:
            InvalidError: Neither ``parent`` nor ``namespace`` is given, or they do not fit.
            NotFoundError: The parent's id is of no object.
        """
        if parent:
            check_object(parent)
        if namespace:
            check_name(namespace, "namespace")
        if not parent and not namespace:
            raise InvalidError("a list of artifacts needs a parent or a namespace")
        listing = f"artifacts:{namespace}:{parent}"
        return page_of(
            listing,
            await self._store.list_artifacts(
                parent=parent,
                namespace=namespace,
                limit=page_size_of(page_size),
                after=decode_key(listing, page_token, int),
                scope=scope,
            ),
        )

    async def delete_artifact(self, artifact_id: str, *, actor: str) -> None:
        """Deletes an artifact, with its attributes, notes, edges and metrics.

        Raises:
            NotFoundError: There is none with this id.
        """
        await self._store.delete_artifact(_artifact_id(artifact_id), actor=_actor(actor), at=self._clock())
        if self._metrics is not None:
            await self._metrics.delete_series([artifact_id])


def _upload(record: UploadRecord, *, offset: int, complete: bool) -> Upload:
    return Upload(
        id=record.id,
        namespace=record.namespace,
        digest=record.digest,
        size_bytes=record.size_bytes,
        offset=offset,
        complete=complete,
    )


def _check_size(size_bytes: int) -> None:
    if isinstance(size_bytes, bool) or not isinstance(size_bytes, int) or size_bytes < 0:
        raise InvalidError(f"{shown(size_bytes)} is not a size: expected 0 or more bytes")
    if size_bytes > MAX_FILE_BYTES:
        raise LimitError(f"a file of {size_bytes} bytes, more than the {MAX_FILE_BYTES} allowed")


def _artifact_id(artifact_id: str) -> str:
    return check_text(artifact_id, "artifact id", max_chars=64)


def _actor(actor: str) -> str:
    return check_text(actor, "actor", max_chars=256)

"""What the services need of a database and of a blob store, as protocols.

The services see only these; `modelbox.runtime.store` and `modelbox.runtime.blobs` implement them. Owns the records that
cross this seam and are nobody else's business.

Invariants of every implementation:

* A method that changes something is one transaction and, where `modelbox.feed` knows the kind, one revision of the
  change feed. When it returns, the change is on disk.
* A method that reads sees one snapshot. One that lists across namespaces leaves out what its ``scope`` does not show,
  as if it were not there.
* Arguments were checked by the service; rules that depend on stored state (compare-and-set, what an alias holds,
  limits of merged metadata) are enforced here, inside the transaction.
* Errors are those of `modelbox.errors`: `LimitError` when the disk is full, `ServerBusy` when a lock could not be had
  in time, `StorageError` for everything unexpected.

Cancellation: a cancelled change either did not begin or is carried out to its end, unseen.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from modelbox.access import ALL, ANYBODY, Caller, Scope
from modelbox.feed import Change, Filter
from modelbox.objects import (
    Alias,
    AliasMove,
    Artifact,
    Created,
    Download,
    Instance,
    InstanceReport,
    Model,
    ModelPatch,
    ModelVersion,
    Namespace,
    NewArtifact,
    NewModel,
    NewVersion,
    Resolved,
    VersionPatch,
)
from modelbox.refs import Digest, ModelRef
from modelbox.rules import AliasRequest

__all__ = (
    "ArtifactStore",
    "BlobEntry",
    "BlobStore",
    "BlobWriter",
    "FeedBatch",
    "FeedHead",
    "FeedListing",
    "FeedStore",
    "FleetStore",
    "Key",
    "Listed",
    "RegistryStore",
    "SignedPart",
    "StoredFile",
    "StoredRevision",
    "UploadRecord",
)

T = TypeVar("T")

Key = tuple[int | str, ...]
"""Where a page ended: the sort key of its last item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed(Generic[T]):
    """One page; ``next_key`` continues behind it, None at the end."""

    items: tuple[T, ...]
    next_key: Key | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRecord:
    """An upload as the database keeps it; ``done`` once the bytes were verified and belong to the namespace."""

    id: str
    namespace: str
    digest: Digest
    size_bytes: int
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file of a version or artifact.

    Attributes:
        download_known: Whether the download id that was asked with belongs to this version.
        uri: Set where the file is tracked and not stored.
    """

    namespace: str
    size_bytes: int
    digest: Digest
    media_type: str
    uri: str = ""
    download_known: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedHead:
    """Where history is.

    Attributes:
        chain: The hash chain at ``rev``, 32 bytes.
        compact_rev: Revisions up to and including this one are for the audit log only, or gone.
    """

    server_id: str
    epoch: str
    rev: int
    chain: bytes
    compact_rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRevision:
    """One revision; ``size_bytes`` is the length of the JSON text of its states."""

    rev: int
    chain: bytes
    changes: tuple[Change, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedBatch:
    """Consecutive revisions, and the head, of one snapshot.

    Attributes:
        chain: The hash chain at the revision before them, where that is still known.
    """

    head: FeedHead
    revisions: tuple[StoredRevision, ...]
    chain: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedListing:
    """Current states, and the head, of one snapshot."""

    head: FeedHead
    items: tuple[Change, ...]
    next_key: Key | None


class RegistryStore(Protocol):
    """Namespaces, models, versions, aliases; `modelbox.runtime.services.registry` says what each method means."""

    async def create_model(self, new: NewModel, *, actor: str, at: datetime) -> Created[Model]:
        """Makes a model and, if need be, its namespace."""

    async def get_model(self, namespace: str, name: str) -> Model:
        """Reads a model."""

    async def update_model(self, namespace: str, name: str, patch: ModelPatch, *, actor: str, at: datetime) -> Model:
        """Applies a patch; one that changes nothing makes no revision."""

    async def delete_model(self, namespace: str, name: str, *, actor: str, at: datetime) -> tuple[str, ...]:
        """Deletes a model with its versions, `latest` and artifacts; returns the ids of all that are no more."""

    async def list_models(self, *, namespace: str, limit: int, after: Key | None, scope: Scope = ALL) -> Listed[Model]:
        """Models by namespace and name; all namespaces for an empty one. Key: (namespace, name)."""

    async def list_namespaces(self, *, limit: int, after: Key | None, scope: Scope = ALL) -> Listed[Namespace]:
        """Namespaces by name. Key: (name,)."""

    async def publish_version(
        self, new: NewVersion, *, actor: str, at: datetime, caller: Caller = ANYBODY
    ) -> Created[ModelVersion]:
        """Makes the next version, moves `latest` and the given aliases if ``caller`` may, all in one revision."""

    async def get_version(self, ref: ModelRef) -> ModelVersion:
        """Reads the version that ``ref`` names."""

    async def update_version(
        self, namespace: str, model: str, version: int, patch: VersionPatch, *, actor: str, at: datetime
    ) -> ModelVersion:
        """Applies a patch; one that changes nothing makes no revision."""

    async def delete_version(
        self, namespace: str, model: str, version: int, *, actor: str, at: datetime
    ) -> tuple[str, ...]:
        """Deletes a version with its artifacts; `latest` moves to the next newest. Returns the ids that are no more."""

    async def list_versions(self, namespace: str, model: str, *, limit: int, after: Key | None) -> Listed[ModelVersion]:
        """Versions, newest first. Key: (version,)."""

    async def resolve(self, ref: ModelRef, *, scope: Scope = ALL) -> Resolved:
        """Version, alias and feed token of one snapshot; the token is for a reader who sees so much."""

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
        """Moves or makes an alias, or has that wait for a second person; if it is there already, nothing happens."""

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
        """Undoes the last move."""

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
        """Deletes an alias, or has that wait for a second person; its history stays."""

    async def list_aliases(self, namespace: str, model: str) -> tuple[Alias, ...]:
        """Aliases by name."""

    async def list_alias_moves(
        self, namespace: str, model: str, *, alias: str, at: datetime | None, limit: int, after: Key | None
    ) -> Listed[AliasMove]:
        """Moves, newest first, at or before ``at``. Key: (internal number,)."""


class ArtifactStore(Protocol):
    """Uploads, who holds which bytes, downloads and artifacts."""

    async def namespace_of(self, object_id: str) -> str:
        """The namespace that an object lies in.

        Raises:
            NotFoundError: There is no such object, or it is in the bin.
        """

    async def find_held(self, namespace: str, digest: Digest, *, caller: Caller = ANYBODY) -> int | None:
        """Size of the bytes if the namespace holds them; they are not collected for a grace time from now on.

        None for a caller who sees only some models of the namespace, and neither sees these bytes in them nor has sent
        them.
        """

    async def open_upload(
        self, namespace: str, digest: Digest, size_bytes: int, *, at: datetime, caller: Caller = ANYBODY
    ) -> UploadRecord:
        """The unfinished upload of these bytes to this namespace, or a new one.

        One for all callers who see the whole namespace, and one for each account that sees only some models of it.

        Raises:
            LimitError: The namespace's quota does not allow that many bytes more.
            ServerBusy: Bytes of this digest are being removed at this moment.
        """

    async def get_upload(self, upload_id: str) -> UploadRecord:
        """Reads an upload.

        Raises:
            NotFoundError: There is none; begin again.
        """

    async def finish_upload(self, upload_id: str, *, at: datetime) -> None:
        """Records that the namespace holds the bytes, which are verified and on disk.

        Raises:
            LimitError: The namespace's quota does not allow that many bytes more.
        """

    async def delete_upload(self, upload_id: str) -> None:
        """Forgets an upload; nothing happens if there is none."""

    async def drop_uploads(self, *, before: datetime, keep: frozenset[str]) -> int:
        """Forgets the uploads begun before a time, but those to keep; returns how many."""

    async def begin_download(self, ref: ModelRef, *, actor: str, at: datetime) -> Download:
        """Records a download of a version."""

    async def find_version_file(self, ref: ModelRef, path: str, download_id: str) -> StoredFile:
        """The file of a version.

        Raises:
            NotFoundError: No such version, or no such file in it.
        """

    async def find_artifact_file(self, artifact_id: str, path: str) -> StoredFile:
        """The file of an artifact.

        Raises:
            NotFoundError: No such artifact, or no such file in it.
        """

    async def create_artifact(
        self, new: NewArtifact, *, actor: str, at: datetime, caller: Caller = ANYBODY
    ) -> Created[Artifact]:
        """Makes an artifact of held or tracked files; idempotent by parent and name."""

    async def get_artifact(self, artifact_id: str) -> Artifact:
        """Reads an artifact."""

    async def list_artifacts(
        self, *, parent: str, namespace: str, limit: int, after: Key | None, scope: Scope = ALL
    ) -> Listed[Artifact]:
        """Artifacts, oldest first. Key: (internal number,)."""

    async def delete_artifact(self, artifact_id: str, *, actor: str, at: datetime) -> None:
        """Deletes an artifact."""


class FleetStore(Protocol):
    """What the loaders report."""

    async def report(self, reports: Sequence[InstanceReport], *, at: datetime, forget_before: datetime) -> None:
        """Keeps the newest report of each instance and reference; forgets those not seen since ``forget_before``."""

    async def list_instances(
        self,
        *,
        namespace: str,
        model: str,
        seen_since: datetime | None,
        lease_s: float,
        at: datetime,
        limit: int,
        after: Key | None,
        scope: Scope = ALL,
    ) -> Listed[Instance]:
        """Reports, by first sight. ``seen_since`` leaves out what is gone or silent. Key: (internal number,)."""


class FeedStore(Protocol):
    """The change feed's history."""

    async def head(self) -> FeedHead:
        """Where history is now."""

    async def check(self, rev: int) -> tuple[FeedHead, bytes | None]:
        """The head, and the chain at ``rev`` where it is still known, of one snapshot."""

    async def read_after(self, rev: int, *, limit: int, max_bytes: int) -> FeedBatch:
        """Up to ``limit`` whole revisions after ``rev`` with about ``max_bytes`` of states; one, if there is one."""

    async def list_states(self, wanted: Filter, *, limit: int, after: Key | None, scope: Scope = ALL) -> FeedListing:
        """Current states that the filter lets through. Key: (kind's place, internal number)."""

    async def compact(self, *, keep_revs: int, before: datetime, batch: int) -> int:
        """Ends what readers get behind up to ``batch`` more revisions, all older than ``before``; returns how many."""

    async def forget(self, *, before: datetime, batch: int) -> int:
        """Removes the rows of up to ``batch`` revisions, older than ``before`` and compacted; returns how many."""

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Has ``callback`` called on the event loop after commits: a hint that there is something to read."""


class BlobWriter(Protocol):
    """Appends to one upload. Concurrency: one task at a time."""

    @property
    def offset(self) -> int:
        """Bytes that are written and hashed."""

    async def write(self, data: bytes) -> None:
        """Appends ``data``; may return before it is written, so that hashing overlaps with receiving.

        Raises:
            LimitError: The disk is full; what was written before stays.
            StorageError: The disk failed.
        """

    async def flush(self) -> None:
        """Waits until all that was written is hashed and given to the disk; `write` may lag behind.

        Raises:
            LimitError: The disk is full.
            StorageError: The disk failed.
        """

    async def commit(self, digest: Digest, size_bytes: int) -> None:
        """Checks size and hash, and makes the bytes durable under their digest.

        Raises:
            IntegrityError: They are something else; the upload is discarded.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobEntry:
    """One blob as the store keeps it.

    Attributes:
        stored_at: When these bytes were written, by the clock of the store, aware and in UTC.
        generation: Opaque; another one once the same bytes were uploaded again, as far as the store can tell.
    """

    digest: Digest
    size_bytes: int
    stored_at: datetime
    generation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedPart:
    """Where bytes of an upload may be sent to without the server: one PUT with just these headers, once, for a while.

    Attributes:
        offset: Of its first byte in the file.
        url: A secret: whoever has it may send.
    """

    offset: int
    size_bytes: int
    url: str = field(repr=False)
    headers: Mapping[str, str]


class BlobStore(Protocol):
    """Bytes by digest, and uploads on their way there. Never keeps a blob that is not complete and verified."""

    async def find_size(self, digest: Digest) -> int | None:
        """Length of the blob, None if it is not here."""

    async def find_sizes(self, digests: Sequence[Digest]) -> dict[Digest, int]:
        """Lengths of those that are here."""

    async def check_room(self, size_bytes: int) -> None:
        """Raises `LimitError` if that many more bytes cannot fit."""

    async def upload_offset(self, upload_id: str) -> int:
        """Bytes of an upload that are here; 0 for an unknown one."""

    def open_upload(self, upload_id: str) -> contextlib.AbstractAsyncContextManager[BlobWriter]:
        """Opens an upload for appending, and makes it if need be. What was written stays when the block is left."""

    async def discard_upload(self, upload_id: str) -> None:
        """Removes an unfinished upload."""

    async def sweep_uploads(self, *, idle_s: float) -> frozenset[str]:
        """Removes uploads without a write for ``idle_s`` seconds; returns those that stay."""

    def read(self, digest: Digest, *, offset: int, length: int | None) -> AsyncIterator[bytes]:
        """Bytes from ``offset`` on, in chunks of at most 1 MiB.

        Raises:
            StorageError: The blob is not here or cannot be read.
        """

    def local_path(self, digest: Digest) -> Path | None:
        """Where the blob is as a local file, for sendfile; None where it is none."""

    async def sign_upload(self, upload_id: str, digest: Digest, size_bytes: int) -> tuple[SignedPart, ...]:
        """Where the next bytes of an upload may be sent to directly; nothing where this store cannot do that.

        What is sent there counts as sent to the server: it is in `upload_offset`, and a writer goes on behind it, who
        checks the bytes before they become a blob like all others.
        """

    async def sign_read(self, digest: Digest) -> str:
        """Where the blob can be read directly for a while, with ranges; empty where this store cannot do that."""

    async def find_blob(self, digest: Digest) -> BlobEntry | None:
        """The blob as it is now, None if it is not here."""

    def iter_blobs(self) -> AsyncIterator[BlobEntry]:
        """Every blob that is here from beginning to end of the iteration, in no order; others may be among them.

        Flat in memory, however many there are. What is no blob by its name is left out.

        Raises:
            StorageError: The store cannot be listed.
        """

    async def delete(self, entry: BlobEntry) -> bool:
        """Removes a blob if it is still of the generation of ``entry``; returns whether it did.

        The one caller is `modelbox.runtime.services.space`, which first makes sure by the database that nobody names
        the blob and nobody completes an upload of it. The generation is the second line: a remover that was paused
        for an hour must not take what was uploaded since. Nothing happens to a blob that is gone.

        Raises:
            StorageError: The store refuses, or cannot be reached; the blob may be gone or not.
        """

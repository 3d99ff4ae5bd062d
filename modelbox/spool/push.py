"""Delivering a spool: in order, again after every failure, exactly once in effect.

Owns what happens to a batch: it goes to the server as it is; what the server refuses for good is told and passed over,
so that one bad operation never holds up a run; everything else fails the attempt, and the same batch is tried again.
What is refused because it is about something that is not there, or hidden, is kept aside (`modelbox.spool.aside`).
Artifacts are uploaded in order among themselves, beside everything else, which does not wait for them. Refuses to wait
or to try again by itself: the methods of `Delivery` raise, and whoever called them decides when to come back.

The server knows a spool by its id and takes each number once; sent again, it tells again what it refused. An operation
on several keys that it refuses is put to it key by key, under a name that is made of the spool and the number: so that,
too, happens once, and no lost answer costs the good keys.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

import anyio.to_thread

from modelbox.errors import (
    CacheError,
    ConflictError,
    IntegrityError,
    InvalidError,
    LimitError,
    ModelBoxError,
    NotFoundError,
)
from modelbox.objects import JsonValue
from modelbox.spool.aside import keep_files, keep_operations
from modelbox.spool.format import FilesRecord
from modelbox.spool.operations import parts_of, read_operation
from modelbox.spool.reader import Batch, Spool
from modelbox.tracking import (
    Delivered,
    MetricColumns,
    NewEdges,
    ObjectKind,
    Operation,
    OperationPayload,
    Rejection,
    RunEdit,
    RunPatch,
    RunStatus,
    kind_of_id,
)

__all__ = ("DATASET", "Delivery", "Destination", "Refusal", "ended_unsaid")

_log = logging.getLogger(__name__)

DATASET = "dataset:"
"""Before the name of a dataset version (``namespace/name@3``) as the source of an edge: its id is asked for when it is
delivered."""

_FOR_GOOD = (InvalidError, NotFoundError, ConflictError, IntegrityError, CacheError)
_PARTS_PER_CALL = 1000
_MOST_TOLD = 20


class Destination(Protocol):
    """Where spools go; every method raises as the client's calls do."""

    async def deliver(self, spool: str, operations: Sequence[Operation]) -> Delivered:
        """Hands over operations of a spool."""

    async def upload(
        self,
        parent: str,
        name: str,
        files: Mapping[str, Path],
        *,
        labels: Mapping[str, str],
        metadata: Mapping[str, JsonValue],
    ) -> None:
        """Uploads files and attaches them to an object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Something in a spool that the server refused for good.

    Attributes:
        object: What it was about: an id, where the operation has one.
        what: The operation's kind, such as ``AttributesEdit``.
        kept: Whether it is kept aside, for another push.
    """

    rejection: Rejection
    object: str
    what: str
    kept: bool = False


class Delivery:
    """Brings what is in one spool to a server.

    Args:
        spool: Owned by this process, or adopted.
        to: The server.
        refused: Called for what the server refused for good.
        advanced: Called with the number of records of each batch, artifacts that are left for later among them.
        uploaded: Called after each upload.
        limit_tries: How often something is tried again that the server calls too large. It may be a proxy that has
            enough for now.
        aside_bytes: How much may be kept aside of what is refused, of operations and of artifacts each; None for all.

    Concurrency: one task for `records` and another for `uploads`.
    """

    def __init__(
        self,
        spool: Spool,
        to: Destination,
        *,
        refused: Callable[[Refusal], None],
        advanced: Callable[[int], None] = lambda _: None,
        uploaded: Callable[[], None] = lambda: None,
        limit_tries: int = 0,
        aside_bytes: int | None = None,
    ) -> None:
        self._aside_bytes = aside_bytes
        # What is to be kept aside of the batch that is being delivered, by number.
        self._aside: dict[int, OperationPayload] = {}
        self._spool = spool
        self._to = to
        self._refused = refused
        self._advanced = advanced
        self._uploaded = uploaded
        self._most_tries = limit_tries
        self._tries = 0
        self._upload_tries = 0
        self._told = 0
        # Refusals of the batch that is being delivered; what is told again when it is sent again is in here once.
        self._unsaid: dict[tuple[int, str], Refusal] = {}

    async def records(self) -> int:
        """Delivers what is there now, and leaves artifacts to `uploads`; returns how many records that were.

        Raises:
            ModelBoxError: The server cannot take it now; what was delivered stays so.
            OSError: The disk fails.
        """
        count = 0
        while True:
            batch = await anyio.to_thread.run_sync(self._spool.next_batch)
            if batch is None:
                return count
            self._aside = {}
            await self._deliver(batch)
            await self._keep_operations()
            # Not in a thread: a few system calls, and nothing may come between the answer and the cursor.
            self._spool.advance(batch)
            self._tries = 0
            self._say_all()
            count += batch.count
            self._advanced(batch.count)

    async def uploads(self) -> int:
        """Uploads the artifacts that `records` left; returns how many.

        Raises:
            ModelBoxError: The server cannot take it now; it is tried again first next time.
            OSError: The disk fails.
        """
        count = 0
        while (record := self._spool.next_upload()) is not None:
            refusal = await self._upload(record)
            if refusal is not None:
                refusal = await self._keep_files(record, refusal)
            await anyio.to_thread.run_sync(self._spool.uploaded, record)
            self._upload_tries = 0
            if refusal is not None:
                self._say(refusal)
            count += 1
            self._uploaded()
        return count

    async def end_open_runs(self) -> None:
        """Records that the runs which a dead owner left open were interrupted, at the time of its last record.

        Raises:
            ModelBoxError: The server cannot take it now.
        """
        spool = self._spool
        for number, (run_id, data) in enumerate(spool.open_runs().items()):
            if kind_of_id(run_id) is not None:
                edit = _end_of(run_id, data) or ended_unsaid(
                    run_id, datetime.fromtimestamp(_last_written(spool.directory), UTC)
                )
                name = hashlib.sha256(f"{spool.id}:end:{run_id}".encode()).hexdigest()[:32]
                try:
                    # An `AuthError` comes out: nothing is wrong with the run, with another token it can be ended.
                    delivered = await self._to.deliver(name, [Operation(seq=1, payload=edit)])
                except (InvalidError, NotFoundError, ConflictError) as exc:
                    self._refuse_end(exc.code, exc.message, edit, number)
                else:
                    for rejection in delivered.rejections:
                        self._refuse_end(rejection.code, rejection.message, edit, number)
        await self._keep_operations()
        for run_id in spool.open_runs():
            spool.run_ended(run_id)
        self._say_all()

    def _refuse_end(self, code: str, message: str, edit: RunEdit, number: int) -> None:
        # Behind all records: their owner is gone, and writes no more.
        seq = self._spool.passed_seq + 1 + number
        self._note(
            Refusal(rejection=Rejection(seq=seq, code=code, message=message), object=edit.id, what=_kind_of(edit)), edit
        )

    async def _deliver(self, batch: Batch) -> None:
        for seq, error in batch.unreadable:
            self._refuse(seq, error, "", "operation")
        if batch.files is not None:
            await self._leave(batch.files)
        elif batch.operations:
            await self._send(batch.operations)

    async def _leave(self, record: FilesRecord) -> None:
        try:
            await anyio.to_thread.run_sync(self._spool.leave_upload, record)
        except OSError:
            # The disk is full. Uploading makes room on it.
            _log.debug("an artifact cannot be left for later", exc_info=True)
            refusal = await self._upload(record)
            if refusal is not None:
                self._note(await self._keep_files(record, refusal))

    async def _send(self, operations: Sequence[Operation]) -> None:
        """Delivers operations; halves them to find one that fails the whole call for good."""
        try:
            delivered = await self._to.deliver(self._spool.id, operations)
        except (*_FOR_GOOD, LimitError) as exc:
            if len(operations) > 1:
                middle = len(operations) // 2
                await self._send(operations[:middle])
                await self._send(operations[middle:])
                return
            if isinstance(exc, LimitError):
                self._tries += 1
                if _may_pass(exc) or self._tries <= self._most_tries:
                    raise
            refused = operations[0].payload
            self._refuse(operations[0].seq, exc, _object_of(refused), _kind_of(refused), refused)
            return
        by_seq = {operation.seq: operation.payload for operation in operations}
        for rejection in delivered.rejections:
            payload = by_seq.get(rejection.seq)
            parts = parts_of(payload) if payload is not None else []
            if parts and not rejection.code.startswith("not_found"):
                await self._send_parts(rejection.seq, parts)
            else:
                self._note(
                    Refusal(
                        rejection=rejection,
                        object=_object_of(payload) if payload is not None else "",
                        what=_kind_of(payload) if payload is not None else "operation",
                    ),
                    payload,
                )

    async def _send_parts(self, seq: int, parts: Sequence[OperationPayload]) -> None:
        name = hashlib.sha256(f"{self._spool.id}:{seq}".encode()).hexdigest()[:32]
        numbered = [Operation(seq=number, payload=part) for number, part in enumerate(parts, 1)]
        for begin in range(0, len(numbered), _PARTS_PER_CALL):
            delivered = await self._to.deliver(name, numbered[begin : begin + _PARTS_PER_CALL])
            for rejection in delivered.rejections:
                payload = parts[rejection.seq - 1]
                said = Rejection(seq=seq, code=rejection.code, message=rejection.message)
                self._note(Refusal(rejection=said, object=_object_of(payload), what=_kind_of(payload)))

    async def _upload(self, record: FilesRecord) -> Refusal | None:
        try:
            files = await anyio.to_thread.run_sync(self._found, record)
            await self._to.upload(record.parent, record.name, files, labels=record.labels, metadata=record.metadata)
        except (*_FOR_GOOD, LimitError) as exc:
            if isinstance(exc, LimitError):
                self._upload_tries += 1
                if _may_pass(exc) or self._upload_tries <= self._most_tries:
                    raise
            rejection = Rejection(seq=record.seq, code=exc.code, message=exc.message)
            return Refusal(rejection=rejection, object=record.parent, what=f"artifact {record.name}")
        return None

    def _found(self, record: FilesRecord) -> dict[str, Path]:
        """Where the files lie.

        Raises:
            InvalidError: One is gone, or is not what was logged.
        """
        found: dict[str, Path] = {}
        for file in record.files:
            path = self._spool.path_of(file.local)
            try:
                status = path.stat()
            except OSError as exc:
                raise InvalidError(f"{path} was logged as a file of {record.name} and is gone: {exc.strerror}") from exc
            if not file.copied and (status.st_size, status.st_mtime_ns) != (file.size_bytes, file.mtime_ns):
                raise InvalidError(
                    f"{path} has changed since it was logged as a file of {record.name}: there was no room in the"
                    " spool to copy it"
                )
            if file.copied and status.st_size != file.size_bytes:
                raise InvalidError(
                    f"the copy of {file.path} in {record.name} has {status.st_size} of {file.size_bytes} bytes: the"
                    " machine went down before it was on disk"
                )
            found[file.path] = path
        return found

    def _refuse(
        self, seq: int, error: ModelBoxError, object_id: str, what: str, payload: OperationPayload | None = None
    ) -> None:
        rejection = Rejection(seq=seq, code=error.code, message=error.message)
        self._note(Refusal(rejection=rejection, object=object_id, what=what), payload)

    def _note(self, refusal: Refusal, payload: OperationPayload | None = None) -> None:
        """Has a refusal told; ``payload`` is what may be kept aside of it."""
        self._unsaid[refusal.rejection.seq, refusal.rejection.message] = refusal
        if payload is not None and _may_come_back(refusal):
            self._aside[refusal.rejection.seq] = payload

    async def _keep_operations(self) -> None:
        """Keeps aside what the batch has of that.

        Raises:
            Unavailable: It is being delivered by somebody.
        """
        aside, self._aside = self._aside, {}
        if not aside:
            return
        operations = [Operation(seq=seq, payload=payload) for seq, payload in sorted(aside.items())]
        keep = partial(keep_operations, self._spool.directory, operations, max_bytes=self._aside_bytes)
        if await self._kept(keep):
            for key, refusal in self._unsaid.items():
                if refusal.rejection.seq in aside and _may_come_back(refusal):
                    self._unsaid[key] = replace(refusal, kept=True)

    async def _keep_files(self, record: FilesRecord, refusal: Refusal) -> Refusal:
        """The same for an artifact."""
        if not _may_come_back(refusal):
            return refusal
        keep = partial(keep_files, self._spool.directory, record, max_bytes=self._aside_bytes)
        return replace(refusal, kept=await self._kept(keep))

    async def _kept(self, keep: Callable[[], bool]) -> bool:
        try:
            return await anyio.to_thread.run_sync(keep)
        except (OSError, ValueError) as exc:
            # A full disk must not hold up what the server takes, nor what makes room on it.
            _log.warning("what the server refused of %s cannot be kept aside: %s", self._spool.directory, exc)
            return False

    def _say_all(self) -> None:
        unsaid, self._unsaid = self._unsaid, {}
        for refusal in unsaid.values():
            self._say(refusal)

    def _say(self, refusal: Refusal) -> None:
        self._told += 1
        _log.log(
            logging.WARNING if self._told <= _MOST_TOLD else logging.DEBUG,
            "the server refused a record of a run (%s of %s): %s%s",
            refusal.what,
            refusal.object or "no object",
            refusal.rejection.message,
            "; it is kept, for `modelbox spool push`" if refusal.kept else "",
        )
        self._refused(refusal)


def _may_come_back(refusal: Refusal) -> bool:
    """Whether it is about something that is not there, or that this caller may not see: both may change."""
    return refusal.rejection.code.startswith(NotFoundError.code)


def _may_pass(error: LimitError) -> bool:
    """Whether it is a full disk, for which there is no end of patience: nothing is wrong with what was sent."""
    return error.fields.get("what") == "disk"


def _end_of(run_id: str, data: bytes) -> RunEdit | None:
    """How a run ended whose program died while it recorded that."""
    try:
        edit = read_operation(data)
    except InvalidError:
        return None
    return edit if isinstance(edit, RunEdit) and edit.id == run_id else None


def ended_unsaid(run_id: str, at: datetime) -> RunEdit:
    """The end of a run whose program went without ending it."""
    patch = RunPatch(status=RunStatus.INTERRUPTED, ended_at=at, reason="the program ended without saying so")
    return RunEdit(id=run_id, patch=patch)


def _last_written(directory: Path) -> float:
    return max((path.stat().st_mtime for path in directory.glob("*.seg")), default=directory.stat().st_mtime)


def _object_of(payload: OperationPayload) -> str:
    for name in ("object", "parent_id", "id"):
        value = getattr(payload, name, "")
        if value:
            return str(value)
    if isinstance(payload, NewEdges):
        ends = [end for edge in payload.edges for end in (edge.source, edge.target)]
        return next((end for end in ends if kind_of_id(end) is ObjectKind.RUN), ends[0] if ends else "")
    return ""


def _kind_of(payload: OperationPayload) -> str:
    if isinstance(payload, MetricColumns):
        return f"metrics {', '.join(payload.keys[:3])}{'…' if len(payload.keys) > 3 else ''}"
    return type(payload).__name__

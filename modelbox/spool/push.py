"""Delivering a spool: in order, again after every failure, exactly once in effect.

Owns what happens to a batch: it goes to the server as it is; what the server refuses for good is told and passed over,
so that one bad operation never holds up a run; everything else fails the attempt, and the same batch is tried again.
Refuses to wait or to try again by itself: `deliver_all` raises, and whoever called it decides when to come back.

The server knows a spool by its id and takes each number once. An operation on several keys that it refuses is put to
it key by key, under a name that is made of the spool and the number: so that, too, happens once.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import anyio.to_thread

from modelbox.errors import (
    AuthError,
    CacheError,
    ConflictError,
    IntegrityError,
    InvalidError,
    LimitError,
    ModelBoxError,
    NotFoundError,
)
from modelbox.objects import JsonValue
from modelbox.spool.format import FilesRecord
from modelbox.spool.operations import parts_of
from modelbox.spool.reader import Batch, Spool
from modelbox.tracking import (
    AttributeKind,
    AttributesEdit,
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

__all__ = ("DATASET", "Destination", "Refusal", "deliver_all", "end_open_runs", "ended_unsaid")

_log = logging.getLogger(__name__)

DATASET = "dataset:"
"""Before the name of a dataset version (``namespace/name@3``) as the source of an edge: its id is asked for when it is
delivered."""

_FOR_GOOD = (InvalidError, NotFoundError, ConflictError, IntegrityError, CacheError)
_LIMIT_TRIES = 5
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
    """

    rejection: Rejection
    object: str
    what: str


class _Delivery:
    """One pass over one spool."""

    def __init__(
        self,
        spool: Spool,
        to: Destination,
        refused: Callable[[Refusal], None],
        advanced: Callable[[int], None],
    ) -> None:
        self._spool = spool
        self._to = to
        self._refused = refused
        self._advanced = advanced
        self._told = 0

    async def run(self) -> int:
        count = 0
        while True:
            batch = await anyio.to_thread.run_sync(self._spool.next_batch)
            if batch is None:
                return count
            try:
                await self._deliver(batch)
            except BaseException:
                self._spool.doubtful = True
                raise
            # Not in a thread: a few system calls, and nothing may come between the answer and the cursor.
            self._spool.advance(batch)
            self._spool.limit_tries = 0
            self._spool.doubtful = False
            count += batch.count
            self._advanced(batch.count)

    async def _deliver(self, batch: Batch) -> None:
        for seq, error in batch.unreadable:
            self._refuse(seq, error, "", "operation")
        if batch.files is not None:
            await self._upload(batch.files)
        elif batch.operations:
            await self._send(batch.operations)

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
            if isinstance(exc, LimitError) and not self._limit_reached():
                raise
            self._refuse(operations[0].seq, exc, _object_of(operations[0].payload), _kind_of(operations[0].payload))
            return
        if self._spool.doubtful:
            await self._send_doubtful(operations)
        by_seq = {operation.seq: operation.payload for operation in operations}
        for rejection in delivered.rejections:
            payload = by_seq.get(rejection.seq)
            parts = parts_of(payload) if payload is not None else []
            if parts and not rejection.code.startswith("not_found"):
                await self._send_parts(rejection.seq, parts)
            else:
                self._say(
                    Refusal(
                        rejection=rejection,
                        object=_object_of(payload) if payload is not None else "",
                        what=_kind_of(payload) if payload is not None else "operation",
                    )
                )

    async def _send_doubtful(self, operations: Sequence[Operation]) -> None:
        """Makes up for an answer that may have been lost: it may have said that one key of several was refused.

        The server does not say that again, and took none of the other keys. Setting what is set changes nothing.
        """
        for operation in operations:
            payload = operation.payload
            if isinstance(payload, AttributesEdit) and payload.kind is AttributeKind.PARAM and not payload.overwrite:
                parts = parts_of(payload)
                if parts:
                    await self._send_parts(operation.seq, parts)

    async def _send_parts(self, seq: int, parts: Sequence[OperationPayload]) -> None:
        name = hashlib.sha256(f"{self._spool.id}:{seq}".encode()).hexdigest()[:32]
        numbered = [Operation(seq=number, payload=part) for number, part in enumerate(parts, 1)]
        for begin in range(0, len(numbered), _PARTS_PER_CALL):
            delivered = await self._to.deliver(name, numbered[begin : begin + _PARTS_PER_CALL])
            for rejection in delivered.rejections:
                payload = parts[rejection.seq - 1]
                said = Rejection(seq=seq, code=rejection.code, message=rejection.message)
                self._say(Refusal(rejection=said, object=_object_of(payload), what=_kind_of(payload)))

    async def _upload(self, record: FilesRecord) -> None:
        try:
            files = await anyio.to_thread.run_sync(self._found, record)
            await self._to.upload(record.parent, record.name, files, labels=record.labels, metadata=record.metadata)
        except _FOR_GOOD as exc:
            self._refuse(record.seq, exc, record.parent, f"artifact {record.name}")
        except LimitError as exc:
            if not self._limit_reached():
                raise
            self._refuse(record.seq, exc, record.parent, f"artifact {record.name}")

    def _found(self, record: FilesRecord) -> dict[str, Path]:
        """Where the files lie.

        Raises:
            InvalidError: One that was not copied has changed.
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
            found[file.path] = path
        return found

    def _limit_reached(self) -> bool:
        """A limit may be a full disk, which passes, or a rule, which does not: it has some tries."""
        self._spool.limit_tries += 1
        return self._spool.limit_tries > _LIMIT_TRIES

    def _refuse(self, seq: int, error: ModelBoxError, object_id: str, what: str) -> None:
        rejection = Rejection(seq=seq, code=error.code, message=error.message)
        self._say(Refusal(rejection=rejection, object=object_id, what=what))

    def _say(self, refusal: Refusal) -> None:
        self._told += 1
        _log.log(
            logging.WARNING if self._told <= _MOST_TOLD else logging.DEBUG,
            "the server refused a record of a run (%s of %s): %s",
            refusal.what,
            refusal.object or "no object",
            refusal.rejection.message,
        )
        self._refused(refusal)


async def deliver_all(
    spool: Spool,
    to: Destination,
    *,
    refused: Callable[[Refusal], None],
    advanced: Callable[[int], None] = lambda _: None,
) -> int:
    """Delivers what is in a spool now, and returns how many records that were.

    Args:
        spool: Owned by this process, or adopted.
        to: The server.
        refused: Called for what the server refused for good.
        advanced: Called with the number of records of each batch.

    Raises:
        ModelBoxError: The server cannot take it now; what was delivered stays so.
        OSError: The disk fails.
    """
    return await _Delivery(spool, to, refused, advanced).run()


async def end_open_runs(spool: Spool, to: Destination) -> None:
    """Records that the runs which a dead owner left open were interrupted, at the time of its last record.

    Raises:
        ModelBoxError: The server cannot take it now.
    """
    for run_id in spool.open_runs():
        if kind_of_id(run_id) is None:
            continue
        edit = ended_unsaid(run_id, datetime.fromtimestamp(_last_written(spool.directory), UTC))
        name = hashlib.sha256(f"{spool.id}:end:{run_id}".encode()).hexdigest()[:32]
        try:
            await to.deliver(name, [Operation(seq=1, payload=edit)])
        except (InvalidError, NotFoundError, ConflictError, AuthError) as exc:
            _log.warning("the run %s could not be ended: %s", run_id, exc)


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

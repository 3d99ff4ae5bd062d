"""A spool on disk, as its owner writes it: segments of records, bounded, one write per record.

A spool is one directory, made by one process and locked by it for as long as it lives::

    <id>/about.json          who writes, and for which server
    <id>/lock                held (flock) by the owner, later by whoever delivers what the owner left
    <id>/cursor              how far it was delivered
    <id>/uploads             artifacts up to there that are not uploaded yet
    <id>/00000000000000000001.seg …    records; named after the number from which on they count
    <id>/files/<number>/…    copies of the files of artifacts
    <id>/open/<run id>       a run that the owner began and did not end yet; its end while that is being recorded

Invariants: a record whose append returned is in the page cache: it outlives the process, however that ends; `sync`
makes it outlive the machine. A record that could not be written whole is taken back. Points are refused when the spool
is full, newest first; everything else has a reserve of an eighth. Trouble with the disk is counted and said, never
raised. No append waits for a disk to sync.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from modelbox._local_files import FilesArgument, collect
from modelbox.errors import InvalidError, LimitError
from modelbox.objects import JsonValue
from modelbox.spool.disk import make_private, replace_file, sync_directory, sync_file
from modelbox.spool.format import (
    HEADER,
    MAX_BODY_BYTES,
    FilesRecord,
    SpooledFile,
    encode_files,
    encode_name,
    encode_operation,
    encode_payload,
    encode_point,
    encode_points,
)

__all__ = ("SpoolLog",)

_log = logging.getLogger(__name__)

_SEGMENT_BYTES = 4 << 20
_RESERVE = 8  # one part of so many
_RETRY_S = 1.0
"""How long to leave a disk alone that refused a new segment."""


def _nothing() -> None:
    return


class SpoolLog:
    """The writing end of one spool.

    Args:
        parent: Where spools lie; the new one gets a directory of its own.
        url: Address of the server that it is for.
        actor: In whose name it will be delivered.
        max_bytes: Of everything in it.

    Attributes:
        notify: Called by the first append after `listen`, in any thread; must return at once.

    Raises:
        OSError: The directory cannot be written.

    Concurrency: any thread. A signal handler that logs while its thread is in here is served when that is done.
    """

    def __init__(self, parent: Path, *, url: str, actor: str, max_bytes: int) -> None:
        self.id = secrets.token_hex(16)
        self.directory = parent / self.id
        self.max_bytes = max_bytes
        self.dropped = 0
        """Points that found no room or no disk."""
        self.failed = 0
        """Other records of which the same is true."""
        self.notify: Callable[[], None] = _nothing
        self._lock = threading.RLock()
        self._busy = False
        self._deferred: list[Callable[[], object]] = []
        self._quiet = False
        self._dirty = False
        self._closed = False
        self._told = ""
        self._seq = 0
        self._written_seq = 0
        self._places = 0
        self._retry_at = 0.0
        self._used = 0
        self._most_points = max_bytes - max_bytes // _RESERVE
        self._segment_bytes = max(64 << 10, min(_SEGMENT_BYTES, max_bytes // 8))
        self._names: dict[str, int] = {}
        self._fd = -1
        self._segment = ""
        self._end = 0
        # What `sync` has to do: segments that are full, copies of files, and directories with new names in them.
        self._full: list[int] = []
        self._copies: list[Path] = []
        self._new_names = False
        make_private(parent)
        # The lock comes before the directory can be seen as a spool: `about.json` is what makes it one.
        self.directory.mkdir(mode=0o700)
        self._lock_fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):  # no flock here: then nobody else can have it either
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._open_segment()
            about = {
                "format": 1,
                "spool": self.id,
                "url": url,
                "actor": actor,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "created_us": time.time_ns() // 1000,
            }
            # A spool without it is not found after a power cut.
            replace_file(self.directory / "about.json", json.dumps(about, indent=1).encode())
            sync_directory(parent)
        except BaseException:
            self.abandon()
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    @property
    def last_seq(self) -> int:
        """Number of the newest record that is written; numbers grow and may have gaps."""
        return self._written_seq

    @property
    def used_bytes(self) -> int:
        """Size of what is not delivered yet, in whole segments."""
        return self._used

    def listen(self) -> None:
        """Has the next append call ``notify``, once."""
        self._quiet = True

    # --- appending ---------------------------------------------------------------------------------------------------

    def append_point(self, object_id: str, key: str, step: int, time_us: int, value: float) -> bool:
        """Appends a number; returns whether it found room.

        Raises:
            struct.error: ``step`` does not fit into 64 bits.
        """
        with self._lock:
            if self._busy:
                self._deferred.append(lambda: self.append_point(object_id, key, step, time_us, value))
                return True
            self._busy = True
            written = False
            try:
                if self._fd < 0 and not self._reopened():
                    self._drop(1)
                    return False
                names = self._names
                try:
                    object_index, key_index, before = names[object_id], names[key], b""
                except KeyError:
                    before, (object_index, key_index) = self._name(object_id, key)
                self._seq = seq = self._seq + 1
                frame = before + encode_point(seq, object_index, key_index, step, time_us, value)
                if self._used + len(frame) <= self._most_points:
                    written = self._write(frame, seq)
                if not written:
                    self._drop(1)
                return written
            finally:
                # A signal's exception may come with any call: what must not be left out comes before the first.
                self._busy = False
                if not written:
                    # What named them is not on disk. Places are never given twice, so that naming again does no harm.
                    self._names = {}
                if self._deferred:
                    self._append_deferred()

    def append_points(self, object_id: str, step: int, time_us: int, values: Mapping[str, float]) -> bool:
        """Appends numbers of several keys at one step, all or none.

        Raises:
            struct.error: ``step`` does not fit into 64 bits.
        """

        def make(seq: int) -> bytes:
            before, (object_index, *keys) = self._name(object_id, *values)
            return before + encode_points(
                seq, object_index, step, time_us, list(zip(keys, values.values(), strict=True))
            )

        return self._append(make, points=len(values))

    def append_payload(self, object_id: str, key: str, step: int, time_us: int, kind: int, payload: bytes) -> bool:
        """Appends one point of text (kind 1) or bytes (kind 2)."""

        def make(seq: int) -> bytes:
            before, (object_index, key_index) = self._name(object_id, key)
            return before + encode_payload(seq, object_index, key_index, step, time_us, kind, payload)

        return self._append(make, points=1)

    def append_operation(self, data: bytes) -> bool:
        """Appends an operation, as `modelbox.spool.operations` writes it."""
        return self._append(lambda seq: encode_operation(seq, data), points=0)

    def append_files(
        self,
        parent: str,
        name: str,
        files: FilesArgument,
        *,
        labels: Mapping[str, str],
        metadata: Mapping[str, JsonValue],
    ) -> bool:
        """Copies files into the spool, and appends the artifact that they make.

        Files for which there is no room stay where they are; they are uploaded from there unless they changed.

        Raises:
            InvalidError: They cannot be read, or not be named so.
        """
        found = collect(files)
        # Outside of the lock: others go on logging while files are copied.
        place = Path("files", secrets.token_hex(8))
        kept = [self._kept(path, local, place) for path, local in found]
        appended = self._append(
            lambda seq: encode_files(
                FilesRecord(seq=seq, parent=parent, name=name, files=tuple(kept), labels=labels, metadata=metadata)
            ),
            points=0,
        )
        if not appended:
            shutil.rmtree(self.directory / place, ignore_errors=True)
            self.released(sum(file.size_bytes for file in kept if file.copied))
        return appended

    def _kept(self, path: str, local: Path, place: Path) -> SpooledFile:
        try:
            status = local.stat()
        except OSError as exc:
            raise InvalidError(f"{local} cannot be read: {exc.strerror}", path=str(local)) from exc
        target = self.directory / place / path
        with self._lock:
            fits = not self._closed and self._used + status.st_size <= self._most_points
            if fits:
                self._used += status.st_size
        size_bytes = status.st_size
        if fits:
            copied_bytes = self._copied(local, target)
            fits = copied_bytes is not None
            # It may have grown meanwhile; what counts is what is there.
            size_bytes = copied_bytes if copied_bytes is not None else status.st_size
            self.released(status.st_size - (copied_bytes or 0))
        return SpooledFile(
            path=path,
            local=str(place / path) if fits else str(local),
            size_bytes=size_bytes,
            mtime_ns=status.st_mtime_ns,
            copied=fits,
        )

    def _copied(self, local: Path, target: Path) -> int | None:
        """Size of the copy; None if there is none."""
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(local, target)
            size_bytes = target.stat().st_size
        except OSError as exc:
            with contextlib.suppress(OSError):
                target.unlink()
            self._tell(f"{local} could not be copied into the spool {self.directory}: {exc.strerror}")
            return None
        with self._lock:
            self._copies.append(target)
            self._dirty = True
        return size_bytes

    def _append(self, make: Callable[[int], bytes], *, points: int) -> bool:
        with self._lock:
            if self._busy:
                self._deferred.append(lambda: self._append(make, points=points))
                return True
            self._busy = True
            written = False
            try:
                if self._fd < 0 and not self._reopened():
                    self._drop(points)
                    return False
                self._seq = seq = self._seq + 1
                frame = make(seq)
                if len(frame) > MAX_BODY_BYTES:
                    raise LimitError(f"a record of {len(frame)} bytes is too large for a spool: log an artifact")
                if self._used + len(frame) <= (self._most_points if points else self.max_bytes):
                    written = self._write(frame, seq)
                if not written:
                    self._drop(points)
                return written
            finally:
                self._busy = False
                if not written:
                    # What named them is not on disk. Places are never given twice, so that naming again does no harm.
                    self._names = {}
                if self._deferred:
                    self._append_deferred()

    def _append_deferred(self) -> None:
        while self._deferred and not self._busy:
            try:
                self._deferred.pop(0)()
            except (struct.error, LimitError):
                self._drop(1)

    def _name(self, *wanted: str) -> tuple[bytes, list[int]]:
        """Places of names, and the records that must come before they are used."""
        names, before, places = self._names, b"", []
        for name in wanted:
            place = names.get(name)
            if place is None:
                self._places = place = self._places + 1
                names[name] = place
                before += encode_name(place, name)
            places.append(place)
        return before, places

    def _reopened(self) -> bool:
        """Whether there is a segment to write to again, after the disk had refused one."""
        if not self._closed and time.monotonic() >= self._retry_at:
            self._rotate()
        return self._fd >= 0

    def _write(self, frame: bytes, seq: int) -> bool:
        size = len(frame)
        try:
            written = os.write(self._fd, frame)
        except OSError as exc:
            self._broken(0, exc.strerror or str(exc))
            return False
        if written != size:
            self._broken(written, "the disk is full")
            return False
        self._used += size
        self._end += size
        self._written_seq = seq
        self._dirty = True
        if self._quiet:
            self._quiet = False
            self.notify()
        if self._end >= self._segment_bytes:
            self._rotate()
        return True

    def _broken(self, written: int, why: str) -> None:
        """Takes back what was written of a record, or leaves the segment if that fails, too."""
        self._tell(f"the spool {self.directory} cannot be written: {why}; what cannot be kept is dropped and counted")
        try:
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
        except OSError:
            _log.debug("a record that was not written whole stays at the end of a segment", exc_info=True)
        self._rotate()

    def _rotate(self) -> None:
        full, self._fd = self._fd, -1
        if full >= 0:
            self._full.append(full)
            self._dirty = True
        try:
            self._open_segment()
        except OSError as exc:
            self._retry_at = time.monotonic() + _RETRY_S
            self._tell(f"the spool {self.directory} cannot be written: {exc.strerror}")

    def _open_segment(self) -> None:
        name = f"{self._seq + 1:020d}.seg"
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self.directory / name, flags, 0o600)
        try:
            # There may be one without a record; numbers are taken before they are written.
            os.ftruncate(fd, 0)
            if os.write(fd, HEADER) != len(HEADER):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(self.directory / name)
            raise
        self._fd, self._end, self._names, self._segment = fd, len(HEADER), {}, name
        self._used += len(HEADER)
        self._new_names = True

    def _drop(self, points: int) -> None:
        if points:
            self.dropped += points
        else:
            self.failed += 1
        if self._closed:
            self._tell(f"the spool {self.directory} is closed: what is logged after the program's end is dropped")
        elif self._fd >= 0:
            self._tell(
                f"the spool {self.directory} has no room ({self.max_bytes} bytes, see spool_max_bytes):"
                f" {'points of metrics are' if points else 'an operation is'} dropped until the server has taken more"
            )

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            _log.warning("%s", text)

    # --- runs that are open ------------------------------------------------------------------------------------------

    def mark_open(self, run_id: str) -> None:
        """Notes that the owner has begun a run: should it die, the run ends as interrupted."""
        try:
            (self.directory / "open").mkdir(exist_ok=True)
            (self.directory / "open" / run_id).touch()
        except OSError as exc:
            self._tell(f"the spool {self.directory} cannot be written: {exc.strerror}")

    def mark_ending(self, run_id: str, data: bytes) -> None:
        """Notes how it ended, before `append_operation` is called with that: should the owner die between the two."""
        staged = self.directory / "open" / f"{run_id}.part"
        with contextlib.suppress(OSError):
            staged.write_bytes(data)
            os.replace(staged, self.directory / "open" / run_id)

    def mark_ended(self, run_id: str) -> None:
        """Takes the note back."""
        with contextlib.suppress(OSError):
            (self.directory / "open" / run_id).unlink()

    # --- the reading side, and the end -------------------------------------------------------------------------------

    def tail(self) -> tuple[str, int]:
        """Name of the segment that is written to, and how much of it is whole records."""
        with self._lock:
            try:
                return self._segment, os.fstat(self._fd).st_size
            except OSError:  # none is open
                return "", 0

    def released(self, size_bytes: int) -> None:
        """Tells that so much was delivered and removed."""
        with self._lock:
            self._used -= size_bytes

    def sync(self) -> None:
        """Waits until everything appended is on disk; blocks for as long as the disk takes."""
        if not self._dirty:
            return
        with self._lock:
            self._dirty = False
            full, self._full = self._full, []
            copies, self._copies = self._copies, []
            new_names, self._new_names = self._new_names, False
            try:
                fds = [*full, os.dup(self._fd)] if self._fd >= 0 else [fd for fd in full if fd >= 0]
            except OSError:  # too many files are open
                fds, self._dirty = full, True
        try:
            # Files before the records that speak of them.
            for copy in copies:
                sync_file(copy, self.directory)
            if new_names:
                sync_directory(self.directory)
            while fds:
                os.fdatasync(fds[0])
                os.close(fds.pop(0))
        except OSError as exc:
            if not self._closed:
                self._tell(f"the spool {self.directory} is not safe on disk: {exc.strerror}")
        finally:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def close(self, *, delivered_seq: int | None = None) -> bool:
        """Ends the spool: what is appended from now on is refused.

        Args:
            delivered_seq: Up to where it was delivered; if that is all, the directory is removed.

        Returns:
            Whether it was removed.
        """
        with self._lock:
            if self._closed:
                return not self.directory.exists()
            self._closed = True
            open_fd, self._fd = self._fd, -1
            self._full.append(open_fd)
            remove = delivered_seq is not None and self._written_seq <= delivered_seq
        if remove:
            # While the lock of the spool is held: nobody looks into it meanwhile.
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            self._dirty = True
            self.sync()
        with self._lock:
            self.abandon()
        return remove

    def abandon(self) -> None:
        """Closes the files and nothing else; also for a forked child, which must not hold its parent's lock."""
        self._closed = True
        fds = [self._fd, self._lock_fd, *self._full]
        self._fd = self._lock_fd = -1
        self._full = []
        for fd in fds:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)

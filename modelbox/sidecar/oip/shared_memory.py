"""System shared memory that clients register by name and use for the tensors of their requests.

Owns the file descriptors of the registered regions, for HTTP and gRPC together: a region registered over one is usable
over the other. A region is read and written through its descriptor, not mapped: a client may cut its file short at any
moment, and touching a mapping then would kill this process (SIGBUS) with everybody's calls in it. A read comes back
short instead, and is that client's error.

Refuses names that are no plain name in the directory of shared memory, anything but regular files, and more regions
than the limits say. What a client may register is what the operating system lets this process open; clients are not
told apart, as the protocol has no identities.

Regions whose file is gone (its client removed it, and perhaps died without saying goodbye) give their memory back at
the next `sweep` after `IDLE_S`, or when their name is registered anew.

Concurrency: any thread.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from modelbox.errors import ConflictError, InputError, LimitError, NotFoundError
from modelbox.refs import shown
from modelbox.sidecar.oip.json_body import Region
from modelbox.sidecar.oip.tensors import Buffer

__all__ = ("IDLE_S", "RegionStatus", "SharedMemory")

IDLE_S = 60.0
"""Seconds without use after which a region without a file is dropped."""

_DIRECTORY = "/dev/shm"
_MAX_REGIONS = 1024
_MAX_NAME_CHARS = 255
_MAX_BYTES = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionStatus:
    """A registered region, as the protocol describes it."""

    name: str
    key: str
    offset: int
    byte_size: int


class _Open:
    __slots__ = ("descriptor", "identity", "lock", "status", "used")

    def __init__(self, status: RegionStatus, descriptor: int, identity: tuple[int, int], used: float) -> None:
        self.status = status
        self.descriptor = descriptor
        self.identity = identity
        self.used = used
        # Held while the descriptor is used, so that it cannot be closed, and its number given away, in between.
        self.lock = threading.Lock()

    def gone(self) -> bool:
        return os.fstat(self.descriptor).st_nlink == 0

    def close(self) -> None:
        with self.lock:
            os.close(self.descriptor)
            self.descriptor = -1


class SharedMemory:
    """The registered regions of one sidecar.

    Args:
        directory: Where POSIX shared memory is.
        max_regions: How many there may be.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        directory: str = _DIRECTORY,
        max_regions: int = _MAX_REGIONS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._max_regions = max_regions
        self._clock = clock
        self._lock = threading.Lock()
        self._regions: dict[str, _Open] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Makes part of a shared-memory object known as ``name``.

        Registering exactly the same again changes nothing. A name whose object is gone is given to the new one.

        Args:
            name: Of the region.
            key: Of the object, as ``shm_open`` takes it: ``/name``.
            offset: Where the region begins in it, bytes.
            byte_size: How long it is.

        Raises:
            InputError: The key is no plain name or cannot be opened, or the object is smaller than that.
            ConflictError: The name stands for another region.
            LimitError: There are too many.
        """
        _check_text(name, "region name")
        path = self._path_of(key)
        for what, value in (("offset", offset), ("byte_size", byte_size)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_BYTES:
                raise InputError(f"the {what} of region {shown(name)} is {shown(value)}: expected a number of bytes")
        if not byte_size:
            raise InputError(f"region {shown(name)} has no bytes: expected a byte_size of at least 1")
        descriptor = _open(path, key)
        keep = False
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"the shared-memory key {shown(key)} is no shared-memory object")
            if found.st_size < offset + byte_size:
                raise InputError(
                    f"region {shown(name)} would end at byte {offset + byte_size}, but {shown(key)} has only "
                    f"{found.st_size} bytes"
                )
            status = RegionStatus(name=name, key=key, offset=offset, byte_size=byte_size)
            entry = _Open(status, descriptor, (found.st_dev, found.st_ino), self._clock())
            keep = self._add(entry)
        finally:
            if not keep:
                os.close(descriptor)

    def _add(self, entry: _Open) -> bool:
        """Whether the entry was taken; False when it is there already."""
        name = entry.status.name
        with self._lock:
            old = self._regions.get(name)
            if old is not None:
                if old.identity == entry.identity and old.status == entry.status:
                    return False
                if not old.gone():
                    raise ConflictError(
                        f"shared memory region {shown(name)} is registered already, as {shown(old.status.key)}: "
                        "unregister it first",
                        current=old.status.key,
                    )
                old.close()
            elif len(self._regions) >= self._max_regions:
                raise LimitError(f"{len(self._regions)} shared-memory regions are registered, and no more are allowed")
            self._regions[name] = entry
        return True

    def unregister(self, name: str = "") -> None:
        """Forgets a region, or all of them without a name; unknown ones are no error."""
        with self._lock:
            if name:
                entry = self._regions.pop(name, None)
                dropped = [entry] if entry is not None else []
            else:
                dropped = list(self._regions.values())
                self._regions.clear()
        for entry in dropped:
            entry.close()

    def status(self, name: str = "") -> list[RegionStatus]:
        """The regions, or one of them.

        Raises:
            NotFoundError: There is no region of that name.
        """
        with self._lock:
            if name:
                return [self._named(name).status]
            return [entry.status for entry in self._regions.values()]

    def read(self, region: Region) -> bytes:
        """The bytes of part of a region, copied.

        Raises:
            NotFoundError: It is not registered.
            InputError: The part is outside of it, or its object has become smaller.
        """
        with self._used(region, region.byte_size) as (descriptor, start):
            # Its size first: a read allocates what it is asked for.
            if os.fstat(descriptor).st_size < start + region.byte_size:
                raise _shrunk(region)
            data = os.pread(descriptor, region.byte_size, start)
            while len(data) < region.byte_size:
                # A signal, or more than one read gives (2 GiB).
                more = os.pread(descriptor, region.byte_size - len(data), start + len(data))
                if not more:
                    raise _shrunk(region)
                data += more
        return data

    def write(self, region: Region, data: Buffer) -> None:
        """Puts ``data`` at the beginning of part of a region.

        Raises:
            NotFoundError: It is not registered.
            InputError: The part is outside of it or too small, its object has become smaller, or there is no memory.
        """
        if len(data) > region.byte_size:
            raise InputError(
                f"shared memory region {shown(region.name)}: the output has {len(data)} bytes, "
                f"shared_memory_byte_size is {region.byte_size}"
            )
        with self._used(region, len(data)) as (descriptor, start):
            if os.fstat(descriptor).st_size < start + len(data):
                raise _shrunk(region)
            view = memoryview(data)
            try:
                while view:
                    written = os.pwrite(descriptor, view, start)
                    start += written
                    view = view[written:]
            except OSError as exc:
                raise InputError(
                    f"shared memory region {shown(region.name)} cannot be written: {exc.strerror}"
                ) from exc

    def sweep(self) -> int:
        """Drops regions whose file is gone and that nobody has used for `IDLE_S`; returns how many."""
        now = self._clock()
        with self._lock:
            stale = [name for name, entry in self._regions.items() if now - entry.used >= IDLE_S and entry.gone()]
            dropped = [self._regions.pop(name) for name in stale]
        for entry in dropped:
            entry.close()
        return len(dropped)

    def close(self) -> None:
        """Forgets all regions; idempotent."""
        self.unregister()

    def _used(self, region: Region, size: int) -> _Use:
        with self._lock:
            entry = self._named(region.name)
            entry.used = self._clock()
        if region.offset + max(size, region.byte_size) > entry.status.byte_size:
            raise InputError(
                f"bytes {region.offset} to {region.offset + region.byte_size} are outside of the shared memory region "
                f"{shown(region.name)}, which has {entry.status.byte_size}"
            )
        return _Use(entry, entry.status.offset + region.offset)

    def _named(self, name: str) -> _Open:
        entry = self._regions.get(name)
        if entry is None:
            raise NotFoundError(
                f"unable to find the shared memory region {shown(name)}: register it first",
                exists=sorted(self._regions)[:10],
            )
        return entry

    def _path_of(self, key: str) -> str:
        _check_text(key, "shared-memory key")
        plain = key.removeprefix("/")
        if not plain or "/" in plain or plain in (".", ".."):
            raise InputError(
                f"{shown(key)} is no shared-memory key: expected a name as shm_open takes it, such as /name"
            )
        return os.path.join(self._directory, plain)


class _Use:
    """A region's descriptor, kept open meanwhile, and where to begin."""

    __slots__ = ("_entry", "_start")

    def __init__(self, entry: _Open, start: int) -> None:
        self._entry = entry
        self._start = start

    def __enter__(self) -> tuple[int, int]:
        self._entry.lock.acquire()
        if self._entry.descriptor < 0:
            self._entry.lock.release()
            raise NotFoundError(f"shared memory region {shown(self._entry.status.name)} was unregistered")
        return self._entry.descriptor, self._start

    def __exit__(self, *_: object) -> None:
        self._entry.lock.release()


def _open(path: str, key: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        why = exc.strerror
        if exc.errno == errno.ENOENT:
            why = "there is none (a container sees its own shared memory only)"
        raise InputError(f"unable to open the shared memory {shown(key)}: {why}") from exc


def _check_text(text: object, what: str) -> None:
    if not isinstance(text, str) or not text or len(text) > _MAX_NAME_CHARS or not text.isprintable():
        raise InputError(f"the {what} is {shown(text)}: expected 1 to {_MAX_NAME_CHARS} printable characters")


def _shrunk(region: Region) -> InputError:
    return InputError(f"the shared memory behind region {shown(region.name)} has become smaller than it was registered")

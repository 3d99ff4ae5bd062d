"""Going on with a run after the program that trained was killed: which run it was, and when each step was logged.

A program that starts again from a checkpoint trains the steps behind it once more. A point of a metric is known by its
object, key, step and time; so a step that is logged again *with its first time* is the same point, and the server keeps
one. Owns the small file that remembers this on the machine that trains, so that it needs no server.

Invariants: what `ResumeFile.at` returned is in the file before it returns, so it outlives a SIGKILL. (It does not
outlive a loss of power by itself; a step of the last second may then be there twice.)
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import threading
import time
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from modelbox.errors import InvalidError
from modelbox.tracking import ObjectKind, check_id, kind_of_id

if TYPE_CHECKING:
    from modelbox.run import LiveRun

__all__ = ("ResumeFile",)

_log = logging.getLogger(__name__)

_HEAD_BYTES = 64
_MAGIC = b"modelbox resume 1 "
_RECORD = struct.Struct("<qQq")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_TIME_US = 1 << 53
"""More than two centuries after 1970: what no clock said."""
_KEPT = 10_000
"""Steps of this process that are held in memory; of earlier ones, all are."""


class ResumeFile:
    """Remembers a run until it is done.

    ::

        resume = ResumeFile("work/run")
        with modelbox.start_run("lab/digits", resume=resume.run_id) as run:
            resume.begin(run)
            for step in range(first_step, steps):
                run.log_metric("loss", train(step), step=step, at=resume.at(step))
        resume.done()

    Args:
        path: Of the file; made, with its directory, by `begin`.

    Raises:
        InvalidError: There is a file that is no resume file.
        OSError: It cannot be read.

    Concurrency: any thread; one program at a time.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._run_id: str | None = None
        self._known: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._recent: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._file: int | None = None
        self._lock = threading.Lock()
        self._read()

    @property
    def run_id(self) -> str | None:
        """The run that was begun here and is not done; None where there is none."""
        return self._run_id

    def begin(self, run: LiveRun | str) -> None:
        """Remembers a run that has begun, or goes on.

        Raises:
            OSError: The file cannot be written.
        """
        run_id = check_id(run if isinstance(run, str) else run.id, ObjectKind.RUN)
        with self._lock:
            self._close()
            if run_id != self._run_id:
                self._known = {}
                self._recent.clear()
                self._path.parent.mkdir(parents=True, exist_ok=True)
                new = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
                new.write_bytes((_MAGIC + run_id.encode()).ljust(_HEAD_BYTES - 1) + b"\n")
                os.replace(new, self._path)
                self._run_id = run_id
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0))

    def at(self, step: int, group: str = "") -> datetime:
        """When a step was logged for the first time: now, if it never was.

        Takes some microseconds, one write to the file included. A disk that is full stops nothing: it is said once, and
        steps that are not in the file are new ones to the next program.

        Args:
            step: int64.
            group: Where a program counts several things (batches, epochs), a name for each.
        """
        number = _number(group)
        with self._lock:
            time_us = self._first(number, step)
            if time_us is None:
                time_us = time.time_ns() // 1000
                if self._file is not None:
                    self._write(_RECORD.pack(step, number, time_us))
                self._recent[number, step] = time_us
                if len(self._recent) > _KEPT:
                    self._recent.popitem(last=False)
        return _EPOCH + timedelta(microseconds=time_us)

    def done(self) -> None:
        """Forgets the run: the next program begins a new one. Idempotent."""
        with self._lock:
            self._close()
            self._path.unlink(missing_ok=True)
            self._run_id = None

    def close(self) -> None:
        """Closes the file and keeps it. Idempotent."""
        with self._lock:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, record: bytes) -> None:
        assert self._file is not None
        try:
            if os.write(self._file, record) == len(record):
                return
            reason = "the disk is full"
        except OSError as exc:
            reason = str(exc.strerror)
        # Half a record would move all that come after it.
        self._close()
        _log.warning("steps are no longer remembered in %s: %s", self._path, reason)

    def _first(self, number: int, step: int) -> int | None:
        found = self._recent.get((number, step))
        if found is None and number in self._known:
            steps, times = self._known[number]
            index = int(np.searchsorted(steps, step))
            if index < len(steps) and steps[index] == step:
                found = int(times[index])
        return found

    def _read(self) -> None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        run_id = data[len(_MAGIC) : _HEAD_BYTES].strip().decode(errors="replace")
        headed = len(data) >= _HEAD_BYTES and data.startswith(_MAGIC)
        if not headed or kind_of_id(run_id) is not ObjectKind.RUN:
            raise InvalidError(f"{self._path} is no file that a run was remembered in: name another one")
        self._run_id = run_id
        whole = (len(data) - _HEAD_BYTES) // _RECORD.size * _RECORD.size
        if len(data) != _HEAD_BYTES + whole:
            # A record that a full disk cut off; what is appended next must begin where a record begins.
            os.truncate(self._path, _HEAD_BYTES + whole)
        records = np.frombuffer(
            data, dtype=[("step", "<i8"), ("group", "<u8"), ("time", "<i8")], count=whole // _RECORD.size,
            offset=_HEAD_BYTES if whole else 0,
        )  # fmt: skip
        for number in np.unique(records["group"]).tolist():
            of_group = records[records["group"] == number]
            # A damaged record may be of any time; then its step is a new one.
            of_group = of_group[(of_group["time"] >= 0) & (of_group["time"] < _MAX_TIME_US)]
            steps, first = np.unique(of_group["step"], return_index=True)
            self._known[number] = (steps, of_group["time"][first])


def _number(group: str) -> int:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "little") if group else 0

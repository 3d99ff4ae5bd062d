"""Exports of the audit log as files, and comparing one with what a server says of the same changes now.

Whoever may change every row of a database may also compute its chain anew, and the server's own check finds nothing
wrong. What was exported before, and is kept elsewhere, does not agree with it any more: that is found here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from modelbox.audit import AuditEntry
from modelbox.errors import ConfigError, InvalidError
from modelbox.objects import from_json

__all__ = ("Compared", "compare", "open_new", "read_export")

_MAX_FAULTS = 20


@dataclass(slots=True, kw_only=True)
class Compared:
    """What came of a comparison.

    Attributes:
        same: Entries that are as they were.
        forgotten: Entries that the server does not keep any more, as they are too old.
        faults: What is wrong, the first twenty.
        wrong: How many are.
    """

    same: int = 0
    forgotten: int = 0
    wrong: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, fault: str) -> None:
        """Counts what is wrong."""
        self.wrong += 1
        if len(self.faults) < _MAX_FAULTS:
            self.faults.append(fault)


@contextmanager
def open_new(file: Path | None) -> Iterator[TextIO]:
    """A file that only its owner reads, which must be new; or stdout.

    Raises:
        ConfigError: The file is there, or cannot be made.
    """
    if file is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(f"cannot make {file}: {exc.strerror}") from exc
    with os.fdopen(opened, "w", encoding="utf-8") as lines:
        yield lines


def read_export(file: Path) -> Iterator[AuditEntry]:
    """The entries of an export, in their order.

    Raises:
        InvalidError: A line is none, or they are not in order.
    """
    last = (0, -1)
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = from_json(AuditEntry, json.loads(line))
            except (ValueError, RecursionError) as exc:
                raise InvalidError(f"{file} line {number} is no entry of an audit log: {exc}") from exc
            if (entry.rev, entry.idx) <= last:
                raise InvalidError(f"{file} line {number}: entry {entry.rev}.{entry.idx} follows {last[0]}.{last[1]}")
            last = (entry.rev, entry.idx)
            yield entry


async def compare(exported: Iterator[AuditEntry], now: AsyncIterator[AuditEntry], *, oldest_rev: int) -> Compared:
    """Compares entries with those of a server.

    Args:
        exported: What was, in order.
        now: What the server says, in order; may hold more.
        oldest_rev: The oldest revision that the server keeps.
    """
    found = Compared()
    there: AuditEntry | None = None
    for entry in exported:
        if entry.rev < oldest_rev:
            found.forgotten += 1
            continue
        while there is None or (there.rev, there.idx) < (entry.rev, entry.idx):
            there = await anext(now, None)
            if there is None:
                break
        what = f"revision {entry.rev}, change {entry.idx}: {entry.kind} {entry.object} {entry.action} by {entry.actor}"
        if there is None or (there.rev, there.idx) != (entry.rev, entry.idx):
            found.add(f"{what}: is gone")
        elif not _same(entry, there):
            found.add(f"{what}: is now {there.kind} {there.object} {there.action} by {there.actor}")
        elif there.chain != entry.chain:
            found.add(f"{what}: something before it is not what it was, or beside it")
        else:
            found.same += 1
    return found


def _same(entry: AuditEntry, there: AuditEntry) -> bool:
    # The change before may have been forgotten since.
    before = entry.before if there.before is None else there.before
    return replace(entry, before=None, chain="") == replace(there, before=None, chain="") and before == entry.before

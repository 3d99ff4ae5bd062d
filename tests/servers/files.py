"""Directories, ports and processes of servers for tests."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ("children_of", "drop_to_nobody", "free_port", "readable_by_all", "signal_all", "wait_gone")


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def drop_to_nobody(directory: Path) -> dict[str, Any]:
    """Keywords of `subprocess.Popen` for a program that refuses to run as root; gives ``directory`` to its user."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    os.chown(directory, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def readable_by_all(path: Path) -> bool:
    """Whether another user gets at what is below ``path``."""
    return all(part.stat().st_mode & 0o005 == 0o005 for part in (path, *path.resolve().parents))


def children_of(pid: int) -> list[int]:
    """The processes that ``pid`` started and that have not ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(part) for part in (task / "children").read_text().split()]
    return found


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Sends a signal to each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_gone(pids: Iterable[int], *, timeout: float = 10) -> None:
    """Waits until these processes, whose parent has ended, are no more."""
    end = time.monotonic() + timeout
    for pid in pids:
        while Path(f"/proc/{pid}").exists() and _state(pid) not in ("Z", "X"):
            assert time.monotonic() < end, f"process {pid} does not end"
            time.sleep(0.005)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"

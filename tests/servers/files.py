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


_kept: list[socket.socket] = []


def free_port() -> int:
    """A port that the system gives to nobody else while this process runs.

    A socket that is bound and does not listen keeps it. Servers may listen on it all the same, however often they are
    killed and started again, if they set ``SO_REUSEADDR`` as servers do; while none does, connections are refused.
    """
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind(("127.0.0.1", 0))
    _kept.append(keeper)
    return int(keeper.getsockname()[1])


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


def wait_gone(pids: Iterable[int], *, timeout: float = 60) -> None:
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

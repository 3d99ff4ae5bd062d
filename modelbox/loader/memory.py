"""Whether there is memory for one more session beside those that serve.

A process that takes more than it may is killed, and everything that it serves with it. So before another model is
opened, what it will take is held against the narrowest of the limits that are known: of the container (cgroup), of the
process (RLIMIT_AS) and of the machine. Where none can be read, nothing is refused.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from modelbox.errors import NotEnoughMemory

__all__ = ("check_room", "room_bytes")

_FACTOR = 2
"""Opening takes the weights, and packed copies of them, before anything is given back."""

_SHARE = 0.9
"""The rest is for calls, and for what cannot be foreseen."""

_SMALL_BYTES = 8 << 20
"""What makes no difference is not refused."""

_CGROUPS = Path("/sys/fs/cgroup")


def check_room(size_bytes: int) -> None:
    """Refuses to open files of ``size_bytes`` where that may take more memory than there is.

    Raises:
        NotEnoughMemory: Says how much it takes, and how much there is.
    """
    if size_bytes < _SMALL_BYTES:
        return
    needed, room = _FACTOR * size_bytes, room_bytes()
    if room is not None and needed > room:
        raise NotEnoughMemory(
            f"opening the model takes about {needed >> 20} MiB beside what is served, and there are {room >> 20} MiB: "
            "raise the memory limit, or serve fewer models in one process",
            needed=needed,
            room=room,
            stage="open",
        )


def room_bytes() -> int | None:
    """How much memory this process may still take, less a reserve; None where nothing is known."""
    rooms = [room for room in (_of_containers(), _of_process(), _of_machine()) if room is not None]
    return max(0, min(rooms)) if rooms else None


def _of_containers() -> int | None:
    """Of this process's cgroup and all above it, as far as they can be seen (version 2)."""
    rooms = []
    path = _line_after(Path("/proc/self/cgroup"), "0::")
    group = _CGROUPS / (path or "/").lstrip("/")
    for one in (group, *group.parents):
        if not one.is_relative_to(_CGROUPS):
            break
        limit, used = _number(one / "memory.max"), _number(one / "memory.current")
        if limit is not None and used is not None:
            # What the system reads ahead from files counts as used, and is given up when somebody needs it.
            spare = _line_after(one / "memory.stat", "inactive_file ")
            rooms.append(int(limit * _SHARE) - used + int(spare or 0))
    return min(rooms) if rooms else None


def _of_process() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    with contextlib.suppress(OSError, ValueError, IndexError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        return int(limit * _SHARE) - used
    return None


def _of_machine() -> int | None:
    available = _line_after(Path("/proc/meminfo"), "MemAvailable:")
    with contextlib.suppress(ValueError):
        return int(int((available or "").split()[0]) * 1024 * _SHARE) if available else None
    return None


def _number(path: Path) -> int | None:
    """The number in a file; None if there is no such file, or no number in it ("max")."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _line_after(path: Path, key: str) -> str | None:
    """What follows ``key`` in the line of a file that begins with it."""
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            if line.startswith(key):
                return line.removeprefix(key).strip()
    return None

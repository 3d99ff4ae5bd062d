"""The machine, the versions and the memory of processes, as far as the operating system tells."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

__all__ = ("PeakMemory", "describe", "rss_bytes")

_PACKAGES: Sequence[str] = (
    "modelbox", "anyio", "trio", "uvloop", "grpclib", "betterproto2", "aiohttp", "SQLAlchemy", "numpy", "onnxruntime",
    "opentelemetry-sdk",
)  # fmt: skip


def describe(directory: Path) -> dict[str, object]:
    """Machine, versions and commit; ``directory`` is where the run writes its files."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "file_system": _file_system(directory),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def rss_bytes(pid: int | None = None) -> int:
    """Resident memory of a process; of this one for None."""
    return int(psutil.Process(pid).memory_info().rss)


class PeakMemory:
    """How far a process's resident memory rises above what it is at the beginning.

    Uses the kernel's own high-water mark, so that nothing between two looks is missed.

    Args:
        pid: Of the process; None for this one.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._directory = Path("/proc") / ("self" if pid is None else str(pid))
        (self._directory / "clear_refs").write_text("5")
        self._before = self._read("VmRSS")

    def growth_bytes(self) -> int:
        """From the beginning to the highest point since."""
        return max(self._read("VmHWM") - self._before, 0)

    def _read(self, key: str) -> int:
        for line in (self._directory / "status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
        raise OSError(f"{self._directory}/status has no {key}")


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return f"{commit}{' with changes' if commit and git('status', '--porcelain', '-uno') else ''}" or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _file_system(directory: Path) -> str:
    path = str(directory.resolve())
    mounts = [part for part in psutil.disk_partitions(all=True) if path.startswith(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""

"""What the machine does while a program trains: CPU, memory, disk, network, GPUs, as metrics by name.

Reads ``/proc`` on Linux; elsewhere it asks psutil where that is installed, and else knows only the load. GPUs are read
where the optional package ``pynvml`` is installed and NVML answers. What cannot be read is left out; nothing is raised.

Names begin with ``system/`` and carry their unit. Rates and shares of CPU are means over the time since the sample
before, so the first sample has none.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ("SystemSampler",)

_SECTOR_BYTES = 512
# Not disks of their own: parts, layers and memory would be counted twice or are none.
_NO_DISKS = ("dm-", "fd", "loop", "md", "ram", "sr", "zram")
_VIRTUAL_LINKS = ("lo", "br-", "docker", "veth", "virbr")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counters:
    """What only grows, as it stands at a time; None where it is not known.

    CPU times are in seconds, of all processors together.
    """

    at_s: float
    cpu_busy_s: float | None = None
    cpu_total_s: float | None = None
    process_cpu_s: float | None = None
    disk_read_bytes: int | None = None
    disk_written_bytes: int | None = None
    net_received_bytes: int | None = None
    net_sent_bytes: int | None = None


class SystemSampler:
    """Reads the machine's state, one sample at a time.

    Args:
        directory: The file system whose free space is told; by default that of the working directory.
        proc: Where the kernel tells of itself.
        clock: Monotonic, in seconds.

    Use as a context manager where GPUs are to be let go, or call `close`. Concurrency: one caller at a time. A sample
    takes well below a millisecond, and some milliseconds with GPUs.
    """

    def __init__(
        self,
        *,
        directory: Path | None = None,
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory or Path()
        self._clock = clock
        self._source: _Proc | _Psutil | _Nothing = _Nothing()
        if (proc / "stat").exists():
            self._source = _Proc(proc)
        elif (psutil := _optional("psutil")) is not None:
            self._source = _Psutil(psutil)
        self._gpus = _Gpus(_optional("pynvml"))
        self._before: _Counters | None = None

    def __enter__(self) -> SystemSampler:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets the GPUs' library go; harmless when repeated."""
        self._gpus.close()

    def sample(self) -> dict[str, float]:
        """The state now, by name.

        ``system/cpu_percent`` (of all processors), ``system/process_cpu_percent`` (of one: two busy threads are 200),
        ``system/load_1m``, ``system/memory_used_bytes``, ``system/memory_percent``, ``system/process_memory_bytes``,
        ``system/disk_used_percent``, ``system/disk_read_bytes_per_s``, ``system/disk_written_bytes_per_s``,
        ``system/network_received_bytes_per_s``, ``system/network_sent_bytes_per_s``, and for each GPU
        ``system/gpu0_percent``, ``…_memory_used_bytes``, ``…_memory_percent``, ``…_temperature_celsius`` and
        ``…_power_watts``.
        """
        values: dict[str, float] = {}
        with contextlib.suppress(OSError, AttributeError):
            values["load_1m"] = os.getloadavg()[0]
        with contextlib.suppress(OSError):
            usage = shutil.disk_usage(self._directory)
            if usage.total:
                values["disk_used_percent"] = 100.0 * usage.used / usage.total
        values.update(self._source.memory())
        now = self._source.counters(self._clock())
        if self._before is not None:
            values.update(_rates(self._before, now))
        self._before = now
        values.update(self._gpus.read())
        return {f"system/{name}": float(value) for name, value in values.items()}


def _rates(before: _Counters, now: _Counters) -> Iterator[tuple[str, float]]:
    elapsed = now.at_s - before.at_s
    if elapsed <= 0:
        return
    if None not in (before.cpu_total_s, now.cpu_total_s, before.cpu_busy_s, now.cpu_busy_s):
        total = now.cpu_total_s - before.cpu_total_s  # type: ignore[operator]  # looked at above
        busy = now.cpu_busy_s - before.cpu_busy_s  # type: ignore[operator]
        if total > 0:
            yield "cpu_percent", min(100.0, max(0.0, 100.0 * busy / total))
    for name, field, factor in (
        ("process_cpu_percent", "process_cpu_s", 100.0),
        ("disk_read_bytes_per_s", "disk_read_bytes", 1.0),
        ("disk_written_bytes_per_s", "disk_written_bytes", 1.0),
        ("network_received_bytes_per_s", "net_received_bytes", 1.0),
        ("network_sent_bytes_per_s", "net_sent_bytes", 1.0),
    ):
        old, new = getattr(before, field), getattr(now, field)
        # A device that was taken away makes a sum smaller: that interval has no rate.
        if old is not None and new is not None and new >= old:
            yield name, factor * (new - old) / elapsed


class _Proc:
    """Linux."""

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        self._ticks = os.sysconf("SC_CLK_TCK")
        self._page = os.sysconf("SC_PAGE_SIZE")

    def memory(self) -> dict[str, float]:
        values: dict[str, float] = {}
        sizes = {}
        for line in self._lines("meminfo"):
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                sizes[name] = int(rest.split()[0]) * 1024
        if len(sizes) == 2 and sizes["MemTotal"]:
            used = sizes["MemTotal"] - sizes["MemAvailable"]
            values = {"memory_used_bytes": used, "memory_percent": 100.0 * used / sizes["MemTotal"]}
        for line in self._lines("self/statm"):
            values["process_memory_bytes"] = int(line.split()[1]) * self._page
        return values

    def counters(self, at_s: float) -> _Counters:
        busy, total = self._cpu()
        read, written = self._disks()
        received, sent = self._links()
        return _Counters(
            at_s=at_s,
            cpu_busy_s=busy,
            cpu_total_s=total,
            process_cpu_s=_process_cpu_s(),
            disk_read_bytes=read,
            disk_written_bytes=written,
            net_received_bytes=received,
            net_sent_bytes=sent,
        )

    def _cpu(self) -> tuple[float | None, float | None]:
        for line in self._lines("stat"):
            if line.startswith("cpu "):
                # user nice system idle iowait irq softirq steal; what follows is in user already.
                times = [int(part) / self._ticks for part in line.split()[1:9]]
                return sum(times) - sum(times[3:5]), sum(times)
        return None, None

    def _disks(self) -> tuple[int | None, int | None]:
        rows = {}
        for line in self._lines("diskstats"):
            parts = line.split()
            if len(parts) >= 10 and not parts[2].startswith(_NO_DISKS):
                rows[parts[2]] = (int(parts[5]), int(parts[9]))
        whole = [row for name, row in rows.items() if not any(_is_part(name, disk) for disk in rows)]
        if not whole:
            return None, None
        return sum(row[0] for row in whole) * _SECTOR_BYTES, sum(row[1] for row in whole) * _SECTOR_BYTES

    def _links(self) -> tuple[int | None, int | None]:
        rows = []
        for line in self._lines("net/dev"):
            name, colon, rest = line.partition(":")
            if colon and not name.strip().startswith(_VIRTUAL_LINKS):
                parts = rest.split()
                rows.append((int(parts[0]), int(parts[8])))
        if not rows:
            return None, None
        return sum(row[0] for row in rows), sum(row[1] for row in rows)

    def _lines(self, name: str) -> list[str]:
        try:
            return (self._proc / name).read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return []


def _is_part(name: str, disk: str) -> bool:
    """Whether ``name`` is a partition of ``disk``, such as sda1 or nvme0n1p2."""
    return name != disk and name.startswith(disk) and name[len(disk) :].lstrip("p").isdigit()


class _Psutil:
    """Other systems, where psutil is installed."""

    def __init__(self, psutil: Any) -> None:
        self._psutil = psutil
        self._process = psutil.Process()

    def memory(self) -> dict[str, float]:
        memory = self._psutil.virtual_memory()
        return {
            "memory_used_bytes": memory.total - memory.available,
            "memory_percent": memory.percent,
            "process_memory_bytes": self._process.memory_info().rss,
        }

    def counters(self, at_s: float) -> _Counters:
        cpu = self._psutil.cpu_times()
        disk = self._psutil.disk_io_counters()
        net = self._psutil.net_io_counters()
        return _Counters(
            at_s=at_s,
            cpu_busy_s=sum(cpu) - cpu.idle - getattr(cpu, "iowait", 0.0),
            cpu_total_s=sum(cpu),
            process_cpu_s=_process_cpu_s(),
            disk_read_bytes=disk and disk.read_bytes,
            disk_written_bytes=disk and disk.write_bytes,
            net_received_bytes=net and net.bytes_recv,
            net_sent_bytes=net and net.bytes_sent,
        )


class _Nothing:
    """Other systems without psutil."""

    def memory(self) -> dict[str, float]:
        return {}

    def counters(self, at_s: float) -> _Counters:
        return _Counters(at_s=at_s, process_cpu_s=_process_cpu_s())


class _Gpus:
    """What NVML tells of each GPU."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._handles: list[Any] = []
        if nvml is None:
            return
        try:
            nvml.nvmlInit()
            self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        except (nvml.NVMLError, OSError):
            # No driver, or no right to ask it.
            self._nvml = None

    def read(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for index, handle in enumerate(self._handles):
            for read in (_utilisation, _gpu_memory, _temperature, _power):
                # Each is missing on some devices, and all of them once a GPU is lost.
                with contextlib.suppress(self._nvml.NVMLError):
                    values.update((f"gpu{index}_{name}", value) for name, value in read(self._nvml, handle))
        return values

    def close(self) -> None:
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._nvml, self._handles = None, []


_Values = list[tuple[str, float]]


def _utilisation(nvml: Any, handle: Any) -> _Values:
    return [("percent", nvml.nvmlDeviceGetUtilizationRates(handle).gpu)]


def _gpu_memory(nvml: Any, handle: Any) -> _Values:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return [("memory_used_bytes", memory.used), ("memory_percent", 100.0 * memory.used / memory.total)]


def _temperature(nvml: Any, handle: Any) -> _Values:
    return [("temperature_celsius", nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))]


def _power(nvml: Any, handle: Any) -> _Values:
    return [("power_watts", nvml.nvmlDeviceGetPowerUsage(handle) / 1000.0)]


def _process_cpu_s() -> float:
    times = os.times()
    return times.user + times.system


def _optional(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None

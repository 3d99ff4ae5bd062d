"""The machine's state, from this machine and from what a kernel would say."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from modelbox.system_metrics import SystemSampler


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def say(proc: Path, *, busy: int, idle: int, sectors: int, network: int) -> None:
    (proc / "self").mkdir(exist_ok=True)
    (proc / "net").mkdir(exist_ok=True)
    (proc / "stat").write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 {busy} 0 0 {idle} 0 0 0 0 0 0\n")
    (proc / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 250 kB\n")
    (proc / "self" / "statm").write_text("100 7 3 0 0 0 0\n")
    (proc / "diskstats").write_text(
        f"   8 0 sda 1 0 {sectors} 0 1 0 {2 * sectors} 0 0 0 0\n"
        f"   8 1 sda1 1 0 {sectors} 0 1 0 {2 * sectors} 0 0 0 0\n"
        f" 259 0 nvme0n1 1 0 {sectors} 0 1 0 0 0 0 0 0\n"
        f" 259 1 nvme0n1p1 1 0 {sectors} 0 1 0 0 0 0 0 0\n"
        f"   7 0 loop0 1 0 999999 0 1 0 999999 0 0 0 0\n"
    )
    (proc / "net" / "dev").write_text(
        "Inter-|   Receive  |  Transmit\n face |bytes packets | bytes\n"
        "    lo: 999999 1 0 0 0 0 0 0 999999 1 0 0 0 0 0 0\n"
        f"  eth0: {network} 1 0 0 0 0 0 0 {3 * network} 1 0 0 0 0 0 0\n"
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_kernel_says_becomes_rates_and_shares(tmp_path: Path, clock: Clock) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    say(tmp_path, busy=10 * ticks, idle=10 * ticks, sectors=1000, network=500)
    sampler = SystemSampler(proc=tmp_path, clock=clock)
    first = sampler.sample()
    assert first["system/memory_used_bytes"] == 750 * 1024
    assert first["system/memory_percent"] == 75.0
    assert first["system/process_memory_bytes"] == 7 * os.sysconf("SC_PAGE_SIZE")
    assert 0.0 < first["system/disk_used_percent"] <= 100.0
    assert not any(name.endswith("_per_s") or "cpu" in name for name in first)
    clock.now += 2.0
    say(tmp_path, busy=11 * ticks, idle=13 * ticks, sectors=1400, network=700)
    second = sampler.sample()
    assert second["system/cpu_percent"] == 25.0
    # Two disks of 400 sectors in 2 s; parts and loops are not counted.
    assert second["system/disk_read_bytes_per_s"] == 2 * 400 * 512 / 2.0
    assert second["system/disk_written_bytes_per_s"] == 800 * 512 / 2.0
    assert second["system/network_received_bytes_per_s"] == 100.0
    assert second["system/network_sent_bytes_per_s"] == 300.0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_counter_that_falls_gives_no_rate(tmp_path: Path, clock: Clock) -> None:
    say(tmp_path, busy=1, idle=1, sectors=1000, network=500)
    sampler = SystemSampler(proc=tmp_path, clock=clock)
    sampler.sample()
    clock.now += 1.0
    say(tmp_path, busy=2, idle=2, sectors=10, network=600)
    values = sampler.sample()
    assert "system/disk_read_bytes_per_s" not in values
    assert values["system/network_received_bytes_per_s"] == 100.0
    (tmp_path / "diskstats").unlink()
    (tmp_path / "net" / "dev").write_text("")
    clock.now += 1.0
    assert not any("disk_read" in name or "network" in name for name in sampler.sample())


def test_this_machine() -> None:
    with SystemSampler() as sampler:
        sampler.sample()
        began = time.process_time()
        while time.process_time() - began < 0.1:  # several ticks of the kernel's clocks
            sum(range(10_000))
        values = sampler.sample()
    assert values["system/process_cpu_percent"] > 0.0
    assert all(name.startswith("system/") and isinstance(value, float) for name, value in values.items())
    if sys.platform == "linux":
        assert values["system/process_memory_bytes"] > 1 << 20
        assert 0.0 <= values["system/cpu_percent"] <= 100.0


def test_without_proc_and_psutil_little_is_known(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    sampler = SystemSampler(proc=tmp_path / "gone", clock=clock)
    sampler.sample()
    clock.now += 1.0
    assert set(sampler.sample()) <= {"system/load_1m", "system/disk_used_percent", "system/process_cpu_percent"}


def test_psutil_is_asked_elsewhere(tmp_path: Path, clock: Clock) -> None:
    pytest.importorskip("psutil")
    sampler = SystemSampler(proc=tmp_path / "gone", clock=clock)
    sampler.sample()
    clock.now += 1.0
    values = sampler.sample()
    assert {"system/memory_used_bytes", "system/process_memory_bytes", "system/process_cpu_percent"} <= set(values)


class Nvml(ModuleType):
    """What pynvml is on a machine with two GPUs; of the second one the power is not known."""

    class NVMLError(Exception):
        pass

    NVML_TEMPERATURE_GPU = 0

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.opened = 0
        self.lost = False

    def nvmlInit(self) -> None:
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if self.lost:
            raise self.NVMLError("GPU is lost")
        return SimpleNamespace(gpu=90 + handle)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(used=1 << 30, total=4 << 30)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 60

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle == 1:
            raise self.NVMLError("not supported")
        return 250_000


def test_gpus_tell_what_they_know(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with SystemSampler() as sampler:
        values = sampler.sample()
        assert (values["system/gpu0_percent"], values["system/gpu1_percent"]) == (90.0, 91.0)
        assert values["system/gpu0_memory_used_bytes"] == 1 << 30
        assert values["system/gpu1_memory_percent"] == 25.0
        assert values["system/gpu0_temperature_celsius"] == 60.0
        assert values["system/gpu0_power_watts"] == 250.0
        assert "system/gpu1_power_watts" not in values
        nvml.lost = True
        assert "system/gpu0_percent" not in sampler.sample()
    assert nvml.opened == 0
    sampler.close()
    assert not any("gpu" in name for name in sampler.sample())


def test_a_driver_that_does_not_answer_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml()

    def refuse() -> None:
        raise nvml.NVMLError("driver not loaded")

    monkeypatch.setattr(nvml, "nvmlInit", refuse)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with SystemSampler() as sampler:
        assert not any("gpu" in name for name in sampler.sample())
    assert nvml.opened == 0

"""The cache among processes: cold starts side by side, death at any moment, full and read-only disks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from modelbox.errors import CacheError
from modelbox.loader import cache_upkeep
from modelbox.loader.cache import Cache
from modelbox.loader.download import Downloader, DownloadOptions
from tests.faults.registry import fault
from tests.integration.cache_writer import FILES, store
from tests.model_source import MemorySource, manifest_of

ROOT = Path(__file__).parents[2]
# Fetches one version into the cache at argv[1] and prints what was asked of the source; argv[2] slows the source down,
# and a source with argv[3] never sends the last byte.
FETCH = """
import json, sys, anyio
from modelbox.loader.cache import Cache
from modelbox.loader.download import Downloader
from tests.integration.cache_writer import FILES
from tests.model_source import MemorySource

async def main():
    cache = Cache(sys.argv[1])
    cache.open()
    source = MemorySource()
    source.faults.bytes_per_s = float(sys.argv[2])
    source.faults.chunk_bytes = 16 << 10
    if len(sys.argv) > 3:
        source.faults.silent_after = len(FILES["data/weights.bin"]) - 1
    version = source.add(FILES)
    print("ready", flush=True)
    sys.stdin.readline()
    async with Downloader(source, cache) as downloader:
        path = await downloader.fetch(version)
    tree = {name: (path / name).stat().st_ino for name in FILES}
    print(json.dumps({"opens": len(source.opens), "downloads": source.downloads, "inodes": tree}), flush=True)

anyio.run(main)
"""

# Stores a version, in the same way as `store` does.
STORE = "tests.integration.cache_writer"


def start(script: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate("go\n", timeout=60)
    assert process.returncode == 0
    return out.splitlines()[-1]


def assert_sound(directory: Path) -> None:
    """Nothing wrong stands under a final name, and after a sweep nothing unfinished is left."""
    cache = Cache(directory)
    cache.open()
    assert cache.verify().problems == ()
    cache_upkeep.sweep(cache._layout, older_than_s=-10)
    assert os.listdir(directory / "tmp") == []
    assert [entry for entry in cache.usage() if entry.leased] == []


@fault(39)
def test_eight_processes_on_a_cold_cache_download_once_or_twice(tmp_path: Path) -> None:
    processes = [start(FETCH, tmp_path / "cache", 20e6) for _ in range(8)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [json.loads(finish_started(process)) for process in processes]
    assert sum(result["opens"] for result in results) <= 2 * len(FILES)
    assert 1 <= sum(result["downloads"] for result in results) <= 2 * len(FILES)
    assert len({json.dumps(result["inodes"]) for result in results}) == 1, "all of them see the same files"
    assert_sound(tmp_path / "cache")


def finish_started(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert process.wait(60) == 0
    process.stdout.close()
    assert process.stdin is not None
    process.stdin.close()
    return line


@fault(38)
@pytest.mark.parametrize("progress", [0.1, 0.5, 0.9])
def test_sigkill_in_the_middle_of_a_fetch_leaves_a_sound_cache(tmp_path: Path, progress: float) -> None:
    directory = tmp_path / "cache"
    process = start(FETCH, directory, 1e6, "unfinished")
    try:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        wanted = progress * len(FILES["data/weights.bin"])
        deadline = time.monotonic() + 60
        digest = manifest_of(FILES).files[0].digest
        while Cache(directory).partial_bytes(digest) < wanted:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert os.listdir(directory / "tmp") != [], "it was killed while it wrote"
    assert_sound(directory)
    result = json.loads(finish(start(FETCH, directory, 1e9)))
    assert result["opens"] >= 1
    assert_sound(directory)


@pytest.fixture(scope="session")
def strace() -> str:
    """The tracer; in CI (root on Debian) it is installed when it is missing."""
    if shutil.which("strace") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "-y", "-qq", "strace"], capture_output=True, check=False, timeout=100)
    path = shutil.which("strace")
    if path is None:
        pytest.skip("strace is not installed")
    probe = subprocess.run([path, "-qq", "-e", "trace=none", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("strace may not trace processes here")
    return path


MUTATIONS = ["fsync", "rename", "mkdir", "linkat", "unlink", "fchmod", "writev", "utimensat"]


def _trace(strace: str, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [strace, "-f", "-qq", *options, sys.executable, "-B", "-m", STORE, str(directory)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


@fault(38)
@pytest.mark.slow
@pytest.mark.parametrize("call", MUTATIONS)
def test_death_at_any_system_call_leaves_a_sound_cache(strace: str, tmp_path: Path, call: str) -> None:
    seen = _trace(strace, tmp_path / "whole", "-e", f"trace={call}")
    assert seen.stdout == "stored\n"
    count = len(re.findall(rf"^(?:\[pid +\d+\] )?{call}\(", seen.stderr, re.MULTILINE))
    if not count:
        pytest.skip(f"this platform's Python does not call {call} here")
    step = max(1, count // 8)
    for number in range(1, count + 1, step):
        directory = tmp_path / f"killed-{number}"
        killed = _trace(strace, directory, "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}")
        assert killed.stdout == "", f"{call} number {number} did not end it"
        if not directory.exists():
            continue
        assert_sound(directory)
        store(directory)
        assert_sound(directory)


@fault(38)
def test_names_appear_only_after_their_bytes_are_on_disk(strace: str, tmp_path: Path) -> None:
    seen = _trace(strace, tmp_path / "cache", "-y", "-e", "trace=fsync,rename")
    assert seen.stdout == "stored\n"
    synced: set[str] = set()
    pending: str | None = None  # The directory whose new name is not yet durable.
    renames = 0
    for line in seen.stderr.splitlines():
        if match := re.search(r"fsync\(\d+<([^>]*)>", line):
            synced.add(match[1])
            pending = None if match[1] == pending else pending
        elif match := re.search(r'rename\("([^"]*)", "([^"]*)"', line):
            source, target = match[1], match[2]
            renames += 1
            assert pending is None or ".bak" in target, f"{target} came before {pending} was durable"
            if "/tree." not in source and "/bak." not in source:
                assert source in synced, f"{target} got its name before its bytes were on disk"
            pending = os.path.dirname(target) if "/bak." not in source else pending
    assert renames >= 5
    assert pending is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A volume of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    point = tmp_path / "small"
    point.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(point)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this container may not mount a tmpfs")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


@fault(43)
@pytest.mark.root
async def test_a_disk_that_is_too_small_is_noticed_before_the_download(small_disk: Path) -> None:
    cache = Cache(small_disk / "cache")
    cache.open()
    source = MemorySource()
    version = source.add({"weights.bin": os.urandom(9 << 20)})
    async with Downloader(source, cache) as downloader:
        with pytest.raises(CacheError, match="are free"):
            await downloader.fetch(version)
    assert source.opens == []


@fault(43)
@pytest.mark.root
async def test_a_disk_that_fills_up_meanwhile_ends_the_fetch_and_leaves_nothing(small_disk: Path) -> None:
    cache = Cache(small_disk / "cache")
    cache.open()
    source = MemorySource()
    served = source.add({"old.bin": os.urandom(1 << 20)})
    version = source.add({"weights.bin": os.urandom(5 << 20)}, version=2)
    hog = small_disk / "hog"

    def fill(done: int, total: int) -> None:
        if done > 1 << 20 and not hog.exists():
            hog.write_bytes(bytes((4 << 20) - (64 << 10)))

    async with Downloader(source, cache) as downloader:
        path = await downloader.fetch(served)
        with pytest.raises(CacheError, match="modelbox cache prune") as caught:
            await downloader.fetch(version, fill)
        assert caught.value.fields["errno"] == "ENOSPC"
        assert os.listdir(small_disk / "cache/tmp") == []
        assert cache.find_tree(served.manifest) == path, "what was there still is"
        hog.unlink()
        await downloader.fetch(version)
    assert cache.verify().problems == ()


@contextlib.contextmanager
def read_only_view(directory: Path, point: Path) -> Iterator[Path]:
    """The same directory once more, on a mount that refuses writes even to root."""
    point.mkdir()
    if subprocess.run(["mount", "--bind", str(directory), str(point)], capture_output=True, check=False).returncode:
        pytest.skip("this container may not mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(point)], check=True)
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


@fault(41)
@pytest.mark.root
async def test_a_read_only_cache_serves_what_it_has(tmp_path: Path) -> None:
    writable = tmp_path / "writable"
    cache = Cache(writable)
    cache.open()
    source = MemorySource()
    version, other = source.add(FILES), source.add({"model.onnx": b"new"}, version=2)
    async with Downloader(source, cache) as downloader:
        await downloader.fetch(version)
    with read_only_view(writable, tmp_path / "frozen") as frozen:
        read_only = Cache(frozen)
        read_only.open()
        assert read_only.read_only
        async with Downloader(source, read_only) as downloader:
            path = await downloader.fetch(version)
            assert (path / "model.onnx").read_bytes() == FILES["model.onnx"]
            with pytest.raises(CacheError, match="read-only"):
                await downloader.fetch(other)
        with read_only.lease(version.digest):
            assert len(read_only.usage()) == 1
        assert read_only.verify().problems == ()
        with pytest.raises(CacheError, match="read-only"):
            Cache(frozen / "new").open()


@fault(42)
def test_a_leased_version_of_another_process_is_not_pruned(tmp_path: Path) -> None:
    script = """
import sys
from modelbox.loader.cache import Cache
from tests.integration.cache_writer import SMALL
from tests.model_source import manifest_of
cache = Cache(sys.argv[1])
cache.open()
lease = cache.lease(manifest_of(SMALL).digest)
print("ready", flush=True)
sys.stdin.readline()
"""
    directory = tmp_path / "cache"
    store(directory)
    cache = Cache(directory)
    cache.open()
    process = start(script, directory)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert cache.prune(0) == 0
    process.kill()
    process.communicate()
    assert cache.prune(0) > 0, "death releases a lease"


@fault(40)
async def test_without_locks_a_pruned_download_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", lambda fd, operation: None)
    cache = Cache(tmp_path / "cache")
    cache.open()
    source = MemorySource()
    version = source.add({"a": b"a" * 100, "b": b"b" * 100})
    pruned = 0
    materialise = cache.materialise

    def prune_first(manifest: object) -> Path:
        nonlocal pruned
        if not pruned:
            pruned = cache.prune(0)  # What another process may do at the worst moment.
        return materialise(version.manifest)

    monkeypatch.setattr(cache, "materialise", prune_first)
    async with Downloader(source, cache, DownloadOptions(poll_s=0.01)) as downloader:
        with anyio.fail_after(60):
            path = await downloader.fetch(version)
    assert pruned == 200
    assert (path / "a").read_bytes() == b"a" * 100
    assert cache.find_tree(manifest_of({"a": b"a" * 100, "b": b"b" * 100})) == path

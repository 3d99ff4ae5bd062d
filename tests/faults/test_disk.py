"""A loader whose cache is full, shrinks, or is written to by somebody else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from modelbox.events import ReloadFailed
from modelbox.loader.cache import Cache
from modelbox.loader.settings import LoadOptions
from modelbox.refs import ModelRef
from tests.faults.registry import fault, record_figure
from tests.feed_source import FeedSource
from tests.loading import answer, loading
from tests.onnx_models import add_constant

REF = ModelRef.parse("ns/model@prod")
VOLUME_BYTES = 16 << 20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    point = tmp_path / "volume"
    point.mkdir()
    options = f"size={VOLUME_BYTES},mode=0700"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this container may not mount a tmpfs")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


def versions(source: FeedSource, count: int, *, ballast: int = 0) -> None:
    for number in range(1, count + 1):
        files = {"model.onnx": add_constant(number)}
        if ballast:
            files["ballast.bin"] = bytes([number]) * ballast
        source.add(files, version=number)
    source.move("prod", source.versions["ns/model@1"])


@fault(42)
@pytest.mark.root
async def test_versions_come_and_go_on_a_full_disk(volume: Path, tmp_path: Path) -> None:
    """Each takes 4 MB of 16: what serves stays, what went before makes room."""
    source = FeedSource()
    versions(source, 8, ballast=4_000_000)
    async with loading(source, volume / "cache") as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        for number in range(2, 9):
            source.move("prod", source.versions[f"ns/model@{number}"])
            await log.served(number)
            assert await answer(reloader) == number + 1.0
        assert not [event for event in log.events if isinstance(event, ReloadFailed) and event.quarantined]
        cache = Cache(volume / "cache")
        cache.open()
        leased = [entry for entry in cache.usage() if entry.leased]
        assert len(leased) >= 1
        record_figure(42, f"8 versions of 4 MB through 16 MB, {len(cache.usage())} kept in the end")


@fault(43)
@pytest.mark.root
async def test_a_disk_without_room_holds_up_the_new_version_only(volume: Path) -> None:
    source = FeedSource()
    versions(source, 1)
    big = source.add({"model.onnx": add_constant(2), "ballast.bin": os.urandom(12_000_000)}, version=2)
    async with loading(source, volume / "cache") as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        others = volume / "others"
        others.write_bytes(b"\0" * 8_000_000)
        source.move("prod", big)
        failed = await log.failed(2, count=2)
        assert (failed.code, failed.quarantined) == ("cache", False)
        assert await answer(reloader) == 2.0
        # The next try may be under way.
        with anyio.fail_after(60):
            while list((volume / "cache" / "tmp").iterdir()):
                await anyio.sleep(0.005)
        others.unlink()
        await log.served(2)
        assert await answer(reloader) == 3.0


@fault(44)
@pytest.mark.parametrize("harm", ["truncated", "overwritten with zeros", "replaced", "removed"])
async def test_files_that_somebody_else_spoilt_are_made_again(tmp_path: Path, harm: str) -> None:
    source = FeedSource()
    versions(source, 2)
    async with loading(source, tmp_path) as (loader, _):
        await loader.load(REF, LoadOptions())
        # Directories come and go meanwhile, which `os.walk` does not mind.
        while not any("model.ort" in name for _, _, names in os.walk(tmp_path) for name in names):
            await anyio.sleep(0.01)
    spoilt = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 60]
    held = [path for path in spoilt if path.suffix in (".onnx", ".ort") or "sha256" in str(path.parent)]
    assert len(held) >= 3, "the blob, its name in the version, and the optimised form"
    assert [path for path in held if path.stat().st_mode & 0o222] == [], "nobody can write to them by accident"
    for path in held:
        size = path.stat().st_size
        path.chmod(0o600)
        match harm:
            case "truncated":
                os.truncate(path, size // 2)
            case "overwritten with zeros":
                path.write_bytes(b"\0" * size)
            case "replaced":
                path.unlink()
                path.write_bytes(b"\0" * size)
            case "removed":
                path.unlink()
    cache = Cache(tmp_path)
    cache.open()
    assert cache.verify().problems or harm == "removed", "`modelbox cache verify` finds it"
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        assert await answer(reloader) == 2.0
        assert not [event for event in log.events if isinstance(event, ReloadFailed)]

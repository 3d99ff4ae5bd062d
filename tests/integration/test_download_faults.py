"""A download ends with the right bytes or with a typed error, whatever the server does, and leaves nothing behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from modelbox.errors import CacheError, ClientClosed, IntegrityError, LimitError, NotFoundError, Unavailable
from modelbox.loader.cache import Cache
from modelbox.loader.download import Downloader, DownloadOptions
from modelbox.manifest import Manifest, ManifestFile
from tests.faults.registry import fault
from tests.model_source import MemorySource, digest_of, manifest_of, version_of

FAST = DownloadOptions(backoff_s=0.001, max_backoff_s=0.005, poll_s=0.005, attempts=4)
WEIGHTS = os.urandom(3 << 20)
FILES = {"model.onnx": b"graph", "data/weights.bin": WEIGHTS, "empty.txt": b""}


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = Cache(tmp_path / "cache")
    cache.open()
    yield cache
    leftovers = [*(tmp_path / "cache/tmp").iterdir(), *(tmp_path / "cache/locks").iterdir()]
    assert leftovers == [], "unfinished files or locks were left behind"
    assert [entry.digest for entry in cache.usage() if entry.leased] == [], "a lease was left behind"


def assert_served(path: Path, files: dict[str, bytes] = FILES) -> None:
    found = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert found == files


async def test_everything_arrives_and_is_not_asked_for_again(cache: Cache) -> None:
    source = MemorySource()
    version = source.add(FILES)
    progress: list[tuple[int, int]] = []
    async with Downloader(source, cache, FAST) as downloader:
        path = await downloader.fetch(version, lambda done, total: progress.append((done, total)))
        assert_served(path)
        source.faults.down = True
        assert await downloader.fetch(version) == path
    assert source.downloads == 1
    assert sorted(source.opens) == [("data/weights.bin", 0), ("model.onnx", 0)], "an empty file needs no request"
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert progress[-1] == (version.manifest.size_bytes, version.manifest.size_bytes)


@fault(9)
async def test_equal_files_are_fetched_once(cache: Cache) -> None:
    source = MemorySource()
    files = {f"copy{i}.bin": WEIGHTS for i in range(3)}
    version = source.add(files)
    async with Downloader(source, cache, FAST) as downloader:
        path = await downloader.fetch(version)
    assert_served(path, files)
    assert len(source.opens) == 1
    assert len({os.stat(path / name).st_ino for name in files}) == 1


async def test_a_new_version_fetches_only_what_changed(cache: Cache) -> None:
    source = MemorySource()
    first, second = source.add(FILES), source.add({**FILES, "model.onnx": b"other graph"}, version=2)
    async with Downloader(source, cache, FAST) as downloader:
        await downloader.fetch(first)
        source.opens.clear()
        assert_served(await downloader.fetch(second), {**FILES, "model.onnx": b"other graph"})
    assert source.opens == [("model.onnx", 0)]


@fault(6)
async def test_breaks_are_resumed_where_they_happened(cache: Cache) -> None:
    source = MemorySource()
    version = source.add({"weights.bin": WEIGHTS})
    source.faults.reset_after = 1_100_000
    async with Downloader(source, cache, FAST) as downloader:
        assert_served(await downloader.fetch(version), {"weights.bin": WEIGHTS})
    offsets = [offset for _, offset in source.opens]
    assert offsets == [0, 1_100_000, 2_200_000]
    assert source.downloads == 1


async def test_breaks_without_progress_end(cache: Cache) -> None:
    source = MemorySource()
    version = source.add({"weights.bin": WEIGHTS})
    source.faults.reset_after = 10
    async with Downloader(source, cache, FAST) as downloader:
        with pytest.raises(Unavailable, match="reset"):
            await downloader.fetch(version)
    assert len(source.opens) == FAST.attempts
    assert cache.find_tree(version.manifest) is None


@fault(12)
async def test_a_single_flipped_bit_is_fetched_again(cache: Cache) -> None:
    source = MemorySource()
    version = source.add({"weights.bin": WEIGHTS})
    source.faults.corrupt_at = 1_234_567
    progress: list[int] = []
    async with Downloader(source, cache, FAST) as downloader:
        path = await downloader.fetch(version, lambda done, _: progress.append(done))
    assert_served(path, {"weights.bin": WEIGHTS})
    assert [offset for _, offset in source.opens] == [0, 0], "nothing of the wrong copy is kept"
    assert progress[-1] == len(WEIGHTS)


@fault(12)
async def test_wrong_bytes_twice_are_an_integrity_error(cache: Cache) -> None:
    source = MemorySource()
    version = source.add(FILES)
    source.faults.corrupt_at, source.faults.corruptions_left = 3, 10**6
    async with Downloader(source, cache, FAST) as downloader:
        with pytest.raises(IntegrityError, match="has the digest"):
            await downloader.fetch(version)
    assert cache.find_tree(version.manifest) is None


@fault(13)
async def test_a_truncated_file_is_never_accepted(cache: Cache) -> None:
    source = MemorySource()
    version = source.add({"weights.bin": WEIGHTS})
    source.faults.truncate = len(WEIGHTS) - 1
    async with Downloader(source, cache, FAST) as downloader:
        with pytest.raises(Unavailable, match="ended after 0 of 1 bytes"):
            await downloader.fetch(version)
    assert not cache.has_blob(version.manifest.files[0].digest, len(WEIGHTS))


@fault(13)
@pytest.mark.parametrize("extra", [b"!", b"!" * 200_000])
async def test_a_longer_file_is_never_accepted(cache: Cache, extra: bytes) -> None:
    source = MemorySource()
    version = source.add({"weights.bin": WEIGHTS})
    source.faults.extra = extra
    async with Downloader(source, cache, FAST) as downloader:
        with pytest.raises(IntegrityError, match=r"longer|more than"):
            await downloader.fetch(version)


@fault(7)
async def test_a_silent_server_is_left(cache: Cache) -> None:
    source = MemorySource()
    version = source.add({"weights.bin": WEIGHTS})
    # Before what counts as progress, after which it is asked again.
    source.faults.silent_after = 50_000
    options = DownloadOptions(backoff_s=0.001, stall_s=0.05, attempts=2)
    async with Downloader(source, cache, options) as downloader:
        with anyio.fail_after(60), pytest.raises(Unavailable, match="stalled"):
            await downloader.fetch(version)
    assert source.open_now == 0, "a stream was left open"


@fault(7)
async def test_a_slow_but_steady_server_is_waited_for(cache: Cache) -> None:
    source = MemorySource()
    version = source.add({"weights.bin": WEIGHTS[:100_000]})
    source.faults.chunk_bytes, source.faults.bytes_per_s = 5_000, 400_000
    options = DownloadOptions(stall_s=0.06, min_bytes_per_s=50_000, attempts=1)
    async with Downloader(source, cache, options) as downloader:
        await downloader.fetch(version)
    assert len(source.opens) == 1


async def test_time_in_which_this_process_stands_still_is_not_held_against_the_server(cache: Cache) -> None:
    source = MemorySource()
    version = source.add({"weights.bin": WEIGHTS[:100_000]})
    source.faults.chunk_bytes, source.faults.bytes_per_s = 5_000, 400_000
    options = DownloadOptions(stall_s=0.2, min_bytes_per_s=100_000, attempts=1)

    async def stand_still() -> None:
        for _ in range(2):
            await anyio.sleep(0.03)
            time.sleep(0.5)  # noqa: ASYNC251 - the whole loop stands, as in a machine that sleeps

    async with Downloader(source, cache, options) as downloader, anyio.create_task_group() as tasks:
        tasks.start_soon(stand_still)
        await downloader.fetch(version)
    assert len(source.opens) == 1


@fault(7)
async def test_a_trickle_is_left_though_it_never_stops(cache: Cache) -> None:
    source = MemorySource()
    version = source.add({"weights.bin": WEIGHTS})
    source.faults.chunk_bytes, source.faults.bytes_per_s = 10, 1_000
    options = DownloadOptions(stall_s=0.1, min_bytes_per_s=100_000, attempts=1)
    async with Downloader(source, cache, options) as downloader:
        with anyio.fail_after(60), pytest.raises(Unavailable, match="stalled"):
            await downloader.fetch(version)


async def test_a_missing_server_is_a_typed_error(cache: Cache) -> None:
    source = MemorySource()
    version = source.add(FILES)
    source.faults.down = True
    async with Downloader(source, cache, FAST) as downloader:
        with pytest.raises(Unavailable):
            await downloader.fetch(version)


@fault(15)
async def test_another_manifest_than_announced_is_refused_before_anything_is_asked(cache: Cache) -> None:
    source = MemorySource()
    honest = source.add(FILES)
    swapped = version_of(manifest_of({"model.onnx": b"evil"}))
    lie = type(honest)(**{**{f: getattr(honest, f) for f in honest.__slots__}, "manifest": swapped.manifest})
    async with Downloader(source, cache, FAST) as downloader:
        with pytest.raises(IntegrityError, match="its manifest is"):
            await downloader.fetch(lie)
    assert source.opens == []


async def test_one_content_with_two_sizes_is_refused(cache: Cache) -> None:
    source = MemorySource()
    good = source.add({"a": b"data"}).manifest.files[0]
    twice = Manifest(files=(good, ManifestFile(path="b", size_bytes=5, digest=good.digest)))
    async with Downloader(source, cache, FAST) as downloader:
        with pytest.raises(IntegrityError, match="two sizes"):
            await downloader.fetch(version_of(twice))
    assert source.opens == []


@fault(14)
async def test_too_large_a_version_is_refused_before_anything_is_written(cache: Cache) -> None:
    source = MemorySource()
    version = source.add(FILES)
    options = DownloadOptions(max_version_bytes=1000)
    async with Downloader(source, cache, options) as downloader:
        with pytest.raises(LimitError, match="more than the 1000"):
            await downloader.fetch(version)
    assert source.opens == []
    assert cache.usage() == []


@fault(14)
async def test_more_than_the_disk_has_is_refused_before_anything_is_written(cache: Cache, tmp_path: Path) -> None:
    many = Manifest(
        files=tuple(
            ManifestFile(path=f"part{i}.bin", size_bytes=40 << 30, digest=digest_of(b"%d" % i)) for i in range(5)
        )
    )
    needed = many.size_bytes
    status = os.statvfs(tmp_path)
    if status.f_bavail * status.f_frsize > needed:
        pytest.skip("this disk has more than 200 GB free")
    source = MemorySource()
    async with Downloader(source, cache, FAST) as downloader:
        with pytest.raises(CacheError, match="are free"):
            await downloader.fetch(version_of(many))
    assert source.opens == []


async def test_a_file_that_is_gone_from_the_server_is_not_tried_again(cache: Cache) -> None:
    class Gone(MemorySource):
        async def begin_download(self, version: object) -> str:
            self.opens.append(("begin", 0))
            raise NotFoundError("version 1 was deleted")

    source = Gone()
    version = source.add(FILES)
    async with Downloader(source, cache, FAST) as downloader:
        with pytest.raises(NotFoundError, match="deleted"):
            await downloader.fetch(version)
    assert len(source.opens) <= len(FILES)


@fault(9)
async def test_callers_share_one_flight(cache: Cache) -> None:
    source = MemorySource()
    version = source.add(FILES)
    paths = []
    async with Downloader(source, cache, FAST) as downloader:

        async def one() -> None:
            paths.append(await downloader.fetch(version))

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(one)
    assert len(paths) == 20
    assert len(set(paths)) == 1
    assert source.downloads == 1
    assert len(source.opens) == 2


async def test_one_callers_cancellation_spares_the_others(cache: Cache) -> None:
    source = MemorySource()
    version = source.add(FILES)
    source.gate = anyio.Event()
    paths = []
    async with Downloader(source, cache, FAST) as downloader:

        async def other() -> None:
            paths.append(await downloader.fetch(version))

        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as first:
                tasks.start_soon(other)
                while not source.open_now:
                    await anyio.sleep(0.001)
                first.cancel()
                await downloader.fetch(version)
            source.gate.set()
    assert len(paths) == 1
    assert_served(paths[0])
    assert source.downloads == 1


async def test_the_last_callers_cancellation_ends_the_fetch_and_leaves_nothing(cache: Cache, tmp_path: Path) -> None:
    source = MemorySource()
    version = source.add({"weights.bin": WEIGHTS})
    source.faults.silent_after = 2_000_000
    async with Downloader(source, cache, FAST) as downloader:
        with anyio.CancelScope() as scope:

            def stop(done: int, total: int) -> None:
                if done > 1_000_000:
                    scope.cancel()

            await downloader.fetch(version, stop)
        assert scope.cancelled_caught
        assert list((tmp_path / "cache/tmp").iterdir()) == [], "cancelled fetches are gone when the call is"
        assert source.open_now == 0
        # And the next caller is not held up by the dead one.
        source.faults.silent_after = None
        assert_served(await downloader.fetch(version), {"weights.bin": WEIGHTS})


async def test_closing_ends_a_running_fetch(cache: Cache) -> None:
    source = MemorySource()
    version = source.add(FILES)
    source.gate = anyio.Event()
    downloader = Downloader(source, cache, FAST)
    errors: list[Exception] = []

    async def wait() -> None:
        try:
            await downloader.fetch(version)
        except ClientClosed as exc:
            errors.append(exc)

    async with anyio.create_task_group() as tasks:
        async with downloader:
            tasks.start_soon(wait)
            while not source.open_now:
                await anyio.sleep(0.001)
    assert len(errors) == 1
    with pytest.raises(ClientClosed):
        await downloader.fetch(version)


async def test_a_broken_progress_callback_does_not_break_the_fetch(cache: Cache) -> None:
    source = MemorySource()
    version = source.add(FILES)
    calls = []

    def broken(done: int, total: int) -> None:
        calls.append(done)
        raise RuntimeError("the bar fell over")

    async with Downloader(source, cache, FAST) as downloader:
        assert_served(await downloader.fetch(version, broken))
    assert len(calls) == 1


async def test_errors_inside_the_block_are_not_wrapped(cache: Cache) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with Downloader(MemorySource(), cache, FAST):
            raise KeyError("mine")


@fault(44)
async def test_a_blob_that_was_damaged_on_disk_is_fetched_again(cache: Cache) -> None:
    source = MemorySource()
    version = source.add({"weights.bin": WEIGHTS})
    async with Downloader(source, cache, FAST) as downloader:
        path = await downloader.fetch(version)
        os.chmod(path / "weights.bin", 0o600)
        with open(path / "weights.bin", "r+b") as file:
            file.seek(1000)
            file.write(b"damage")
        again = await downloader.fetch(version)
    assert_served(again, {"weights.bin": WEIGHTS})
    assert len(source.opens) == 2


async def test_another_process_that_hangs_with_the_lock_is_not_waited_for_ever(cache: Cache) -> None:
    source = MemorySource()
    version = source.add({"weights.bin": WEIGHTS})
    held = cache.lock_blob(version.manifest.files[0].digest)
    assert held is not None
    options = DownloadOptions(stall_s=0.1, poll_s=0.01)
    try:
        async with Downloader(source, cache, options) as downloader:
            with anyio.fail_after(60):
                assert_served(await downloader.fetch(version), {"weights.bin": WEIGHTS})
    finally:
        held.release(unlink=True)


async def test_what_another_process_finishes_is_taken_over(cache: Cache) -> None:
    source = MemorySource()
    version = source.add({"weights.bin": WEIGHTS})
    file = version.manifest.files[0]
    held = cache.lock_blob(file.digest)
    assert held is not None
    async with Downloader(source, cache, FAST) as downloader:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(downloader.fetch, version)
            await anyio.sleep(0.05)
            writer = cache.new_blob(file)
            writer.write(WEIGHTS)
            writer.commit()
            held.release(unlink=True)
        assert_served(await downloader.fetch(version), {"weights.bin": WEIGHTS})
    assert source.opens == []
    assert source.downloads == 0, "who downloads nothing records no download"

"""Registered shared memory: bounds at registration and at use, and clients that are gone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbox.errors import ConflictError, InputError, LimitError, NotFoundError
from modelbox.sidecar.oip.json_body import Region
from modelbox.sidecar.oip.shared_memory import IDLE_S, RegionStatus, SharedMemory


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory(tmp_path: Path, clock: Clock) -> Iterator[SharedMemory]:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    memory = SharedMemory(directory=os.fspath(tmp_path), max_regions=3, clock=clock)
    yield memory
    memory.close()


def _descriptors(below: Path) -> int:
    """How many this process has on files below a directory; of others some may come and go meanwhile."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{fd}").startswith(f"{below.resolve()}/")
    return found


def test_read_and_write_within_the_region(memory: SharedMemory, tmp_path: Path) -> None:
    memory.register("r", "/a", 10, 20)
    assert memory.read(Region("r", 0, 20)) == bytes(range(10, 30))
    memory.write(Region("r", 5, 10), b"abc")
    assert memory.read(Region("r", 5, 4)) == b"abc" + bytes([18])
    assert (tmp_path / "a").read_bytes()[15:18] == b"abc"
    assert memory.status() == [RegionStatus(name="r", key="/a", offset=10, byte_size=20)]


@pytest.mark.parametrize(("offset", "size"), [(0, 21), (20, 1), (21, 0), (1 << 62, 1), (1, 1 << 62)])
def test_outside_of_the_region(memory: SharedMemory, offset: int, size: int) -> None:
    memory.register("r", "/a", 10, 20)
    with pytest.raises(InputError, match="outside"):
        memory.read(Region("r", offset, size))
    with pytest.raises(InputError, match="outside"):
        memory.write(Region("r", offset, size), b"")


def test_output_larger_than_its_place(memory: SharedMemory) -> None:
    memory.register("r", "/a", 0, 20)
    with pytest.raises(InputError, match="has 5 bytes, shared_memory_byte_size is 4"):
        memory.write(Region("r", 0, 4), b"12345")


@pytest.mark.parametrize(
    "key",
    ["", "/", "..", "/..", ".", "/../a", "a/b", "//a", "/a\0", "/a\n", "/" + "a" * 300, "/missing", "/link", "/folder"],
)
def test_key_that_is_none(memory: SharedMemory, tmp_path: Path, key: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "folder").mkdir()
    before = _descriptors(tmp_path)
    with pytest.raises(InputError, match=r"key|open"):
        memory.register("r", key, 0, 1)
    assert _descriptors(tmp_path) == before
    assert memory.status() == []


@pytest.mark.parametrize(("offset", "size"), [(0, 101), (100, 1), (-1, 5), (0, -1), (0, 0), (1 << 50, 1), (0, 1 << 50)])
def test_registration_outside_of_the_object(memory: SharedMemory, tmp_path: Path, offset: int, size: int) -> None:
    before = _descriptors(tmp_path)
    with pytest.raises(InputError):
        memory.register("r", "/a", offset, size)
    assert _descriptors(tmp_path) == before


def test_object_that_shrinks_after_registration(memory: SharedMemory, tmp_path: Path) -> None:
    memory.register("r", "/a", 0, 100)
    os.truncate(tmp_path / "a", 50)
    with pytest.raises(InputError, match="smaller"):
        memory.read(Region("r", 0, 100))
    with pytest.raises(InputError, match="smaller"):
        memory.write(Region("r", 40, 20), b"x" * 20)
    assert (tmp_path / "a").stat().st_size == 50
    assert memory.read(Region("r", 0, 50)) == bytes(range(50))


def test_unknown_region(memory: SharedMemory) -> None:
    for use in (lambda: memory.read(Region("q", 0, 1)), lambda: memory.status("q")):
        with pytest.raises(NotFoundError, match="'q'"):
            use()
    memory.unregister("q")


def test_same_name_again(memory: SharedMemory, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(bytes(10))
    memory.register("r", "/a", 0, 10)
    before = _descriptors(tmp_path)
    memory.register("r", "/a", 0, 10)
    with pytest.raises(ConflictError, match="already"):
        memory.register("r", "/b", 0, 10)
    with pytest.raises(ConflictError, match="already"):
        memory.register("r", "/a", 0, 11)
    # Its client has died and started again.
    (tmp_path / "a").unlink()
    memory.register("r", "/b", 0, 10)
    assert memory.status("r")[0].key == "/b"
    assert _descriptors(tmp_path) == before


def test_too_many(memory: SharedMemory) -> None:
    for name in "abc":
        memory.register(name, "/a", 0, 1)
    with pytest.raises(LimitError, match="3 shared-memory regions"):
        memory.register("d", "/a", 0, 1)
    memory.unregister("b")
    memory.register("d", "/a", 0, 1)


def test_unregister_closes(memory: SharedMemory, tmp_path: Path) -> None:
    before = _descriptors(tmp_path)
    for name in "abc":
        memory.register(name, "/a", 0, 1)
    memory.unregister("a")
    assert [status.name for status in memory.status()] == ["b", "c"]
    memory.unregister()
    assert memory.status() == []
    assert _descriptors(tmp_path) == before


def test_sweep_drops_what_nobody_has(memory: SharedMemory, tmp_path: Path, clock: Clock) -> None:
    before = _descriptors(tmp_path)
    memory.register("kept", "/a", 0, 1)
    (tmp_path / "b").write_bytes(bytes(10))
    memory.register("dead", "/b", 0, 1)
    (tmp_path / "b").unlink()
    clock.now = IDLE_S - 1
    assert memory.read(Region("dead", 0, 1)) == b"\0"
    clock.now = IDLE_S + 1
    assert memory.sweep() == 0
    clock.now = 2 * IDLE_S
    assert memory.sweep() == 1
    assert [status.name for status in memory.status()] == ["kept"]
    assert _descriptors(tmp_path) == before + 1

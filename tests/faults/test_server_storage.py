"""A server whose disk fails, that dies between any two steps, whose clock jumps, and that is newer than its clients."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

import modelbox
from modelbox.errors import ModelBoxError, NotFoundError, TransportError
from modelbox.feed import Change
from tests.faults.registry import fault, record_figure
from tests.onnx_models import add_constant
from tests.server import ServerProcess
from tests.servers.availability import unavailable
from tests.servers.debian import CannotHave, unpacked


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def strace() -> str:
    path = shutil.which("strace")
    if path is None:
        pytest.skip("strace is not installed")
    if subprocess.run([path, "-qq", "-e", "trace=none", "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace processes here")
    return path


@contextmanager
def injected(strace: str, server: ServerProcess, calls: str, what: str) -> Iterator[None]:
    """System calls of a running server go wrong."""
    options = ["-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={calls}:{what}"]
    tracer = subprocess.Popen([strace, *options, "-p", str(server.pid)])
    try:
        status = Path(f"/proc/{server.pid}/status")
        deadline = time.monotonic() + 30
        while "TracerPid:\t0" in status.read_text():
            if tracer.poll() is not None or time.monotonic() > deadline:
                pytest.skip("strace may not attach to processes here")
            time.sleep(0.01)
        # All threads, not only the first.
        while not _traced(Path(f"/proc/{server.pid}/task")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield
    finally:
        tracer.terminate()
        tracer.wait(30)


def _traced(tasks: Path) -> bool:
    for task in tasks.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it ended
            if "TracerPid:\t0" in (task / "status").read_text():
                return False
    return True


async def publish(client: modelbox.Client, path: str, tmp_path: Path, number: int) -> None:
    (tmp_path / "model.onnx").write_bytes(add_constant(number))
    await client.publish(path, str(tmp_path / "model.onnx"))


@fault(33)
async def test_a_server_whose_fsync_fails_acknowledges_nothing_and_ends(server: ServerProcess, strace: str) -> None:
    async with modelbox.Client(server.url) as client:
        await client.create_model("disk/before")
        with injected(strace, server, "fsync,fdatasync", "error=EIO"):
            for _ in range(3):
                with pytest.raises(ModelBoxError):
                    await client.create_model("disk/during")
            code = await anyio.to_thread.run_sync(server.wait)
        assert code not in (0, -15)
        await anyio.to_thread.run_sync(server.restart)
        assert (await client.get_model("disk/before")).path == "disk/before"
        await client.create_model("disk/during")
        assert not (await client.check_space(checksums=True)).findings


DEATHS = [("fsync", 1), ("rename", 1), ("fdatasync", 2)]
"""While the bytes come, when they get their name, and while their rows are written."""


@fault(34, 38)
@pytest.mark.slow
async def test_a_server_that_dies_at_any_step_of_a_publication(
    server: ServerProcess, tmp_path: Path, strace: str
) -> None:
    """A file may be left without a row, never a row without its file; and the same publication succeeds afterwards."""
    died = 0
    async with modelbox.Client(server.url) as client:
        for number, (call, when) in enumerate(DEATHS, 1):
            with injected(strace, server, call, f"signal=KILL:when={when}"):
                try:
                    await publish(client, "dies/model", tmp_path, number)
                except TransportError:
                    # Its connections end before it does.
                    await anyio.to_thread.run_sync(server.wait)
                    died += 1
            if not server.running:
                await anyio.to_thread.run_sync(server.restart)
            report = await client.check_space(checksums=True)
            assert {finding.kind for finding in report.findings} <= {"orphan"}
            await publish(client, "dies/model", tmp_path, number)
            numbers = [version.version async for version in client.iter_versions("dies/model")]
            assert numbers == list(range(number, 0, -1)), "once each"
        assert died >= 2, "or this test proves nothing"
        files = await client.download("dies/model@latest", str(tmp_path / "back"))
        assert (files / "model.onnx").read_bytes() == add_constant(len(DEATHS))
        record_figure(34, f"died at {died} of {len(DEATHS)} calls, 0 rows without bytes")


@pytest.fixture(scope="module")
def faketime() -> Path:
    try:
        packages = unpacked("faketime", ("libfaketime",))
    except CannotHave as exc:
        unavailable(str(exc))
    (library,) = packages.root.glob("usr/lib/*/faketime/libfaketime.so.1")
    return library


@fault(35)
async def test_a_wall_clock_that_jumps_changes_no_order(tmp_path: Path, faketime: Path) -> None:
    clock = tmp_path / "clock"

    def jump(years: int) -> None:
        """As one would set a clock: replaced whole, or a call might read half a line."""
        new = clock.with_suffix(".new")
        new.write_text(f"{years * 365 * 86400:+d}\n")
        new.rename(clock)

    jump(0)
    env = {
        "LD_PRELOAD": str(faketime),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_CACHE_DURATION": "1",
    }
    with ServerProcess(tmp_path / "server", env=env, bookmark_interval_s=0.2) as server:
        async with modelbox.Client(server.url, cache_dir=str(tmp_path / "cache")) as client:
            await publish(client, "clock/model", tmp_path, 1)
            await publish(client, "clock/model", tmp_path, 2)
            await client.promote("clock/model@prod", 1)
            model = await client.load("clock/model@prod")
            seen: list[int] = []
            start = (await client.resolve("clock/model@prod")).token

            async def follow() -> None:
                async for item in client.changes(start, objects=["clock/model"]):
                    if isinstance(item, Change):
                        seen.append(item.rev)

            async with anyio.create_task_group() as tg:
                tg.start_soon(follow)
                moved = []
                for turn, years in enumerate((10, -10, -20, 0)):
                    jump(years)
                    await anyio.sleep(1.1)  # until it is read
                    version = 2 - turn % 2
                    moved.append(await client.promote("clock/model@prod", version))
                    with anyio.fail_after(60):
                        while model.version != version or len(seen) <= turn:
                            await anyio.sleep(0.01)
                    assert not model.stale
                tg.cancel_scope.cancel()
            revisions = [alias.mod_rev for alias in moved]
            assert revisions == sorted(set(revisions))
            assert seen == sorted(seen)
            assert set(revisions) <= set(seen)
            # It did jump.
            here = datetime.now(UTC)
            assert max(alias.moved_at for alias in moved) > here + timedelta(days=365)
            assert min(alias.moved_at for alias in moved) < here - timedelta(days=365)
            # Newest first is by revision, whatever the clock said.
            history = [move.rev async for move in client.iter_alias_moves("clock/model", alias="prod")]
            assert history == sorted(history, reverse=True)
            await publish(client, "clock/model", tmp_path, 3)
            with pytest.raises(NotFoundError):
                await client.get_version("clock/model@4")
    assert "Traceback" not in server.output
    record_figure(35, f"{len(moved)} jumps of up to 20 years, order unchanged")

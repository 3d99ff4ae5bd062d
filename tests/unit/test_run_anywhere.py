"""Logging where little can be relied on: it never raises, never hangs, and what it cannot keep is counted."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbox.errors import Unavailable
from modelbox.run import LiveRun
from modelbox.spool.host import SpoolHost
from modelbox.spool.reader import Spool, adopt, find_spools
from modelbox.tracking import RunEdit, RunStatus
from tests.unit.spool.servers import MemoryServer, config_for
from tests.unit.spool.test_log import taken

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
def host(tmp_path: Path, server: MemoryServer) -> Iterator[SpoolHost]:
    host = SpoolHost(config_for(tmp_path), destination=server, read_last_steps=server.read_last_steps)
    yield host
    host.close()


def run_on(host: SpoolHost, *, resume: str | None = None) -> LiveRun:
    return LiveRun("lab/wav2vec", host.config, host=host, capture=False, resume=resume)


def test_workers_that_are_forked_while_other_threads_log(host: SpoolHost, server: MemoryServer, tmp_path: Path) -> None:
    """As a DataLoader of torch makes them; a lock that another thread has just then is never let go in the child."""
    with run_on(host) as run:
        stop = threading.Event()

        def log_on() -> None:
            while not stop.is_set():
                run.log_metric("parent", 0.5)

        def work(number: int) -> None:
            for step in range(50):
                run.log_metric(f"worker {number}", float(step))

        thread = threading.Thread(target=log_on)
        thread.start()
        try:
            context = multiprocessing.get_context("fork")
            for number in range(5):
                worker = context.Process(target=work, args=(number,))
                worker.start()
                worker.join(60)
                assert worker.exitcode == 0
        finally:
            stop.set()
            thread.join()
        logged = run._steps["parent"] + 1
    assert [step for step, _ in server.series("parent")] == list(range(logged))
    found: dict[str, list[int]] = {}
    for about in find_spools(tmp_path / "spool"):
        with adopt(about.directory) as spool:
            for key, step, _ in taken(spool) if spool is not None else []:
                found.setdefault(key, []).append(step)
    # What the parent delivered meanwhile is on the server.
    for number in range(5):
        key = f"worker {number}"
        assert sorted({*found.get(key, []), *(step for step, _ in server.series(key))}) == list(range(50))


class Interrupted(BaseException):
    """As KeyboardInterrupt."""


def test_interrupts_at_any_moment_leave_it_in_order(
    host: SpoolHost, server: MemoryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that raises, over and over: the calls that returned are kept, and those after it work."""
    # One that hits a finalizer is lost, as Python has it; the hook that would tell may itself be interrupted.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    caught = 0
    with run_on(host) as run:
        armed = False

        def interrupt(*_: object) -> None:
            if armed:
                raise Interrupted

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.00031)
        returned: list[int] = []
        try:
            # As long as it takes for some to have come, on a machine that is fast or whose timers are coarse.
            for step in range(2_000_000):
                if step >= 20_000 and caught > 10:
                    break
                try:
                    armed = True
                    run.log_metric(f"key {step % 7}", 0.5, step=step)
                    armed = False
                    returned.append(step)
                except Interrupted:
                    armed = False
                    caught += 1
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        run.log_metric("after", 1.0)
        run.flush(timeout=60)
    assert caught > 10
    assert server.series("after") == [(0, 1.0)]
    kept = {step for key in range(7) for step, _ in server.series(f"key {key}")}
    assert set(returned) - kept == set()
    assert all(step % 7 == key for key in range(7) for step, _ in server.series(f"key {key}"))
    assert (run.dropped, host.log.dropped) == (0, 0)


def test_a_signal_handler_logs(host: SpoolHost, server: MemoryServer) -> None:
    handled = 0
    with run_on(host) as run:

        def handle(*_: object) -> None:
            nonlocal handled
            number = handled
            handled += 1
            run.log_metric("signals", 1.0, step=number)
            run.log_params({f"signal {number}": number})

        before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            logged = 0
            while logged < 20_000 or (handled <= 5 and logged < 2_000_000):
                run.log_metric("loss", 0.5, step=logged)
                logged += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert handled > 5
    assert [step for step, _ in server.series("signals")] == list(range(handled))
    assert len(server.series("loss")) == logged


def test_threads_log_while_the_run_and_its_spool_end(tmp_path: Path, server: MemoryServer) -> None:
    host = SpoolHost(config_for(tmp_path), destination=server)
    run = run_on(host).start()
    stop = threading.Event()
    failed: list[Exception] = []
    calls = [0] * 4

    def work(number: int) -> None:
        try:
            while not stop.is_set():
                run.log_metric(f"thread {number}", 0.5, step=calls[number])
                calls[number] += 1
        except Exception as exc:
            failed.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while not all(calls):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    enders = [threading.Thread(target=run.finish) for _ in range(3)]
    for ender in enders:
        ender.start()
    for ender in enders:
        ender.join(60)
    host.close()
    deadline = time.monotonic() + 60
    while not host.log.dropped and not failed:  # each of them goes on
        assert time.monotonic() < deadline
        time.sleep(0.001)
    stop.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failed == []
    ends = [one for one in server.operations if isinstance(one, RunEdit)]
    assert [end.patch.status for end in ends] == [RunStatus.FINISHED]
    # Every call is on the server, in the spool that was kept, or counted.
    left = 0
    for about in find_spools(tmp_path / "spool"):
        left += len(taken(Spool(about.directory)))
    assert sum(calls) <= len(server.points) + left + host.log.dropped


EXIT = """
import atexit, sys
from modelbox.run import LiveRun
from modelbox.config import load_client_config

config = load_client_config(url="http://127.0.0.1:9", spool_dir=sys.argv[1], env={"HOME": sys.argv[1]})
run = LiveRun("lab/exit", config, capture=False)

def last():
    run.log_metric("late", 1.0)
    run.log_params({"late": 1})
    print("dropped", run.dropped, run.skipped, flush=True)

atexit.register(last)  # runs after what the spool registers
run.start()
run.log_metric("loss", 0.5)
atexit.register(run.log_metric, "in time", 1.0)
"""


def test_at_exit_of_the_interpreter(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXIT, str(tmp_path)], capture_output=True, text=True, timeout=110, cwd=ROOT, check=False
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert done.stdout.split() == ["dropped", "1", "1"]
    assert "is closed" in done.stderr
    (about,) = find_spools(tmp_path)
    keys = [key for key, _, _ in taken(Spool(about.directory))]
    assert keys == ["loss", "in time"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    directory = tmp_path / "small"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_full_disk_costs_what_found_no_room_and_nothing_else(small_disk: Path, server: MemoryServer) -> None:
    server.away = Unavailable("nobody there")
    host = SpoolHost(config_for(small_disk, spool_max_bytes=64 << 20), destination=server)
    with run_on(host) as run:
        step = 0
        while not run.dropped:
            run.log_metric("loss", 0.5, step=step)
            step += 1
            assert step < 200_000
        run.log_artifact("weights", Path(__file__))
        for _ in range(100):
            run.log_params({"late": "x" * 1000})
        assert run.skipped
        server.away = None
        run.flush(timeout=60)
        time.sleep(1.1)  # a disk that refused a segment is left alone for a second
        run.log_params({"late": "there is room again"})
        run.log_metric("loss", 0.25, step=step)
    host.close()
    steps = [number for number, _ in server.series("loss")]
    assert steps == [*range(step - 1), step]
    assert run.dropped == 1
    ends = [one for one in server.operations if isinstance(one, RunEdit)]
    assert [end.patch.status for end in ends] == [RunStatus.FINISHED]


@pytest.mark.parametrize("bad", [2**63, 0.5, "one"])
def test_a_step_that_cannot_be_kept_leaves_the_count_alone(host: SpoolHost, server: MemoryServer, bad: object) -> None:
    with run_on(host) as run:
        run.log_metric("loss", 0.5)
        run.log_metric("loss", 0.5, step=bad)  # type: ignore[arg-type]
        run.log_metrics({"loss": 0.5}, step=bad)  # type: ignore[arg-type]
        run.log_metric("loss", 0.25)
    assert server.series("loss") == [(0, 0.5), (1, 0.25)]
    assert run.skipped == 2


def test_a_resumed_run_counts_on_from_what_the_server_has(host: SpoolHost, server: MemoryServer) -> None:
    server.last_steps = {"loss": 41}
    with run_on(host, resume="run_" + "a" * 24) as run:
        run.log_metric("loss", 0.5)
        run.log_metric("acc", 0.5)
    assert server.series("loss") == [(42, 0.5)]
    assert server.series("acc") == [(0, 0.5)]


def test_a_resumed_run_begins_without_the_server_too(
    host: SpoolHost, server: MemoryServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelbox.run.live._RESUME_WAIT_S", 0.2)
    server.away = Unavailable("nobody there")
    with run_on(host, resume="run_" + "a" * 24) as run:
        run.log_metric("loss", 0.5)
        server.away = None
    assert server.series("loss") == [(0, 0.5)]
    assert "count from 0 again" in caplog.text

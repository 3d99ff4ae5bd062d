"""Programs of the demo: waiting for them, and that none is left behind."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import anyio
import psutil
import pytest

from examples.demo.processes import DemoError, Processes, python

READY = "import time; print('noise'); print('ready port=4711', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY}"

PATH = {"PATH": "/usr/bin:/bin"}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The demo runs on asyncio."""
    return "asyncio"


@pytest.fixture
def new(tmp_path: Path) -> Callable[[], Processes]:
    return lambda: Processes(tmp_path, PATH)


async def test_waits_for_a_line_and_keeps_the_output(new: Callable[[], Processes], tmp_path: Path) -> None:
    async with new() as processes:
        program = await processes.start("a server", python("-c", READY))
        match = await program.wait_for_line(r"port=(\d+)", within_s=60)
        assert match[1] == "4711"
        assert program.tail() == "    a server | noise\n    a server | ready port=4711"
        assert (tmp_path / "a-server.log").read_text() == "noise\nready port=4711\n"


async def test_leaving_ends_every_program(new: Callable[[], Processes]) -> None:
    async with new() as processes:
        programs = [await processes.start(f"server {n}", python("-c", READY)) for n in range(3)]
        for program in programs:
            await program.wait_for_line("ready", within_s=60)
    assert [program.returncode for program in programs] == [-signal.SIGTERM] * 3
    assert not any(psutil.pid_exists(program.pid) for program in programs)


async def test_an_error_ends_every_program(new: Callable[[], Processes]) -> None:
    pid = 0
    with pytest.raises(ExceptionGroup):
        async with new() as processes:
            pid = (await processes.start("server", python("-c", READY))).pid
            raise DemoError("no")
    assert pid
    assert not psutil.pid_exists(pid)


async def test_cancellation_ends_every_program(new: Callable[[], Processes]) -> None:
    pid = 0
    with anyio.CancelScope() as scope:
        async with new() as processes:
            program = await processes.start("server", python("-c", READY))
            pid = program.pid
            await program.wait_for_line("ready", within_s=60)
            scope.cancel()
            await anyio.sleep_forever()
    assert pid
    assert not psutil.pid_exists(pid)


async def test_a_program_that_ignores_sigterm_is_killed(
    new: Callable[[], Processes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("examples.demo.processes._GRACE_S", 0.2)
    async with new() as processes:
        program = await processes.start("server", python("-c", STUBBORN))
        await program.wait_for_line("ready", within_s=60)
    assert program.returncode == -signal.SIGKILL


async def test_kill_is_sigkill(new: Callable[[], Processes]) -> None:
    async with new() as processes:
        program = await processes.start("server", python("-c", STUBBORN))
        await program.wait_for_line("ready", within_s=60)
        assert await program.kill() == -signal.SIGKILL
        with pytest.raises(DemoError, match="had already ended, with code -9"):
            await program.kill()


async def test_a_program_that_ends_early_is_reported_with_its_last_words(new: Callable[[], Processes]) -> None:
    async with new() as processes:
        program = await processes.start("server", python("-c", "import sys; sys.exit('the port is taken')"))
        with pytest.raises(DemoError, match=r"(?s)server ended with code 1 instead of .*the port is taken"):
            await program.wait_for_line("ready", within_s=60)


async def test_a_line_that_does_not_come_is_reported(new: Callable[[], Processes]) -> None:
    async with new() as processes:
        program = await processes.start("server", python("-c", READY))
        await program.wait_for_line("ready", within_s=60)
        with pytest.raises(DemoError, match=r"(?s)did not print /never/ within 0.05 s.*ready port=4711"):
            await program.wait_for_line("never", within_s=0.05)


async def test_output_without_a_final_newline_is_kept(new: Callable[[], Processes]) -> None:
    async with new() as processes:
        program = await processes.start("server", python("-c", "print('last words', end='')"))
        await program.wait_for_line("last words", within_s=60)


async def test_run_gives_what_was_printed(new: Callable[[], Processes]) -> None:
    async with new() as processes:
        text, took_s = await processes.run(
            python("-c", "import os; print(os.environ['MODELBOX_URL'])"),
            within_s=60,
            environment={"MODELBOX_URL": "http://127.0.0.1:1"},
        )
    assert text == "http://127.0.0.1:1\n"
    assert 0 < took_s < 60


async def test_a_command_that_fails_says_why(new: Callable[[], Processes]) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with new() as processes:
            await processes.run(python("-c", "import sys; sys.exit('no such model')"), within_s=60)
    assert caught.group_contains(DemoError, match=r"(?s)ended with code 1:\nno such model")


async def test_a_command_that_takes_too_long_is_ended(new: Callable[[], Processes]) -> None:
    children = set(psutil.Process().children())
    with pytest.raises(ExceptionGroup) as caught:
        async with new() as processes:
            await processes.run(python("-c", READY), within_s=0.3)
    assert caught.group_contains(DemoError, match="took longer than 0.3 s")
    assert set(psutil.Process().children()) <= children

"""Starting, watching and ending the programs of the demo.

Owns every process that the demo starts: whatever happens, all of them have ended when `Processes` is left. Each runs in
a session of its own, so that Ctrl-C reaches the demo alone, which then ends them in order. What they print is kept in
a file per program, and shown when one of them fails.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import anyio
from anyio import AsyncContextManagerMixin, create_task_group, fail_after, move_on_after
from anyio.abc import Process, TaskGroup

__all__ = ("DemoError", "Processes", "Program")

_GRACE_S = 10.0
_KILL_WITHIN_S = 10.0
_TAIL_LINES = 30


class DemoError(Exception):
    """The demo cannot go on.

    Its first line says what was waited for and what happened instead; the others are what a program printed.
    """

    @property
    def headline(self) -> str:
        """The first line, for those who print the output of programs on their own."""
        return str(self).partition("\n")[0].removesuffix(":")


class Program:
    """A running program, its output so far, and its end."""

    def __init__(self, name: str, process: Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._lines: list[str] = []
        self._changed = anyio.Event()
        self._ended = anyio.Event()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.returncode

    def tail(self) -> str:
        """The last lines that it printed."""
        return "\n".join(f"    {self.name} | {line}" for line in deque(self._lines, _TAIL_LINES))

    async def wait_for_line(self, pattern: str, *, within_s: float) -> re.Match[str]:
        """Waits for a printed line in which ``pattern`` is found.

        Raises:
            DemoError: The program ended, or the time is over.
        """
        wanted = re.compile(pattern)
        seen = 0
        with move_on_after(within_s):
            while True:
                changed = self._changed
                for line in self._lines[seen:]:
                    if match := wanted.search(line):
                        return match
                seen = len(self._lines)
                if self._ended.is_set():
                    raise DemoError(
                        f"{self.name} ended with code {self.returncode} instead of printing /{pattern}/:\n{self.tail()}"
                    )
                await changed.wait()
        raise DemoError(f"{self.name} did not print /{pattern}/ within {within_s:g} s:\n{self.tail()}")

    async def kill(self) -> int:
        """Ends it with SIGKILL and waits for its end; returns its code.

        Raises:
            DemoError: It had ended before.
        """
        if self.returncode is not None:
            raise DemoError(f"{self.name} had already ended, with code {self.returncode}:\n{self.tail()}")
        self._process.send_signal(signal.SIGKILL)
        with fail_after(_KILL_WITHIN_S):
            return await self._process.wait()

    async def stop(self) -> int:
        """Asks it to end with SIGTERM, and ends it with SIGKILL after a while; returns its code."""
        if self.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            with move_on_after(_GRACE_S):
                return await self._process.wait()
            self._process.send_signal(signal.SIGKILL)
        with fail_after(_KILL_WITHIN_S):
            return await self._process.wait()

    async def follow_output(self) -> None:
        """Copies the output to the log and to the lines, until the program ends."""
        stdout = self._process.stdout
        if stdout is None:
            raise DemoError(f"{self.name} was started without a pipe for its output.")
        rest = b""
        with self.log.open("ab") as log:
            async for chunk in stdout:
                rest = self._take(rest + chunk, log)
            self._take(rest + b"\n", log) if rest else None
        await self._process.wait()
        self._ended.set()
        self._notify()

    def _take(self, data: bytes, log: IO[bytes]) -> bytes:
        *lines, rest = data.split(b"\n")
        for line in lines:
            log.write(line + b"\n")
            self._lines.append(line.decode(errors="replace"))
        log.flush()
        self._notify()
        return rest

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class Processes(AsyncContextManagerMixin):
    """All programs of the demo; leaving it ends them, the last one first.

    Args:
        directory: Where the output of each is kept, and their working directory.
        environment: The whole environment of each.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._environment = dict(environment)
        self._programs: list[Program] = []
        self._failed_commands: list[str] = []
        self._tasks: TaskGroup

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Processes]:
        async with create_task_group() as self._tasks:
            try:
                yield self
            finally:
                with anyio.CancelScope(shield=True):  # bounded by stop()
                    for program in reversed(self._programs):
                        await program.stop()
                self._tasks.cancel_scope.cancel()

    async def start(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None
    ) -> Program:
        """Starts a program, and follows its output from then on.

        Args:
            name: For messages and the log file.
            command: The program and its arguments.
            environment: Added to the environment of all.
        """
        process = await anyio.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._directory,
            env={**self._environment, **(environment or {})},
            start_new_session=True,
        )
        program = Program(name, process, self._directory / f"{name.replace(' ', '-')}.log")
        self._programs.append(program)
        self._tasks.start_soon(program.follow_output, name=f"output of {name}")
        return program

    async def run(
        self, command: Sequence[str], *, within_s: float, environment: Mapping[str, str] | None = None
    ) -> tuple[str, float]:
        """Runs a command to its end; returns what it printed on stdout, and the seconds that it took.

        Raises:
            DemoError: It failed, or took longer than ``within_s``.
        """
        shown = " ".join([Path(command[0]).name, *command[1:]])
        began = time.monotonic()
        try:
            with fail_after(within_s):
                done = await anyio.run_process(
                    command,
                    stdin=subprocess.DEVNULL,
                    check=False,
                    cwd=self._directory,
                    env={**self._environment, **(environment or {})},
                    start_new_session=True,
                )
        except TimeoutError:
            raise DemoError(f"`{shown}` took longer than {within_s:g} s.") from None
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            self._failed_commands.append("\n".join(f"    {line}" for line in [f"$ {shown}", *said.splitlines()]))
            raise DemoError(f"`{shown}` ended with code {done.returncode}:\n{said}")
        return done.stdout.decode(), time.monotonic() - began

    def tails(self) -> str:
        """The last lines of every program, and the commands that failed."""
        texts = [*(program.tail() for program in self._programs), *self._failed_commands]
        return "\n".join(text for text in texts if text)


def python(*arguments: str) -> list[str]:
    """A command for the interpreter that runs the demo."""
    return [sys.executable, *arguments]

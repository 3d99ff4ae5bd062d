"""A program that logs (`tests.integration.run_logger`) as a real process, to be killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ("ROOT", "Logger", "logging_to")

ROOT = Path(__file__).resolve().parents[1]


class Logger:
    """A running `tests.integration.run_logger`, and what it said."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self.process = process
        self._errors = errors
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line.strip())

    def wait_for(self, count: int) -> None:
        """Waits until it has said so many lines."""
        deadline = time.monotonic() + 90
        while len(self.lines) < count:
            assert time.monotonic() < deadline, "the program did not get there"
            time.sleep(0.001)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Kills it, and waits for its end; one that does not end says what it is doing."""
        self.process.send_signal(how)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            self.process.wait()
            self._errors.seek(0)
            raise AssertionError(f"it did not end after {how.name}:\n{self._errors.read()[-20_000:]}") from None
        finally:
            self._reader.join()

    @property
    def run(self) -> str:
        """Id of its run."""
        return self.lines[0]

    def said(self, what: str) -> list[int]:
        """The numbers that it said of ``step``, ``param`` or ``artifact``."""
        return [int(line.split()[1]) for line in self.lines if line.startswith(f"{what} ")]


@contextmanager
def logging_to(url: str, spool_dir: Path, experiment: str = "lab/killed") -> Iterator[Logger]:
    """Runs one."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [
                sys.executable,
                "-X",
                "faulthandler",
                "-m",
                "tests.integration.run_logger",
                url,
                str(spool_dir),
                experiment,
            ],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
        )
        logger = Logger(process, errors)
        try:
            yield logger
        finally:
            if process.poll() is None:
                logger.kill()

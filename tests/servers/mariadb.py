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
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import asyncmy
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from modelbox.runtime.store.migrate import MAIN, METRICS, migrate
from tests.servers.debian import unpacked
from tests.servers.files import free_port

__all__ = ("MariadbServer",)

T = TypeVar("T")

_PACKAGES = ("mariadb-server-core", "liburing2", "libnuma1", "libaio1t64|libaio1")
USER = "modelbox"
_ENDS_WITH_PARENT = 'read -r _; kill -KILL "$(cat "$0/pid")"; sleep 1; rm -rf "$0"'
"""A shell waits for the end of its input, which comes with the end of the process that holds the other end."""

_names = itertools.count(1)
_SCRIPTS = ("mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql")


class MariadbServer:
    """One server with one administrator, who needs a password.

    Use as a context manager. The methods block; from a coroutine call them in a thread.

    Args:
        options: Of ``mariadbd``, beside or instead of ours.
        directory: Where its data go; a temporary directory by default.

    Raises:
        CannotHave: On entering: its packages cannot be had.
    """

    def __init__(self, *, options: Sequence[str] = (), directory: Path | None = None) -> None:
        # What has to be quoted in URLs.
        self.password = f"p@ss:w/%{secrets.token_hex(8)}"
        self.port = free_port()
        self._options = tuple(options)
        self._given = directory
        self._base: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._template: list[str] = []
        self._migrated: set[str] = set()
        self._clean: list[str] = []

    def __enter__(self) -> Self:
        self._packages = unpacked("mariadb", _PACKAGES)
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
            self.kill()
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard = None
        if self._base is not None and self._given is None:
            shutil.rmtree(self._base, ignore_errors=True)

    @property
    def directory(self) -> Path:
        """Of its data (``data``), its log (``log``) and its socket (``s``)."""
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

    def url(self, database: str, *, user: str = USER, password: str | None = None, port: int | None = None) -> str:
        """Where a database is."""
        login = f"{user}:{quote(password or self.password, safe='')}"
        return f"mysql://{login}@127.0.0.1:{port or self.port}/{database}"

    def socket_url(self, database: str) -> str:
        """The same through the server's socket."""
        login = f"{USER}:{quote(self.password, safe='')}"
        return f"mariadb://{login}@/{database}?unix_socket={quote(str(self.directory / 's'), safe='')}"

    # -- the process ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the server, and waits until it answers."""
        assert not self.running, "it runs already"
        end = time.monotonic() + 90
        while True:
            self._spawn()
            while self.running and not self._answers():
                assert time.monotonic() < end, f"MariaDB does not start:\n{self.log[-2000:]}"
                time.sleep(0.01)
            if self.running:
                return
            # Something may hold the port for a moment.
            assert time.monotonic() < end, f"MariaDB ended at its start:\n{self.log[-2000:]}"
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the server in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kills the server, as a crash does."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stops it in its place: connections stay open, and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Has a paused server go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(number)
        self._process.wait(60)

    # -- databases -----------------------------------------------------------------------------------------------------

    def new_database(self, *, migrated: bool = False) -> str:
        """Makes a database, empty or with our newest schema, and returns where it is.

        It has a character set that our tables could not live with: they have to bring their own.
        """
        if migrated and self._clean:
            return self._clean.pop()
        if migrated and not self._template:
            self._make_template()
        name = f"test_{next(_names)}"
        self.execute(f"CREATE DATABASE {name} CHARACTER SET latin1 COLLATE latin1_swedish_ci")
        url = self.url(name)
        if migrated:
            self.execute("SET foreign_key_checks=0", *self._template, url=url)
            self._migrated.add(url)
        return url

    def drop_database(self, url: str) -> None:
        """Ends all that a database is used for, and deletes it; one that was made with our schema is emptied and kept,
        since making its tables takes as long as many tests."""
        name = urlsplit(url).path[1:]
        for (number,) in self.fetch(f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"):
            with contextlib.suppress(asyncmy.errors.OperationalError):
                self.execute(f"KILL CONNECTION {number}")
        if url not in self._migrated:
            self.execute(f"DROP DATABASE IF EXISTS {name}")
            return
        tables = [name for (name,) in self.fetch("SHOW TABLES", url=url) if not name.endswith("alembic_version")]
        some = " UNION ALL ".join(f"(SELECT '{table}' FROM {table} LIMIT 1)" for table in tables)
        filled = [f"DELETE FROM {table}" for (table,) in self.fetch(some, url=url)]
        self.execute("SET foreign_key_checks=0", *filled, url=url)
        self._clean.append(url)

    def execute(self, *statements: str, url: str | None = None) -> None:
        """Runs statements, each in a transaction of its own, on a connection of their own."""
        self._run(statements, url, 60)

    def fetch(
        self, sql: str, *, url: str | None = None, password: str | None = None, timeout: float = 60
    ) -> list[tuple[Any, ...]]:
        """The rows of a query, on a connection of its own."""
        return self._run((sql,), url, timeout, password)

    def _run(
        self, statements: Sequence[str], url: str | None, timeout: float, password: str | None = None
    ) -> list[tuple[Any, ...]]:
        async def run() -> list[tuple[Any, ...]]:
            async with asyncio.timeout(timeout):
                connection = await asyncmy.connect(
                    unix_socket=str(self.directory / "s"),
                    user=USER,
                    password=password or self.password,
                    db=urlsplit(url).path[1:] if url else None,
                    autocommit=True,
                    charset="utf8mb4",
                )
            try:
                async with asyncio.timeout(timeout), connection.cursor() as cursor:
                    for statement in statements:
                        await cursor.execute(statement)
                    return list(await cursor.fetchall())
            finally:
                connection.close()

        return _in_thread(run)

    def _make_template(self) -> None:
        url = self.new_database()
        _in_thread(lambda: _migrate(url))
        names = [name for (name,) in self.fetch("SHOW TABLES", url=url)]
        for name in names:
            ((_, statement),) = self.fetch(f"SHOW CREATE TABLE {name}", url=url)
            self._template.append(statement)
        for table in (MAIN.version_table, METRICS.version_table):
            ((revision,),) = self.fetch(f"SELECT version_num FROM {table}", url=url)
            self._template.append(f"INSERT INTO {table} VALUES ('{revision}')")
        self.drop_database(url)

    # -- setting it up -------------------------------------------------------------------------------------------------

    def _command(self) -> list[str]:
        root, base = self._packages.root, self.directory
        share = root / "usr/share/mysql"
        return [
            str(root / "usr/sbin/mariadbd"),
            "--no-defaults",
            *(["--user=root"] if os.geteuid() == 0 else []),
            f"--basedir={root / 'usr'}",
            f"--datadir={base / 'data'}",
            f"--lc-messages-dir={share}",
            f"--character-sets-dir={share / 'charsets'}",
            f"--tmpdir={base}",
            f"--plugin-dir={root / 'usr/lib/mysql/plugin'}",
            f"--pid-file={base / 'pid'}",
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
        # Short, since the path of a socket may have 107 characters.
        self._base = base = self._given or Path(tempfile.mkdtemp(prefix="mbmy-"))
        (base / "data").mkdir(mode=0o700)
        self._env = {**self._packages.env(), "HOME": str(base), "TZ": "UTC"}
        share = self._packages.root / "usr/share/mysql"
        sql = ["CREATE DATABASE mysql;", "USE mysql;", "SET @skip_auth_anonymous=1;", "SET @auth_root_socket=NULL;"]
        sql += [(share / name).read_text() for name in _SCRIPTS]
        sql += [
            "FLUSH PRIVILEGES;",
            f"CREATE USER '{USER}'@'%' IDENTIFIED BY '{self.password}';",
            f"GRANT ALL PRIVILEGES ON *.* TO '{USER}'@'%' WITH GRANT OPTION;",
        ]
        done = subprocess.run(
            [
                *self._command(),
                *(option for option in self._options if option.startswith("--innodb")),
                *("--bootstrap", "--skip-grant-tables", "--log-warnings=0", "--max-allowed-packet=8M"),
                *("--sql-mode=", "--default-storage-engine=Aria"),
            ],
            input="\n".join(sql),
            env=self._env,
            cwd=base,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        assert done.returncode == 0, f"mariadb-install-db: {done.stderr[-3000:]}"
        if self._given is None:
            self._guard = subprocess.Popen(
                ["sh", "-c", _ENDS_WITH_PARENT, str(base)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _spawn(self) -> None:
        address = (f"--socket={self.directory / 's'}", "--bind-address=127.0.0.1", f"--port={self.port}")
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*self._command(), *address, *self._options],
                env=self._env,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own, so that Ctrl-C ends the tests, and those end the server.
                start_new_session=True,
            )

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, asyncmy.errors.MySQLError):
            return self.fetch("SELECT 1") == [(1,)]
        return False


async def _migrate(url: str) -> None:
    def bring_up(connection: Connection) -> None:
        migrate(connection, MAIN)
        migrate(connection, METRICS)

    engine = create_async_engine(url.replace("mysql://", "mysql+asyncmy://"))
    try:
        async with engine.connect() as connection:
            await connection.run_sync(bring_up)
            await connection.commit()
    finally:
        await engine.dispose()


def _in_thread(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine on an event loop of its own, whatever runs in this thread."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(lambda: asyncio.run(work())).result()

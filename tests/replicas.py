"""Several servers on one database and one directory of files, with a balancer in front, for tests.

with Replicas(database_url, tmp_path, count=2) as replicas:
    client = modelbox.Client(replicas.url)        # through the balancer
    replicas[0].kill()
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.balancer import Balancer
from tests.server import ServerProcess

__all__ = ("Replica", "Replicas")


class Replica(ServerProcess):
    """One of the servers; ``module`` is what ``python -m`` runs, where it is not the server itself."""

    def __init__(self, data_dir: Path, *, module: str = "", env: Mapping[str, str], **settings: object) -> None:
        super().__init__(data_dir, env=env, args=(), **settings)
        if module:
            self._module = module

    @property
    def stopped(self) -> bool:
        """Whether it stands still by SIGSTOP."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def pause(self) -> None:
        """SIGSTOP."""
        self.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends it, also while it stands still."""
        if self.running:
            self.resume()
        super().close()


class Replicas:
    """Servers that share everything; use as a context manager.

    Args:
        database_url: Of an empty or migrated database.
        directory: Holds the files.
        count: How many servers.
        modules: What ``python -m`` runs for each server, where it is not the server itself (planted bugs).
        advertised: Whether clients are led to the balancer, wherever they asked.
        env: Further environment variables.
        **settings: Of each server.
    """

    def __init__(
        self,
        database_url: str,
        directory: Path,
        *,
        count: int = 2,
        modules: Sequence[str] = (),
        advertised: bool = True,
        env: Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        self.balancer = Balancer()
        self._servers: list[Replica] = []
        self._database_url = database_url
        self._directory = directory
        self._modules = modules
        self._advertised = advertised
        self._env = dict(env or {})
        self._settings = {"drain_delay_s": 0.3, "drain_timeout_s": 10, "database_connections": 4, **settings}
        self._count = count
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.balancer)
            self._servers = [self._make(number) for number in range(self._count)]
            for server in self._servers:
                stack.callback(server.close)
            with ThreadPoolExecutor() as threads:
                list(threads.map(lambda server: server.start(timeout=60), self._servers))
            for server in self._servers:
                self.balancer.add(grpc=server.grpc_address, http=server.http_address)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _make(self, number: int) -> Replica:
        settings: dict[str, object] = {"replica_name": f"replica{number}", **self._settings}
        if self._advertised:
            settings["advertise_grpc"] = self.balancer.grpc_address
            settings["advertise_http"] = self.balancer.http_address
        return Replica(
            self._directory / "shared",
            module=self._modules[number] if number < len(self._modules) else "",
            env={"MODELBOX_DATABASE_URL": self._database_url, **self._env},
            **settings,
        )

    @property
    def url(self) -> str:
        """Of the balancer."""
        return self.balancer.url

    def __getitem__(self, place: int) -> Replica:
        return self._servers[place]

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._servers)

    def __len__(self) -> int:
        return len(self._servers)

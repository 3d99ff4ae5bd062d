"""The sidecar as a real process, for tests.

`SidecarProcess` starts ``python -m modelbox.sidecar`` on free ports with a cache of its own, waits for its ready line
and keeps what it prints:

    with ServerProcess(tmp_path / "data") as server:
        ...  # publish, promote
        with SidecarProcess(tmp_path, server.url, "acme/tiny@prod", max_batch=8) as sidecar:
            sidecar.http_url, sidecar.grpc_address, sidecar.socket_path
            sidecar.kill()       # SIGKILL
            sidecar.restart()    # the same cache, the same ports
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.server import ProgramProcess

_LINE = r"^modelbox sidecar {} http=(\S+) grpc=(\S+) metrics=(\S+) socket=(\S+)$"
_LISTENING = re.compile(_LINE.format("listening"), re.MULTILINE)
_READY = re.compile(_LINE.format("ready"), re.MULTILINE)


class SidecarProcess(ProgramProcess):
    """One sidecar process at a time.

    Args:
        directory: Where its cache and its socket are, below ``cache`` and as ``sidecar.sock``; should exist.
        server_url: Of the central server.
        *models: What it serves.
        env: Environment variables beside the inherited ones; inherited ``MODELBOX_…`` are left out.
        args: Further command-line arguments.
        **settings: Any setting of the sidecar: ``max_batch=8`` becomes ``--max-batch 8``.
    """

    def __init__(
        self,
        directory: Path,
        server_url: str,
        *models: str,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        **settings: object,
    ) -> None:
        self.directory = directory
        defaults: dict[str, object] = {
            "http_port": 0,
            "grpc_port": 0,
            "metrics_port": 0,
            "server": server_url,
            "cache_dir": directory / "cache",
            "socket": directory / "sidecar.sock",
        }
        super().__init__(
            "modelbox.sidecar",
            settings=defaults | settings,
            args=(*models, *args),
            env={"XDG_CONFIG_HOME": str(directory / "config"), **(env or {})},
        )
        self.http_address = ""
        self.grpc_address = ""
        self.metrics_address = ""
        self.socket_path = Path()

    @property
    def http_url(self) -> str:
        """Base address of HTTP."""
        return f"http://{self.http_address}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus scrapes."""
        return f"http://{self.metrics_address}/metrics"

    @property
    def socket_url(self) -> str:
        """The socket, as ``MODELBOX_SIDECAR`` names it."""
        return f"unix://{self.socket_path}"

    def start(self, *, timeout: float = 60) -> SidecarProcess:
        """Starts the process and waits until every model answers."""
        before = len(self.output)
        self.listen(timeout=timeout)
        self.wait_for(_READY, timeout=timeout, after=before)
        return self

    def listen(self, *, timeout: float = 60) -> SidecarProcess:
        """Starts the process and waits only until it can be asked."""
        before = len(self.output)
        self.spawn()
        match = self.wait_for(_LISTENING, timeout=timeout, after=before)
        self.http_address, self.grpc_address, self.metrics_address, socket = match.groups()
        self.socket_path = Path(socket)
        return self

    def restart(self, *, timeout: float = 60) -> SidecarProcess:
        """Starts a process over the same cache on the same ports; the old one is terminated if it still runs."""
        if self.running:
            self.terminate()
        for key, address in (
            ("http_port", self.http_address),
            ("grpc_port", self.grpc_address),
            ("metrics_port", self.metrics_address),
        ):
            if address != "-":
                self._settings[key] = address.rpartition(":")[2]
        return self.start(timeout=timeout)

    def __enter__(self) -> SidecarProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

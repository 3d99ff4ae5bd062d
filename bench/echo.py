"""The least that a call to another process costs here: a Unix socket whose other end sends back what it gets.

``python -m bench.echo PATH`` is the other process: an event loop of the kind that the sidecar runs on, and no work.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

__all__ = ("EchoClient", "echo")


class EchoClient:
    """One message at a time, from a running asyncio loop."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(str(path))
        self._sock.setblocking(False)
        self._buffer = bytearray(1 << 16)
        self._waiter: asyncio.Future[int] | None = None
        self._loop.add_reader(self._sock.fileno(), self._receive)

    async def call(self, message: bytes) -> int:
        """Sends ``message`` and waits until it is back."""
        self._waiter = self._loop.create_future()
        self._sock.send(message)
        return await self._waiter

    def close(self) -> None:
        """Ends the connection."""
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _receive(self) -> None:
        received = self._sock.recv_into(self._buffer)
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if received:
            waiter.set_result(received)
        else:
            self._loop.remove_reader(self._sock.fileno())
            waiter.set_exception(ConnectionError("the echo has ended"))


@contextlib.contextmanager
def echo(path: Path) -> Iterator[Path]:
    """The other process, on the socket ``path``."""
    command = [sys.executable, "-m", "bench.echo", str(path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield path
        finally:
            process.kill()


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an instance: uvloop's transports only look like it.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def _serve(path: str) -> None:
    server = await asyncio.get_running_loop().create_unix_server(_Echo, path)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve(sys.argv[1]))

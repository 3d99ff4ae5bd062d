"""The least that moving bytes between two processes costs here: sendfile on one side, a plain socket on the other.

``python -m bench.loopback`` is the sending process: it prints its port, then answers every connection that names a file
with the file's bytes. The receiving side does what the figure beside it has to do at least: throw the bytes away, or
hash and write them.

sendfile hands over single pages, which a loopback interface moves slower than large copied buffers; a sender that
copies may therefore be above it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ("Loopback", "loopback")

_CHUNK_BYTES = 1 << 20


class Loopback:
    """The receiving side."""

    def __init__(self, port: int) -> None:
        self._port = port

    def discard(self, files: Sequence[Path]) -> None:
        """Receives files and forgets them."""
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        for path in files:
            for _ in self._receive(path, buffer):
                pass

    def store(self, files: Sequence[Path], directory: Path, *, durable: bool) -> None:
        """Receives files one after the other, hashes their bytes and writes them.

        Args:
            files: To ask for.
            directory: Where to.
            durable: Whether each file is on disk before the next.
        """
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        for path in files:
            digest = hashlib.sha256()
            with open(directory / path.name, "wb", buffering=0) as target:
                for chunk in self._receive(path, buffer):
                    digest.update(chunk)
                    target.write(chunk)
                if durable:
                    os.fsync(target.fileno())
            digest.digest()

    def _receive(self, path: Path, buffer: memoryview) -> Iterator[memoryview]:
        with socket.create_connection(("127.0.0.1", self._port)) as peer:
            peer.sendall(f"{path}\n".encode())
            missing = path.stat().st_size
            while missing:
                received = peer.recv_into(buffer)
                if not received:
                    raise ConnectionError(f"{path} ended {missing} bytes early")
                missing -= received
                yield buffer[:received]


@contextlib.contextmanager
def loopback() -> Iterator[Loopback]:
    """A sending process."""
    command = [sys.executable, "-m", "bench.loopback"]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Loopback(int(process.stdout.readline()))
        finally:
            process.stdin.close()
            process.kill()


def _serve() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            peer, _ = server.accept()
            with peer, peer.makefile("r") as requests:
                name = requests.readline().rstrip("\n")
                with open(name, "rb") as file, contextlib.suppress(ConnectionError):
                    peer.sendfile(file)


if __name__ == "__main__":
    _serve()

"""The images' health check, against servers that answer in every way."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.server import ServerProcess

SCRIPT = Path(__file__).parents[2] / "deploy" / "healthcheck.py"


def check(where: str, path: str = "/readyz", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), where, path],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={"PATH": os.defpath, **environment},
    )


@contextlib.contextmanager
def listener(answer: bytes | None) -> Iterator[int]:
    """Takes one connection, and answers it or, for None, leaves it waiting."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    if answer is None:
                        done.wait(60)
                    else:
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            done.set()
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_real_server_is_healthy_until_it_is_gone(server: ServerProcess) -> None:
    port = server.http_address.rpartition(":")[2]
    assert check(f"MODELBOX_HTTP_PORT={port}").returncode == 0
    assert check("MODELBOX_HTTP_PORT=1", MODELBOX_HTTP_PORT=port).returncode == 0
    assert check(port, "/nothing/here").returncode == 1
    server.kill()
    done = check(port)
    assert done.returncode == 1
    assert "no answer" in done.stdout


@pytest.mark.parametrize("client_auth", ["off", "required"])
def test_a_server_with_tls_is_asked_with_tls(tmp_path: Path, client_auth: str) -> None:
    authority = Authority(tmp_path)
    # For a name that is not the one that the check asks at.
    pair = authority.issue("server", "modelbox.example")
    environment = {
        "MODELBOX_TLS_CERT": str(pair.certificate),
        "MODELBOX_TLS_KEY": str(pair.key),
        "MODELBOX_TLS_CLIENT_AUTH": client_auth,
    }
    if client_auth != "off":
        environment["MODELBOX_TLS_CLIENT_CA"] = str(authority.certificate)
    with ServerProcess(tmp_path / "data", env=environment) as server:
        port = server.http_address.rpartition(":")[2]
        assert check(f"MODELBOX_HTTP_PORT={port}", **environment).returncode == 0
        assert check(f"MODELBOX_HTTP_PORT={port}", "/nothing/here", **environment).returncode == 1
        assert check(f"MODELBOX_HTTP_PORT={port}").returncode == 1
        server.kill()
        assert "no answer" in check(f"MODELBOX_HTTP_PORT={port}", **environment).stdout


def test_without_tls_the_library_for_it_is_not_loaded() -> None:
    program = f"import sys; sys.argv[1:] = ['1', '/']; exec(open({str(SCRIPT)!r}).read().split('if __name__')[0])"
    program += "; main(sys.argv[1:]); sys.exit('ssl' in sys.modules)"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", program], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", 0),
        (b"HTTP/1.0 200\r\n\r\n", 0),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", 1),
        (b"HTTP/1.1 2000 x\r\n\r\n", 1),
        (b"SSH-2.0-200 200x\r\n", 1),
        (b"", 1),
        (b"x" * 100_000, 1),
    ],
)
def test_only_200_is_healthy(answer: bytes, code: int) -> None:
    with listener(answer) as port:
        assert check(str(port)).returncode == code


def test_silence_is_unhealthy_before_the_engine_loses_patience() -> None:
    (patience_s,) = re.findall(r"(?m)^TIMEOUT_S = ([0-9.]+)$", SCRIPT.read_text())
    assert float(patience_s) < 5, "HEALTHCHECK --timeout=5s"
    with listener(None) as port:
        done = check(str(port))
    assert (done.returncode, "timed out" in done.stdout) == (1, True)

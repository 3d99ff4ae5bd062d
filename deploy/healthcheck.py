"""Asks a program of this container whether it is ready: ``healthcheck.py VARIABLE=PORT PATH`` (or just ``PORT PATH``).

The port is what the environment variable says, or the number behind it. Where the program has TLS by its environment
(``MODELBOX_TLS_CERT`` beside ``MODELBOX_HTTP_PORT``), so is it asked; whom it talks to on loopback it need not check,
and if it is asked for a certificate of its own, it shows the program's. Exits with 0 for the answer 200, with 1 for
anything else, within four seconds. Needs nothing but ``socket``, and ``ssl`` for TLS, so that it runs under
``python -I -S`` in a few milliseconds: an image runs it every ten seconds, and it may not cost what the models need.
"""

import os
import socket
import sys

TIMEOUT_S = 4.0


def ask(port: int, path: str, prefix: str = "") -> str:
    """The status line of the answer, or why there is none.

    Args:
        port: On this machine.
        path: What is asked for.
        prefix: Of the program's environment variables; empty for a program without TLS.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as raw:
            connection = with_tls(raw, prefix) if prefix and os.environ.get(f"{prefix}TLS_CERT") else raw
            with connection:
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                with connection.makefile("rb") as answer:
                    return answer.readline(200).decode("latin-1").strip()
    except OSError as exc:
        return f"no answer: {exc}"


def with_tls(connection: socket.socket, prefix: str) -> socket.socket:
    """The connection after the handshake."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if os.environ.get(f"{prefix}TLS_CLIENT_AUTH", "off") != "off":
        cert = os.environ[f"{prefix}TLS_CERT"]
        context.load_cert_chain(cert, os.environ.get(f"{prefix}TLS_KEY") or cert)
    return context.wrap_socket(connection)


def main(argv: list[str]) -> int:
    """Runs the check; prints what it found, which the container engine keeps with the state."""
    where, path = argv
    variable, _, port = where.rpartition("=")
    port = os.environ.get(variable, port)
    line = ask(int(port), path, variable.removesuffix("HTTP_PORT"))
    print(f"{path} on port {port}: {line or 'closed without an answer'}")
    return 0 if line.split(" ")[1:2] == ["200"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

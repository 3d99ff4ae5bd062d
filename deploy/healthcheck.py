"""Asks a program of this container whether it is ready: ``healthcheck.py VARIABLE=PORT PATH`` (or just ``PORT PATH``).

The port is what the environment variable says, or the number behind it. Exits with 0 for the answer 200, with 1 for
anything else, within four seconds. Needs nothing but ``socket``, so that it runs under ``python -I -S`` in a few
milliseconds: an image runs it every ten seconds, and it may not cost what the models need.
"""

import os
import socket
import sys

TIMEOUT_S = 4.0


def ask(port: int, path: str) -> str:
    """The status line of the answer, or why there is none."""
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            with connection.makefile("rb") as answer:
                return answer.readline(200).decode("latin-1").strip()
    except OSError as exc:
        return f"no answer: {exc}"


def main(argv: list[str]) -> int:
    """Runs the check; prints what it found, which the container engine keeps with the state."""
    where, path = argv
    variable, _, port = where.rpartition("=")
    port = os.environ.get(variable, port)
    line = ask(int(port), path)
    print(f"{path} on port {port}: {line or 'closed without an answer'}")
    return 0 if line.split(" ")[1:2] == ["200"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

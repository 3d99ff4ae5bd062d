"""Requests that must be refused, each without harm to anybody else.

Every function sends one and returns what was wrong with the answer, or None. `LostError` means that there was nobody.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from modelbox._frames import HEADER, HEADER_BYTES, Kind, json_frame
from tests.sidecar import SidecarProcess

__all__ = ("BAD_REQUESTS", "BadRequest", "LostError")

_TIMEOUT_S = 30.0
_REFUSED = range(400, 500)

BadRequest = Callable[[SidecarProcess, str, random.Random], str | None]


class LostError(Exception):
    """No connection, or it ended where an answer was due."""


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        return socket.create_connection((host, int(port)), timeout=_TIMEOUT_S)
    except OSError as exc:
        raise LostError(str(exc)) from exc


def _post(sidecar: SidecarProcess, path: str, body: bytes, headers: str = "", *, length: int | None = None) -> int:
    """The status; 0 when the connection was closed instead."""
    with _connect(sidecar.http_address) as sock:
        size = len(body) if length is None else length
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\nConnection: close\r\n{headers}\r\n"
        )
        answer = b""
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(head.encode() + body)
            while data := sock.recv(65536):
                answer += data
        except OSError as exc:
            if not answer:
                raise LostError(str(exc)) from exc
        return int(answer[9:12]) if answer else 0


def _judged(what: str, status: int) -> str | None:
    if not status:
        raise LostError(f"{what}: closed without an answer")
    return None if status in _REFUSED else f"{what}: answered with {status}"


def _json(shape: list[Any], data: Any, name: str = "x", datatype: str = "FP32") -> bytes:
    return json.dumps({"inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": data}]}).encode()


def http_inputs(sidecar: SidecarProcess, model: str, rng: random.Random) -> str | None:
    """Names, shapes, types and sizes that do not fit."""
    body = rng.choice(
        (
            _json([1, 5], [1, 2, 3, 4, 5]),
            _json([1, 4], [1, 2, 3]),
            _json([1, 4], ["a", "b", "c", "d"]),
            _json([-1, 4], [1, 2, 3, 4]),
            _json([1 << 40, 1 << 40], [1]),
            _json([1, 4], [1, 2, 3, 4], name="z"),
            _json([1, 4], [1, 2, 3, 4], datatype="FP99"),
            b"[" * 5000,
            b'{"inputs": 7}',
            b"\xff\xfe",
            b"",
        )
    )
    return _judged("http inputs", _post(sidecar, f"/v2/models/{model}/infer", body))


def http_model(sidecar: SidecarProcess, model: str, rng: random.Random) -> str | None:
    """A model that nobody serves."""
    path = rng.choice(("/v2/models/no/body/infer", f"/v2/models/{model}/versions/99/infer", "/v2/models/../infer"))
    return _judged("http model", _post(sidecar, path, _json([1, 4], [1, 2, 3, 4])))


def http_binary(sidecar: SidecarProcess, model: str, rng: random.Random) -> str | None:
    """A binary part that is not what its header says."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    head = json.dumps({"inputs": [tensor]}).encode()
    size, rest = rng.choice(((len(head), 15), (len(head), 17), (len(head) - 1, 16), (1 << 40, 16), (-5, 16)))
    header = f"Inference-Header-Content-Length: {size}\r\n"
    return _judged("http binary", _post(sidecar, f"/v2/models/{model}/infer", head + bytes(rest), header))


def http_too_long(sidecar: SidecarProcess, model: str, rng: random.Random) -> str | None:
    """A body of 10 GB, announced."""
    return _judged("http length", _post(sidecar, f"/v2/models/{model}/infer", b"{", length=10_000_000_000))


def http_garbage(sidecar: SidecarProcess, model: str, rng: random.Random) -> str | None:
    """What is no HTTP; hung up on, or refused."""
    with _connect(sidecar.http_address) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(rng.randbytes(rng.randint(1, 2000)) + b"\r\n\r\n")
            sock.shutdown(socket.SHUT_WR)
            answer = sock.recv(65536)
            if answer and not (answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")) and b'{"error"' in answer):
                return f"http garbage: answered with {answer[:40]!r}"
    return None


def http_gone(sidecar: SidecarProcess, model: str, rng: random.Random) -> str | None:
    """A caller that is gone before its request is complete, or before its answer."""
    body = _json([1, 4], [1, 2, 3, 4])
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with _connect(sidecar.http_address) as sock, contextlib.suppress(OSError):
        request = head.encode() + body
        sock.sendall(request[: rng.randint(1, len(request))])
    return None


def grpc_inputs(sidecar: SidecarProcess, model: str, rng: random.Random) -> str | None:
    """The same over gRPC."""
    with triton_grpc.InferenceServerClient(
        sidecar.grpc_address, channel_args=[("grpc.use_local_subchannel_pool", 1)]
    ) as client:
        name, columns, asked = rng.choice((("x", 5, model), ("z", 4, model), ("x", 4, "no/body")))
        tensor = triton_grpc.InferInput(name, [1, columns], "FP32")
        tensor.set_data_from_numpy(np.ones((1, columns), np.float32))
        try:
            client.infer(asked, [tensor], client_timeout=_TIMEOUT_S)
        except InferenceServerException as exc:
            status = str(exc.status())
            if status in ("StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND"):
                return None
            if status in ("StatusCode.UNAVAILABLE", "StatusCode.CANCELLED"):
                raise LostError(str(exc)) from exc
            return f"grpc inputs: {exc}"
        return "grpc inputs: answered"


def grpc_garbage(sidecar: SidecarProcess, model: str, rng: random.Random) -> str | None:
    """What begins as HTTP/2; hung up on."""
    with _connect(sidecar.grpc_address) as sock, contextlib.suppress(OSError):
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0" + rng.randbytes(rng.randint(1, 2000)))
        sock.shutdown(socket.SHUT_WR)
    return None


def socket_garbage(sidecar: SidecarProcess, model: str, rng: random.Random) -> str | None:
    """Frames that are none, after a good greeting or without one."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_TIMEOUT_S)
        try:
            sock.connect(str(sidecar.socket_path))
        except OSError as exc:
            raise LostError(str(exc)) from exc
        with contextlib.suppress(OSError):
            if rng.random() < 0.5:
                sock.sendall(json_frame(Kind.HELLO, {"protocol": 1}))
            frame = HEADER.pack(HEADER_BYTES, rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 9), 1, 1)
            sock.sendall(frame if rng.random() < 0.5 else rng.randbytes(rng.randint(1, 500)))
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
    return None


BAD_REQUESTS: tuple[BadRequest, ...] = (
    http_inputs,
    http_model,
    http_binary,
    http_too_long,
    http_garbage,
    http_gone,
    grpc_inputs,
    grpc_garbage,
    socket_garbage,
)

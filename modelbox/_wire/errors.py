"""Errors as trailers and back."""

from __future__ import annotations

import json
from collections.abc import Mapping

from modelbox._wire.values import dumps
from modelbox.errors import (
    AuthError,
    ConflictError,
    DeadlineExceeded,
    IntegrityError,
    InvalidError,
    LimitError,
    ModelBoxError,
    NotAuthenticated,
    NotFoundError,
    ProtocolError,
    StorageError,
    Unavailable,
    error_from_dict,
)
from modelbox.redaction import redact, redact_value

ACTOR_KEY = "modelbox-actor"
"""Request metadata (and HTTP header): who calls, for the history."""

REQUEST_KEY = "x-request-id"
"""Metadata and HTTP header: the name of a call. A caller may give one; refusals and answers over HTTP have one."""

DIRECT_HEADER = "Modelbox-Direct"
"""HTTP header: of a request that also takes the address of the bytes in their place, and of an answer that is one."""

ERROR_KEY = "modelbox-error-bin"
"""Trailer: the error as JSON, beside its gRPC status."""

MAX_ERROR_BYTES = 4096
"""A larger trailer would not pass every peer's limit for headers; then the fields stay behind."""


_BY_STATUS: Mapping[int, type[ModelBoxError]] = {
    1: Unavailable,  # CANCELLED by a server that goes down
    3: InvalidError,
    4: DeadlineExceeded,
    5: NotFoundError,
    7: AuthError,
    8: LimitError,
    10: ConflictError,
    12: ProtocolError,  # UNIMPLEMENTED
    13: StorageError,
    14: Unavailable,
    15: IntegrityError,
    16: NotAuthenticated,
}
"""What a status means that came without our trailer: from a proxy, a library, a load balancer."""


def pack_error(error: ModelBoxError) -> bytes:
    """The trailer `ERROR_KEY`; fields that are no JSON or do not fit stay behind."""
    message = _cut(redact(error.message))
    for fields in (error.fields, {}):
        try:
            data = dumps({"code": error.code, "message": message, "fields": redact_value(fields)}).encode()
        except (ValueError, TypeError, RecursionError):
            continue
        if len(data) <= MAX_ERROR_BYTES:
            return data
    return dumps({"code": error.code, "message": ascii(message)[:500], "fields": {}}).encode()


def _cut(text: str, limit: int = 1000) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def unpack_error(status: int, message: str, trailer: bytes | None = None) -> ModelBoxError:
    """The error of a call.

    Args:
        status: The gRPC status's number, not 0.
        message: Its text.
        trailer: Value of the trailer `ERROR_KEY` where there is one.
    """
    if trailer:
        try:
            data = json.loads(trailer)
        except (ValueError, RecursionError):
            data = None
        if isinstance(data, Mapping):
            return error_from_dict(data)
    cls = _BY_STATUS.get(status, ModelBoxError)
    return cls(message or f"the server answered with gRPC status {status} and no text")

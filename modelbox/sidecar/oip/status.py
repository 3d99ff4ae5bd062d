"""Which error becomes which status of the Open Inference Protocol, over gRPC and HTTP: the one table.

The central server has a table of its own (its errors are about a registry); a client of a model server expects 503
where a model does not answer yet and 400 for anything that is its own fault. A class without a row goes by its nearest
base class.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from modelbox import errors
from modelbox.errors import ModelBoxError

__all__ = ("GrpcStatus", "Statuses", "retry_after_s", "statuses_of")


class GrpcStatus(IntEnum):
    """The statuses of gRPC that we use, by their numbers."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Statuses:
    """What an error becomes."""

    grpc: GrpcStatus
    http: int


_INTERNAL = Statuses(GrpcStatus.INTERNAL, 500)
_CALLERS_FAULT = Statuses(GrpcStatus.INVALID_ARGUMENT, 400)
_NOT_READY = Statuses(GrpcStatus.UNAVAILABLE, 503)
_UNSERVABLE = Statuses(GrpcStatus.FAILED_PRECONDITION, 422)

_TABLE: dict[type[ModelBoxError], Statuses] = {
    errors.ModelBoxError: _INTERNAL,
    errors.InvalidError: _CALLERS_FAULT,
    errors.InputError: _CALLERS_FAULT,
    errors.NotFoundError: Statuses(GrpcStatus.NOT_FOUND, 404),
    errors.ConflictError: Statuses(GrpcStatus.ABORTED, 409),
    errors.LimitError: Statuses(GrpcStatus.RESOURCE_EXHAUSTED, 413),
    errors.IntegrityError: Statuses(GrpcStatus.DATA_LOSS, 422),
    errors.AuthError: Statuses(GrpcStatus.PERMISSION_DENIED, 403),
    errors.NotAuthenticated: Statuses(GrpcStatus.UNAUTHENTICATED, 401),
    # The registry behind the sidecar does not answer; the models that are loaded still do.
    errors.TransportError: _NOT_READY,
    errors.DeadlineExceeded: Statuses(GrpcStatus.DEADLINE_EXCEEDED, 504),
    errors.ProtocolError: Statuses(GrpcStatus.INTERNAL, 502),
    errors.CacheError: _INTERNAL,
    errors.LoadError: _UNSERVABLE,
    errors.PredictError: _INTERNAL,
    errors.RunTerminated: _NOT_READY,
    errors.StorageError: _INTERNAL,
    errors.ServerBusy: _NOT_READY,
    errors.QueueFull: Statuses(GrpcStatus.RESOURCE_EXHAUSTED, 503),
    errors.ConfigError: _INTERNAL,
}


def statuses_of(error: ModelBoxError | type[ModelBoxError]) -> Statuses:
    """The statuses of ``error``."""
    cls = error if isinstance(error, type) else type(error)
    return next(_TABLE[base] for base in cls.__mro__ if base in _TABLE)


def retry_after_s(error: ModelBoxError) -> float | None:
    """When the same call may succeed, seconds from now; None where nothing says that it will."""
    if statuses_of(error).http != 503:
        return None
    named = error.fields.get("retry_after_s")
    return float(named) if isinstance(named, int | float) else 1.0

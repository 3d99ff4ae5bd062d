"""Which error becomes which gRPC and HTTP status: the one table.

Errors know no transport, adapters know no error classes; both meet here. A class without a row is a mistake that a test
finds. `errors_table` renders the table for ``docs/errors.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from modelbox import errors
from modelbox.errors import ModelBoxError

__all__ = ("GrpcStatus", "Statuses", "errors_table", "statuses_of")


class GrpcStatus(IntEnum):
    """The statuses of gRPC that we use, by their numbers."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
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
_UNPROCESSABLE = Statuses(GrpcStatus.FAILED_PRECONDITION, 422)

_TABLE: dict[type[ModelBoxError], Statuses] = {
    errors.ModelBoxError: _INTERNAL,
    errors.InvalidError: Statuses(GrpcStatus.INVALID_ARGUMENT, 400),
    errors.RefError: Statuses(GrpcStatus.INVALID_ARGUMENT, 400),
    errors.FindError: Statuses(GrpcStatus.INVALID_ARGUMENT, 400),
    errors.RuleError: _UNPROCESSABLE,
    errors.InputError: Statuses(GrpcStatus.INVALID_ARGUMENT, 400),
    errors.NotFoundError: Statuses(GrpcStatus.NOT_FOUND, 404),
    errors.ConflictError: Statuses(GrpcStatus.ABORTED, 409),
    errors.InUseError: Statuses(GrpcStatus.FAILED_PRECONDITION, 409),
    errors.LimitError: Statuses(GrpcStatus.RESOURCE_EXHAUSTED, 413),
    errors.IntegrityError: Statuses(GrpcStatus.DATA_LOSS, 422),
    errors.AuthError: Statuses(GrpcStatus.PERMISSION_DENIED, 403),
    errors.ApprovalNeeded: Statuses(GrpcStatus.FAILED_PRECONDITION, 409),
    errors.NotAuthenticated: Statuses(GrpcStatus.UNAUTHENTICATED, 401),
    errors.TransportError: Statuses(GrpcStatus.UNAVAILABLE, 502),
    errors.Unavailable: Statuses(GrpcStatus.UNAVAILABLE, 503),
    errors.DeadlineExceeded: Statuses(GrpcStatus.DEADLINE_EXCEEDED, 408),
    errors.ProtocolError: Statuses(GrpcStatus.INTERNAL, 502),
    errors.CacheError: _INTERNAL,
    errors.LoadError: _UNPROCESSABLE,
    errors.FormatRefused: _UNPROCESSABLE,
    errors.ModelInvalid: _UNPROCESSABLE,
    errors.UnsupportedOperator: _UNPROCESSABLE,
    errors.SignatureChanged: _UNPROCESSABLE,
    errors.SignatureRefused: _UNPROCESSABLE,
    errors.WarmupFailed: _UNPROCESSABLE,
    errors.ProbeFailed: _UNPROCESSABLE,
    errors.NotEnoughMemory: _UNPROCESSABLE,
    errors.PredictError: _INTERNAL,
    errors.RunTerminated: Statuses(GrpcStatus.UNAVAILABLE, 503),
    errors.StorageError: _INTERNAL,
    errors.ServerBusy: Statuses(GrpcStatus.UNAVAILABLE, 503),
    errors.QueueFull: Statuses(GrpcStatus.RESOURCE_EXHAUSTED, 429),
    errors.ConfigError: _INTERNAL,
}


def statuses_of(error: ModelBoxError | type[ModelBoxError]) -> Statuses:
    """The statuses of ``error``; a class from elsewhere goes by its nearest base class in the table."""
    cls = error if isinstance(error, type) else type(error)
    return next(_TABLE[base] for base in cls.__mro__ if base in _TABLE)


def errors_table() -> str:
    """The table as Markdown."""
    lines = ["| code | class | gRPC | HTTP | try again | meaning |", "|---|---|---|---|---|---|"]
    for cls, row in _TABLE.items():
        meaning = (cls.__doc__ or "").strip().splitlines()[0].replace("``", "`").replace("|", "\\|")
        lines.append(
            f"| `{cls.code}` | `{cls.__name__}` | {row.grpc.name} | {row.http} | {'yes' if cls.retryable else ''} "
            f"| {meaning} |"
        )
    return "\n".join(lines)

"""Every error that ModelBox raises on purpose.

Owns the tree below, a stable ``code`` for each class and the round trip ``to_dict`` / ``error_from_dict`` that carries
an error over gRPC and HTTP unchanged. Refuses to know any transport: which status a code becomes is up to
`modelbox/runtime/status.py`.

::

    ModelBoxError
    ├── InvalidError(ValueError)            bad name, path, manifest, page token, JSON ...
    │   ├── RefError                        a model reference that does not parse
    │   ├── FindError                       a query that does not parse; says where
    │   └── RuleError                       a version that lacks what a rule asks for
    ├── InputError(ValueError)              inputs of a prediction that do not fit the signature
    ├── NotFoundError(LookupError)          says what exists instead
    ├── ConflictError                       lost compare-and-set; carries the current state
    │   └── InUseError                      what is pointed to cannot be deleted
    ├── LimitError                          a size, quota or queue is full
    ├── IntegrityError                      bytes that are not what their digest says
    ├── AuthError                           not allowed
    │   ├── ApprovalNeeded                  a second person has to approve it; says which request waits
    │   └── NotAuthenticated                nobody knows who calls
    ├── TransportError
    │   ├── Unavailable                     nobody answers (retryable)
    │   ├── DeadlineExceeded(TimeoutError)
    │   └── ProtocolError                   the peer does not speak as agreed
    ├── CacheError                          local disk: full, read-only, not ours
    ├── LoadError                           a model that cannot be served
    │   ├── FormatRefused                   a file format that is never opened
    │   ├── ModelInvalid                    does not parse, open, or escapes its directory
    │   ├── UnsupportedOperator             needs an operator that this runtime lacks
    │   ├── SignatureChanged                a new version with another interface
    │   ├── SignatureRefused                not signed, or by nobody whom this client trusts
    │   ├── WarmupFailed                    opens, but does not run as it should
    │   ├── ProbeFailed                     did not survive its trial in a process of its own
    │   └── NotEnoughMemory                 would not fit beside what is served (retried)
    ├── PredictError                        the model failed on inputs that fit its signature
    │   └── RunTerminated                   the run was stopped: its version was replaced and its drain time ended
    ├── StorageError                        the server's database or blob store failed
    ├── ServerBusy                          draining or overloaded (retryable)
    └── ConfigError(ValueError)             settings, a missing extra

    UsageError(RuntimeError)                a mistake in the calling program
    ├── ClientClosed
    └── LeaseReleased
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from modelbox.redaction import redact, redact_value

__all__ = (
    "ApprovalNeeded",
    "AuthError",
    "CacheError",
    "ClientClosed",
    "ConfigError",
    "ConflictError",
    "DeadlineExceeded",
    "FindError",
    "FormatRefused",
    "InUseError",
    "InputError",
    "IntegrityError",
    "InvalidError",
    "LeaseReleased",
    "LimitError",
    "LoadError",
    "ModelBoxError",
    "ModelInvalid",
    "NotAuthenticated",
    "NotEnoughMemory",
    "NotFoundError",
    "PredictError",
    "ProbeFailed",
    "ProtocolError",
    "QueueFull",
    "RefError",
    "RuleError",
    "RunTerminated",
    "ServerBusy",
    "SignatureChanged",
    "SignatureRefused",
    "StorageError",
    "TransportError",
    "Unavailable",
    "UnsupportedOperator",
    "UsageError",
    "WarmupFailed",
    "error_from_dict",
)


class ModelBoxError(Exception):
    """Base of every expected failure.

    Args:
        message: What went wrong, what was expected, and what to do next.
        **fields: Typed details; JSON scalars, lists and maps only, never secrets.

    Attributes:
        request_id: The call that failed, as the server's log and its audit log name it; empty if no server answered.
    """

    code: ClassVar[str] = "modelbox"
    retryable: ClassVar[bool] = False
    request_id: str = ""

    def __init__(self, /, message: str, **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.fields: dict[str, object] = fields

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.fields))

    def to_dict(self) -> dict[str, object]:
        """The form in which the error travels, without secrets: ``{"code", "message", "fields"}``."""
        return {"code": self.code, "message": redact(self.message), "fields": redact_value(self.fields)}


def _rebuild(cls: type[ModelBoxError], message: str, fields: dict[str, object]) -> ModelBoxError:
    return cls(message, **fields)


class InvalidError(ModelBoxError, ValueError):
    """An argument that can never be right: a bad name, path, manifest or page token."""

    code = "invalid"


class RefError(InvalidError):
    """Text that is not a model reference."""

    code = "invalid.ref"


class FindError(InvalidError):
    """A query that does not parse; ``position`` says where, ``expected`` what could stand there."""

    code = "invalid.find"


class RuleError(InvalidError):
    """A version that lacks what a rule asks for; ``missing`` lists what, and the commands that add it."""

    code = "invalid.rule"


class InputError(ModelBoxError, ValueError):
    """Inputs of a prediction that do not fit the model's signature; names expected and got."""

    code = "invalid.input"


class NotFoundError(ModelBoxError, LookupError):
    """The named object does not exist; ``fields["exists"]`` lists what does, where that helps."""

    code = "not_found"


class ConflictError(ModelBoxError):
    """Somebody else was faster; ``fields["current"]`` is the state now."""

    code = "conflict"


class InUseError(ConflictError):
    """The object is pointed to and cannot be deleted; ``fields["held_by"]`` says by what."""

    code = "conflict.in_use"


class LimitError(ModelBoxError):
    """A size limit, quota, disk or queue is full."""

    code = "limit"


class IntegrityError(ModelBoxError):
    """Bytes are not what their digest or size says (``expected``, ``actual``)."""

    code = "integrity"


class AuthError(ModelBoxError):
    """The caller is not allowed; ``fields["role"]`` names the role that is needed, where one would do."""

    code = "auth"


class ApprovalNeeded(AuthError):
    """Nothing moved yet: a second person has to approve it; ``request`` is what waits for them."""

    code = "auth.approval"


class NotAuthenticated(AuthError):
    """The caller did not say who it is, or not in a way that is taken: no token, or one that is not valid any more."""

    code = "auth.unknown"


class TransportError(ModelBoxError):
    """Talking to the peer failed."""

    code = "transport"


class Unavailable(TransportError):
    """Nobody answers at the address, or the connection broke."""

    code = "transport.unavailable"
    retryable = True


class DeadlineExceeded(TransportError, TimeoutError):
    """No answer within the time that the caller gave."""

    code = "transport.deadline"


class ProtocolError(TransportError):
    """The peer answered something that the protocol does not allow."""

    code = "transport.protocol"


class CacheError(ModelBoxError):
    """The local cache cannot be used: disk full, read-only, not owned by this user."""

    code = "cache"


class LoadError(ModelBoxError):
    """A model version cannot be served; ``fields["stage"]`` says how far it came."""

    code = "load"


class FormatRefused(LoadError):
    """A file format that ModelBox stores but never opens (pickle, archives, shared objects ...)."""

    code = "load.format"


class ModelInvalid(LoadError):
    """The model file is broken, or refers to data outside of its own version."""

    code = "load.invalid"


class UnsupportedOperator(LoadError):
    """The graph needs an operator or opset that the installed runtime does not have."""

    code = "load.operator"


class SignatureChanged(LoadError):
    """A new version does not accept what its predecessor accepted."""

    code = "load.signature"


class SignatureRefused(LoadError):
    """A version that nobody whom this client trusts has signed.

    ``fields["reason"]`` is ``NOT_SIGNED``, ``NOT_TRUSTED`` (signed by somebody else), ``BAD_SIGNATURE`` (damaged or
    forged) or ``SUBJECT_MISMATCH`` (a valid signature of something else); the text begins with it.
    """

    code = "load.trust"


class WarmupFailed(LoadError):
    """The model opens but its warm-up run fails, never ends, or gives wrong outputs."""

    code = "load.warmup"


class ProbeFailed(LoadError):
    """The model crashed the process in which it was tried first, or took too much memory or time there.

    ``fields["reason"]`` is ``SIGNAL``, ``MEMORY``, ``TIME`` or ``ENDED``.
    """

    code = "load.probe"


class NotEnoughMemory(LoadError):
    """There is no memory for the model beside what is served; it is tried again later."""

    code = "load.memory"


class PredictError(ModelBoxError):
    """The model failed on inputs that fit its signature, such as an index that is out of range."""

    code = "predict"


class RunTerminated(PredictError):
    """The run was stopped before its end: its version was replaced, and the time to finish old runs is over."""

    code = "predict.terminated"
    retryable = True


class StorageError(ModelBoxError):
    """The server's database or blob store failed."""

    code = "storage"


class ServerBusy(ModelBoxError):
    """The server is draining or overloaded; ``fields["retry_after_s"]`` says when to return."""

    code = "busy"
    retryable = True


class QueueFull(ServerBusy):
    """Too many calls wait already, of one model or of a server; ``fields["retry_after_s"]`` says when to come again."""

    code = "busy.queue_full"


class ConfigError(ModelBoxError, ValueError):
    """Settings that cannot work, or an extra that is not installed."""

    code = "config"


class UsageError(RuntimeError):
    """A mistake in the calling program, not a condition to handle."""


class ClientClosed(UsageError):
    """The client or engine was closed before this call."""


class LeaseReleased(UsageError):
    """The raw session was used after its lease ended."""


def _walk(cls: type[ModelBoxError]) -> dict[str, type[ModelBoxError]]:
    found = {cls.code: cls}
    for sub in cls.__subclasses__():
        # A code means the class that introduced it, not one that somebody derived from it without a code of its own.
        found = _walk(sub) | found
    return found


def error_from_dict(data: Mapping[str, object]) -> ModelBoxError:
    """The error that `ModelBoxError.to_dict` described.

    An unknown code falls back to its nearest known parent (``load.new`` becomes ``load``), so that an older client
    understands a newer server.
    """
    code = str(data.get("code", ""))
    message = str(data.get("message", "")) or f"the peer reported {code or 'an error without a code'}"
    fields = data.get("fields")
    known = _walk(ModelBoxError)
    while code and code not in known:
        code = code.rpartition(".")[0]
    cls = known.get(code, ModelBoxError)
    details = {str(k): v for k, v in fields.items()} if isinstance(fields, Mapping) else {}
    details.pop("message", None)
    return cls(message, **details)

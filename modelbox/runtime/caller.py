"""Who makes the call that a task handles; set by the boundaries of gRPC and HTTP, read by the adapters behind them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from modelbox.access import ANYBODY, Caller, Scope

__all__ = (
    "CALLER",
    "NO_ORIGIN",
    "RENEWAL",
    "REQUEST_ID",
    "Origin",
    "current_actor",
    "current_caller",
    "current_holder",
    "current_origin",
    "current_renewal",
    "current_scope",
    "given_request_id",
    "new_request_id",
)

CALLER: ContextVar[Caller] = ContextVar("modelbox_caller", default=ANYBODY)

REQUEST_ID: ContextVar[str] = ContextVar("modelbox_request_id", default="")
"""The name of the call in answers, logs and the audit log; empty for what the server does by itself."""

RENEWAL: ContextVar[Callable[[], Caller] | None] = ContextVar("modelbox_renewal", default=None)
"""Says who calls by the same credentials, as of now; raises `AuthError` once they are worth nothing any more."""


_MAX_CHARS = 64
_GIVEN = re.compile(r"[A-Za-z0-9._:-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a change comes from, as the audit log keeps it beside the actor; each at most 64 characters.

    Attributes:
        token_id: The public part of the token.
        address: Of the caller, without a port.
        request_id: The call.
    """

    token_id: str = ""
    address: str = ""
    request_id: str = ""


NO_ORIGIN = Origin()


def new_request_id() -> str:
    """A name for a call that has none."""
    return secrets.token_hex(8)


def given_request_id(text: str) -> str:
    """The name that a caller gives its call; empty if it gives none, or one that would not look well in a log."""
    return text if _GIVEN.fullmatch(text) else ""


def current_caller() -> Caller:
    """Who makes the call."""
    return CALLER.get()


def current_actor() -> str:
    """What history names the caller; empty if it does not say who it is, and nobody asks."""
    return CALLER.get().name


def current_holder() -> str:
    """By what calls that last are counted together: the token, or the account of a certificate; empty for nobody."""
    if RENEWAL.get() is None:
        return ""
    caller = CALLER.get()
    return caller.token_id or f"account {caller.name}"


def current_renewal() -> Callable[[], Caller] | None:
    """How a call that lasts finds out that its caller may do something else now; None without access control."""
    return RENEWAL.get()


def current_scope() -> Scope:
    """What the caller may read."""
    return CALLER.get().scope


def current_origin() -> Origin:
    """Where the call comes from that a task handles."""
    caller, request_id = CALLER.get(), REQUEST_ID.get()
    if not (request_id or caller.address or caller.token_id):
        return NO_ORIGIN
    return Origin(
        token_id=caller.token_id[:_MAX_CHARS],
        address=caller.address[:_MAX_CHARS],
        request_id=request_id[:_MAX_CHARS],
    )

"""Who makes the call that a task handles; set by the boundaries of gRPC and HTTP, read by the adapters behind them."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from modelbox.access import ANYBODY, Caller, Scope

__all__ = ("CALLER", "RENEWAL", "current_actor", "current_caller", "current_renewal", "current_scope")

CALLER: ContextVar[Caller] = ContextVar("modelbox_caller", default=ANYBODY)

RENEWAL: ContextVar[Callable[[], Caller] | None] = ContextVar("modelbox_renewal", default=None)
"""Says who calls by the same credentials, as of now; raises `AuthError` once they are worth nothing any more."""


def current_caller() -> Caller:
    """Who makes the call."""
    return CALLER.get()


def current_actor() -> str:
    """What history names the caller; empty if it does not say who it is, and nobody asks."""
    return CALLER.get().name


def current_renewal() -> Callable[[], Caller] | None:
    """How a call that lasts finds out that its caller may do something else now; None without access control."""
    return RENEWAL.get()


def current_scope() -> Scope:
    """What the caller may read."""
    return CALLER.get().scope

"""Who makes the call that a task handles; set by the boundaries of gRPC and HTTP, read by the adapters behind them."""

from __future__ import annotations

from contextvars import ContextVar

from modelbox.access import ANYBODY, Caller, Scope

__all__ = ("CALLER", "current_actor", "current_caller", "current_scope")

CALLER: ContextVar[Caller] = ContextVar("modelbox_caller", default=ANYBODY)


def current_caller() -> Caller:
    """Who makes the call."""
    return CALLER.get()


def current_actor() -> str:
    """What history names the caller; empty if it does not say who it is, and nobody asks."""
    return CALLER.get().name


def current_scope() -> Scope:
    """What the caller may read."""
    return CALLER.get().scope

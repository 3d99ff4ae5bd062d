"""Noting what a store refuses by what only its transaction knows: a protected alias, a request of one's own.

What can be told before is refused, and noted, at the boundary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from modelbox.access import Caller, Permission
from modelbox.errors import AuthError
from modelbox.runtime.caller import REQUEST_ID, current_caller

__all__ = ("RefusalLog", "noting")


class RefusalLog(Protocol):
    """Keeps what callers were refused; `modelbox.runtime.services.denials` is one."""

    def note(
        self,
        caller: Caller,
        *,
        method: str,
        permission: str,
        namespace: str = "",
        object: str = "",
        request_id: str = "",
    ) -> None:
        """Counts a call that was refused. Never fails, and never waits."""


@contextmanager
def noting(log: RefusalLog | None, method: str, namespace: str, path: str) -> Iterator[None]:
    """Notes that a call inside is refused for want of a promoter, and lets the error pass.

    Args:
        log: Where; None for nowhere.
        method: As the table of calls names it.
        namespace: Whose admins see it.
        path: What the call is about.
    """
    try:
        yield
    except AuthError as exc:
        # What waits for a second person was not refused.
        if log is not None and type(exc) is AuthError:
            log.note(
                current_caller(),
                method=method,
                permission=Permission.PROMOTE,
                namespace=namespace,
                object=path,
                request_id=REQUEST_ID.get(),
            )
        raise

"""Whether the server can do its work: one state for gRPC health, ``/healthz`` and ``/readyz``."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ("Health",)


class Health:
    """Ready from the end of the start to the beginning of the stop.

    ``on_change`` callbacks run in the event loop, at once; they must not block.
    """

    def __init__(self) -> None:
        self._reason = "starting"
        self._callbacks: list[Callable[[bool], None]] = []

    @property
    def ready(self) -> bool:
        """Whether new work is welcome."""
        return not self._reason

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is."""
        return self._reason

    def set_ready(self) -> None:
        """The start is complete."""
        self._set("")

    def set_unready(self, reason: str) -> None:
        """No new work: ``reason`` says why."""
        self._set(reason)

    def on_change(self, callback: Callable[[bool], None]) -> None:
        """Has ``callback`` called with each new state."""
        self._callbacks.append(callback)

    def _set(self, reason: str) -> None:
        self._reason = reason
        for callback in self._callbacks:
            callback(not reason)

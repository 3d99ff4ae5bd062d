"""Whether the server can do its work: one state for gRPC health, ``/healthz`` and ``/readyz``."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ("Health",)


class Health:
    """Ready from the end of the start to the beginning of the stop, but while something that it needs is away.

    Being ready is what balancers ask about; calls that come all the same are taken while it is `accepting`.
    ``on_change`` callbacks run in the event loop, at once; they must not block.
    """

    def __init__(self) -> None:
        self._reason = "starting"
        self._accepting = False
        self._callbacks: list[Callable[[bool], None]] = []

    @property
    def ready(self) -> bool:
        """Whether new work is welcome."""
        return not self._reason

    @property
    def accepting(self) -> bool:
        """Whether calls are taken, welcome or not."""
        return self._accepting

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is."""
        return self._reason

    def set_ready(self) -> None:
        """The start is complete, or all is well again."""
        self._set("", accepting=True)

    def set_unready(self, reason: str, *, accepting: bool = False) -> None:
        """No new work is welcome: ``reason`` says why.

        Args:
            reason: For people.
            accepting: Whether calls are taken all the same: while a balancer has yet to notice, or where they may
                succeed.
        """
        self._set(reason, accepting=accepting)

    def on_change(self, callback: Callable[[bool], None]) -> None:
        """Has ``callback`` called with each new state."""
        self._callbacks.append(callback)

    def _set(self, reason: str, *, accepting: bool) -> None:
        self._reason = reason
        self._accepting = accepting
        for callback in self._callbacks:
            callback(not reason)

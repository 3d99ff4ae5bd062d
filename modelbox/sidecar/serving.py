"""The queue before a model: how many calls may wait, who is next, who is told to come back later.

Owns admission and its order. Refuses to run anything: who is admitted calls the model and then leaves. Batches are made
behind this, by the loader's runner, of the calls that were admitted.

Invariants: at most ``width`` calls are inside and at most ``max_waiting`` wait. Whoever was admitted leaves exactly
once. A cancelled call gives its place, or its turn, to the next one. Of those that wait, the lowest priority number is
next, and of equal ones whoever came first.

Concurrency: belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

from modelbox.errors import QueueFull
from modelbox.refs import shown

__all__ = ("DEFAULT_PRIORITY", "Gate")

DEFAULT_PRIORITY = 10
"""What priority 0 (none given) counts as; 1 is served first."""

_MIN_RETRY_S = 0.05
_MAX_RETRY_S = 30.0


class Gate:
    """The way to one model.

    Args:
        name: Of the model, for errors.
        max_waiting: Most calls that wait.
        width: Most calls inside at first.
        drain_s: Estimates how long one call inside takes to leave, seconds.

    Attributes:
        width: Most calls inside; may be set at any time.
        running: Calls inside.
        waiting: Calls that wait.
        refused: Calls that were told to come back later, ever.
    """

    __slots__ = (
        "_drain_s",
        "_heap",
        "_idle",
        "_max_waiting",
        "_name",
        "_number",
        "refused",
        "running",
        "waiting",
        "width",
    )

    def __init__(self, name: str, *, max_waiting: int, width: int, drain_s: Callable[[], float]) -> None:
        self._name = name
        self._max_waiting = max_waiting
        self._drain_s = drain_s
        self._heap: list[tuple[int, int, asyncio.Future[None]]] = []
        self._number = 0
        self._idle: asyncio.Event | None = None
        self.width = width
        self.running = 0
        self.waiting = 0
        self.refused = 0

    @property
    def open(self) -> bool:
        """Whether a call may go in at once; it then counts itself in ``running``."""
        return self.running < self.width and not self.waiting

    async def enter(self, priority: int = 0) -> None:
        """Waits for a place inside; answer it with `leave`.

        Args:
            priority: 1 goes first; 0 counts as `DEFAULT_PRIORITY`.

        Raises:
            QueueFull: Too many wait already; ``fields["retry_after_s"]`` estimates when there will be room.

        Cancellation: the place in the queue is given up.
        """
        if self.open:
            self.running += 1
            return
        if self.waiting >= self._max_waiting:
            self.refused += 1
            raise QueueFull(
                f"{self.waiting} calls wait for {shown(self._name)} already: come back later",
                retry_after_s=self.retry_after_s,
            )
        self._number += 1
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._heap, (priority if priority > 0 else DEFAULT_PRIORITY, self._number, turn))
        self.waiting += 1
        try:
            await turn
        except BaseException:
            if turn.cancelled():
                self.waiting -= 1
                self._forget()
                # Whoever came in between took this place for one that is needed.
                self.admit()
            else:
                # Its turn came in the moment in which it was cancelled.
                self.leave()
            raise

    def leave(self) -> None:
        """Goes out, and lets the next one in."""
        self.running -= 1
        if self.waiting:
            self.admit()
        elif self._idle is not None and not self.running:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Waits until nobody is inside or waits."""
        while self.running or self.waiting:
            self._idle = asyncio.Event()
            await self._idle.wait()

    @property
    def retry_after_s(self) -> float:
        """When a refused call may find room, by what those inside take."""
        estimate = self._drain_s() * (self.waiting + 1)
        return round(min(max(estimate, _MIN_RETRY_S), _MAX_RETRY_S), 3)

    def admit(self) -> None:
        """Lets in as many as there is room for; after `width` was raised."""
        while self._heap and self.running < self.width:
            turn = heapq.heappop(self._heap)[2]
            if turn.done():
                continue
            self.waiting -= 1
            self.running += 1
            turn.set_result(None)

    def _forget(self) -> None:
        """Keeps cancelled calls from piling up in the queue."""
        if len(self._heap) > 2 * self.waiting + 64:
            self._heap = [item for item in self._heap if not item[2].done()]
            heapq.heapify(self._heap)

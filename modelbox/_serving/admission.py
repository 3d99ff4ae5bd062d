"""How many calls a server has in work at a time; more are refused at once, and told when to come again.

A server that takes every call keeps none of its promises under load: each waits for all before it, and what waits fills
the memory. What is refused here has cost nothing yet.

Concurrency: belongs to one event loop.
"""

from __future__ import annotations

from modelbox.errors import QueueFull

__all__ = ("Admission",)

_RETRY_AFTER_S = 1.0


class Admission:
    """Counts calls in work.

    Args:
        max_calls: At a time. Streams that last, such as watches, are bounded elsewhere.
    """

    __slots__ = ("max_calls", "refused", "running")

    def __init__(self, max_calls: int) -> None:
        self.max_calls = max_calls
        self.running = 0
        self.refused = 0

    @property
    def full(self) -> bool:
        """Whether another call would be one too many."""
        return self.running >= self.max_calls

    def enter(self) -> None:
        """Counts a call that begins; pair it with `leave`.

        Raises:
            QueueFull: There are too many, and this one is not counted.
        """
        if self.running >= self.max_calls:
            self.refused += 1
            raise QueueFull(
                f"the server has {self.running} calls in work, as many as it takes: try again in a second",
                retry_after_s=_RETRY_AFTER_S,
            )
        self.running += 1

    def leave(self) -> None:
        """Counts a call that has ended."""
        self.running -= 1

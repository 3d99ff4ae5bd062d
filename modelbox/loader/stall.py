"""Runs on an event loop that turn out to be long are stopped, so that they can go on in a thread.

A model that answers in microseconds runs on its callers' event loop. Some models take as long as their inputs say (a
loop, a beam search, a sequence), and one such input would hold up everybody on that loop, for ever at worst. One thread
looks at what runs on loops, and stops a run that takes longer than `STALL_S`; whoever began it makes it again in a
thread.

Invariants: a run that was stopped here ends with `RunStalled`, and with nothing else. The options of a run that was
stopped are not used again.

Concurrency: one slot for each thread that runs a loop. The thread starts with the first such run, and is a daemon.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from modelbox._fork import reset_in_child

__all__ = ("LOCAL", "STALL_S", "WATCH", "RunStalled", "Slot", "Watch", "slot_of_thread")

STALL_S = 0.5
"""What a run may take on a loop."""
_POLL_S = 0.1


class RunStalled(Exception):
    """A run was stopped because it held up its loop."""


class Slot:
    """What runs on one thread's loop.

    Attributes:
        since: When the run began, by `time.monotonic`; 0.0 between runs.
        session: Whose run it is.
        options: Of the run.
        stalled: The watch has stopped it.
    """

    __slots__ = ("__weakref__", "_new_options", "options", "session", "since", "stalled")

    def __init__(self, new_options: Callable[[], Any]) -> None:
        self._new_options = new_options
        self.since = 0.0
        self.session: object = None
        self.stalled = False
        self.options = new_options()

    def renew(self) -> bool:
        """Takes new options after a stop; whether the watch stopped it."""
        stalled, self.stalled = self.stalled, False
        self.options = self._new_options()
        return stalled


class Watch:
    """The thread that looks."""

    def __init__(self) -> None:
        self._fresh()
        reset_in_child(self)

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self._slots: weakref.WeakSet[Slot] = weakref.WeakSet()
        self._thread: threading.Thread | None = None

    def add(self, slot: Slot) -> None:
        """Looks after a slot for as long as its thread lives."""
        with self._lock:
            self._slots.add(slot)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="modelbox-stall", daemon=True)
                self._thread.start()

    def stop(self, session: object) -> None:
        """Ends the runs of one session, for whoever frees it."""
        with self._lock:
            slots = list(self._slots)
        for slot in slots:
            if slot.session is session and slot.since:
                slot.options.terminate = True

    def _look(self) -> None:
        while True:
            time.sleep(_POLL_S)
            with self._lock:
                slots = list(self._slots)
            late = time.monotonic() - STALL_S
            for slot in slots:
                # If the next run has begun meanwhile, it is that which goes on elsewhere.
                if 0.0 < slot.since < late:
                    slot.stalled = True
                    slot.options.terminate = True

    def _after_fork_in_child(self) -> None:
        self._fresh()
        LOCAL.__dict__.clear()


WATCH = Watch()


class _Local(threading.local):
    slot: Slot | None = None


LOCAL = _Local()
"""``slot`` is that of the thread that looks, or None before its first run."""


def slot_of_thread(new_options: Callable[[], Any]) -> Slot:
    """This thread's slot."""
    slot = LOCAL.slot
    if slot is None:
        slot = LOCAL.slot = Slot(new_options)
        WATCH.add(slot)
    return slot

"""The links of one process to one sidecar: one for each event loop, and one for each thread that calls without one.

Owns which of them a caller uses, so that calls never cross threads, and their end: with the client, with their loop,
and in a forked child.
"""

from __future__ import annotations

import threading

from modelbox import _fork
from modelbox._loops import Loop, current_loop
from modelbox._transport.sidecar_link import Link
from modelbox._transport.sidecar_thread import ThreadLoop
from modelbox.errors import ClientClosed

__all__ = ("Links",)


class _Held:
    """A thread's hold on its link, which ends with the thread, with the loop that follows on it, or with the client."""

    __slots__ = ("_all", "link")

    def __init__(self, link: Link, all_links: set[Link]) -> None:
        self.link = link
        self._all = all_links

    def __del__(self) -> None:
        # No lock: this may run in the middle of anything.
        self._all.discard(self.link)
        _end(self.link)


class _Local(threading.local):
    loop: _Held | None = None
    thread: _Held | None = None


class Links:
    """See the module.

    Args:
        path: Of the sidecar's socket.

    Concurrency: any thread.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._local = _Local()
        self._lock = threading.Lock()
        self._all: set[Link] = set()
        self._closed = False
        _fork.reset_in_child(self)

    def here(self) -> Link:
        """The link of the running event loop."""
        held = self._local.loop
        loop = current_loop()
        if held is not None and held.link.loop is loop:
            return held.link
        # One that was there belongs to a loop that has ended: this thread runs another one.
        self._local.loop = held = self._make(loop)
        return held.link

    def thread(self) -> Link:
        """The link of a thread whose loop, if it has one, is not to be used."""
        held = self._local.thread
        if held is None:
            self._local.thread = held = self._make(ThreadLoop())
        return held.link

    def is_here(self, link: Link) -> bool:
        """Whether ``link`` may be used by the caller directly."""
        return any(held is not None and held.link is link for held in (self._local.loop, self._local.thread))

    def close(self) -> None:
        """Ends all links, each on its own loop."""
        with self._lock:
            self._closed = True
            links = list(self._all)
            self._all.clear()
        for link in links:
            _end(link)

    def _make(self, loop: Loop) -> _Held:
        link = Link(loop, self._path)
        with self._lock:
            if self._closed:
                raise ClientClosed("the client is closed")
            self._all.add(link)
        return _Held(link, self._all)

    def _after_fork_in_child(self) -> None:
        # The parent's connections: closing the descriptors here leaves them to the parent alone.
        for link in list(self._all):
            link.abandon()
        self._lock = threading.Lock()
        self._all = set()
        self._local = _Local()


def _end(link: Link) -> None:
    """Ends a link on its own loop, from any thread."""
    if isinstance(link.loop, ThreadLoop):
        link.abandon()
        return
    # RuntimeError: the loop has ended.
    try:
        link.loop.call_soon_threadsafe(link.close)
    except RuntimeError:
        link.abandon()

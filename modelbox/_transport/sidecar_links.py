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


class _Local(threading.local):
    link: Link | None = None
    thread_link: Link | None = None


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
        link = self._local.link
        loop = current_loop()
        if link is not None and link.loop is loop:
            return link
        link = self._local.link = self._make(loop, link)
        return link

    def thread(self) -> Link:
        """The link of a thread whose loop, if it has one, is not to be used."""
        link = self._local.thread_link
        if link is None:
            link = self._local.thread_link = self._make(ThreadLoop(), None)
        return link

    def is_here(self, link: Link) -> bool:
        """Whether ``link`` may be used by the caller directly."""
        return link is self._local.link or link is self._local.thread_link

    def close(self) -> None:
        """Ends all links, each on its own loop."""
        with self._lock:
            self._closed = True
            links, self._all = self._all, set()
        for link in links:
            if isinstance(link.loop, ThreadLoop):
                link.abandon()
                continue
            # RuntimeError: the loop has ended.
            try:
                link.loop.call_soon_threadsafe(link.close)
            except RuntimeError:
                link.abandon()

    def _make(self, loop: Loop, before: Link | None) -> Link:
        link = Link(loop, self._path)
        with self._lock:
            if self._closed:
                raise ClientClosed("the client is closed")
            if before is not None:
                # Its loop has ended: this thread runs another one.
                self._all.discard(before)
                before.abandon()
            self._all.add(link)
        return link

    def _after_fork_in_child(self) -> None:
        # The parent's connections: closing the descriptors here leaves them to the parent alone.
        for link in self._all:
            link.abandon()
        self._lock = threading.Lock()
        self._all = set()
        self._local = _Local()

"""Driving the asynchronous client without an event loop of the caller's.

Owns `BlockingClient`, whose calls wait for the engine in the calling thread, so that a method that awaits nothing else
runs from its first line to its last in one go; `finish` and `iterate` run such methods.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from modelbox.client import Client
from modelbox.errors import ClientClosed, DeadlineExceeded

if TYPE_CHECKING:
    from modelbox._transport.source import RemoteSource

__all__ = ("BlockingClient", "finish", "iterate")

T = TypeVar("T")
_CLOSE_S = 5.0


class BlockingClient(Client):
    """A client whose calls block the calling thread; only for `finish` and `iterate`."""

    async def _call(self, fn: Callable[[RemoteSource], Awaitable[T]]) -> T:
        self._check_open()
        return self._engine.call_sync(self._run, fn)

    def close(self) -> None:
        """`aclose` for the calling thread."""
        if self._closed:
            return
        self._closed = True
        with suppress(ClientClosed, DeadlineExceeded):
            self._engine.call_sync(self._close_parts, timeout=_CLOSE_S)
        if self._owns_engine:
            self._engine.close()


def finish(call: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never has to wait, and returns its result."""
    try:
        call.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    call.close()
    raise RuntimeError("a method of the blocking client waits for an event loop")


def iterate(items: AsyncIterator[T]) -> Iterator[T]:
    """Runs an asynchronous iterator that never has to wait."""

    async def following() -> T:
        return await anext(items)

    while True:
        try:
            item = finish(following())
        except StopAsyncIteration:
            return
        yield item

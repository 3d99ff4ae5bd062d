"""The event loop that a caller runs on, reduced to the few things that the call path needs.

Owns every difference between asyncio (any loop of it) and trio outside of the engine. anyio covers the rest; what is
here needs to be cheaper than anyio (waking a caller, once per call) or does not exist there (running a function at the
end of the current tick).

Invariants: a `Loop` belongs to one running event loop and one thread. Only ``call_soon_threadsafe`` may be used from
other threads; it raises RuntimeError when the loop has ended. Functions given to a loop must not raise: trio ends the
whole run if one does.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import types
from collections.abc import Callable, Generator
from typing import Any, Generic, Protocol, TypeVar, cast

__all__ = ("Loop", "Timer", "Waiter", "current_loop", "find_current_loop")

T = TypeVar("T")

_get_running_loop = asyncio._get_running_loop
_modules = sys.modules


class Waiter(Protocol[T]):
    """One result for one waiting task; everything but ``await`` belongs to the loop's own thread."""

    def done(self) -> bool:
        """Whether it has a result or its task stopped waiting."""

    def set_result(self, result: T, /) -> None:
        """Wakes the task; not allowed once `done`."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Wakes the task with an error; not allowed once `done`."""

    def __await__(self) -> Generator[Any, None, T]: ...


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> None:
        """Forgets the call; harmless when it was made already."""


class Loop(Protocol):
    """A running event loop, seen from a task on it."""

    @property
    def raw(self) -> object:
        """The asyncio loop, or trio's token."""

    @property
    def call_soon(self) -> Callable[..., object]:
        """``call_soon(fn, *args)``: runs after the tasks that are ready now."""

    @property
    def call_soon_threadsafe(self) -> Callable[..., object]:
        """``call_soon_threadsafe(fn, *args)``: the same from any thread; RuntimeError when the loop has ended."""

    @property
    def make_waiter(self) -> Callable[[], Waiter[Any]]:
        """A fresh `Waiter`, to be awaited by one task of this loop."""

    def call_later(self, delay_s: float, fn: Callable[[], object]) -> Timer:
        """Runs ``fn`` after ``delay_s`` seconds."""

    async def checkpoint(self) -> None:
        """Lets every other ready task run once; delivers a pending cancellation."""

    def watch(self, fd: int, fn: Callable[[], object], *, writable: bool = False) -> Timer:
        """Calls ``fn`` whenever ``fd`` can be read from (or written to), until cancelled; cancel before closing it."""


@types.coroutine
def _yield_once() -> Generator[None, None, None]:
    yield


class _AsyncioLoop:
    __slots__ = ("__weakref__", "call_soon", "call_soon_threadsafe", "make_waiter", "raw")

    def __init__(self, raw: asyncio.AbstractEventLoop) -> None:
        self.raw = raw
        # Bound methods of the loop itself: no frame of ours in between.
        self.call_soon: Callable[..., object] = raw.call_soon
        self.call_soon_threadsafe: Callable[..., object] = raw.call_soon_threadsafe
        self.make_waiter: Callable[[], Waiter[Any]] = raw.create_future

    def call_later(self, delay_s: float, fn: Callable[[], object]) -> Timer:
        return self.raw.call_later(delay_s, fn)

    async def checkpoint(self) -> None:
        await _yield_once()

    def watch(self, fd: int, fn: Callable[[], object], *, writable: bool = False) -> Timer:
        return _AsyncioWatch(self.raw, fd, fn, writable=writable)


class _TrioWaiter(Generic[T]):
    __slots__ = ("_done", "_outcome", "_task", "_trio")

    def __init__(self, trio: Any) -> None:
        self._trio = trio
        self._task: Any = None
        self._outcome: tuple[Any, BaseException | None] | None = None
        self._done = False

    def done(self) -> bool:
        return self._done

    def set_result(self, result: T, /) -> None:
        self._wake(result, None)

    def set_exception(self, exception: BaseException, /) -> None:
        self._wake(None, exception)

    def _wake(self, value: Any, exception: BaseException | None) -> None:
        self._done = True
        self._outcome = (value, exception)
        if self._task is not None:
            self._trio.reschedule(self._task)

    def __await__(self) -> Generator[Any, None, T]:
        if self._outcome is None:
            self._task = self._trio.current_task()

            def abort(_: object) -> Any:
                self._done = True
                return self._trio.Abort.SUCCEEDED

            yield from self._trio.wait_task_rescheduled(abort).__await__()
        assert self._outcome is not None
        value, exception = self._outcome
        self._outcome = None  # an error keeps this frame, and would keep itself
        if exception is not None:
            try:
                raise exception
            finally:
                del exception
        return cast(T, value)


class _AsyncioWatch:
    __slots__ = ("_fd", "_raw", "_writable")

    def __init__(self, raw: asyncio.AbstractEventLoop, fd: int, fn: Callable[[], object], *, writable: bool) -> None:
        self._raw: asyncio.AbstractEventLoop | None = raw
        self._fd = fd
        self._writable = writable
        (raw.add_writer if writable else raw.add_reader)(fd, fn)

    def cancel(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None and not raw.is_closed():
            (raw.remove_writer if self._writable else raw.remove_reader)(self._fd)


class _TrioTimer:
    __slots__ = ("_scope",)

    def __init__(self, scope: Any) -> None:
        self._scope = scope

    def cancel(self) -> None:
        self._scope.cancel()


class _TrioWatch(_TrioTimer):
    __slots__ = ("_fd",)

    def __init__(self, scope: Any, fd: int) -> None:
        super().__init__(scope)
        self._fd = fd

    def cancel(self) -> None:
        import trio

        if not self._scope.cancel_called:
            self._scope.cancel()
            # Only the current run knows the descriptor; after its end there is nothing left to notify.
            with contextlib.suppress(RuntimeError):
                trio.lowlevel.notify_closing(self._fd)


class _TrioLoop:
    __slots__ = ("__weakref__", "_trio", "call_soon", "call_soon_threadsafe", "raw")

    def __init__(self, raw: Any, trio: Any) -> None:
        self.raw = raw
        self._trio = trio
        # trio runs these from a task of its own, which becomes ready now and thus after what is ready already.
        self.call_soon: Callable[..., object] = raw.run_sync_soon
        self.call_soon_threadsafe: Callable[..., object] = raw.run_sync_soon

    def make_waiter(self) -> Waiter[Any]:
        return _TrioWaiter(self._trio)

    def call_later(self, delay_s: float, fn: Callable[[], object]) -> Timer:
        import trio

        scope = trio.CancelScope()

        async def wait() -> None:
            with scope:
                await trio.sleep(delay_s)
                fn()

        trio.lowlevel.spawn_system_task(wait, name="modelbox timer")
        return _TrioTimer(scope)

    async def checkpoint(self) -> None:
        await self._trio.checkpoint()

    def watch(self, fd: int, fn: Callable[[], object], *, writable: bool = False) -> Timer:
        import trio

        scope = trio.CancelScope()
        wait = trio.lowlevel.wait_writable if writable else trio.lowlevel.wait_readable

        async def keep_watching() -> None:
            # ClosedResourceError: cancelled while it waits. A cancelled watch must not touch the descriptor again: it
            # is closed, or already somebody else's.
            with scope, contextlib.suppress(trio.ClosedResourceError):
                while not scope.cancel_called:
                    await wait(fd)
                    if not scope.cancel_called:
                        fn()

        trio.lowlevel.spawn_system_task(keep_watching, name="modelbox socket")
        return _TrioWatch(scope, fd)


class _Cache(threading.local):
    loop: Loop | None = None


_cache = _Cache()


def find_current_loop() -> Loop | None:
    """The loop whose task is calling, or None outside of one."""
    # trio comes first: in its guest mode there is an asyncio loop below it.
    lowlevel = _modules.get("trio.lowlevel")
    if lowlevel is not None and (in_trio := getattr(lowlevel, "in_trio_task", None)) is not None and in_trio():
        raw: Any = lowlevel.current_trio_token()
    else:
        lowlevel = None
        raw = _get_running_loop()
        if raw is None:
            return None
    loop = _cache.loop
    if loop is None or loop.raw is not raw:
        loop = _cache.loop = _AsyncioLoop(raw) if lowlevel is None else _TrioLoop(raw, lowlevel)
    return loop


def current_loop() -> Loop:
    """The loop whose task is calling; cached per thread, well below a microsecond.

    Raises:
        RuntimeError: No event loop is running in this thread.
    """
    loop = find_current_loop()
    if loop is None:
        raise RuntimeError("no event loop is running here: call this from a coroutine, or use the synchronous form")
    return loop

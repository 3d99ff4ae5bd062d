"""An event loop of the smallest kind, for threads that have none: it runs while somebody waits, and only then.

Owns nothing but the callbacks that were handed to it. With it, code that is not async speaks to the sidecar through
the same `Link` as everybody else.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import select
from collections import deque
from collections.abc import Callable, Generator
from time import monotonic
from typing import Any, Generic, TypeVar

from modelbox._loops import Timer
from modelbox.errors import DeadlineExceeded

__all__ = ("ThreadLoop",)

T = TypeVar("T")


class _Waiter(Generic[T]):
    __slots__ = ("_done", "_error", "_value")

    def __init__(self) -> None:
        self._done = False
        self._value: T | None = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        return self._done

    def set_result(self, result: T, /) -> None:
        self._done = True
        self._value = result

    def set_exception(self, exception: BaseException, /) -> None:
        self._done = True
        self._error = exception

    def forget(self) -> None:
        self._done = True

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value

    def __await__(self) -> Generator[Any, None, T]:
        raise TypeError("a thread without a loop cannot await: use ThreadLoop.wait")


class _Watch:
    __slots__ = ("_fd", "_fns", "_loop")

    def __init__(self, loop: ThreadLoop, fns: dict[int, Callable[[], object]], fd: int) -> None:
        self._loop = loop
        self._fns = fns
        self._fd = fd

    def cancel(self) -> None:
        if self._fns.pop(self._fd, None) is not None:
            self._loop.register(self._fd)


class _Timer:
    __slots__ = ("at", "fn", "order")

    def __init__(self, at: float, order: int, fn: Callable[[], object] | None) -> None:
        self.at = at
        self.order = order
        self.fn = fn

    def __lt__(self, other: _Timer) -> bool:
        return (self.at, self.order) < (other.at, other.order)

    def cancel(self) -> None:
        self.fn = None


class ThreadLoop:
    """A `Loop` for one thread.

    Concurrency: belongs to its thread, but for ``call_soon_threadsafe``, whose functions run when it next waits.
    """

    def __init__(self) -> None:
        self._ready: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._timers: list[_Timer] = []
        self._order = itertools.count()
        self._poll = select.poll()
        self._readers: dict[int, Callable[[], object]] = {}
        self._writers: dict[int, Callable[[], object]] = {}
        self.make_waiter: Callable[[], _Waiter[Any]] = _Waiter

    @property
    def raw(self) -> object:
        """Itself."""
        return self

    def call_soon(self, fn: Callable[..., object], *args: Any) -> None:
        """Runs ``fn`` in the next turn."""
        self._ready.append((fn, args))

    call_soon_threadsafe = call_soon

    def call_later(self, delay_s: float, fn: Callable[[], object]) -> Timer:
        """Runs ``fn`` after ``delay_s`` seconds of waiting."""
        timer = _Timer(monotonic() + delay_s, next(self._order), fn)
        heapq.heappush(self._timers, timer)
        return timer

    async def checkpoint(self) -> None:
        """There is nobody else."""

    def watch(self, fd: int, fn: Callable[[], object], *, writable: bool = False) -> Timer:
        """See `Loop.watch`."""
        fns = self._writers if writable else self._readers
        fns[fd] = fn
        self.register(fd)
        return _Watch(self, fns, fd)

    def register(self, fd: int) -> None:
        """Brings the kernel's view of a descriptor up to date."""
        mask = (select.POLLIN if fd in self._readers else 0) | (select.POLLOUT if fd in self._writers else 0)
        if mask:
            self._poll.register(fd, mask)
        else:
            with contextlib.suppress(KeyError):
                self._poll.unregister(fd)

    def wait(self, waiter: Any, *, until: float | None = None) -> Any:
        """Runs until ``waiter`` has its result, and returns or raises it.

        Raises:
            DeadlineExceeded: `time.monotonic` has passed ``until``.
        """
        while not waiter.done():
            self._turn(until)
            if until is not None and not waiter.done() and monotonic() >= until:
                waiter.forget()
                raise DeadlineExceeded("no answer in time")
        # What belongs to this turn, such as a frame that was written, must not wait for the next call.
        while self._ready:
            self._run_ready()
        return waiter.result()

    def forget(self, waiter: Any) -> None:
        """Nobody waits for ``waiter`` any more."""
        waiter.forget()

    def _turn(self, until: float | None) -> None:
        if self._ready:
            self._run_ready()
            return
        timeout = None if until is None else max(until - monotonic(), 0.0)
        while self._timers and self._timers[0].fn is None:
            heapq.heappop(self._timers)
        if self._timers:
            left = max(self._timers[0].at - monotonic(), 0.0)
            timeout = left if timeout is None else min(timeout, left)
        for fd, events in self._poll.poll(None if timeout is None else timeout * 1e3 + 0.5):
            if events & ~select.POLLOUT and (reader := self._readers.get(fd)) is not None:
                reader()
            if events & ~select.POLLIN and (writer := self._writers.get(fd)) is not None:
                writer()
        now = monotonic()
        while self._timers and self._timers[0].at <= now:
            fn = heapq.heappop(self._timers).fn
            if fn is not None:
                fn()

    def _run_ready(self) -> None:
        for _ in range(len(self._ready)):
            fn, args = self._ready.popleft()
            fn(*args)

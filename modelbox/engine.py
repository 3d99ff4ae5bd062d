"""The engine: one background thread with an event loop of its own, for everything that outlives a call.

Owns the thread, its asyncio loop (uvloop where installed) and the one task group in which watches, downloads and swaps
live, so that the application's loop never does our work and never delays it. Refuses to run models: predictions happen
where the caller is.

Invariants: every task on the engine's loop belongs to its task group. A cancelled caller has its work cancelled too and
waits, up to a bound, until that has ended. A fork leaves the engine in the state of one never started.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import logging
import threading
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar, TypeVarTuple, cast

import anyio

from modelbox._fork import reset_in_child
from modelbox._loops import Waiter, current_loop
from modelbox.errors import ClientClosed, DeadlineExceeded, UsageError

__all__ = ("Engine", "EngineTask")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_log = logging.getLogger(__name__)

_CANCEL_GRACE_S = 10.0
"""How long a cancelled caller waits for its work on the engine to end."""

_CLOSE_GRACE_S = 10.0
"""How long `Engine.close` waits for the thread."""

_EXIT_GRACE_S = 2.0
"""The same at interpreter exit."""

# A forked child must neither close nor collect the loop that it inherited: its sockets and its epoll set belong to the
# parent, and its coroutines would run their cleanup in the wrong thread.
_inherited: list[object] = []


class EngineTask:
    """A background task of the engine, as `Engine.start_soon` returns it."""

    __slots__ = ("_call",)

    def __init__(self, call: _Call[Any]) -> None:
        self._call = call

    def cancel(self) -> None:
        """Cancels the task; from any thread, harmless when it has ended."""
        self._call.cancel()

    @property
    def done(self) -> bool:
        """Whether the task has ended, one way or another."""
        return self._call.ended


class _Call(Generic[T]):
    """One function run on the engine's loop, and where its outcome goes."""

    __slots__ = ("_cancelled", "_scope", "args", "ended", "error", "fn", "loop", "notify", "value")

    def __init__(self, fn: Callable[..., Awaitable[T]], args: tuple[Any, ...], notify: Callable[[], object]) -> None:
        self.fn: Callable[..., Awaitable[T]] | None = fn
        self.args = args
        self.notify = notify
        self.loop: asyncio.AbstractEventLoop | None = None
        self.value: T | None = None
        self.error: BaseException | None = None
        self.ended = False
        self._cancelled = False
        self._scope: anyio.CancelScope | None = None

    async def run(self) -> None:
        """Runs on the engine's loop; its outcome is delivered, never raised."""
        assert self.fn is not None
        try:
            with anyio.CancelScope() as self._scope:
                if self._cancelled:
                    self._scope.cancel()
                try:
                    self.value = await self.fn(*self.args)
                except (Exception, KeyboardInterrupt, SystemExit) as exc:
                    self.error = _unwrapped(exc)
                else:
                    self.end()
        finally:
            if not self.ended:
                self.end(self.error or _closed())

    def end(self, error: BaseException | None = None) -> None:
        """Records the outcome and tells whoever waits."""
        self.error = error
        self.ended = True
        self.fn = self._scope = None
        self.args = ()
        # RuntimeError: the loop of the one who asked has ended.
        try:
            self.notify()
        except RuntimeError:
            _log.debug("nobody is left to take the outcome of a call to the engine")

    def cancel(self) -> None:
        loop = self.loop
        if loop is not None and not self.ended:
            # RuntimeError: the engine's loop is closed, and the call has ended with it.
            try:
                loop.call_soon_threadsafe(self._cancel_here)
            except RuntimeError:
                return

    def _cancel_here(self) -> None:
        self._cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    def result(self) -> T:
        """The value, or raises what the function raised."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None
        return cast(T, self.value)


@dataclass(slots=True, kw_only=True)
class _Running:
    """A started engine's thread and what lives in it."""

    thread: threading.Thread
    loop: asyncio.AbstractEventLoop
    group: anyio.abc.TaskGroup
    context: contextvars.Context
    stop: asyncio.Event


class Engine:
    """Runs coroutine functions on its own event loop, for callers on asyncio, on trio, or on no loop at all.

    Starts its thread with the first call (some milliseconds, once). One engine may be shared by any number of threads
    and event loops.

    Args:
        name: Of the thread, for those who read stack dumps.
    """

    def __init__(self, *, name: str = "modelbox-engine") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._closed = False
        reset_in_child(self)
        atexit.register(_close_at_exit, weakref.ref(self))

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    async def call(self, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Runs ``fn(*args)`` on the engine's loop and returns what it returns.

        A call from the engine's own loop runs in place.

        Raises:
            ClientClosed: The engine is closed, or was while the call ran.
            Exception: Whatever ``fn`` raises, out of its exception group when it is the only one.

        Cancellation: ``fn`` is cancelled, and its end awaited for at most 10 s.
        """
        loop = current_loop()
        running = self._running or self._start()
        if loop.raw is running.loop:
            return await fn(*args)
        waiter: Waiter[None] = loop.make_waiter()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        call: _Call[T] = _Call(fn, args, partial(loop.call_soon_threadsafe, wake))
        self._submit(call, "call")
        try:
            await waiter
        except BaseException:
            # Only cancellation ends the wait early. The work must not go on behind the back of the one who cancelled.
            waiter = loop.make_waiter()
            if not call.ended:
                call.cancel()
                with anyio.move_on_after(_CANCEL_GRACE_S, shield=True) as scope:
                    await waiter
                if scope.cancelled_caught:
                    _log.warning("cancelled work on the engine did not end within %s s", _CANCEL_GRACE_S)
            raise
        return call.result()

    def call_sync(self, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts, timeout: float | None = None) -> T:
        """The same for code that is not async; blocks the calling thread.

        Args:
            fn: The coroutine function.
            args: Its arguments.
            timeout: Seconds after which ``fn`` is cancelled; None waits without end.

        Raises:
            DeadlineExceeded: ``fn`` took longer than ``timeout``.
            ClientClosed: The engine is closed, or was while the call ran.
            UsageError: Called on the engine's own thread, which it would block for ever.
        """
        running = self._running or self._start()
        if threading.current_thread() is running.thread:
            raise UsageError("call_sync was called on the engine's own thread: await the function instead")
        ended = threading.Event()
        call: _Call[T] = _Call(fn, args, ended.set)
        self._submit(call, "call")
        try:
            in_time = ended.wait(timeout)
        except BaseException:  # KeyboardInterrupt
            call.cancel()
            raise
        if not in_time:
            call.cancel()
            if not ended.wait(_CANCEL_GRACE_S):
                _log.warning("work on the engine did not end within %s s after its timeout", _CANCEL_GRACE_S)
            raise DeadlineExceeded(f"no result within {timeout} s", timeout_s=timeout)
        return call.result()

    def start_soon(self, fn: Callable[[*Ts], Awaitable[object]], *args: *Ts, name: str) -> EngineTask:
        """Starts ``fn(*args)`` as a task that outlives the caller; from any thread.

        An exception ends the task, is logged, and touches nothing else.

        Raises:
            ClientClosed: The engine is closed.
        """
        call: _Call[object]

        def report() -> None:
            if call.error is not None and not isinstance(call.error, ClientClosed):
                _log.error("the engine's task %r failed", name, exc_info=call.error)

        call = _Call(fn, args, report)
        self._submit(call, name)
        return EngineTask(call)

    def close(self) -> None:
        """Cancels everything that runs on the engine and ends its thread; idempotent, from any thread.

        Blocks until the thread has ended, for at most 10 s, unless called on that thread.
        """
        self._close(_CLOSE_GRACE_S)

    async def aclose(self) -> None:
        """The same for coroutines; does not block the caller's loop."""
        if self._running is None:
            self.close()
            return
        with anyio.CancelScope(shield=True):  # bounded by close() itself
            await anyio.to_thread.run_sync(self.close)

    def _close(self, grace_s: float) -> None:
        with self._lock:
            self._closed = True
            running, self._running = self._running, None
        if running is None:
            return
        # RuntimeError: the loop has ended already.
        try:
            running.loop.call_soon_threadsafe(running.stop.set)
        except RuntimeError:
            return
        if running.thread is not threading.current_thread():
            running.thread.join(grace_s)
            if running.thread.is_alive():
                _log.warning("the engine's thread did not end within %s s", grace_s)

    def _submit(self, call: _Call[Any], name: str) -> None:
        running = self._running or self._start()
        call.loop = running.loop
        # The engine's context, not the caller's: there, anyio may be told that it runs on trio.
        try:
            running.loop.call_soon_threadsafe(_begin, running.group, call, name, context=running.context)
        except RuntimeError as exc:
            raise _closed() from exc

    def _start(self) -> _Running:
        with self._lock:
            if self._closed:
                raise _closed()
            if self._running is None:
                self._running = _start_thread(self._name)
            return self._running

    def _after_fork_in_child(self) -> None:
        running, self._running = self._running, None
        self._lock = threading.Lock()
        if running is not None:
            _inherited.append((running, asyncio.all_tasks(running.loop)))


def _start_thread(name: str) -> _Running:
    ready = threading.Event()
    started: list[_Running | BaseException] = []

    async def main() -> None:
        stop = asyncio.Event()
        async with anyio.create_task_group() as group:
            started.append(
                _Running(
                    thread=threading.current_thread(),
                    loop=asyncio.get_running_loop(),
                    group=group,
                    context=contextvars.copy_context(),
                    stop=stop,
                )
            )
            ready.set()
            await stop.wait()
            group.cancel_scope.cancel()

    def run() -> None:
        try:
            # Not asyncio.Runner: anyio must know which loop it is on in callbacks, too, where no task says so.
            anyio.run(main, backend="asyncio", backend_options={"loop_factory": _loop_factory()})
        except BaseException as exc:
            if ready.is_set():
                raise
            started.append(exc)
            ready.set()

    threading.Thread(target=run, name=name, daemon=True).start()
    ready.wait()
    outcome = started[0]
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)


def _begin(group: anyio.abc.TaskGroup, call: _Call[Any], name: str) -> None:
    # RuntimeError: the group has ended, the loop is about to.
    try:
        group.start_soon(call.run, name=f"modelbox {name}")
    except RuntimeError:
        call.end(_closed())


def _close_at_exit(ref: weakref.ref[Engine]) -> None:
    engine = ref()
    if engine is not None:
        engine._close(_EXIT_GRACE_S)


def _closed() -> ClientClosed:
    return ClientClosed("the ModelBox engine is closed")


def _unwrapped(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

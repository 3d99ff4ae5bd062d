"""The call path: from a caller's inputs to its outputs, on whatever version is active.

Owns the reference to the active generation, the decision where a run happens, and the fairness towards the caller's
event loop. Refuses to open, warm or close anything. Importing this module does not import onnxruntime.

Invariants: every call is answered by one generation, the one that was active when its inputs were checked. A call
holds a lease for exactly as long as its run may use the session. Between reading `Runner.active` and taking the lease a
swap may come; then the lease is refused and the call reads again, so that no call fails because of a swap.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, SimpleQueue
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Protocol

import anyio
import numpy as np

from modelbox._fork import reset_in_child
from modelbox._loops import Waiter, current_loop
from modelbox.errors import ClientClosed, DeadlineExceeded, InputError, LeaseReleased, ModelBoxError, UsageError
from modelbox.loader.batching import Collector, Entry, without_frames
from modelbox.loader.generation import Generation
from modelbox.loader.inputs import Feed
from modelbox.loader.pool import Pool, available_cores
from modelbox.loader.session import new_run_options
from modelbox.loader.stall import RunStalled
from modelbox.loader.stats import Outcome
from modelbox.objects import ModelVersion
from modelbox.signature import Signature

__all__ = ("DirectCall", "JoinedPrediction", "Lease", "Mode", "Prediction", "Runner", "RunnerOptions")


class Mode(StrEnum):
    """Where runs happen."""

    AUTO = "auto"
    """Short ones on the caller's event loop, long ones in the pool, by a running average."""
    INLINE = "inline"
    """Always on the caller's event loop."""
    POOL = "pool"
    """Always in a thread of the pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """How calls are run.

    Attributes:
        mode: See `Mode`.
        inline_below_s: Average run time below which `Mode.AUTO` runs on the loop, seconds.
        fairness_s: Work on one loop after which a call lets the loop's other tasks run first, seconds.
        batch_above_s: Average run time above which calls of one tick share a run, where the model allows it, seconds.
            Below it, sharing costs more than the run; 0 shares always.
        max_batch: Most rows in one run of the batching path.
        max_delay_s: How long the first call of a batch may wait for others; 0 for the end of the loop's tick.
        threads: Of the pool; 0 for one per available core, at least 2 and at most 8.
    """

    mode: Mode = Mode.AUTO
    inline_below_s: float = 0.001
    fairness_s: float = 0.001
    batch_above_s: float = 0.00002
    max_batch: int = 64
    max_delay_s: float = 0.0
    threads: int = 0


class Prediction(dict[str, np.ndarray[Any, np.dtype[Any]]]):
    """The outputs of one call by name, and the version that gave them.

    Outputs of calls that shared a run are views of one array.
    """

    __slots__ = ("version",)

    version: ModelVersion


class JoinedPrediction(Prediction):
    """The answer to a call that went through the batching path, whether or not it found company there."""

    __slots__ = ()


class DirectCall(Waiter[list[Any]], Protocol):
    """A call of `Runner.start`, made by whoever serves it; never awaited."""

    generation: Generation | None
    """What runs it; set before the outcome."""
    entry: Entry | None
    """Its place in a batch, for `Runner.discard`."""


class _Turn(threading.local):
    """What this thread's event loop has spent on runs since it last had its turn."""

    spent_ns = 0


class _Local(threading.local):
    collector: Collector | None = None


_turn = _Turn()

_SPREAD_ABOVE = 0.25
"""Part of ``inline_below_s`` above which batches leave the loop for several threads."""


class Runner:
    """Runs predictions on the active generation, for callers on any thread and any event loop.

    Args:
        options: How.
        pool: Threads to share with other runners; one of its own otherwise.

    Attributes:
        active: What answers now; None before the first `swap` and after `close`.
    """

    def __init__(self, options: RunnerOptions | None = None, *, pool: Pool | None = None) -> None:
        self.options = options = options or RunnerOptions()
        self.active: Generation | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._own_pool = pool is None
        self._pool = pool if pool is not None else Pool(options.threads)
        self._local = _Local()
        below_s = {Mode.AUTO: options.inline_below_s, Mode.INLINE: math.inf, Mode.POOL: -1.0}[options.mode]
        self._inline_below_ns = below_s * 1e9
        # With another core at hand, a batch is spread long before it would hold up the loop.
        spread = options.mode is Mode.AUTO and min(available_cores(), self._pool.threads) > 1
        self._batch_inline_below_ns = self._inline_below_ns * (_SPREAD_ABOVE if spread else 1.0)
        self._batch_from_ns = options.batch_above_s * 1e9
        # One stall of a busy machine must not push a fast model out of the loop: it counts for a few times the limit.
        self._ceiling_ns = 4e9 * options.inline_below_s
        self._fairness_ns = options.fairness_s * 1e9
        # Whoever wants every run on the loop wants long ones there, too.
        self._guarded = options.mode is Mode.AUTO
        # Some fifty short runs in threads bring it back onto the loop.
        self._stalled_ns = 16e9 * options.inline_below_s
        reset_in_child(self)

    def swap(self, generation: Generation) -> Generation | None:
        """Makes ``generation`` the active one and returns what was; calls that started stay where they are.

        Raises:
            ClientClosed: The runner is closed.
            UsageError: Its number is not greater than that of the active one.
        """
        with self._lock:
            if self._closed:
                raise ClientClosed("the model is closed")
            old = self.active
            if old is not None and generation.number <= old.number:
                raise UsageError(f"generation {generation.number} cannot follow generation {old.number}")
            self.active = generation
            return old

    def close(self) -> Generation | None:
        """Takes no more calls and returns the generation to retire; idempotent. Running calls end as usual."""
        with self._lock:
            self._closed = True
            old, self.active = self.active, None
        if self._own_pool:
            self._pool.close()
        return old

    async def predict(self, inputs: Mapping[str, Any], *, timeout: float | None = None) -> Prediction:
        """Runs the active version on ``inputs``.

        Args:
            inputs: Arrays by input name; checked against the signature.
            timeout: Seconds to wait; None for as long as it takes. A run on the loop itself is not interrupted.

        Raises:
            InputError: The inputs do not fit; says what was expected and what came.
            PredictError: The model failed on them.
            DeadlineExceeded: ``timeout`` is over.
            ClientClosed: The runner is closed.
            UsageError: No version is active yet.

        A fast model answers without giving the event loop a turn, except once per ``fairness_s`` of work.

        Cancellation: a call that waits leaves its queue or batch; a run that has begun in a thread is stopped if nobody
        else waits for it, and keeps its lease until then.
        """
        if timeout is not None and not (timeout > 0 and self._runs_here()):
            return await self._predict_within(inputs, timeout)
        turn = _turn
        if turn.spent_ns > self._fairness_ns:
            turn.spent_ns = 0
            await current_loop().checkpoint()
        start_ns = perf_counter_ns()
        generation = self.active
        if generation is not None and generation.batching and generation.average_ns >= self._batch_from_ns:
            answer = await self._predict_batched(generation, inputs, start_ns)
            if answer is not None:
                return answer
            generation = self.active
        if generation is None or not generation.acquire():
            generation = self._acquire()
        return await self._predict_on(generation, inputs, start_ns, timeout)

    def _runs_here(self) -> bool:
        """Whether a call made now runs on the loop, where no timer could interrupt it."""
        generation = self.active
        return (
            generation is not None
            and self._guarded
            and generation.average_ns < self._inline_below_ns
            and not (generation.batching and generation.average_ns >= self._batch_from_ns)
        )

    async def _predict_on(
        self, generation: Generation, inputs: Mapping[str, Any], start_ns: int, timeout: float | None = None
    ) -> Prediction:
        """One call on its own, on a generation that was leased for it; ends that lease."""
        try:
            feed = generation.check(inputs)
            if generation.average_ns >= self._inline_below_ns:
                return await self._predict_in_pool_within(generation, feed, start_ns, timeout)
            try:
                outputs = generation.run_here(feed) if self._guarded else generation.run(feed)
            except RunStalled:
                generation.slow_down(self._stalled_ns)
                return await self._predict_in_pool_within(generation, feed, start_ns, timeout)
        except BaseException as exc:
            _record_failure(generation, exc, start_ns)
            raise
        finally:
            generation.release()
        took_ns = perf_counter_ns() - start_ns
        _turn.spent_ns += took_ns
        generation.observe(took_ns, self._ceiling_ns)
        generation.stats.record_ok(took_ns)
        prediction = Prediction(zip(generation.output_names, outputs))  # noqa: B905 - equal by construction
        prediction.version = generation.version
        return prediction

    async def _predict_leased(self, generation: Generation, inputs: Mapping[str, Any]) -> Prediction:
        if _turn.spent_ns > self._fairness_ns:
            _turn.spent_ns = 0
            await current_loop().checkpoint()
        start_ns = perf_counter_ns()
        generation.share()
        return await self._predict_on(generation, inputs, start_ns)

    def predict_sync(self, inputs: Mapping[str, Any], *, timeout: float | None = None) -> Prediction:
        """The same for code that is not async: runs in the calling thread, or in the pool when there is a timeout.

        Raises:
            InputError: The inputs do not fit; says what was expected and what came.
            PredictError: The model failed on them.
            DeadlineExceeded: ``timeout`` is over; a run that has begun is stopped.
            ClientClosed: The runner is closed.
            UsageError: No version is active yet.
        """
        return self._predict_sync_on(self._acquire(), inputs, timeout)

    def _predict_sync_on(self, generation: Generation, inputs: Mapping[str, Any], timeout: float | None) -> Prediction:
        """The blocking form of `_predict_on`."""
        start_ns = perf_counter_ns()
        try:
            feed = generation.check(inputs)
            outputs = generation.run(feed) if timeout is None else self._run_for(generation, feed, timeout)
        except BaseException as exc:
            _record_failure(generation, exc, start_ns)
            raise
        finally:
            generation.release()
        took_ns = perf_counter_ns() - start_ns
        if timeout is None:
            generation.observe(took_ns, self._ceiling_ns)
        generation.stats.record_ok(took_ns)
        return _prediction(generation, outputs)

    def lease(self) -> Lease:
        """The raw session of the version that is active at entry, kept open until exit.

        Use as ``with`` or ``async with``. A swap in between does not touch it, but the old version's memory stays until
        the lease ends, or is over when the reload machine's drain time is.
        """
        return Lease(self)

    async def _predict_within(self, inputs: Mapping[str, Any], timeout: float) -> Prediction:
        with anyio.move_on_after(timeout):
            return await self.predict(inputs)
        raise _too_late(timeout)

    async def _predict_batched(
        self, generation: Generation, inputs: Mapping[str, Any], start_ns: int
    ) -> Prediction | None:
        """One call of a batch; None when it cannot be one, or the generation has just been retired."""
        collector = self._collector()
        try:
            feed = generation.check(inputs)
        except InputError as exc:
            _record_failure(generation, exc, start_ns)
            raise
        stack = generation.checker.rows(feed)
        if stack is None:
            return None
        entry = collector.submit(generation, feed, stack[0], stack[1], start_ns)
        if entry is None:
            return None
        try:
            outputs = await entry.waiter
        except Exception:
            del entry  # its waiter has the error, whose traceback has this frame: a circle around the inputs
            raise
        except BaseException as exc:
            collector.discard(entry)
            _record_failure(generation, exc, start_ns)
            raise
        return _prediction(generation, outputs, JoinedPrediction)

    def start(self, inputs: Mapping[str, Any], call: DirectCall, *, alone: bool = False) -> bool:
        """Starts a call without a task, for a program that serves many: ``call`` is told the outcome.

        A short run has ended when this returns; one that shares its run with others is told at the end of the loop's
        tick, or from there on. Every lease is taken and given back here.

        Args:
            inputs: As in `predict`.
            call: Gets its ``generation``, then its result or error; its ``entry`` while it waits for others.
            alone: No other call is in sight that it could share a run with: a short run happens at once.

        Returns:
            False when the call needs a task, because it runs longer than a loop should wait; then it is still to be
            made.

        Raises:
            ClientClosed: The runner is closed.
            UsageError: No version is active yet.
        """
        start_ns = perf_counter_ns()
        generation = self.active
        if generation is None or not generation.acquire():
            generation = self._acquire()
        try:
            call.generation = generation
            try:
                joins = generation.batching and generation.average_ns >= self._batch_from_ns
                if joins and not (alone and generation.average_ns < self._batch_inline_below_ns):
                    feed = generation.check(inputs)
                    stack = generation.checker.rows(feed)
                    if stack is not None:
                        entry = self._collector().submit(generation, feed, stack[0], stack[1], start_ns, call)
                        if entry is not None:
                            call.entry = entry
                            return True
                if generation.average_ns >= self._inline_below_ns:
                    return False
                feed = generation.check(inputs)
                try:
                    outputs = generation.run_here(feed) if self._guarded else generation.run(feed)
                except RunStalled:
                    generation.slow_down(self._stalled_ns)
                    return False
            except ModelBoxError as exc:
                _record_failure(generation, exc, start_ns)
                call.set_exception(exc)
                return True
        finally:
            generation.release()
        took_ns = perf_counter_ns() - start_ns
        generation.observe(took_ns, self._ceiling_ns)
        generation.stats.record_ok(took_ns)
        call.set_result(outputs)
        return True

    def discard(self, entry: Entry) -> None:
        """Forgets a call of `start` that nobody waits for any more; on the loop that started it."""
        self._collector().discard(entry)

    def _collector(self) -> Collector:
        loop = current_loop()
        collector = self._local.collector
        if collector is None or collector.loop is not loop:
            collector = self._local.collector = Collector(
                loop,
                self._pool,
                max_batch=self.options.max_batch,
                max_delay_s=self.options.max_delay_s,
                inline_below_ns=self._batch_inline_below_ns,
                ceiling_ns=self._ceiling_ns,
                stalled_ns=self._stalled_ns if self._guarded else 0.0,
            )
        return collector

    async def _predict_in_pool_within(
        self, generation: Generation, feed: Feed, start_ns: int, timeout: float | None
    ) -> Prediction:
        """The same, ``timeout`` seconds after the start at most; on a lease of its own."""
        generation.share()
        if timeout is None:
            return await self._predict_in_pool(generation, feed, start_ns)
        left_s = timeout - (perf_counter_ns() - start_ns) / 1e9
        with anyio.move_on_after(max(left_s, 0.0)):
            return await self._predict_in_pool(generation, feed, start_ns)
        raise _too_late(timeout)

    async def _predict_in_pool(self, generation: Generation, feed: Feed, start_ns: int) -> Prediction:
        """Runs a checked call in a thread, which ends the lease that it is given."""
        loop = current_loop()
        waiter: Waiter[list[Any]] = loop.make_waiter()

        def deliver(outputs: list[Any] | None, error: Exception | None) -> None:
            if waiter.done():
                return
            if error is not None:
                waiter.set_exception(error)
            elif outputs is not None:
                waiter.set_result(outputs)

        stop = new_run_options()

        def run() -> None:
            outputs, error = self._run_timed(generation, feed, start_ns, stop)
            # RuntimeError: the loop has ended, and its callers with it.
            try:
                loop.call_soon_threadsafe(deliver, outputs, error)
            except RuntimeError:
                return

        try:
            job = self._pool.submit(run, stop=generation.force)
        except ClientClosed:
            generation.release()
            raise
        try:
            outputs = await waiter
        except Exception:
            del waiter  # it has the error, whose traceback has this frame: a circle around the inputs
            raise
        except BaseException:
            if job.cancel():
                generation.release()
            else:
                stop.terminate = True
            raise
        generation.stats.record_ok(perf_counter_ns() - start_ns)
        return _prediction(generation, outputs)

    def _run_for(self, generation: Generation, feed: Feed, timeout: float) -> list[Any]:
        """Runs a checked call in a thread and blocks for its result."""
        start_ns = perf_counter_ns()
        results: SimpleQueue[tuple[list[Any] | None, Exception | None]] = SimpleQueue()
        stop = new_run_options()
        generation.share()
        try:
            job = self._pool.submit(
                lambda: results.put(self._run_timed(generation, feed, start_ns, stop)), stop=generation.force
            )
        except ClientClosed:
            generation.release()
            raise
        try:
            outputs, error = results.get(timeout=max(timeout, 0.0))
        except BaseException as exc:
            if job.cancel():
                generation.release()
            else:
                stop.terminate = True
            if isinstance(exc, Empty):
                raise _too_late(timeout) from None
            raise
        if outputs is None:
            assert error is not None
            raise error
        return outputs

    def _run_timed(
        self, generation: Generation, feed: Feed, start_ns: int, stop: Any
    ) -> tuple[list[Any] | None, Exception | None]:
        """A run in a thread of the pool, which ``stop`` may end early; ends the lease."""
        clock_ns = generation.session.clock_ns
        generation.stats.record_queue(perf_counter_ns() - start_ns)
        begin_ns = clock_ns()
        try:
            return generation.run_within(feed, stop), None
        except Exception as exc:
            return None, without_frames(exc)
        finally:
            generation.observe(clock_ns() - begin_ns, self._ceiling_ns)
            generation.release()

    def _acquire(self) -> Generation:
        """The active generation, with a lease on it."""
        refused: Generation | None = None
        while True:
            generation = self.active
            if generation is None and not self._closed:
                raise UsageError("no version of the model is active yet")
            if generation is None or generation is refused:
                raise ClientClosed("the model is closed")
            if generation.acquire():
                return generation
            refused = generation

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        self._local = _Local()


class Lease:
    """One version, and the promise that it stays open; see `Runner.lease`."""

    __slots__ = ("_generation", "_runner")

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._generation: Generation | None = None

    @property
    def session(self) -> Any:
        """The ``onnxruntime.InferenceSession``.

        Raises:
            LeaseReleased: The lease has ended, or was not entered.
        """
        return self._held().session.raw

    @property
    def version(self) -> ModelVersion:
        """What the session was opened from.

        Raises:
            LeaseReleased: The lease has ended, or was not entered.
        """
        return self._held().version

    @property
    def signature(self) -> Signature:
        """Its inputs and outputs.

        Raises:
            LeaseReleased: The lease has ended, or was not entered.
        """
        return self._held().signature

    @property
    def quick(self) -> bool:
        """Whether a run is short enough for an event loop."""
        return self._held().average_ns < self._runner._inline_below_ns

    async def predict(self, inputs: Mapping[str, Any]) -> Prediction:
        """Runs the leased version, never joined with other calls; see `Runner.predict`."""
        return await self._runner._predict_leased(self._held(), inputs)

    def predict_sync(self, inputs: Mapping[str, Any]) -> Prediction:
        """The same for code that is not async."""
        generation = self._held()
        generation.share()
        return self._runner._predict_sync_on(generation, inputs, None)

    def _held(self) -> Generation:
        if self._generation is None:
            raise LeaseReleased("the lease is not held: use its session inside of the `with` block")
        return self._generation

    def __enter__(self) -> Lease:
        if self._generation is not None:
            raise UsageError("the lease is held already: take another one")
        self._generation = self._runner._acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        generation, self._generation = self._generation, None
        if generation is not None:
            generation.release()

    async def __aenter__(self) -> Lease:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, trace)


def _prediction(generation: Generation, outputs: list[Any], kind: type[Prediction] = Prediction) -> Prediction:
    prediction = kind(zip(generation.output_names, outputs, strict=True))
    prediction.version = generation.version
    return prediction


def _record_failure(generation: Generation, exc: BaseException, start_ns: int) -> None:
    if isinstance(exc, InputError):
        outcome = Outcome.INVALID
    elif isinstance(exc, Exception) and not isinstance(exc, DeadlineExceeded):
        outcome = Outcome.ERROR
    else:
        outcome = Outcome.CANCELLED
    generation.stats.record(outcome, perf_counter_ns() - start_ns)


def _too_late(timeout: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"no answer within {timeout:g} s", timeout_s=timeout)

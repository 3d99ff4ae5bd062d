"""The way of each call through one connection: read, run, answered.

Owns the calls that are not answered yet. A short run happens right where its frame is read, and calls that share a run
are handed to the loader's collector: neither needs a task. What runs long, or has to wait in the model's queue, goes
through `ServedModel.predict` in a task of its own.

Invariants: each call is answered exactly once, also after a cancel or at its deadline, so that the application knows
when it may use a segment again. Each is counted in the statistics of its model, whichever way it went. What the
prediction cache keeps was computed from inputs that nobody could change meanwhile.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Generator, Mapping
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import anyio

from modelbox._loops import Timer
from modelbox._tensors import Layout, parse_layout
from modelbox.errors import DeadlineExceeded, InvalidError, LimitError
from modelbox.loader.batching import Entry
from modelbox.loader.generation import Generation
from modelbox.loader.runner import Lease, Prediction, Runner
from modelbox.sidecar.prediction_cache import CacheKey
from modelbox.sidecar.socket.answers import Answers, Gone, cancelled
from modelbox.sidecar.socket.handles import Handle, Handles
from modelbox.sidecar.socket.segments import Segments, settled
from modelbox.sidecar.statistics import rows_of

if TYPE_CHECKING:
    from modelbox.sidecar.socket.server import SocketServer

__all__ = ("Calls",)

_MAX_LAYOUTS = 256
_FIXED = struct.Struct("<QIHH")
_FIXED_BYTES = _FIXED.size


class _Call:
    """A call in the loader's hands; a `DirectCall`."""

    __slots__ = (
        "_calls",
        "_done",
        "_handle",
        "_id",
        "_inputs",
        "_into",
        "_runner",
        "_start_ns",
        "_timer",
        "entry",
        "generation",
        "key",
    )

    def __init__(
        self,
        calls: Calls,
        handle: Handle,
        runner: Runner,
        inputs: Mapping[str, Any],
        id_: int,
        into: int,
        start_ns: int,
    ) -> None:
        self._calls = calls
        self._handle = handle
        self._runner = runner
        self._inputs = inputs
        self._id = id_
        self._into = into
        self._start_ns = start_ns
        self._done = False
        self._timer: Timer | None = None
        self.generation: Generation | None = None
        self.entry: Entry | None = None
        self.key: CacheKey | None = None

    def done(self) -> bool:
        """Whether it was answered."""
        return self._done

    def set_result(self, result: list[Any], /) -> None:
        """Answers it."""
        generation = self.generation
        assert generation is not None
        calls, served = self._calls, self._handle.served
        alone = self.entry is None
        took_ns = perf_counter_ns() - self._start_ns
        served.count(generation.version, took_ns, rows_of(self._inputs), alone=alone)
        if self.key is not None:
            served.remember(self.key, generation.version, zip(generation.output_names, result, strict=True))
        self._end()
        known = calls.handles.known.get(id(generation.version))
        if known is None:
            known = calls.handles.introduce(self._handle, generation.version, generation.signature)
        calls.answers.result(self._id, known, result, self._into)

    def set_exception(self, exception: BaseException, /) -> None:
        """Answers it with an error."""
        self._handle.served.count_failed(perf_counter_ns() - self._start_ns)
        self._end()
        self._calls.answers.error(self._id, exception)

    def wait(self, timeout_s: float | None) -> None:
        """Notes that it waits for others, for so many seconds at most."""
        self._handle.served.gate.running += 1
        self._calls.waiting[self._id] = self
        if timeout_s is not None:
            self._timer = self._calls.call_later(timeout_s, lambda: self._give_up(_too_late(timeout_s)))

    def cancel(self) -> None:
        """The application does not want the answer any more."""
        self._give_up(cancelled())

    def _give_up(self, error: DeadlineExceeded) -> None:
        if not self._done and self.entry is not None:
            self._runner.discard(self.entry)
            self.set_exception(error)

    def _end(self) -> None:
        self._done = True
        if self.entry is None:
            return
        # The entry holds the inputs, maybe in shared memory, and this call: they end together.
        self.entry = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Not there where its frame is still being read.
        if self._calls.waiting.get(self._id) is self:
            self._handle.served.gate.leave()
            self._calls.ended(self._id)

    def __await__(self) -> Generator[Any, None, list[Any]]:
        raise TypeError("a call of the socket is answered, not awaited")


class Calls:
    """The calls of one connection.

    Args:
        server: Whose connection it is.
        handles: What the application may call.
        segments: Where its large tensors are.
        answers: Takes the answers.
        on_ended: Runs whenever a call that waited has ended.

    Attributes:
        waiting: Calls that wait for others or run in tasks, by id; one that is answered at once is never here.
    """

    def __init__(
        self,
        server: SocketServer,
        handles: Handles,
        segments: Segments,
        answers: Answers,
        on_ended: Callable[[], None],
    ) -> None:
        self.handles = handles
        self.answers = answers
        self.waiting: dict[int, _Call | anyio.CancelScope] = {}
        self.call_later = server.loop.call_later
        self._server = server
        self._segments = segments
        self._on_ended = on_ended
        self._max_bytes = server.limits.max_request_bytes
        self._layouts: dict[bytes, Layout] = {}

    def infer(self, words: int, id_: int, target: int, body: bytearray, *, alone: bool) -> None:
        """Starts a call, and answers it at once where it can.

        Args:
            words: Of its layout.
            id_: Of the call.
            target: The handle.
            body: Of the frame.
            alone: No other call is in sight that it could share a run with.
        """
        start_ns = perf_counter_ns()
        try:
            if len(body) < _FIXED_BYTES:
                raise InvalidError(f"an INFER frame of {len(body)} bytes: its body begins with {_FIXED_BYTES}")
            lease_id, timeout_ms, held_in, into = _FIXED.unpack_from(body)
            end = _FIXED_BYTES + words * 8
            raw = bytes(body[_FIXED_BYTES:end])
            layout = self._layouts.get(raw)
            if layout is None:
                layout = self._learn(raw)
            if layout.size > self._max_bytes or len(body) - end > self._max_bytes:
                raise LimitError(
                    f"inputs of {max(layout.size, len(body) - end)} bytes: this sidecar takes {self._max_bytes} "
                    "(max_request_mb)",
                    max_bytes=self._max_bytes,
                )
            if id_ in self.waiting:
                raise InvalidError(f"the id {id_} is that of a call that waits")
            if held_in:
                inputs = settled(layout.read(self._segments.get(held_in)))
            else:
                inputs = layout.read(body, end)
            timeout = timeout_ms / 1e3 if timeout_ms else None
            if lease_id:
                self._infer_leased(lease_id, inputs, timeout, id_, into, start_ns)
                return
            handle = self.handles.get(target)
            if handle is None:
                raise Gone(f"there is no handle {target} on this connection")
            runner = handle.runner
            if runner is None or runner.active is None:
                runner = handle.attach()
            served = handle.served
            if timeout is None:
                timeout = served.serving.default_timeout_s
            if held_in and served.caches:
                inputs = settled(inputs, everything=True)
            gate = served.gate
            if gate.running < gate.width and not gate.waiting and (layout.plain or not served.takes_images()):
                key = None
                if served.caches:
                    key, kept = served.recall(inputs)
                    if kept is not None:
                        known = self.handles.known_version(handle, kept)
                        self.answers.result(id_, known, list(kept.values()), into)
                        return
                call = _Call(self, handle, runner, inputs, id_, into, start_ns)
                call.key = key
                if runner.start(inputs, call, alone=alone):
                    if call.entry is not None and not call.done():
                        call.wait(timeout)
                    return
            self._spawn(lambda: served.predict(inputs, timeout=timeout), handle, id_, into)
        except Exception as exc:
            self.answers.error(id_, exc)

    def cancel(self, id_: int) -> None:
        """The application does not want an answer any more; harmless when there is no such call."""
        call = self.waiting.get(id_)
        if call is not None:
            call.cancel()

    def cancel_all(self) -> None:
        """The connection has ended."""
        for call in list(self.waiting.values()):
            call.cancel()
        self.waiting.clear()

    def ended(self, id_: int) -> None:
        """Notes that a call that waited is answered."""
        self.waiting.pop(id_, None)
        self._on_ended()

    def _infer_leased(
        self, lease_id: int, inputs: Mapping[str, Any], timeout: float | None, id_: int, into: int, start_ns: int
    ) -> None:
        held = self._server.leases.get(lease_id)
        if held is None:
            raise Gone(f"there is no lease {lease_id}")
        lease, handle = held
        served = handle.served
        if timeout is None:
            timeout = served.serving.default_timeout_s
        if not lease.quick:
            self._spawn(lambda: _leased(lease, handle, inputs, timeout, start_ns), handle, id_, into)
            return
        try:
            prediction = lease.predict_sync(inputs)
        except Exception:
            served.count_failed(perf_counter_ns() - start_ns)
            raise
        served.count(prediction.version, perf_counter_ns() - start_ns, rows_of(inputs), alone=True)
        self.answers.result(id_, self.handles.known_version(handle, prediction), list(prediction.values()), into)

    def _spawn(self, run: Callable[[], Awaitable[Prediction]], handle: Handle, id_: int, into: int) -> None:
        scope = anyio.CancelScope()
        self.waiting[id_] = scope

        async def call() -> None:
            with scope:
                try:
                    prediction = await run()
                except Exception as exc:
                    self.ended(id_)
                    self.answers.error(id_, exc)
                else:
                    self.ended(id_)
                    known = self.handles.known_version(handle, prediction)
                    self.answers.result(id_, known, list(prediction.values()), into)
            if scope.cancelled_caught:
                self.ended(id_)
                self.answers.error(id_, cancelled())

        self._server.spawn(call)

    def _learn(self, raw: bytes) -> Layout:
        if len(self._layouts) >= _MAX_LAYOUTS:
            self._layouts.clear()
        layout = self._layouts[raw] = parse_layout(raw)
        return layout


async def _leased(
    lease: Lease, handle: Handle, inputs: Mapping[str, Any], timeout: float | None, start_ns: int
) -> Prediction:
    served = handle.served
    try:
        with anyio.move_on_after(timeout):
            prediction = await lease.predict(inputs)
            served.count(prediction.version, perf_counter_ns() - start_ns, rows_of(inputs), alone=True)
            return prediction
        raise _too_late(timeout or 0.0)
    except BaseException:
        served.count_failed(perf_counter_ns() - start_ns)
        raise


def _too_late(timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"no answer within {timeout_s:g} s", timeout_s=timeout_s)

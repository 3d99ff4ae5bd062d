"""Calls of one reference to the sidecar, and leases of the versions that answer there.

Owns the call path: inputs are checked here, against the signature that the sidecar told of, and what is counted is what
this application sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic, perf_counter_ns
from types import TracebackType
from typing import Any

import anyio

from modelbox._frames import Kind
from modelbox._loops import Waiter
from modelbox._transport.sidecar_call import Call, Opener, Question, RemoteVersion
from modelbox._transport.sidecar_connection import Connection
from modelbox._transport.sidecar_link import Link
from modelbox._transport.sidecar_links import Links
from modelbox._transport.sidecar_thread import ThreadLoop
from modelbox.errors import ClientClosed, DeadlineExceeded, InputError, LeaseReleased, Unavailable, UsageError
from modelbox.loader.ledger import CallLabels
from modelbox.loader.runner import Lease, Prediction
from modelbox.loader.stats import CallStats, Outcome
from modelbox.objects import ModelVersion
from modelbox.otel import Telemetry
from modelbox.refs import ModelRef
from modelbox.signature import Signature

__all__ = ("SidecarLease", "SidecarRunner")


class SidecarRunner:
    """Calls of one reference, answered by the sidecar.

    Attributes:
        active: What answers there, as far as is known here; None before the first answer and after `close`.
        answer_bytes: See `Caller`.
    """

    def __init__(self, ref: ModelRef, links: Links, telemetry: Telemetry, patience_s: float) -> None:
        self.ref = ref
        self.ref_text = str(ref)
        self.active: RemoteVersion | None = None
        self.answer_bytes = 0
        self._links = links
        self._telemetry = telemetry
        self._patience_s = patience_s

    async def predict(self, inputs: Mapping[str, Any], *, timeout: float | None = None) -> Prediction:
        """See `LiveModel.predict`."""
        if timeout is not None:
            with anyio.move_on_after(timeout):
                return await self._predict(inputs, None, timeout)
            raise DeadlineExceeded(f"no answer within {timeout:g} s", timeout_s=timeout)
        return await self._predict(inputs, None, None)

    async def _predict(
        self, inputs: Mapping[str, Any], lease: SidecarLease | None, timeout: float | None
    ) -> Prediction:
        start_ns = perf_counter_ns()
        link = self._links.here()
        call = self._call(inputs, lease, timeout, link.loop.make_waiter(), start_ns)
        link.submit(call)
        try:
            prediction = await call.waiter
        except BaseException as exc:
            if not isinstance(exc, Exception):
                link.cancel(call)
            self._record_failure(exc, start_ns)
            raise
        version = call.version
        assert version is not None
        (version.stats or self._stats(version)).record_ok(perf_counter_ns() - start_ns)
        return prediction

    def predict_sync(self, inputs: Mapping[str, Any], *, timeout: float | None = None) -> Prediction:
        """See `LiveModel.predict_sync`."""
        return self._predict_sync(inputs, None, timeout)

    def _predict_sync(self, inputs: Mapping[str, Any], lease: SidecarLease | None, timeout: float | None) -> Prediction:
        start_ns = perf_counter_ns()
        link = self._links.thread()
        loop = link.loop
        assert isinstance(loop, ThreadLoop)
        call = self._call(inputs, lease, timeout, loop.make_waiter(), start_ns)
        link.submit(call)
        try:
            prediction: Prediction = loop.wait(call.waiter, until=None if timeout is None else monotonic() + timeout)
        except BaseException as exc:
            link.cancel(call)
            self._record_failure(exc, start_ns)
            raise
        version = call.version
        assert version is not None
        (version.stats or self._stats(version)).record_ok(perf_counter_ns() - start_ns)
        return prediction

    def lease(self) -> Lease:
        """See `LiveModel.lease`."""
        return SidecarLease(self, self._links)

    def _call(
        self,
        inputs: Mapping[str, Any],
        lease: SidecarLease | None,
        timeout: float | None,
        waiter: Waiter[Prediction],
        start_ns: int,
    ) -> Call:
        active = self.active if lease is None else lease.held
        if active is None:
            raise ClientClosed(f"{self.ref} was closed")
        try:
            feed = active.check(inputs)
        except InputError as exc:
            self._record_failure(exc, start_ns)
            raise
        if timeout is None:
            return Call(self, feed, active.packer, waiter, self._patience_s, 0, lease)
        # Its caller ends it, and says that the time is over, not that there is no sidecar.
        return Call(self, feed, active.packer, waiter, math.inf, max(int(timeout * 1e3), 1), lease)

    def _stats(self, version: RemoteVersion) -> CallStats:
        labels = CallLabels(model=self.ref.path, version=version.version.version, alias=self.ref.alias or "")
        stats = version.stats = self._telemetry.ledger.stats(labels)
        return stats

    def _record_failure(self, exc: BaseException, start_ns: int) -> None:
        active = self.active
        if active is None:
            return
        if isinstance(exc, InputError):
            outcome = Outcome.INVALID
        elif isinstance(exc, Exception) and not isinstance(exc, DeadlineExceeded):
            outcome = Outcome.ERROR
        else:
            outcome = Outcome.CANCELLED
        (active.stats or self._stats(active)).record(outcome, perf_counter_ns() - start_ns)


class SidecarLease(Lease):
    """One version in the sidecar, and the promise that it stays open there.

    The lease belongs to the connection that took it. When that breaks it is taken again, if the same version still
    answers; otherwise its calls end with `RunTerminated`.
    """

    __slots__ = ("_connection", "_link", "_links", "_number", "_owner", "_retaking", "held")

    def __init__(self, runner: SidecarRunner, links: Links) -> None:
        self._owner = runner
        self._links = links
        self.held: RemoteVersion | None = None
        self._number = 0
        self._connection: Connection | None = None
        self._link: Link | None = None
        self._retaking: list[Call] | None = None

    @property
    def session(self) -> Any:
        """There is none in this process.

        Raises:
            UsageError: Always.
        """
        raise UsageError("the session lives in the sidecar: call lease.predict instead")

    @property
    def version(self) -> ModelVersion:
        """What answers.

        Raises:
            LeaseReleased: The lease has ended, or was not entered.
        """
        return self._version().version

    @property
    def signature(self) -> Signature:
        """Its inputs and outputs."""
        return self._version().signature

    async def predict(self, inputs: Mapping[str, Any]) -> Prediction:
        """Runs the leased version."""
        self._version()
        return await self._owner._predict(inputs, self, None)

    def predict_sync(self, inputs: Mapping[str, Any]) -> Prediction:
        """The same for code that is not async."""
        self._version()
        return self._owner._predict_sync(inputs, self, None)

    def number_on(self, connection: Connection, call: Call) -> int | None:
        """See `LeaseHolder`."""
        held = self._connection
        if held is not None and not held.closed:
            return self._number
        if self._retaking is None:
            self._retaking = [call]
            self._take(
                connection,
                self._retaken,
                partial(self._retake_failed, connection),
                digest=self._version().version.digest,
            )
        else:
            self._retaking.append(call)
        return None

    def _retaken(self, connection: Connection, *_: object) -> None:
        calls, self._retaking = self._retaking, None
        for call in calls or ():
            if not call.waiter.done():
                connection.submit(call)

    def _retake_failed(self, connection: Connection, error: Exception) -> None:
        calls, self._retaking = self._retaking, None
        if isinstance(error, Unavailable):
            connection.again(calls or ())
            return
        for call in calls or ():
            call.fail(error)

    def _take(
        self,
        connection: Connection,
        then: Callable[..., None],
        failed: Callable[[Exception], None],
        *,
        digest: str = "",
    ) -> None:
        handle = connection.handle_of(self._owner.ref_text)

        def leased(target: int, body: dict[str, Any]) -> None:
            self._connection = connection
            self._number = int(body["lease"])
            self.held = connection.versions[target]
            then(connection)

        assert handle is not None
        connection.ask(Kind.LEASE, {"digest": digest} if digest else {}, Question(leased, failed), target=handle)

    def _version(self) -> RemoteVersion:
        if self.held is None:
            raise LeaseReleased("the lease is not held: use it inside of the `with` block")
        return self.held

    def _begin(self, link: Link) -> Waiter[None]:
        if self.held is not None:
            raise UsageError("the lease is held already: take another one")
        waiter: Waiter[None] = link.loop.make_waiter()
        self._link = link

        def done(*_: object) -> None:
            if not waiter.done():
                waiter.set_result(None)
            else:
                # Whoever wanted it has gone meanwhile.
                self.__exit__(None, None, None)

        def failed(error: Exception) -> None:
            if isinstance(error, Unavailable):
                link.again([opener], broken=True)
            elif not waiter.done():
                waiter.set_exception(error)

        opener = Opener(
            self._owner, waiter, self._owner._patience_s, lambda connection: self._take(connection, done, failed)
        )
        link.submit(opener)
        return waiter

    def __enter__(self) -> Lease:
        link = self._links.thread()
        loop = link.loop
        assert isinstance(loop, ThreadLoop)
        waiter = self._begin(link)
        try:
            loop.wait(waiter)
        except BaseException:
            loop.forget(waiter)
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        held, self.held = self.held, None
        connection, link, number = self._connection, self._link, self._number
        if held is None or connection is None or link is None:
            return
        if self._links.is_here(link):
            connection.tell(Kind.RELEASE, {"lease": number})
            connection.socket.flush()
        else:
            # RuntimeError: its loop has ended, and the connection with it.
            try:
                link.loop.call_soon_threadsafe(partial(connection.tell, Kind.RELEASE, {"lease": number}))
            except RuntimeError:
                return

    async def __aenter__(self) -> Lease:
        waiter = self._begin(self._links.here())
        try:
            await waiter
        except BaseException:
            # It may have been taken, or be on its way: either way nobody will use it.
            self.__exit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, trace)

"""The boundary that every gRPC call passes: who calls, how long it may take, what its errors become.

Owns deadlines, the end of slow readers, metrics and the translation of errors; the adapters behind it decode, call one
service and encode. Unexpected exceptions are logged here, once, and leave as INTERNAL without details.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import StreamTerminatedError
from grpclib.server import Stream
from h2.errors import ErrorCodes
from h2.exceptions import StreamClosedError

from modelbox._serving.admission import Admission
from modelbox._serving.grpc import Servable
from modelbox._serving.health import Health
from modelbox._serving.messages import decode_google
from modelbox._serving.peers import Peer, peer_of
from modelbox._serving.proxies import FORWARDED_FOR, NO_PROXIES, TrustedProxies
from modelbox._serving.unary import DirectMethod, Failure, SoonMethod
from modelbox._wire import ACTOR_KEY, ERROR_KEY, REQUEST_KEY, decode_message, pack_error
from modelbox.access import Caller
from modelbox.errors import AuthError, DeadlineExceeded, InvalidError, ModelBoxError, ServerBusy
from modelbox.redaction import redact
from modelbox.runtime.caller import REQUEST_ID, given_request_id, new_request_id
from modelbox.runtime.metrics import Metrics
from modelbox.runtime.permissions.deliveries import screen
from modelbox.runtime.permissions.gate import Gate, without_hidden
from modelbox.runtime.permissions.rules import Rule
from modelbox.runtime.permissions.table import rule_of_call, short_name
from modelbox.runtime.roles import RoleRules
from modelbox.runtime.status import statuses_of

__all__ = ("Boundary", "CallLimits", "Streaming", "failure_of")

_LOG = logging.getLogger(__name__)
_AUTHORIZATION = "authorization"
_ALL = RoleRules("all")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """Seconds for what depends on the peer; see `modelbox.runtime.config`."""

    call_timeout_s: float
    send_timeout_s: float
    stall_timeout_s: float


class _SlowReader(Exception):
    """The peer does not read what it asked for."""


class _Guarded:
    """A call's stream as the generated handlers use it, with a deadline on every step that waits for the peer."""

    def __init__(
        self,
        stream: Stream[Any, Any],
        *,
        send_s: float | None,
        receive_s: float | None,
        admit: Callable[[Any], Awaitable[None]] | None,
    ) -> None:
        self._stream = stream
        self._send_s = send_s
        self._receive_s = receive_s
        self._admit = admit

    async def recv_message(self) -> Any:
        message = await self._receive()
        if self._admit is not None and message is not None:
            # What a call is about is in its first message; the others carry no names.
            admit, self._admit = self._admit, None
            await admit(message)
        return message

    async def _receive(self) -> Any:
        try:
            with anyio.fail_after(self._receive_s):
                message = await self._stream.recv_message()
        except TimeoutError as exc:
            raise DeadlineExceeded(f"nothing came for {self._receive_s} s: continue with a new call") from exc
        except NotImplementedError as exc:
            raise InvalidError("compressed messages are not taken: send them with grpc-encoding identity") from exc
        except AssertionError as exc:
            raise InvalidError("the stream ended in the middle of a message") from exc
        return message

    async def send_message(self, message: Any) -> None:
        try:
            with anyio.fail_after(self._send_s):
                await self._stream.send_message(message)
        except TimeoutError as exc:
            raise _SlowReader from exc

    async def send_trailing_metadata(self, *, status: Status) -> None:
        """For gRPC's own services, which end a call with a status of theirs."""
        await self._stream.send_trailing_metadata(status=status)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.recv_message()) is not None:
            yield message


class _Unary(_Guarded):
    async def _receive(self) -> Any:
        message = await super()._receive()
        if message is None:
            raise InvalidError("the call has no message")
        return message


class Streaming:
    """Adapters with streams of answers: the stream is closed in the call's own task, however the call ends."""

    async def _call_rpc_handler_server_stream(
        self, handler: Callable[[Any], AsyncGenerator[Any, None]], stream: Any, request: Any
    ) -> None:
        async with aclosing(handler(request)) as answers:
            async for answer in answers:
                await stream.send_message(answer)


class Boundary:
    """Wraps services so that all their methods pass it.

    Args:
        limits: How long to wait for peers.
        metrics: Where calls are counted.
        health: While it accepts none, calls are refused as busy; those of ``always`` are not.
        gate: Which calls pass, and whose.
        admission: How many calls there may be, apart from streams.
        rules: Which calls are for servers of another role.
        bytes_address: Gives the HTTP address of a server with bytes, empty if there is none.
        proxies: Who is believed where a call comes from.
    """

    def __init__(
        self,
        *,
        limits: CallLimits,
        metrics: Metrics,
        health: Health,
        gate: Gate,
        admission: Admission,
        rules: RoleRules = _ALL,
        bytes_address: Callable[[], str] = str,
        proxies: TrustedProxies = NO_PROXIES,
    ) -> None:
        self._proxies = proxies
        self._limits = limits
        self._metrics = metrics
        self._health = health
        self._gate = gate
        self._admission = admission
        self._rules = rules
        self._bytes_address = bytes_address
        self._ambient: set[anyio.CancelScope] = set()

    def context_of(self, headers: Mapping[str, str], peer: Peer) -> Context:
        """The context of the calls that ``peer`` makes with these headers, for methods that are answered directly."""
        context = copy_context()
        context.run(self._know, headers, peer)
        return context

    def _know(self, headers: Mapping[str, Any], peer: Peer) -> None:
        REQUEST_ID.set(given_request_id(str(headers.get(REQUEST_KEY, ""))))
        self._gate.know(
            _all_of(headers, _AUTHORIZATION),
            declared=str(headers.get(ACTOR_KEY, "")),
            address=self._proxies.caller(peer.address, _all_of(headers, FORWARDED_FOR)),
            certificate_names=peer.certificate_names,
        )

    def end_ambient(self) -> None:
        """Ends the streams of ``always`` services, which would otherwise last as long as their readers."""
        for scope in tuple(self._ambient):
            scope.cancel()

    def wrap(self, service: Servable, *, always: bool = False) -> Servable:
        """``service``, behind the boundary.

        Args:
            service: Its methods get the stream, as grpclib hands it out.
            always: Also while the server starts or stops, such as health.
        """
        return _Wrapped(
            {
                path: Handler(
                    _Method(self, path, method, always=always).handle,
                    method.cardinality,
                    method.request_type,
                    method.reply_type,
                )
                for path, method in service.__mapping__().items()
            }
        )

    async def run(self, path: str, method: Handler, stream: Stream[Any, Any], *, always: bool) -> None:
        """Handles one call to its end."""
        begun = time.monotonic()
        status = "CANCELLED"
        name = path.removeprefix("/")
        self._know(stream.metadata or {}, peer_of(stream._stream._transport))
        _name_call()
        scope = anyio.CancelScope()
        try:
            with self._metrics.running("grpc"), scope:
                if always:
                    self._ambient.add(scope)
                status = await self._guard(name, method, stream, always=always)
        finally:
            self._ambient.discard(scope)
            self._metrics.observe_call("grpc", name, status, time.monotonic() - begun)

    def direct(self, service: Servable) -> dict[str, DirectMethod]:
        """The methods of ``service`` with one message each way, answered without a stream, behind the boundary."""
        return {
            path: self._direct(path, partial(_decode, method.request_type), partial(_call, method.func), bytes)
            for path, method in service.__mapping__().items()
            if method.cardinality is Cardinality.UNARY_UNARY
        }

    def direct_google(self, path: str, request: Any, call: Callable[[Any], Awaitable[Any]]) -> DirectMethod:
        """A method that is answered without a stream, by google's codec, behind the boundary.

        Args:
            path: Of the method.
            request: The class of its message.
            call: Takes such a message; its answer is one of google's, too.
        """
        return self._direct(path, partial(decode_google, request), call, _encode_google)

    def soon_google(self, path: str, request: Any, begin: Callable[[Any, Callable[[Any], None]], bool]) -> SoonMethod:
        """A method of `direct_google` without a task for each call.

        Args:
            path: Of the method.
            request: The class of its message.
            begin: Takes such a message, and is told where its answer goes: a message of google's or an exception, once,
                later and on the event loop. False, or an exception, where it has begun nothing: then the method of
                `direct_google` takes the call, and says what is wrong with it.
        """
        name = path.removeprefix("/")
        metrics, health, admission = self._metrics, self._health, self._admission
        refused = self._rules.refuses_call(name)
        rule = rule_of_call(path)
        gate = self._gate if self._gate.on else None
        call_timeout_s = self._limits.call_timeout_s
        loop: asyncio.AbstractEventLoop | None = None

        def answer(
            message: bytes | memoryview, remaining_s: float | None, done: Callable[[bytes | Exception], None]
        ) -> bool:
            nonlocal loop
            if not health.accepting or refused or admission.full:
                return False
            begun = time.monotonic()
            limit_s = call_timeout_s if remaining_s is None else min(call_timeout_s, remaining_s)
            timer: asyncio.TimerHandle | None = None

            def finish(outcome: Any) -> None:
                nonlocal timer
                if timer is None:
                    # It was too late.
                    return
                timer.cancel()
                timer = None
                status = "OK"
                if isinstance(outcome, Exception):
                    error = outcome if isinstance(outcome, ModelBoxError) else _unexpected(name, outcome)
                    status = statuses_of(error).grpc.name if error is outcome else "INTERNAL"
                    # Calls of one peer share a context here, so only those that fail get a name.
                    error.request_id = error.request_id or new_request_id()
                    outcome = error
                else:
                    outcome = _encode_google(outcome)
                admission.leave()
                metrics.count_running("grpc", -1)
                metrics.observe_call("grpc", name, status, time.monotonic() - begun)
                done(outcome)

            def overdue() -> None:
                finish(DeadlineExceeded(f"the call took longer than {limit_s:g} s"))

            try:
                asked = decode_google(request, message)
                if (gate is not None and not gate.passes_at_once(rule, asked)) or not begin(asked, finish):
                    return False
            except Exception:
                return False
            if loop is None:
                loop = asyncio.get_running_loop()
            timer = loop.call_later(limit_s, overdue)
            admission.enter()
            metrics.count_running("grpc", 1)
            return True

        return answer

    def _direct(
        self,
        path: str,
        decode: Callable[[bytes | memoryview], Any],
        call: Callable[[Any], Awaitable[Any]],
        encode: Callable[[Any], bytes],
    ) -> DirectMethod:
        name = path.removeprefix("/")
        rule = rule_of_call(path)
        gate = self._gate if self._gate.on and rule.token else None
        refused = self._rules.refuses_call(name)
        call_timeout_s = self._limits.call_timeout_s
        if gate is not None:
            call, decode = self._gated(name, rule, decode, call, refused=refused), _untouched
            refused = False

        async def answer(message: bytes | memoryview, remaining_s: float | None) -> bytes:
            begun = time.monotonic()
            status = "CANCELLED"
            admitted = False
            _name_call()
            try:
                with self._metrics.running("grpc"):
                    if not self._health.accepting:
                        raise ServerBusy(f"the server is {self._health.reason}: try again", retry_after_s=1.0)
                    self._admission.enter()
                    admitted = True
                    if refused:
                        raise self._rules.refusal(name, bytes_address=self._bytes_address())
                    limit_s = call_timeout_s if remaining_s is None else min(call_timeout_s, remaining_s)
                    try:
                        # This task is the call's own, so asyncio's will do: it takes a quarter of the time of anyio's.
                        async with asyncio.timeout(limit_s):
                            found = await call(decode(message))
                    except TimeoutError as exc:
                        raise DeadlineExceeded(f"the call took longer than {limit_s:g} s") from exc
                    encoded = encode(found)
                status = "OK"
                return encoded
            except ModelBoxError as exc:
                status = statuses_of(exc).grpc.name
                exc.request_id = REQUEST_ID.get()
                raise
            except Exception as exc:
                status = "INTERNAL"
                raise _unexpected(name, exc) from exc
            finally:
                if admitted:
                    self._admission.leave()
                self._metrics.observe_call("grpc", name, status, time.monotonic() - begun)

        return answer

    def _gated(
        self,
        name: str,
        rule: Rule,
        decode: Callable[[bytes | memoryview], Any],
        call: Callable[[Any], Awaitable[Any]],
        *,
        refused: bool,
    ) -> Callable[[bytes | memoryview], Awaitable[Any]]:
        """``call``, behind the gate; what is ``refused`` by this server's role, too."""
        gate = self._gate
        name = short_name(name)

        async def pass_gate(data: bytes | memoryview) -> Any:
            # Nothing is read for nobody.
            caller = await gate.enter(name)
            message = decode(data)
            try:
                # What was made says afterwards whether it is what was to be made: that saves looking for its id before.
                await self._admit(name, rule, caller, message, fresh=rule.made is None)
                if refused:
                    raise self._rules.refusal(name, bytes_address=self._bytes_address())
                try:
                    answer = await call(message)
                except AuthError as exc:
                    gate.note_refusal(name, caller, exc)
                    raise
                if rule.made is not None:
                    await gate.check_made(rule, caller, answer)
            except ModelBoxError as exc:
                raise without_hidden(exc, caller) from exc
            return answer

        return pass_gate

    async def _admit(self, name: str, rule: Rule, caller: Caller, message: Any, *, fresh: bool = True) -> None:
        await self._gate.check(name, rule, caller, message, fresh=fresh)
        if rule.screened:
            await screen(self._gate, name, caller, message)

    async def _guard(self, name: str, method: Handler, stream: Stream[Any, Any], *, always: bool) -> str:
        limits = self._limits
        caller: Caller | None = None
        admit: Callable[[Any], Awaitable[None]] | None = None
        try:
            if not always and not self._health.accepting:
                raise ServerBusy(f"the server is {self._health.reason}: try again", retry_after_s=1.0)
            rule = rule_of_call(name)
            if self._gate.on and rule.token:
                caller = await self._gate.enter(short_name(name), lasting=True)
                admit = partial(self._admit, short_name(name), rule, caller)
            if not always and self._rules.refuses_call(name):
                if admit is not None:
                    await _Unary(stream, send_s=None, receive_s=limits.stall_timeout_s, admit=admit).recv_message()
                raise self._rules.refusal(name, bytes_address=self._bytes_address())
            if method.cardinality is Cardinality.UNARY_UNARY:
                if not always:
                    self._admission.enter()
                try:
                    with anyio.fail_after(limits.call_timeout_s):
                        await method.func(_Unary(stream, send_s=None, receive_s=None, admit=admit))
                except TimeoutError as exc:
                    raise DeadlineExceeded(f"the call took longer than {limits.call_timeout_s} s") from exc
                finally:
                    if not always:
                        self._admission.leave()
            else:
                follows = name.endswith("/Watch")
                guarded = _Guarded if method.cardinality.client_streaming else _Unary
                await method.func(
                    guarded(
                        stream,
                        send_s=limits.send_timeout_s if follows else limits.stall_timeout_s,
                        receive_s=limits.stall_timeout_s if not always else None,
                        admit=admit,
                    )
                )
        except _SlowReader:
            self._metrics.count_slow_reader("grpc")
            _LOG.info("cut off a reader of %s that does not read", name)
            _cut_off(stream)
            return "SLOW"
        except ModelBoxError as exc:
            return await self._fail(stream, exc if caller is None else without_hidden(exc, caller))
        except StreamTerminatedError:
            # The peer went away or reset the stream; grpclib ends the call.
            raise
        except StreamClosedError as exc:
            # The same, and grpclib has cancelled the call. That can be lost where a time limit of ours ends at the same
            # moment, as after this process stood still.
            raise asyncio.CancelledError("the peer has reset the stream") from exc
        except Exception as exc:
            return await self._fail(stream, _unexpected(name, exc))
        return "OK"

    async def _fail(self, stream: Stream[Any, Any], error: ModelBoxError) -> str:
        status = Status(int(statuses_of(error).grpc))
        error.request_id = REQUEST_ID.get()
        try:
            with anyio.fail_after(self._limits.send_timeout_s):
                await stream.send_trailing_metadata(
                    status=status, status_message=redact(error.message)[:500], metadata=_trailers_of(error)
                )
        except TimeoutError:
            _cut_off(stream)
        except StreamClosedError as exc:
            raise asyncio.CancelledError("the peer has reset the stream") from exc
        return status.name


def _all_of(headers: Mapping[str, Any], key: str) -> list[str]:
    """The values of a key, which may come more than once where headers are grpclib's."""
    several = getattr(headers, "getall", None)
    if several is not None:
        return [str(one) for one in several(key, ())]
    return [headers[key]] if key in headers else []


def _unexpected(name: str, error: Exception) -> ModelBoxError:
    """What a caller reads of an exception, which goes to the log."""
    request_id = REQUEST_ID.get() or new_request_id()
    _LOG.error("%s failed unexpectedly (request %s)", name, request_id, exc_info=error)
    told = ModelBoxError(f"the server failed unexpectedly: see its log, request {request_id}")
    told.request_id = request_id
    return told


def _name_call() -> None:
    """Names the call that this task handles, unless its caller has."""
    if not REQUEST_ID.get():
        REQUEST_ID.set(new_request_id())


def _trailers_of(error: ModelBoxError) -> dict[str, str | bytes]:
    trailers: dict[str, str | bytes] = {ERROR_KEY: pack_error(error)}
    if error.request_id:
        trailers[REQUEST_KEY] = error.request_id
    return trailers


class _Once:
    """One message in and one out, as the generated handlers use a stream."""

    __slots__ = ("answer", "message")

    def __init__(self, message: Any) -> None:
        self.message = message
        self.answer: Any = None

    async def recv_message(self) -> Any:
        return self.message

    async def send_message(self, message: Any) -> None:
        self.answer = message


async def _call(handle: Callable[[Any], Awaitable[None]], message: Any) -> Any:
    stream = _Once(message)
    await handle(stream)
    return stream.answer


def _decode(cls: Any, data: bytes | memoryview) -> Any:
    return decode_message(cls, bytes(data))


def _untouched(data: bytes | memoryview) -> Any:
    return data


def _encode_google(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString()
    return encoded


def failure_of(error: Exception) -> Failure:
    """How a method that is answered directly fails because of ``error``."""
    if not isinstance(error, ModelBoxError):
        error = ModelBoxError("the server failed unexpectedly")
    return Failure(status=int(statuses_of(error).grpc), text=redact(error.message)[:500], metadata=_trailers_of(error))


def _cut_off(stream: Stream[Any, Any]) -> None:
    """Resets a call's stream; where the peer does not read at all, its connection."""
    inner = stream._stream
    if not inner.connection.write_ready.is_set():
        inner._transport.abort()
    elif inner.closable:
        inner.reset_nowait(ErrorCodes.ENHANCE_YOUR_CALM)
    stream._cancel_done = True


class _Wrapped:
    def __init__(self, methods: Mapping[str, Handler]) -> None:
        self._methods = dict(methods)

    def __mapping__(self) -> dict[str, Handler]:
        return self._methods


class _Method:
    """One method behind the boundary."""

    def __init__(self, boundary: Boundary, path: str, method: Handler, *, always: bool) -> None:
        self._boundary = boundary
        self._path = path
        self._method = method
        self._always = always

    async def handle(self, stream: Stream[Any, Any]) -> None:
        await self._boundary.run(self._path, self._method, stream, always=self._always)

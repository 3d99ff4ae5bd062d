"""Load through every protocol of a sidecar at once, which checks each answer.

`Traffic` calls one model in closed loops with the clients that people use: tritonclient over HTTP (asyncio and threads,
JSON and binary, system shared memory) and over gRPC (asyncio, threads, a stream), and our own handle over the Unix
socket, with small tensors and with such as travel in shared segments:

    traffic = Traffic(sidecar, "swap/model", "prod", expect)
    async with traffic:
        ...                                 # promote
        await traffic.answered(version=2)   # every protocol has given an answer of version 2
        with traffic.outage():
            sidecar.kill()                  # from here on calls over HTTP and gRPC may fail
            sidecar.restart()
    assert traffic.problems == []

A call that fails is a problem, unless it is one of HTTP or gRPC and there was an outage; calls through the handle may
never fail. An answer that is not what its version gives is a problem at any time.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.abc
import anyio.to_thread
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
import tritonclient.utils.shared_memory as shm

import modelbox
from tests.sidecar import SidecarProcess

Array = np.ndarray[Any, np.dtype[Any]]
Answer = tuple[int, Array]
"""The version that the answer names, and its output ``y``."""

Expect = Callable[[int, Array], Array]
"""What a version gives for an input."""

AsyncCall = Callable[[Array], Awaitable[Answer]]
Call = Callable[[Array], Answer]

ROWS = (1, 2, 3)
LARGE_BYTES = 128 << 10
"""What the handle sends in a segment."""

# Each client has its own connections, and looks for a sidecar that is back without pauses of its own.
_GRPC = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 200),
]


def added(constants: dict[int, float]) -> Expect:
    """What `tests.onnx_models.add_constant` gives: ``constants`` by version."""

    def expect(version: int, x: Array) -> Array:
        # An unknown version gives nothing that could be right.
        return x + np.float32(constants.get(version, np.nan))

    return expect


def client_of(sidecar: SidecarProcess, **settings: Any) -> modelbox.Client:
    """A client whose models come from the sidecar, and from nowhere else."""
    return modelbox.Client(
        "http://127.0.0.1:9", cache_dir=sidecar.directory / "unused", sidecar=sidecar.socket_url, **settings
    )


class Traffic:
    """See the module.

    Args:
        sidecar: Is running, and serves the model.
        model: ``namespace/model``; maps ``x`` to ``y``, float32.
        alias: The version that is asked for.
        expect: What each version gives.
        protocols: Names of `PROTOCOLS`; all of them by default.
        columns: Of ``x``.
        pause_s: Between two calls of one caller.
        tolerance: How far an answer may be from what is expected; 0 for bit for bit.
    """

    def __init__(
        self,
        sidecar: SidecarProcess,
        model: str,
        alias: str,
        expect: Expect,
        *,
        protocols: Sequence[str] = (),
        columns: int = 4,
        pause_s: float = 0.001,
        tolerance: float = 0.0,
    ) -> None:
        self.sidecar = sidecar
        self.model = model
        self.alias = alias
        self.protocols = tuple(protocols) or tuple(PROTOCOLS)
        self.problems: list[str] = []
        self.calls: dict[str, Counter[int]] = {name: Counter() for name in self.protocols}
        """Good answers: by protocol and version."""
        self.failed: Counter[str] = Counter()
        """Calls that failed in an outage: by protocol."""
        self._expect = expect
        self._columns = columns
        self._pause_s = pause_s
        self._tolerance = tolerance
        self._outages = 0
        self._unseen: set[str] = set()
        self._stopped = threading.Event()
        self._tasks: anyio.abc.TaskGroup | None = None

    @property
    def total(self) -> int:
        """Good answers so far."""
        return sum(sum(counts.values()) for counts in self.calls.values())

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Meanwhile calls over HTTP and gRPC may fail.

        And afterwards until a protocol has given its first good answer, which `answered` waits for: gRPC's clients go
        on telling that they could not connect, which they tried when nobody was there.
        """
        self._outages += 1
        self._unseen.update(self.protocols)
        try:
            yield
        finally:
            self._outages -= 1

    async def answered(self, *, version: int | None = None, timeout: float = 60) -> None:
        """Waits until every protocol has given another good answer (of that version); fails at the first problem."""

        def counts() -> list[int]:
            return [sum(seen.values()) if version is None else seen[version] for seen in self.calls.values()]

        before = counts()
        with anyio.move_on_after(timeout) as scope:
            while not all(now > then for now, then in zip(counts(), before, strict=True)):
                assert not self.problems, self.problems
                await anyio.sleep(0.005)
        silent = [name for name, now, then in zip(self.calls, counts(), before, strict=True) if now <= then]
        assert not scope.cancelled_caught, f"no answer of version {version} within {timeout} s over {silent}"

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        for seed, name in enumerate(self.protocols):
            self._tasks.start_soon(self._call, name, seed)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._tasks is not None
        self._stopped.set()
        return await self._tasks.__aexit__(kind, error, trace)

    async def _call(self, name: str, seed: int) -> None:
        protocol = PROTOCOLS[name]
        if isinstance(protocol, _Threaded):
            # What is cut off leaves its thread behind, which sees `_stopped` after its call.
            await anyio.to_thread.run_sync(self._call_in_thread, name, seed, abandon_on_cancel=True)
            return
        rng = np.random.default_rng(seed)
        while not self._stopped.is_set():
            outages = self._outages
            try:
                async with protocol.open(self) as call:
                    while not self._stopped.is_set():
                        outages = self._outages
                        x = self._input(rng, protocol.large)
                        version, y = await call(x)
                        self._check(name, x, version, y)
                        await anyio.sleep(self._pause_s)
            except Exception as exc:
                self._note(name, exc, outages)
                await anyio.sleep(0.05)

    def _call_in_thread(self, name: str, seed: int) -> None:
        protocol = PROTOCOLS[name]
        assert isinstance(protocol, _Threaded)
        rng = np.random.default_rng(seed)
        while not self._stopped.is_set():
            outages = self._outages
            try:
                with protocol.open(self) as call:
                    while not self._stopped.is_set():
                        outages = self._outages
                        x = self._input(rng, protocol.large)
                        version, y = call(x)
                        self._check(name, x, version, y)
                        time.sleep(self._pause_s)
            except Exception as exc:
                self._note(name, exc, outages)
                time.sleep(0.05)

    def _input(self, rng: np.random.Generator, large: bool) -> Array:
        rows = LARGE_BYTES // (4 * self._columns) if large and rng.random() < 0.1 else int(rng.choice(ROWS))
        return rng.standard_normal((rows, self._columns), dtype=np.float32)

    def _check(self, name: str, x: Array, version: int, y: Array) -> None:
        expected = self._expect(version, x)
        if y.shape == expected.shape and np.allclose(y, expected, rtol=0, atol=self._tolerance):
            self.calls[name][version] += 1
            if not self._outages:
                self._unseen.discard(name)
        else:
            self.problems.append(f"{name}: version {version} gave what is not its answer")

    def _note(self, name: str, exc: Exception, outages: int) -> None:
        # `outages` is from when the call began.
        if (outages or self._outages or name in self._unseen) and not name.startswith("socket"):
            self.failed[name] += 1
        else:
            self.problems.append(f"{name}: {exc!r}"[:500])


class _Looped:
    """A client that is used on the event loop; one that fails is made anew."""

    def __init__(
        self,
        open_: Callable[[Traffic], contextlib.AbstractAsyncContextManager[AsyncCall]],
        *,
        large: bool = False,
    ) -> None:
        self.open = open_
        self.large = large


class _Threaded:
    """A client that is used in a thread of its own; one that fails is made anew."""

    def __init__(
        self, open_: Callable[[Traffic], contextlib.AbstractContextManager[Call]], *, large: bool = False
    ) -> None:
        self.open = open_
        self.large = large


def _http_input(x: Array, *, binary: bool) -> Any:
    return triton_http.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x, binary_data=binary)


def _http_answer(result: Any) -> Answer:
    return int(result.get_response()["model_version"]), result.as_numpy("y")


def _grpc_input(x: Array) -> Any:
    made = triton_grpc.InferInput("x", list(x.shape), "FP32")
    made.set_data_from_numpy(x)
    return made


def _grpc_answer(result: Any) -> Answer:
    return int(result.get_response().model_version), result.as_numpy("y")


@contextlib.asynccontextmanager
async def _http_aio(traffic: Traffic, *, binary: bool) -> AsyncIterator[AsyncCall]:
    async with triton_http_aio.InferenceServerClient(traffic.sidecar.http_address) as client:

        async def call(x: Array) -> Answer:
            outputs = [triton_http.InferRequestedOutput("y", binary_data=binary)]
            inputs = [_http_input(x, binary=binary)]
            return _http_answer(await client.infer(traffic.model, inputs, model_version=traffic.alias, outputs=outputs))

        yield call


@contextlib.contextmanager
def _http_threads(traffic: Traffic) -> Iterator[Call]:
    with triton_http.InferenceServerClient(traffic.sidecar.http_address) as client:

        def call(x: Array) -> Answer:
            return _http_answer(client.infer(traffic.model, [_http_input(x, binary=True)], model_version=traffic.alias))

        yield call


@contextlib.contextmanager
def _http_shared(traffic: Traffic) -> Iterator[Call]:
    """Inputs and outputs in one region of system shared memory."""
    half = LARGE_BYTES
    name = f"traffic{os.getpid()}t{threading.get_ident()}"
    with triton_http.InferenceServerClient(traffic.sidecar.http_address) as client:
        region = shm.create_shared_memory_region(name, f"/{name}", 2 * half)
        try:
            client.register_system_shared_memory(name, f"/{name}", 2 * half)

            def call(x: Array) -> Answer:
                shm.set_shared_memory_region(region, [x])
                given = triton_http.InferInput("x", list(x.shape), "FP32")
                given.set_shared_memory(name, x.nbytes)
                taken = triton_http.InferRequestedOutput("y")
                taken.set_shared_memory(name, x.nbytes, offset=half)
                result = client.infer(traffic.model, [given], model_version=traffic.alias, outputs=[taken])
                y = shm.get_contents_as_numpy(region, np.float32, list(x.shape), offset=half).copy()
                return int(result.get_response()["model_version"]), y

            yield call
            client.unregister_system_shared_memory(name)
        finally:
            shm.destroy_shared_memory_region(region)


@contextlib.contextmanager
def _grpc_threads(traffic: Traffic) -> Iterator[Call]:
    with triton_grpc.InferenceServerClient(traffic.sidecar.grpc_address, channel_args=_GRPC) as client:

        def call(x: Array) -> Answer:
            inputs = [_grpc_input(x)]
            return _grpc_answer(client.infer(traffic.model, inputs, model_version=traffic.alias, client_timeout=60))

        yield call


@contextlib.asynccontextmanager
async def _grpc_aio(traffic: Traffic) -> AsyncIterator[AsyncCall]:
    async with triton_grpc_aio.InferenceServerClient(traffic.sidecar.grpc_address, channel_args=_GRPC) as client:

        async def call(x: Array) -> Answer:
            inputs = [_grpc_input(x)]
            return _grpc_answer(
                await client.infer(traffic.model, inputs, model_version=traffic.alias, client_timeout=60)
            )

        yield call


@contextlib.asynccontextmanager
async def _grpc_stream(traffic: Traffic) -> AsyncIterator[AsyncCall]:
    send, receive = anyio.create_memory_object_stream[dict[str, Any]](1)
    async with triton_grpc_aio.InferenceServerClient(traffic.sidecar.grpc_address, channel_args=_GRPC) as client:
        async with send, receive:
            results = client.stream_infer(receive)

            async def call(x: Array) -> Answer:
                await send.send(
                    {"model_name": traffic.model, "model_version": traffic.alias, "inputs": [_grpc_input(x)]}
                )
                async for result, error in results:
                    if error is not None:
                        raise error
                    return _grpc_answer(result)
                raise EOFError("the stream ended")

            try:
                yield call
            finally:
                results.cancel()


@contextlib.asynccontextmanager
async def _handle(traffic: Traffic) -> AsyncIterator[AsyncCall]:
    async with client_of(traffic.sidecar, request_timeout_s=60) as client:
        model = await client.load(f"{traffic.model}@{traffic.alias}")

        async def call(x: Array) -> Answer:
            outputs = await model.predict({"x": x}, timeout=60)
            return outputs.version.version, outputs["y"]

        yield call


@contextlib.contextmanager
def _handle_in_thread(traffic: Traffic) -> Iterator[Call]:
    client = client_of(traffic.sidecar, request_timeout_s=60)
    model = client.load_sync(f"{traffic.model}@{traffic.alias}")
    try:

        def call(x: Array) -> Answer:
            outputs = model.predict_sync({"x": x})
            return outputs.version.version, outputs["y"]

        yield call
    finally:
        model.close_sync()
        anyio.run(client.aclose)


PROTOCOLS: dict[str, _Looped | _Threaded] = {
    "http json": _Looped(lambda traffic: _http_aio(traffic, binary=False)),
    "http binary": _Looped(lambda traffic: _http_aio(traffic, binary=True), large=True),
    "http threads": _Threaded(_http_threads, large=True),
    "http shared memory": _Threaded(_http_shared, large=True),
    "grpc threads": _Threaded(_grpc_threads),
    "grpc aio": _Looped(_grpc_aio, large=True),
    "grpc stream": _Looped(_grpc_stream),
    "socket": _Looped(_handle, large=True),
    "socket small": _Looped(_handle),
    "socket threads": _Threaded(_handle_in_thread),
}
"""What calls, by name; handles begin with ``socket``."""

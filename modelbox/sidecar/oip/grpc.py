"""The Open Inference Protocol over gRPC: ``inference.GRPCInferenceService``.

An adapter: reads messages, calls the service, writes messages. Inference takes google's messages (`messages`), all else
the generated ones. What this server has no use for (CUDA memory, trace and log settings) is answered UNIMPLEMENTED,
with a text that says what to do instead.
"""

from __future__ import annotations

import contextlib
from functools import partial
from time import perf_counter_ns
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from modelbox._proto import inference as pb
from modelbox._serving.codec import WireCodec
from modelbox._serving.grpc import GrpcServer, Servable
from modelbox._serving.guard import Limits
from modelbox._serving.process import package_version
from modelbox._serving.standard import health_service, reflection_services
from modelbox._serving.unary import DirectServer
from modelbox.errors import InvalidError, NotFoundError, ServerBusy
from modelbox.refs import shown
from modelbox.sidecar.oip.calls import Allowance, PeerStream, bounded, failure_of, failure_text
from modelbox.sidecar.oip.datatypes import datatype_of
from modelbox.sidecar.oip.extensions import SERVER_NAME, extensions
from modelbox.sidecar.oip.messages import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
    decode_request,
    read_request,
    stream_failure,
    stream_response,
    takes_long,
    write_response,
)
from modelbox.sidecar.oip.shared_memory import SharedMemory
from modelbox.sidecar.service import InferenceService
from modelbox.signature import TensorSpec

__all__ = ("OpenInferenceAdapter", "make_server")

_SERVICE = "/inference.GRPCInferenceService/"
_STREAM_CALLS = 64
"""Requests of one stream that may run or wait to be read at once; the next is read when the oldest answer is sent."""
_CONNECTION_CALLS = 256
"""Those of all streams of a connection."""
_CONNECTION_BYTES = 64 << 20
"""What they and their answers hold; one of them may be larger."""


def make_server(service: InferenceService, limits: Limits, memory: SharedMemory | None) -> GrpcServer:
    """What the sidecar serves over gRPC: inference, and the health and reflection that tools expect of every server.

    Args:
        service: What runs the models; its limits say what clients may do.
        limits: What peers may do.
        memory: Registered shared memory, shared with HTTP; None where clients may not use it.
    """
    adapter = OpenInferenceAdapter(service, memory=memory, repository=service.limits.repository_control)
    services: list[Servable] = [adapter, health_service(service.health, [adapter])]
    return DirectServer(
        services + reflection_services(services),
        limits=limits,
        codec=WireCodec(),
        methods={_SERVICE + "ModelInfer": adapter.infer},
        fail=partial(failure_of, what="ModelInfer"),
        stall_s=service.limits.idle_timeout_s,
        endless=("/grpc.health.", "/grpc.reflection."),
        on_stop=adapter.end_streams,
    )


class OpenInferenceAdapter(pb.GrpcInferenceServiceBase):
    """See ``protos/inference/grpc_service.proto``.

    Args:
        service: What runs the models.
        memory: Registered shared memory, shared with HTTP; None where that is not allowed.
        repository: Whether clients may load and unload models.
    """

    def __init__(self, service: InferenceService, *, memory: SharedMemory | None, repository: bool = True) -> None:
        self._service = service
        self._memory = memory
        self._repository = repository
        self._listening: set[anyio.CancelScope] = set()
        self._stopping = False
        # One at a time, as all of it is the interpreter's.
        self._one_aside = anyio.CapacityLimiter(1)
        self._allowances: WeakKeyDictionary[object, Allowance] = WeakKeyDictionary()

    def __mapping__(self) -> dict[str, Handler]:
        """All methods, behind the boundary."""
        methods = super().__mapping__()
        for name, func, cardinality, answer in (
            ("ModelInfer", self._infer, Cardinality.UNARY_UNARY, ModelInferResponse),
            ("ModelStreamInfer", self._stream_infer, Cardinality.STREAM_STREAM, ModelStreamInferResponse),
        ):
            methods[_SERVICE + name] = Handler(func, cardinality, ModelInferRequest, answer)
        return bounded(methods)

    # -- running

    async def infer(self, message: bytes | memoryview, remaining_s: float | None) -> bytes:
        """``ModelInfer``, from bytes to bytes; see `modelbox._serving.unary`."""
        answer = await self._answer(decode_request(message), remaining_s)
        encoded: bytes = answer.SerializeToString()
        return encoded

    async def _infer(self, stream: PeerStream) -> None:
        message = await stream.recv_message()
        await stream.send_message(await self._answer(message, stream.remaining_s))

    async def _answer(self, message: Any, remaining_s: float | None) -> Any:
        read = partial(read_request, message, self._memory, began_ns=perf_counter_ns())
        call = await anyio.to_thread.run_sync(read, limiter=self._one_aside) if takes_long(message) else read()
        request = call.request
        if remaining_s is not None and (request.timeout_s is None or remaining_s < request.timeout_s):
            request.timeout_s = remaining_s
        response = await self._service.infer(request)
        begun_ns = perf_counter_ns()
        answer = write_response(response, call, self._memory)
        self._service.record_encoding(response, perf_counter_ns() - begun_ns)
        return answer

    async def _stream_infer(self, stream: PeerStream) -> None:
        """Answers requests in their order, while later ones run already."""
        allowance = self._allowances.get(stream.connection)
        if allowance is None:
            allowance = Allowance(max_messages=_CONNECTION_CALLS, max_bytes=_CONNECTION_BYTES)
            self._allowances[stream.connection] = allowance
        slots = _Slots(allowance)
        stopped = False
        try:
            async with anyio.create_task_group() as tasks:
                send, receive = anyio.create_memory_object_stream[_Slot](_STREAM_CALLS)
                tasks.start_soon(_send_answers, receive, stream, slots, name="answers of a stream")
                with send:
                    while not stopped:
                        size = await self._find_announced(stream)
                        if size is None:
                            break
                        stopped = size < 0
                        if not stopped:
                            slot = await slots.open(size)
                            message = await stream.read_announced(size)
                            await send.send(slot)
                            tasks.start_soon(self._fill, slot, message, stream.remaining_s, name="a call of a stream")
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from group
        finally:
            slots.close()
        if stopped:
            raise ServerBusy("the sidecar is stopping: what has no answer was not taken", retry_after_s=1.0)

    async def _find_announced(self, stream: PeerStream) -> int | None:
        """The size of the next request, None when the peer has ended, -1 when a sidecar that stops ends the stream.

        It does not as long as something of a request is here: that one is answered.
        """
        if not self._stopping:
            with anyio.CancelScope() as scope:
                self._listening.add(scope)
                try:
                    return await stream.find_announced()
                finally:
                    self._listening.discard(scope)
        return await stream.find_announced() if stream.has_data else -1

    def end_streams(self) -> None:
        """Has streams end once nothing of theirs is on its way; for a server that stops."""
        self._stopping = True
        for scope in tuple(self._listening):
            scope.cancel()

    async def _fill(self, slot: _Slot, message: Any, remaining_s: float | None) -> None:
        try:
            slot.answer = stream_response(await self._answer(message, remaining_s))
        except Exception as exc:
            slot.answer = stream_failure(failure_text(exc, "ModelStreamInfer"), message.id)
        slot.answered()

    # -- asking

    async def server_live(self, message: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        """See the proto."""
        return pb.ServerLiveResponse(live=self._service.live())

    async def server_ready(self, message: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        """See the proto."""
        return pb.ServerReadyResponse(ready=self._service.ready())

    async def model_ready(self, message: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """See the proto."""
        return pb.ModelReadyResponse(ready=self._service.model_ready(message.name, message.version))

    async def server_metadata(self, message: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        """See the proto."""
        return pb.ServerMetadataResponse(
            name=SERVER_NAME,
            version=package_version(),
            extensions=list(extensions(shared_memory=self._memory is not None, repository=self._repository)),
        )

    async def model_metadata(self, message: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """See the proto."""
        found = self._service.metadata(message.name, message.version)
        return pb.ModelMetadataResponse(
            name=found.name,
            versions=list(found.versions),
            platform=found.platform,
            inputs=[_tensor_metadata(spec) for spec in found.signature.inputs],
            outputs=[_tensor_metadata(spec) for spec in found.signature.outputs],
        )

    async def model_config(self, message: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        """See the proto."""
        return pb.ModelConfigResponse(
            config=pb.ModelConfig.from_dict(
                self._service.config(message.name, message.version), ignore_unknown_fields=True
            )
        )

    async def model_statistics(self, message: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        """See the proto."""
        return pb.ModelStatisticsResponse.from_dict(
            {"model_stats": self._service.statistics(message.name, message.version)}, ignore_unknown_fields=True
        )

    # -- the repository

    async def repository_index(self, message: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        """See the proto."""
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponseModelIndex(
                    name=entry.name, version=entry.version, state=entry.state.value, reason=entry.reason
                )
                for entry in self._service.index(ready_only=message.ready)
            ]
        )

    async def repository_model_load(self, message: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        """See the proto."""
        self._require_repository()
        if message.parameters:
            raise InvalidError(
                "models come from the registry, as they were published there: load takes no parameters, "
                f"got {', '.join(sorted(shown(key) for key in message.parameters)[:10])}"
            )
        await self._service.load(message.model_name)
        return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, message: pb.RepositoryModelUnloadRequest
    ) -> pb.RepositoryModelUnloadResponse:
        """See the proto."""
        self._require_repository()
        with contextlib.suppress(NotFoundError):
            await self._service.unload(message.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _require_repository(self) -> None:
        if not self._repository:
            raise GRPCError(
                Status.UNAVAILABLE,
                "loading and unloading is switched off: the setting repository_control of the sidecar",
            )

    # -- shared memory

    async def system_shared_memory_status(
        self, message: pb.SystemSharedMemoryStatusRequest
    ) -> pb.SystemSharedMemoryStatusResponse:
        """See the proto."""
        return pb.SystemSharedMemoryStatusResponse(
            regions={
                region.name: pb.SystemSharedMemoryStatusResponseRegionStatus(
                    name=region.name, key=region.key, offset=region.offset, byte_size=region.byte_size
                )
                for region in self._require_memory().status(message.name)
            }
        )

    async def system_shared_memory_register(
        self, message: pb.SystemSharedMemoryRegisterRequest
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """See the proto."""
        self._require_memory().register(message.name, message.key, message.offset, message.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def system_shared_memory_unregister(
        self, message: pb.SystemSharedMemoryUnregisterRequest
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """See the proto."""
        self._require_memory().unregister(message.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    def _require_memory(self) -> SharedMemory:
        if self._memory is None:
            raise _unimplemented("shared memory is off: see the setting shared_memory of the sidecar")
        return self._memory

    async def cuda_shared_memory_status(
        self, message: pb.CudaSharedMemoryStatusRequest
    ) -> pb.CudaSharedMemoryStatusResponse:
        """See the proto."""
        if message.name:
            raise NotFoundError(f"there is no CUDA shared memory region {shown(message.name)}: this server takes none")
        return pb.CudaSharedMemoryStatusResponse()

    async def cuda_shared_memory_register(
        self, message: pb.CudaSharedMemoryRegisterRequest
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """See the proto."""
        raise _unimplemented("CUDA shared memory is not served: use system shared memory, or send the tensors")

    async def cuda_shared_memory_unregister(
        self, message: pb.CudaSharedMemoryUnregisterRequest
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """See the proto."""
        # There is nothing to forget. Clients call this at their start without asking what there is.
        return pb.CudaSharedMemoryUnregisterResponse()

    # -- not served

    async def trace_setting(self, message: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
        """See the proto."""
        raise _unimplemented("there are no trace settings: tracing is set up by the OTEL_ variables of the sidecar")

    async def log_settings(self, message: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        """See the proto."""
        raise _unimplemented("logs are not set by clients: see the setting log_level of the sidecar")


class _Slot:
    """The place of one answer in its stream.

    Attributes:
        size: What it takes of the allowance: the bytes of the request, then those of the answer.
    """

    __slots__ = ("_allowance", "answer", "ready", "size")

    def __init__(self, allowance: Allowance, size: int) -> None:
        self._allowance = allowance
        self.size = size
        self.ready = anyio.Event()
        self.answer: Any = None

    def answered(self) -> None:
        """The answer is there."""
        before, self.size = self.size, self.answer.ByteSize()
        self._allowance.change(before, self.size)
        self.ready.set()


class _Slots:
    """Those of one stream that have not been sent."""

    __slots__ = ("_allowance", "_open")

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._open: set[_Slot] = set()

    async def open(self, size: int) -> _Slot:
        """A place for a request of ``size`` bytes, once the connection may have it."""
        await self._allowance.take(size)
        slot = _Slot(self._allowance, size)
        self._open.add(slot)
        return slot

    def sent(self, slot: _Slot) -> None:
        """The peer has it."""
        self._open.discard(slot)
        self._allowance.give(slot.size)

    def close(self) -> None:
        """Gives back what was not sent."""
        for slot in tuple(self._open):
            self.sent(slot)


async def _send_answers(receive: MemoryObjectReceiveStream[_Slot], stream: PeerStream, slots: _Slots) -> None:
    with receive:
        async for slot in receive:
            await slot.ready.wait()
            await stream.send_message(slot.answer)
            slots.sent(slot)


def _tensor_metadata(spec: TensorSpec) -> pb.ModelMetadataResponseTensorMetadata:
    datatype = datatype_of(spec.dtype)
    return pb.ModelMetadataResponseTensorMetadata(
        name=spec.name,
        datatype=datatype.name if datatype is not None else spec.dtype,
        shape=[dim if isinstance(dim, int) else -1 for dim in spec.shape],
    )


def _unimplemented(text: str) -> GRPCError:
    return GRPCError(Status.UNIMPLEMENTED, text)

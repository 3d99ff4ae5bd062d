"""What every protocol of the sidecar calls: find a model, run it, ask about it, load and unload.

Owns the table of served references and the tasks that bring each of them into service. Knows no protocol: requests and
answers are arrays, errors are those of `modelbox.errors`. Loading, swapping and the last good version come from the
public `modelbox.Client`; queue bounds and priorities from `modelbox.sidecar.serving`.

Names: a model is served as ``namespace/model``, and as the bare ``model`` while no other served namespace has one of
that name. A version in a request is ``""`` (the reference that was configured first), an alias (``prod``), or a number
or digest (answered while it is what one of the served references points to).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from anyio import AsyncContextManagerMixin

from modelbox.loader.runner import Prediction
from modelbox.model import LiveModel
from modelbox.refs import ModelRef
from modelbox.signature import Signature

__all__ = (
    "IndexEntry",
    "InferRequest",
    "InferResponse",
    "InferenceService",
    "ModelMetadata",
    "ServedModel",
    "ServingState",
)

Parameter = bool | int | float | str


class ServingState(StrEnum):
    """What a served reference is doing; the texts are those of the Open Inference Protocol."""

    LOADING = "LOADING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    UNLOADING = "UNLOADING"


@dataclass(slots=True, kw_only=True)
class InferRequest:
    """One call. Not frozen for speed only: nobody changes one.

    Attributes:
        model: As in the protocol: ``namespace/model`` or ``model``.
        version: ``""``, an alias, a number or a digest.
        id: Comes back in the answer.
        inputs: An array for each input; text as object arrays of str. Bytes of an image where the version's metadata
            says so (`modelbox.sidecar.images`).
        outputs: Names of the wanted outputs; all when empty.
        timeout_s: Until the answer, from now; None for the model's own limit.
        priority: 1 is served first; 0 is the default, between the priorities of the caller's choice.
        parameters: Whatever else came with the request.
        began_ns: `time.perf_counter_ns` when the adapter began with the request; 0 where it does not say.
    """

    model: str
    inputs: Mapping[str, Any]
    version: str = ""
    id: str = ""
    outputs: Sequence[str] = ()
    timeout_s: float | None = None
    priority: int = 0
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    began_ns: int = 0


@dataclass(slots=True, kw_only=True)
class InferResponse:
    """The answer to one call, all of it from one version.

    Attributes:
        model: As it was asked for.
        version: The number of the version that answered.
        digest: Its digest.
        id: That of the request.
        outputs: Arrays by name, in the order of the signature (or of the request); text as object arrays of str. A
            sequence or map of ONNX comes as the runtime gave it: a list or dict.
        from_cache: Not run, but remembered.
    """

    model: str
    version: int
    digest: str
    id: str
    outputs: dict[str, Any]
    from_cache: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """What a model takes and gives.

    Attributes:
        name: As it is served.
        versions: The numbers that answer now.
        platform: ``onnxruntime_onnx``.
        signature: Inputs and outputs of the version that was asked about.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    signature: Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One line of the repository index; ``version`` and ``reason`` may be empty."""

    name: str
    version: str
    state: ServingState
    reason: str


class ServedModel:
    """One reference in the table.

    Attributes:
        name: ``namespace/model``.
        ref: What is followed.
        state: See `ServingState`.
        reason: Why it is not ready; empty when it is.
        live: The handle once it answers; None before.
        configured: Whether readiness waits for it.
    """

    name: str
    ref: ModelRef
    state: ServingState
    reason: str
    live: LiveModel | None
    configured: bool

    async def predict(
        self, inputs: Mapping[str, Any], *, timeout: float | None = None, priority: int = 0
    ) -> Prediction:
        """One call, in its place in the queue; counted.

        Raises:
            InputError: The inputs do not fit.
            ServerBusy: The queue is full (``retry_after_s``), or the model does not answer yet.
            DeadlineExceeded: ``timeout`` seconds are over.
            PredictError: The model failed.
        """
        raise NotImplementedError


class InferenceService(AsyncContextManagerMixin):
    """All models of one sidecar.

    Concurrency: belongs to the sidecar's event loop.
    """

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[InferenceService]:
        yield self

    # -- running

    async def infer(self, request: InferRequest) -> InferResponse:
        """Runs one call.

        Raises:
            NotFoundError: There is no such model or version here; says what there is.
            InputError: The inputs or the names of outputs do not fit.
            ServerBusy: The queue is full (``retry_after_s``), the sidecar drains, or the model does not answer yet.
            DeadlineExceeded: The time is over.
            PredictError: The model failed on these inputs.

        Cancellation: a call that waits leaves its queue; one that runs ends unseen.
        """
        raise NotImplementedError

    def find(self, name: str, version: str = "") -> ServedModel:
        """The reference that answers for ``name`` and ``version``, ready or not.

        Raises:
            NotFoundError: There is none; says what there is.
        """
        raise NotImplementedError

    def models(self) -> list[ServedModel]:
        """All served references, in the order in which they were configured or loaded."""
        raise NotImplementedError

    # -- asking

    def live(self) -> bool:
        """Whether the program works at all."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether every configured model answers, and the sidecar does not drain."""
        raise NotImplementedError

    def model_ready(self, name: str, version: str = "") -> bool:
        """Whether this model answers; False for an unknown one too."""
        raise NotImplementedError

    def metadata(self, name: str, version: str = "") -> ModelMetadata:
        """What a model takes and gives.

        Raises:
            NotFoundError: There is no such model or version here.
            ServerBusy: It does not answer yet.
        """
        raise NotImplementedError

    def config(self, name: str, version: str = "") -> dict[str, Any]:
        """The model's configuration in Triton's JSON form (``ModelConfig``); raises like `metadata`."""
        raise NotImplementedError

    def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """Statistics in the form of the protocol's ``model_stats``, for one model or (without a name) for all.

        Raises:
            NotFoundError: There is no such model or version here.
        """
        raise NotImplementedError

    def index(self, *, ready_only: bool = False) -> list[IndexEntry]:
        """The models that there are."""
        raise NotImplementedError

    # -- changing

    async def load(self, name: str) -> None:
        """Loads a model, and returns when it answers.

        Args:
            name: A served name, to try again at once; or a reference (``namespace/model@7``), to serve it from now on.

        Raises:
            NotFoundError: The registry has no such model.
            LoadError: It cannot be served; what served before goes on.
        """
        raise NotImplementedError

    async def unload(self, name: str) -> None:
        """Takes a model out of service: new calls get 404 at once, accepted ones end first."""
        raise NotImplementedError

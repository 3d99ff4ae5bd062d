"""What every protocol of the sidecar calls: find a model, run it, ask about it, load and unload.

Owns the table of served references and the tasks that bring each of them into service. Knows no protocol: requests and
answers are arrays, errors are those of `modelbox.errors`. Loading, swapping and the last good version come from the
public `modelbox.Client`; queue bounds and priorities from `modelbox.sidecar.serving`.

Names: a model is served as ``namespace/model``, and as the bare ``model`` while no other served namespace has one of
that name. A version in a request is ``""`` (the reference that was configured first), an alias (``prod``), or a number
or digest (answered while it is what one of the served references points to).
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup

from modelbox._serving.health import Health
from modelbox.client import Client
from modelbox.errors import InputError, ModelBoxError, NotFoundError, ServerBusy
from modelbox.loader.settings import LoadOptions
from modelbox.refs import ModelRef, shown
from modelbox.sidecar.limits import ProtocolLimits
from modelbox.sidecar.model_config import model_config
from modelbox.sidecar.model_settings import ModelServing
from modelbox.sidecar.prediction_cache import CachedPrediction, PredictionCache
from modelbox.sidecar.served import ServedModel, ServingState
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

_LOG = logging.getLogger(__name__)
_RETRY_FIRST_S = 0.5
_RETRY_MAX_S = 60.0
_TUNE_S = 0.5

Parameter = bool | int | float | str


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


class InferenceService(AsyncContextManagerMixin):
    """All models of one sidecar.

    Args:
        client: Loads them; its owner closes it.
        models: What is configured.
        options: How models are opened and run.
        max_queue: Calls to one model that may wait.
        default_timeout_s: Of calls that bring no limit; None for none.
        serving: How each reference is served; takes the place of the three before.
        cache_bytes: Of the prediction cache; 0 for none.
        limits: What clients may do; for the adapters.
        drain_timeout_s: What `unload` waits for accepted calls, seconds.

    Attributes:
        health: Ready while every configured model answers and the sidecar does not drain.
        limits: What clients may do.
        cache: The prediction cache, if there is one.

    Concurrency: belongs to the sidecar's event loop.
    """

    def __init__(
        self,
        client: Client,
        models: Sequence[ModelRef],
        *,
        options: LoadOptions | None = None,
        max_queue: int = 1000,
        default_timeout_s: float | None = None,
        serving: Callable[[ModelRef], ModelServing] | None = None,
        cache_bytes: int = 0,
        limits: ProtocolLimits | None = None,
        drain_timeout_s: float = 30.0,
    ) -> None:
        self.health = Health()
        self.limits = limits or ProtocolLimits()
        self.cache = PredictionCache(cache_bytes) if cache_bytes else None
        self._client = client
        same = ModelServing(options=options or LoadOptions(), max_queue=max_queue, default_timeout_s=default_timeout_s)
        self._serving = serving or (lambda _: same)
        self._drain_timeout_s = drain_timeout_s
        self._served: dict[ModelRef, ServedModel] = {}
        self._unloaded: dict[ModelRef, ServedModel] = {}
        self._found: dict[tuple[str, str], ServedModel] = {}
        self._names: dict[str, list[ServedModel]] = {}
        self._draining = False
        self._tasks: TaskGroup | None = None
        for ref in models:
            self._enter(ref, configured=True)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[InferenceService]:
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for served in self._served.values():
                tasks.start_soon(self._keep, served, name=f"serve {served.ref}")
            tasks.start_soon(self._tune, name="queue widths")
            self._refresh_health()
            try:
                yield self
            finally:
                self._tasks = None
                tasks.cancel_scope.cancel()

    # -- running

    async def infer(self, request: InferRequest) -> InferResponse:
        """Runs one call.

        Raises:
            NotFoundError: There is no such model or version here; says what there is.
            InputError: The inputs or the names of outputs do not fit.
            QueueFull: Too many calls wait already (``retry_after_s``).
            ServerBusy: The model does not answer yet.
            DeadlineExceeded: The time is over.
            PredictError: The model failed on these inputs.

        Cancellation: a call that waits leaves its queue; one that runs ends unseen.
        """
        served = self._found.get((request.model, request.version)) or self.find(request.model, request.version)
        if request.outputs:
            served.check_outputs(request.outputs)
        timeout_s = request.timeout_s
        if timeout_s is None:
            timeout_s = served.serving.default_timeout_s
        prediction = await served.predict(
            request.inputs, timeout=timeout_s, priority=request.priority, began_ns=request.began_ns
        )
        version = prediction.version
        outputs: dict[str, Any] = prediction
        if request.outputs:
            try:
                outputs = {name: prediction[name] for name in request.outputs}
            except KeyError as exc:
                # A new version without this output came in between.
                raise InputError(f"version {version.version} has no output {shown(exc.args[0])}") from exc
        return InferResponse(
            model=request.model,
            version=version.version,
            digest=version.digest,
            id=request.id,
            outputs=outputs,
            from_cache=type(prediction) is CachedPrediction,
        )

    def record_encoding(self, response: InferResponse, took_ns: int) -> None:
        """Adds what an adapter needed to encode an answer to the statistics."""
        for served in self._names.get(response.model, ()):
            tally = served.tallies.get(response.version)
            if tally is not None:
                tally.encode_ns += took_ns
                return

    def find(self, name: str, version: str = "") -> ServedModel:
        """The reference that answers for ``name`` and ``version``, ready or not.

        Raises:
            NotFoundError: There is none; says what there is.
        """
        served = self._found.get((name, version))
        if served is not None:
            return served
        candidates = self._names.get(name)
        if not candidates:
            names = list(dict.fromkeys(served.name for served in self._served.values()))
            raise NotFoundError(
                f"there is no model {shown(name)} here: {_listed(names) or 'nothing is served'}", exists=names[:10]
            )
        for served in candidates:
            live = served.live
            if live is not None and version in (str(live.version), live.digest):
                return served
        there_is = [f"{served.ref.selector} ({served.version_text or 'not ready'})" for served in candidates]
        raise NotFoundError(
            f"model {shown(name)} has no version {shown(version)} here: {_listed(there_is)}", exists=there_is[:10]
        )

    def models(self) -> list[ServedModel]:
        """All served references, in the order in which they were configured or loaded."""
        return list(self._served.values())

    # -- asking

    def live(self) -> bool:
        """Whether the program works at all."""
        return True

    def ready(self) -> bool:
        """Whether every configured model answers, and the sidecar does not drain."""
        return self.health.ready

    def model_ready(self, name: str, version: str = "") -> bool:
        """Whether this model answers; False for an unknown one too."""
        try:
            return self.find(name, version).live is not None
        except NotFoundError:
            return False

    def metadata(self, name: str, version: str = "") -> ModelMetadata:
        """What a model takes and gives.

        Raises:
            NotFoundError: There is no such model or version here.
            ServerBusy: It does not answer yet.
        """
        served = self.find(name, version)
        live = served.handle()
        numbers = {other.live.version for other in self._names[name] if other.live is not None}
        return ModelMetadata(
            name=name,
            versions=tuple(str(number) for number in sorted(numbers)),
            platform="onnxruntime_onnx",
            signature=live.signature,
        )

    def config(self, name: str, version: str = "") -> dict[str, Any]:
        """The model's configuration in Triton's JSON form (``ModelConfig``); raises like `metadata`."""
        served = self.find(name, version)
        live = served.handle()
        return model_config(
            name,
            live.signature,
            version=live.version,
            digest=live.digest,
            ref=served.ref,
            joins=served.joins,
            serving=served.serving,
            caches=served.caches,
        )

    def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """Statistics in the form of the protocol's ``model_stats``, for one model or (without a name) for all.

        Raises:
            NotFoundError: There is no such model or version here.
        """
        if not name:
            return [entry for served in self._served.values() for entry in served.statistics(served.name)]
        if version:
            served = self.find(name, version)
            return served.statistics(name, served.handle().version)
        self.find(name)
        return [entry for served in self._names[name] for entry in served.statistics(name)]

    def index(self, *, ready_only: bool = False) -> list[IndexEntry]:
        """The models that there are, those that were unloaded too."""
        entries: list[IndexEntry] = []
        for served in (*self._served.values(), *self._unloaded.values()):
            entry = IndexEntry(name=served.name, version=served.version_text, state=served.state, reason=served.reason)
            # Two references may point to one version.
            if entry not in entries and (entry.state is ServingState.READY or not ready_only):
                entries.append(entry)
        return entries

    # -- changing

    async def load(self, name: str) -> None:
        """Loads a model, and returns when it answers.

        Args:
            name: A served name, to try again at once; one that was unloaded; or a model of the registry, with or
                without a selector (``namespace/model@7``), to serve it from now on.

        Raises:
            NotFoundError: The registry has no such model.
            LoadError: It cannot be served.
            RefError: The name is no reference, and nothing here has it.
        """
        wanted = [] if "@" in name else [served for served in self._names.get(name, ())]
        if not wanted and "@" not in name:
            back = [served.ref for served in self._unloaded.values() if name in (served.name, served.ref.model)]
            wanted = [self._revive(ref) for ref in back]
        if not wanted:
            ref = ModelRef.parse(name)
            wanted = [self._served.get(ref) or self._revive(ref)]
        for served in wanted:
            await self._loaded(served)

    async def unload(self, name: str) -> None:
        """Takes a model, or one reference to it (``namespace/model@7``), out of service.

        New calls get `NotFoundError` at once; accepted ones end first.

        Raises:
            NotFoundError: It is not served.
        """
        if "@" in name:
            ref = ModelRef.parse(name)
            if ref not in self._served:
                raise NotFoundError(f"{ref} is not served here: {_listed([str(ref) for ref in self._served])}")
            wanted = [self._served[ref]]
        else:
            self.find(name)
            wanted = list(self._names[name])
        for served in wanted:
            del self._served[served.ref]
            self._unloaded[served.ref] = served
        self._reindex()
        async with anyio.create_task_group() as tasks:
            for served in wanted:
                tasks.start_soon(self._retire, served, name=f"unload {served.ref}")

    def drain(self) -> None:
        """Readiness is off from now on; calls are still taken, for those who do not know yet."""
        self._draining = True
        self._refresh_health()

    # -- one reference

    def _enter(self, ref: ModelRef, *, configured: bool) -> ServedModel:
        served = self._served[ref] = ServedModel(
            ref,
            configured=configured,
            serving=self._serving(ref),
            cache=self.cache,
        )
        self._reindex()
        return served

    def _revive(self, ref: ModelRef) -> ServedModel:
        """Serves a reference that is not served now."""
        if self._tasks is None or self._draining:
            raise ServerBusy("the sidecar is stopping", retry_after_s=1.0)
        before = self._unloaded.pop(ref, None)
        served = self._enter(ref, configured=before is not None and before.configured)
        if before is not None:
            served.tallies = before.tallies
        self._tasks.start_soon(self._keep, served, name=f"serve {ref}")
        return served

    async def _loaded(self, served: ServedModel) -> None:
        """Has the model tried now, and waits for how that ends."""
        if served.live is not None:
            return
        try:
            await served.try_now()
        except ModelBoxError:
            if not served.configured and self._served.get(served.ref) is served and served.live is None:
                del self._served[served.ref]
                served.scope.cancel()
                self._reindex()
            raise

    async def _keep(self, served: ServedModel) -> None:
        """Brings one reference into service, however long that takes."""
        pause_s = _RETRY_FIRST_S
        with served.scope:
            while True:
                try:
                    live = await self._client.load(served.ref, options=served.serving.options)
                except Exception as exc:
                    if isinstance(exc, ModelBoxError):
                        error = exc
                        _LOG.warning("%s cannot be served: %s", served.ref, exc)
                    else:
                        error = ModelBoxError(f"{served.ref} failed to load for an unexpected reason: see the log")
                        _LOG.exception("%s failed to load for an unexpected reason", served.ref)
                    served.set_failed(error)
                    self._refresh_health()
                    await served.wait_before_retry(random.uniform(pause_s / 2, pause_s))
                    pause_s = min(pause_s * 2, _RETRY_MAX_S)
                else:
                    served.set_ready(live)
                    _LOG.info("%s is served: version %d (%s)", served.ref, live.version, live.digest)
                    self._reindex()
                    return

    async def _retire(self, served: ServedModel) -> None:
        """Lets accepted calls end, and gives the reference back."""
        served.scope.cancel()
        served.set_unloading()
        await served.wait_idle(self._drain_timeout_s)
        live, served.live = served.live, None
        try:
            if live is not None:
                await live.aclose()
        finally:
            served.set_unloaded()
            self._refresh_health()

    async def _tune(self) -> None:
        """Keeps the queues' widths at what the models' speed calls for."""
        while True:
            await anyio.sleep(_TUNE_S)
            for served in self._served.values():
                served.tune()

    def _reindex(self) -> None:
        """Makes the tables of names anew."""
        names: dict[str, list[ServedModel]] = {}
        namespaces: dict[str, set[str]] = {}
        for served in self._served.values():
            names.setdefault(served.name, []).append(served)
            namespaces.setdefault(served.ref.model, set()).add(served.ref.namespace)
        for served in self._served.values():
            if len(namespaces[served.ref.model]) == 1:
                names.setdefault(served.ref.model, []).append(served)
        found: dict[tuple[str, str], ServedModel] = {}
        for name, group in names.items():
            found[name, ""] = group[0]
            for served in group:
                found[name, served.ref.selector] = served
        self._names, self._found = names, found
        self._refresh_health()

    def _refresh_health(self) -> None:
        waiting = [str(served.ref) for served in self._served.values() if served.configured and served.live is None]
        waiting += [str(served.ref) for served in self._unloaded.values() if served.configured]
        if self._draining:
            reason = "shutting down"
        elif waiting:
            reason = f"waiting for {_listed(waiting)}"
        else:
            reason = ""
        if reason != self.health.reason:
            if reason:
                self.health.set_unready(reason)
            else:
                self.health.set_ready()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")

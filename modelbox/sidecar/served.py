"""One served reference: its handle, its queue, its statistics, and the way of one call through them.

Owns the state that the protocols show, and the order of a call: cache, queue, images, model, sums. Loading is up to
`modelbox.sidecar.service`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from time import perf_counter_ns
from typing import Any, cast

import anyio
import anyio.to_thread

from modelbox.errors import DeadlineExceeded, InputError, InvalidError, ModelBoxError, NotFoundError, ServerBusy
from modelbox.loader.generation import Generation
from modelbox.loader.pool import available_cores
from modelbox.loader.runner import JoinedPrediction, Mode, Prediction
from modelbox.loader.stats import CallStats
from modelbox.model import LiveModel, ModelState
from modelbox.objects import ModelVersion
from modelbox.refs import ModelRef, shown
from modelbox.sidecar.images import ImageInput, is_encoded, read_image_input
from modelbox.sidecar.model_settings import ModelServing
from modelbox.sidecar.prediction_cache import CachedPrediction, CacheKey, PredictionCache, input_key
from modelbox.sidecar.serving import Gate
from modelbox.sidecar.statistics import VersionTally, rows_of

__all__ = ("ServedModel", "ServingState")

_LOG = logging.getLogger(__name__)
_FAST_WIDTH = 1024
"""Calls inside where runs happen on the loop itself: they do not wait for anything but their turn of it."""
_TALLIES_KEPT = 50


class ServingState(StrEnum):
    """What a served reference is doing; the texts are those of the Open Inference Protocol."""

    LOADING = "LOADING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    UNLOADING = "UNLOADING"


class ServedModel:
    """One reference in the table.

    Attributes:
        name: ``namespace/model``.
        ref: What is followed.
        state: See `ServingState`.
        reason: Why it is not ready; empty when it is.
        live: The handle once it answers; None before.
        configured: Whether readiness waits for it.
        serving: How it is served.
        gate: Its queue.
        tallies: Statistics by version number.
        scope: Of the task that loads it.
    """

    def __init__(
        self,
        ref: ModelRef,
        *,
        configured: bool,
        serving: ModelServing,
        cache: PredictionCache | None,
    ) -> None:
        self.name = ref.path
        self.ref = ref
        self.state = ServingState.LOADING
        self.reason = "loading"
        self.live: LiveModel | None = None
        self.configured = configured
        self.scope = anyio.CancelScope()
        self.tallies: dict[int, VersionTally] = {}
        self.serving = serving
        self._options = options = serving.options.runner
        self._threads = options.threads or min(max(available_cores(), 2), 8)
        self.gate = Gate(self.name, max_waiting=serving.max_queue, width=_FAST_WIDTH, drain_s=self._drain_s)
        self._alone_below_ns = options.batch_above_s * 1e9
        self._cache = cache if serving.caches else None
        self._at_once = False
        self._image_of: ModelVersion | None = None
        self._image: ImageInput | None = None
        self._wake = asyncio.Event()
        self._attempts: list[asyncio.Future[None]] = []

    @property
    def version_text(self) -> str:
        """The number that answers now; empty while nothing does."""
        return str(self.live.version) if self.live is not None else ""

    @property
    def caches(self) -> bool:
        """Whether its answers are kept."""
        return self._cache is not None

    @property
    def joins(self) -> bool:
        """Whether calls may share a run."""
        generation = self._generation()
        return generation is not None and generation.batching

    def handle(self) -> LiveModel:
        """The handle.

        Raises:
            ServerBusy: It does not answer yet.
        """
        if self.live is None:
            raise ServerBusy(f"{self.name} does not answer yet: {self.reason}", retry_after_s=1.0)
        return self.live

    # -- calls

    async def predict(
        self, inputs: Mapping[str, Any], *, timeout: float | None = None, priority: int = 0, began_ns: int = 0
    ) -> Prediction:
        """One call, in its place in the queue; counted.

        Args:
            inputs: By name; encoded images where the version's metadata says so.
            timeout: Seconds until the answer; None for ever.
            priority: See `Gate.enter`.
            began_ns: `time.perf_counter_ns` when decoding began; 0 if that is not to be counted.

        Raises:
            InputError: The inputs do not fit.
            QueueFull: Too many calls wait already (``retry_after_s``).
            ServerBusy: The model does not answer yet.
            DeadlineExceeded: ``timeout`` is over.
            PredictError: The model failed.

        Cancellation: a call that waits leaves the queue; one that runs ends unseen.
        """
        if timeout is None:
            return await self._predict(inputs, priority, began_ns)
        if timeout > 0 and self._at_once and self.gate.open:
            # What runs on the loop without waiting needs no timer; the model sets one when it turns out to be long.
            return await self._predict(inputs, priority, began_ns, timeout)
        if timeout > 0:
            with anyio.move_on_after(timeout):
                return await self._predict(inputs, priority, began_ns)
        raise DeadlineExceeded(f"no answer from {self.name} within {timeout:g} s", timeout_s=timeout)

    async def _predict(
        self, inputs: Mapping[str, Any], priority: int, began_ns: int, timeout: float | None = None
    ) -> Prediction:
        start_ns = perf_counter_ns()
        live = self.live
        if live is None:
            live = self.handle()
        key = digest = None
        if self._cache is not None:
            digest = live.digest
            key = input_key(digest, inputs)
            kept = self._cache.get(key) if key is not None else None
            if kept is not None:
                self._tally(kept.version).add_hit(perf_counter_ns() - start_ns)
                return kept
        looked_ns = perf_counter_ns() - start_ns if key is not None else 0
        gate = self.gate
        queued_ns = 0
        try:
            if gate.running < gate.width and not gate.waiting:
                gate.running += 1
            else:
                await gate.enter(priority or self.serving.priority)
                queued_ns = perf_counter_ns() - start_ns
            try:
                version = live.info
                if version is not self._image_of:
                    self._meet(version)
                if self._image is not None and is_encoded(inputs.get(self._image.name)):
                    inputs = await self._decode_images(self._image, inputs)
                prediction = await live.predict(inputs, timeout=timeout)
            finally:
                gate.leave()
        except BaseException:
            if self.live is not None:
                self._tally(live.info).add_failed(perf_counter_ns() - start_ns)
            raise
        took_ns = perf_counter_ns() - start_ns
        tally = self.tallies.get(prediction.version.version) or self._tally(prediction.version)
        tally.queue_ns += queued_ns
        tally.add(took_ns, rows_of(inputs), alone=type(prediction) is not JoinedPrediction)
        if began_ns:
            tally.decode_ns += start_ns - began_ns
        if key is not None and self._cache is not None:
            tally.misses += 1
            tally.miss_ns += looked_ns
            if prediction.version.digest == digest:
                self._cache.put(key, prediction)
        return prediction

    # -- calls that go past `predict`, because they need no task

    def takes_images(self) -> bool:
        """Whether one of the inputs may come as encoded images, which only `predict` decodes."""
        version = self.handle().info
        if version is not self._image_of:
            self._meet(version)
        return self._image is not None

    def recall(self, inputs: Mapping[str, Any]) -> tuple[CacheKey | None, CachedPrediction | None]:
        """What is kept for ``inputs``, which is counted, or the key to `remember` the answer under."""
        start_ns = perf_counter_ns()
        digest = self.handle().digest
        key = input_key(digest, inputs)
        if self._cache is None or key is None:
            return None, None
        kept = self._cache.get(key)
        if kept is not None:
            self._tally(kept.version).add_hit(perf_counter_ns() - start_ns)
            return None, kept
        tally = self._tally(self.handle().info)
        tally.misses += 1
        tally.miss_ns += perf_counter_ns() - start_ns
        return (digest, key), None

    def remember(self, key: CacheKey, version: ModelVersion, outputs: Iterable[tuple[str, Any]]) -> None:
        """Keeps an answer, unless a new version came between `recall` and the run."""
        digest, inputs = key
        if self._cache is not None and version.digest == digest:
            prediction = Prediction(outputs)
            prediction.version = version
            self._cache.put(inputs, prediction)

    def count(self, version: ModelVersion, took_ns: int, rows: int, *, alone: bool) -> None:
        """Adds an answered call to the statistics; ``alone`` if its run was for it only."""
        tally = self.tallies.get(version.version) or self._tally(version)
        tally.add(took_ns, rows, alone=alone)

    def count_failed(self, took_ns: int) -> None:
        """Adds a call that got an error."""
        if self.live is not None and self.live.state is not ModelState.CLOSED:
            self._tally(self.live.info).add_failed(took_ns)

    def check_outputs(self, names: Sequence[str]) -> None:
        """Refuses names of outputs that the model does not have, before anything runs.

        Raises:
            InputError: Says which outputs there are.
        """
        if self.live is None:
            return
        known = [spec.name for spec in self.live.signature.outputs]
        for name in names:
            if name not in known:
                raise InputError(
                    f"{shown(name)} is not an output of {self.name}: expected {', '.join(map(shown, known))}"
                )

    def statistics(self, name: str, version: int | None = None) -> list[dict[str, Any]]:
        """Entries of the protocol's ``model_stats``, for all versions or for one."""
        if self.live is not None:
            self._tally(self.live.info)
        return [
            tally.to_json(name)
            for number, tally in sorted(self.tallies.items())
            if version is None or number == version
        ]

    # -- state

    def set_ready(self, live: LiveModel) -> None:
        """It answers."""
        self.live = live
        self.state, self.reason = ServingState.READY, ""
        self.tune()
        self._conclude(None)

    def set_failed(self, error: ModelBoxError) -> None:
        """It could not be loaded, for now."""
        self.state, self.reason = ServingState.UNAVAILABLE, error.message
        self._conclude(error)

    def set_unloading(self) -> None:
        """It takes no more calls."""
        self.state, self.reason = ServingState.UNLOADING, "unloading"
        self._conclude(NotFoundError(f"{self.ref} was unloaded"))

    def set_unloaded(self) -> None:
        """It is gone."""
        self.state, self.reason = ServingState.UNAVAILABLE, "unloaded"

    async def try_now(self) -> None:
        """Ends the pause before the next attempt to load, and waits for how that ends.

        Raises:
            ModelBoxError: It could not be loaded.
        """
        attempt: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._attempts.append(attempt)
        self._wake.set()
        await attempt

    async def wait_before_retry(self, pause_s: float) -> None:
        """Waits for ``pause_s`` seconds, or less if somebody asks for the model by name."""
        with anyio.move_on_after(pause_s):
            await self._wake.wait()
        self._wake.clear()
        self.state, self.reason = ServingState.LOADING, self.reason

    async def wait_idle(self, timeout_s: float) -> None:
        """Waits until no accepted call is left, but not longer than ``timeout_s`` seconds."""
        with anyio.move_on_after(timeout_s):
            await self.gate.wait_idle()

    def tune(self) -> None:
        """Sets the queue's width by how the model runs now: enough calls inside to keep its threads busy."""
        generation = self._generation()
        if generation is None:
            return
        self._at_once = False
        if generation.batching and generation.average_ns >= self._alone_below_ns:
            # One batch for each thread, and the next one being collected.
            self.gate.width = (self._threads + 1) * self._options.max_batch
        elif self._options.mode is not Mode.POOL and generation.average_ns < self._options.inline_below_s * 1e9:
            self.gate.width = _FAST_WIDTH
            self._at_once = self._image is None
        elif self._options.mode is Mode.INLINE:
            self.gate.width = 1
        else:
            self.gate.width = 2 * self._threads
        self.gate.admit()

    def _conclude(self, error: ModelBoxError | None) -> None:
        attempts, self._attempts = self._attempts, []
        for attempt in attempts:
            if attempt.done():
                continue
            if error is None:
                attempt.set_result(None)
            else:
                attempt.set_exception(error)

    def _generation(self) -> Generation | None:
        # In this process a handle's runner is the loader's own.
        return cast("Generation | None", self.live._runner.active) if self.live is not None else None

    def _drain_s(self) -> float:
        generation = self._generation()
        if generation is None:
            return 1.0
        each_ns = generation.row_ns if generation.batching else generation.average_ns
        return each_ns / 1e9 / self._threads if each_ns < math.inf else 0.0

    def _tally(self, version: ModelVersion) -> VersionTally:
        tally = self.tallies.get(version.version)
        if tally is None:
            generation = self._generation()
            same = generation is not None and generation.version.version == version.version
            run = generation.stats if generation is not None and same else CallStats()
            tally = self.tallies[version.version] = VersionTally(version.version, run)
            for oldest in list(self.tallies)[:-_TALLIES_KEPT]:
                del self.tallies[oldest]
        return tally

    def _meet(self, version: ModelVersion) -> None:
        """Notes what is particular to a version, with its first call."""
        assert self.live is not None
        self._image_of, self._image = version, None
        try:
            self._image = read_image_input(version.metadata, self.live.signature)
        except InvalidError as exc:
            _LOG.warning("%s version %d takes no images: %s", self.name, version.version, exc)
        # It may be slower or faster than the one before.
        self.tune()

    async def _decode_images(self, image: ImageInput, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        decoded = await anyio.to_thread.run_sync(image.decode, inputs[image.name])
        return {**inputs, image.name: decoded}

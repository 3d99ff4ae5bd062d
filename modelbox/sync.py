"""ModelBox for code that is not async: the same models, blocking.

::

    model = modelbox.sync.load("langtech/wav2vec@prod")
    outputs = model.predict({"input": waveform})

Everything but the waiting is the same as in `modelbox.load`: one engine thread downloads, watches and swaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from numpy.typing import ArrayLike

from modelbox._default import default_client
from modelbox.loader.runner import Lease, Prediction
from modelbox.loader.settings import LoadOptions
from modelbox.model import LiveModel, ModelState
from modelbox.objects import JsonValue
from modelbox.otel import ModelMeter
from modelbox.refs import Digest, ModelRef
from modelbox.signature import Signature

__all__ = ("SyncModel", "load")


class SyncModel:
    """`modelbox.LiveModel` with blocking methods; may be shared by threads."""

    def __init__(self, model: LiveModel) -> None:
        self._model = model

    @property
    def ref(self) -> str:
        """The reference as it was asked for."""
        return self._model.ref

    @property
    def version(self) -> int:
        """Number of the version that answers now."""
        return self._model.version

    @property
    def digest(self) -> Digest:
        """Digest of its manifest."""
        return self._model.digest

    @property
    def signature(self) -> Signature:
        """Its inputs and outputs."""
        return self._model.signature

    @property
    def metadata(self) -> Mapping[str, JsonValue]:
        """Its metadata."""
        return self._model.metadata

    @property
    def state(self) -> ModelState:
        """See `modelbox.LiveModel.state`."""
        return self._model.state

    @property
    def stale(self) -> bool:
        """Whether the server cannot be reached."""
        return self._model.stale

    @property
    def meter(self) -> ModelMeter:
        """Business metrics."""
        return self._model.meter

    def predict(self, inputs: Mapping[str, ArrayLike]) -> Prediction:
        """Runs the model in the calling thread; arguments, result and errors as `modelbox.LiveModel.predict`."""
        return self._model.predict_sync(inputs)

    def lease(self) -> Lease:
        """Holds on to the version that answers now: ``with model.lease() as lease: lease.predict_sync(…)``."""
        return self._model.lease()

    def close(self) -> None:
        """Gives the reference back. Idempotent."""
        self._model.close_sync()

    def __enter__(self) -> SyncModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._model).replace("LiveModel", "SyncModel", 1)


def load(ref: str | ModelRef, *, options: LoadOptions | None = None, timeout: float | None = None) -> SyncModel:
    """Loads ``ref`` on the process's default client and waits until it answers; see `modelbox.load`."""
    return SyncModel(default_client().load_sync(ref, options=options, timeout=timeout))

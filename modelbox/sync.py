"""ModelBox for code that is not async: the same names, blocking.

::

    model = modelbox.sync.load("langtech/wav2vec@prod")
    outputs = model.predict({"input": waveform})

    with modelbox.sync.Client() as client:
        with client.start_run("langtech/wav2vec-lid") as run:
            run.log_metric("loss", 0.25, step=1)

Everything but the waiting is the same as in `modelbox`: one engine thread downloads, watches and swaps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import ArrayLike

from modelbox._blocking import BlockingClient, finish
from modelbox._default import default_client
from modelbox._sync_calls import SyncCalls
from modelbox.config import ClientConfig
from modelbox.engine import Engine
from modelbox.feed import Change, Resync
from modelbox.loader.runner import Lease, Prediction
from modelbox.loader.settings import LoadOptions
from modelbox.model import LiveModel, ModelState
from modelbox.objects import JsonValue
from modelbox.otel import ModelMeter
from modelbox.refs import Digest, ModelRef
from modelbox.run import LiveRun
from modelbox.signature import Signature

if TYPE_CHECKING:
    from modelbox.changes import ChangeFeed

__all__ = ("Client", "SyncChangeFeed", "SyncModel", "load")


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


class SyncChangeFeed(Iterator[Change | Resync]):
    """`modelbox.changes.ChangeFeed`, blocking: iterate over it in ``with``; one thread at a time."""

    def __init__(self, feed: ChangeFeed, engine: Engine) -> None:
        self._feed = feed
        self._engine = engine

    @property
    def token(self) -> str:
        """Resumes after everything returned so far."""
        return self._feed.token

    def __next__(self) -> Change | Resync:
        try:
            return finish(self._feed.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """Ends the stream. Idempotent."""
        self._engine.call_sync(self._feed.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Client(SyncCalls):
    """`modelbox.Client`, blocking: the same methods with the same arguments, results and errors.

    ::

        with modelbox.sync.Client("http://127.0.0.1:8080") as client:
            client.publish("langtech/wav2vec", "model.onnx", aliases=["staging"])

    Arguments as for `modelbox.Client`. May be shared by threads. Without ``with``, call `close` at the end.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        config: ClientConfig | None = None,
        engine: Engine | None = None,
        **settings: Any,
    ) -> None:
        self._client = BlockingClient(url, config=config, engine=engine, **settings)

    @property
    def config(self) -> ClientConfig:
        """The settings in force; see `modelbox.Client.config`."""
        return self._client.config

    @property
    def engine(self) -> Engine:
        """The engine that this client's work runs in."""
        return self._client.engine

    def load(
        self, ref: str | ModelRef, *, options: LoadOptions | None = None, timeout: float | None = None
    ) -> SyncModel:
        """Brings a model into service and keeps it up to date; see `modelbox.Client.load`."""
        return SyncModel(self._client.load_sync(ref, options=options, timeout=timeout))

    def start_run(
        self,
        experiment: str,
        *,
        name: str = "",
        params: Mapping[str, JsonValue] | None = None,
        tags: Mapping[str, str] | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
        parent: LiveRun | str | None = None,
        resume: str | None = None,
        system_metrics: bool | float = False,
        capture: bool = True,
        strict: bool = False,
        flush_timeout_s: float = 10.0,
    ) -> LiveRun:
        """A run to log to, which begins with ``with``; see `modelbox.Client.start_run`."""
        return self._client.start_run(
            experiment,
            name=name,
            params=params,
            tags=tags,
            metadata=metadata,
            parent=parent,
            resume=resume,
            system_metrics=system_metrics,
            capture=capture,
            strict=strict,
            flush_timeout_s=flush_timeout_s,
        )

    def changes(
        self,
        token: str = "",
        *,
        namespace: str = "",
        objects: Sequence[str] = (),
        kinds: Sequence[str] = (),
        list_first: bool = False,
    ) -> SyncChangeFeed:
        """Follows what ModelBox does; see `modelbox.Client.changes`."""
        feed = self._client.changes(token, namespace=namespace, objects=objects, kinds=kinds, list_first=list_first)
        return SyncChangeFeed(feed, self._client.engine)

    def close(self) -> None:
        """Closes connections, and the engine where it is the client's own. Idempotent."""
        self._client.close()

    def __enter__(self) -> Self:
        _ = self.config
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(ref: str | ModelRef, *, options: LoadOptions | None = None, timeout: float | None = None) -> SyncModel:
    """Loads ``ref`` on the process's default client and waits until it answers; see `modelbox.load`."""
    return SyncModel(default_client().load_sync(ref, options=options, timeout=timeout))

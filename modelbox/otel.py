"""Telemetry: what a model's calls, reloads and business metrics look like to OpenTelemetry.

Owns the names of every metric (the constants below, listed for users in ``docs/metrics.md``), the instruments, and the
two exporters. Works with nothing but the OpenTelemetry API installed: then nothing is exported. With the ``otel``
extra, `configure_prometheus` and `configure_otlp` each add one exporter, to the application's own ``MeterProvider``
where it has set one.

The call path does not use OpenTelemetry's instruments, which cost more than a small model: calls add to a `Ledger`, and
the exporters' readers read it as true sums and histograms at the moment of an export.

Labels are bounded: model, version, alias, outcome, stage. Never a digest, path, id or anything a user typed.
"""

from __future__ import annotations

import atexit
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace

from modelbox.errors import ConfigError
from modelbox.events import (
    DownloadProgress,
    ModelEvent,
    ReloadFailed,
    ReloadSucceeded,
    SessionFreed,
    StaleChanged,
    StateConfirmed,
)
from modelbox.loader.ledger import CallLabels, Ledger
from modelbox.loader.stats import Histogram
from modelbox.redaction import redact
from modelbox.refs import ModelRef

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import Metric, MetricReader, MetricsData
    from prometheus_client import CollectorRegistry

__all__ = (
    "CALLS",
    "CALL_DURATION",
    "ModelCounter",
    "ModelHistogram",
    "ModelMeter",
    "Telemetry",
    "configure_otlp",
    "configure_prometheus",
    "flush",
    "render_prometheus",
)

CALLS = "modelbox.calls"
CALL_DURATION = "modelbox.call.duration"
BATCH_SIZE = "modelbox.batch.size"
QUEUE_DURATION = "modelbox.queue.duration"
RELOADS = "modelbox.reloads"
RELOAD_DURATION = "modelbox.reload.duration"
SESSIONS_FREED = "modelbox.sessions.freed"
STALE = "modelbox.stale"
STATE_AGE = "modelbox.state.age"
DOWNLOAD_BYTES = "modelbox.download.bytes"
CACHE_REQUESTS = "modelbox.cache.requests"
PREDICT_SPAN = "modelbox.predict"

_SCOPE = "modelbox"
_ledgers: weakref.WeakSet[Ledger] = weakref.WeakSet()
_telemetries: weakref.WeakSet[Telemetry] = weakref.WeakSet()
_pushing: list[MetricReader] = []


class Telemetry:
    """Counts the events of one client's models; an `Observer`. Its ``ledger`` takes the calls."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        _ledgers.add(self.ledger)
        _telemetries.add(self)
        meter = metrics.get_meter(_SCOPE)
        self._reloads = meter.create_counter(RELOADS, description="Reloads by outcome (ok, failed, quarantined)")
        self._stages = meter.create_histogram(RELOAD_DURATION, unit="s", description="Duration of a reload by stage")
        self._freed = meter.create_counter(SESSIONS_FREED, description="Replaced sessions whose memory was freed")
        self._bytes = meter.create_counter(DOWNLOAD_BYTES, unit="By", description="Verified bytes of fetched versions")
        self._cache = meter.create_counter(CACHE_REQUESTS, description="Versions asked of the cache (hit, miss)")
        self._stale_by_ref: dict[str, bool] = {}
        self._fetched: dict[str, int] = {}
        meter.create_observable_gauge(
            STALE, callbacks=[_observe_stale], description="1 while the server cannot be reached"
        )
        self._confirmed_s: dict[str, float] = {}
        meter.create_observable_gauge(
            STATE_AGE,
            unit="s",
            callbacks=[_observe_state_age],
            description="Time since the server last said what the reference points to",
        )

    def __call__(self, event: ModelEvent, /) -> None:
        """Counts one event."""
        labels = _ref_labels(ModelRef.parse(event.ref))
        if isinstance(event, ReloadSucceeded):
            self._stale_by_ref.setdefault(event.ref, False)
            # Without a server it is of unknown age, and ages from here.
            self._confirmed_s.setdefault(event.ref, time.monotonic())
            self._fetched.pop(event.ref, None)
            self._reloads.add(1, {**labels, "outcome": "ok"})
            for stage, seconds in event.stage_s.items():
                self._stages.record(seconds, {**labels, "stage": stage})
        elif isinstance(event, ReloadFailed):
            self._fetched.pop(event.ref, None)
            outcome = "quarantined" if event.quarantined else "failed"
            self._reloads.add(1, {**labels, "outcome": outcome})
        elif isinstance(event, SessionFreed):
            self._freed.add(1, {**labels, "outcome": "forced" if event.forced else "drained"})
        elif isinstance(event, StaleChanged):
            self._stale_by_ref[event.ref] = event.stale
        elif isinstance(event, StateConfirmed):
            self._confirmed_s[event.ref] = time.monotonic()
        elif isinstance(event, DownloadProgress):
            # The first event of a fetch says what the cache held.
            before = self._fetched.get(event.ref)
            self._fetched[event.ref] = event.done_bytes
            if before is None:
                outcome = "hit" if event.done_bytes == event.total_bytes else "miss"
                self._cache.add(1, {**labels, "outcome": outcome})
            elif event.done_bytes > before:
                self._bytes.add(event.done_bytes - before, labels)

    def begins(self, ref: ModelRef, *, stale: bool) -> None:
        """Shows a reference that answers without a reload having been told of: a sidecar's.

        Exporters pass over a process that has nothing to show, and so over its calls.
        """
        self._stale_by_ref.setdefault(str(ref), stale)


# Of all clients: the SDK keeps the callbacks only of the first instrument of a name.


def _observe_stale(_: metrics.CallbackOptions) -> Iterator[metrics.Observation]:
    found: dict[str, bool] = {}
    for telemetry in list(_telemetries):
        for ref, stale in list(telemetry._stale_by_ref.items()):
            found[ref] = stale or found.get(ref, False)
    for ref, stale in found.items():
        yield metrics.Observation(int(stale), _ref_labels(ModelRef.parse(ref)))


def _observe_state_age(_: metrics.CallbackOptions) -> Iterator[metrics.Observation]:
    found: dict[str, float] = {}
    for telemetry in list(_telemetries):
        for ref, at in list(telemetry._confirmed_s.items()):
            found[ref] = min(at, found.get(ref, at))
    now = time.monotonic()
    for ref, at in found.items():
        yield metrics.Observation(now - at, _ref_labels(ModelRef.parse(ref)))


def is_sampled() -> bool:
    """Whether the caller is inside of a span that is recorded; a fraction of a microsecond."""
    return trace.get_current_span().is_recording()


@contextmanager
def predict_span(ref: ModelRef) -> Iterator[Callable[[int], None]]:
    """A span around one prediction; tell it the version that answered. Inputs and outputs are never recorded."""
    with trace.get_tracer(_SCOPE).start_as_current_span(
        PREDICT_SPAN, attributes=_ref_labels(ref), record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield lambda version: span.set_attribute("version", str(version))
        except Exception as exc:
            # The SDK's own record has the whole traceback, with what stands in it.
            text = redact(str(exc))
            span.add_event("exception", {"exception.type": type(exc).__qualname__, "exception.message": text})
            span.set_status(trace.Status(trace.StatusCode.ERROR, text))
            raise


class ModelMeter:
    """Makes business metrics that carry the model, version and alias which answered.

    The instruments are OpenTelemetry's own: they reach whatever exporters the application has.
    """

    def __init__(self, ref: ModelRef, version: Callable[[], int]) -> None:
        self._labels = _ref_labels(ref)
        self._version = version
        self._instruments: dict[tuple[str, str], Any] = {}

    def counter(self, name: str, *, unit: str = "", description: str = "") -> ModelCounter:
        """A sum that only grows, such as ``transcripts.accepted``."""
        make = metrics.get_meter(_SCOPE).create_counter
        return ModelCounter(self._instrument("counter", name, make, unit, description), self._now)

    def histogram(self, name: str, *, unit: str = "", description: str = "") -> ModelHistogram:
        """A distribution, such as ``confidence``."""
        make = metrics.get_meter(_SCOPE).create_histogram
        return ModelHistogram(self._instrument("histogram", name, make, unit, description), self._now)

    def _instrument(self, kind: str, name: str, make: Callable[..., Any], unit: str, description: str) -> Any:
        key = (kind, name)
        if key not in self._instruments:
            self._instruments[key] = make(name, unit=unit, description=description)
        return self._instruments[key]

    def _now(self, attributes: Mapping[str, str] | None) -> dict[str, str]:
        return {**(attributes or {}), **self._labels, "version": str(self._version())}


class ModelCounter:
    """A counter of one model."""

    def __init__(self, counter: metrics.Counter, labels: Callable[[Mapping[str, str] | None], dict[str, str]]) -> None:
        self._counter = counter
        self._labels = labels

    def add(self, amount: float, attributes: Mapping[str, str] | None = None) -> None:
        """Adds ``amount`` (0 or more). ``attributes`` must have few distinct values: each combination is a series."""
        self._counter.add(amount, self._labels(attributes))


class ModelHistogram:
    """A histogram of one model."""

    def __init__(
        self, histogram: metrics.Histogram, labels: Callable[[Mapping[str, str] | None], dict[str, str]]
    ) -> None:
        self._histogram = histogram
        self._labels = labels

    def record(self, value: float, attributes: Mapping[str, str] | None = None) -> None:
        """Adds one value; see `ModelCounter.add` for ``attributes``."""
        self._histogram.record(value, self._labels(attributes))


def configure_prometheus(*, registry: CollectorRegistry | None = None) -> None:
    """Exports to Prometheus, into ``registry`` (its default one): for `render_prometheus`, or a server of its own.

    Raises:
        ConfigError: The ``otel`` extra is not installed.
    """
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import REGISTRY
    except ImportError as exc:
        raise _missing_extra("Prometheus", exc) from exc

    class Reader(PrometheusMetricReader):
        def _receive_metrics(self, metrics_data: Any, timeout_millis: float = 10_000, **kwargs: Any) -> None:
            super()._receive_metrics(_with_calls(metrics_data), timeout_millis, **kwargs)

    _provider().add_metric_reader(Reader(scope_info_enabled=False, registry=registry or REGISTRY))


def render_prometheus(*, registry: CollectorRegistry | None = None) -> bytes:
    """The text that Prometheus scrapes (``text/plain; version=0.0.4``); run it in a thread where there are many series.

    Raises:
        ConfigError: The ``otel`` extra is not installed.
    """
    try:
        from prometheus_client import REGISTRY, generate_latest
    except ImportError as exc:
        raise _missing_extra("Prometheus", exc) from exc
    return generate_latest(registry or REGISTRY)


def configure_otlp(*, endpoint: str | None = None, interval_s: float = 60.0) -> None:
    """Exports to an OpenTelemetry collector over OTLP/HTTP, every ``interval_s`` seconds and at exit.

    Args:
        endpoint: Such as ``http://collector:4318/v1/metrics``; None leaves it to ``OTEL_EXPORTER_OTLP_ENDPOINT``.
        interval_s: Seconds between exports.

    Raises:
        ConfigError: The ``otel`` extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    except ImportError as exc:
        raise _missing_extra("OTLP", exc) from exc

    class Reader(PeriodicExportingMetricReader):
        def _receive_metrics(self, metrics_data: Any, timeout_millis: float = 10_000, **kwargs: Any) -> None:
            super()._receive_metrics(_with_calls(metrics_data), timeout_millis, **kwargs)

    reader = Reader(OTLPMetricExporter(endpoint=endpoint), export_interval_millis=interval_s * 1e3)
    _provider().add_metric_reader(reader)
    _pushing.append(reader)
    atexit.register(reader.shutdown)


def flush(*, timeout_s: float = 5.0) -> None:
    """Exports what was counted since the last export, to every collector; blocks. Without one it does nothing.

    For programs that end without running their exit handlers: uvicorn ends by the signal that it got. Call it before
    `aclose`. (``MeterProvider.force_flush`` skips readers that were added after the provider was made, as ours are.)

    Args:
        timeout_s: Seconds for each collector. One that does not answer is logged, not raised.
    """
    for reader in list(_pushing):
        reader.force_flush(timeout_millis=timeout_s * 1e3)


def _missing_extra(what: str, exc: ImportError) -> ConfigError:
    return ConfigError(f"the {what} exporter needs {exc.name}: pip install 'modelbox[otel]'", extra="otel")


def _provider() -> MeterProvider:
    """The application's own provider where it has one, otherwise a new one."""
    from opentelemetry.sdk.metrics import MeterProvider

    provider = metrics.get_meter_provider()
    if not isinstance(provider, MeterProvider):
        provider = MeterProvider()
        metrics.set_meter_provider(provider)
    return provider


def _ref_labels(ref: ModelRef) -> dict[str, str]:
    # A reference by digest would put the digest into a label.
    return {"model": ref.path, "alias": ref.alias or ""}


# -- the ledger in the exporters' own terms


def _with_calls(data: MetricsData | None) -> MetricsData:
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    ours = ScopeMetrics(scope=InstrumentationScope(_SCOPE), metrics=_call_metrics(), schema_url="")
    resources = list(data.resource_metrics) if data is not None else []
    if resources:
        first = resources[0]
        resources[0] = ResourceMetrics(
            resource=first.resource, scope_metrics=[*first.scope_metrics, ours], schema_url=first.schema_url
        )
    else:
        resources = [ResourceMetrics(resource=Resource.create(), scope_metrics=[ours], schema_url="")]
    return MetricsData(resource_metrics=resources)


def _call_metrics() -> Sequence[Metric]:
    from opentelemetry.sdk.metrics.export import AggregationTemporality, Metric, NumberDataPoint, Sum

    now = time.time_ns()
    calls: list[NumberDataPoint] = []
    durations: list[Any] = []
    queues: list[Any] = []
    batches: list[Any] = []
    for ledger in list(_ledgers):
        for labels, stats in ledger.entries():
            attributes = _call_attributes(labels)
            began, snapshot = ledger.began_ns, stats.snapshot()
            for outcome, histogram in snapshot.duration_s.items():
                if histogram.count or outcome == "ok":
                    calls.append(
                        NumberDataPoint(
                            attributes={**attributes, "outcome": outcome.value},
                            start_time_unix_nano=began,
                            time_unix_nano=now,
                            value=histogram.count,
                        )
                    )
                if outcome == "ok":
                    durations.append(_point(histogram, attributes, began, now))
            if snapshot.queue_s.count:
                queues.append(_point(snapshot.queue_s, attributes, began, now))
            if snapshot.batch_size.count:
                batches.append(_point(snapshot.batch_size, attributes, began, now))
    cumulative = AggregationTemporality.CUMULATIVE
    found = [
        Metric(
            name=CALLS,
            description="Calls by outcome",
            unit="",
            data=Sum(data_points=calls, aggregation_temporality=cumulative, is_monotonic=True),
        )
    ]
    for name, unit, text, points in (
        (CALL_DURATION, "s", "Duration of answered calls, as their callers see it", durations),
        (QUEUE_DURATION, "s", "Time that a call waited for its run to start", queues),
        (BATCH_SIZE, "", "Calls per run of the batching path", batches),
    ):
        found.append(_histogram_metric(name, unit, text, points))
    return [metric for metric in found if metric.data.data_points]


def _call_attributes(labels: CallLabels) -> dict[str, str]:
    return {"model": labels.model, "version": str(labels.version), "alias": labels.alias}


def _histogram_metric(name: str, unit: str, description: str, points: list[Any]) -> Metric:
    from opentelemetry.sdk.metrics import export

    data = export.Histogram(data_points=points, aggregation_temporality=export.AggregationTemporality.CUMULATIVE)
    return export.Metric(name=name, description=description, unit=unit, data=data)


def _point(histogram: Histogram, attributes: dict[str, str], began_ns: int, now_ns: int) -> Any:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

    return HistogramDataPoint(
        attributes=attributes,
        start_time_unix_nano=began_ns,
        time_unix_nano=now_ns,
        count=histogram.count,
        sum=histogram.sum,
        bucket_counts=list(histogram.buckets),
        explicit_bounds=list(histogram.bounds),
        min=0.0,
        max=0.0,
    )

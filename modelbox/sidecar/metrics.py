"""What Prometheus scrapes from the sidecar: its models' calls and reloads, its queues, its connections, the process.

Owns the one registry and the names of the sidecar's own metrics (listed in ``docs/metrics.md``); those of the models
come from `modelbox.otel`, the same as in an application that loads them itself. Labels are bounded: models, as they are
configured or loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Gauge, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from modelbox import otel
from modelbox.sidecar.service import InferenceService

__all__ = ("SidecarMetrics",)


class SidecarMetrics:
    """All metrics of one sidecar; made before the first model is loaded. Concurrency: any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        otel.configure_prometheus(registry=self._registry)
        ProcessCollector(registry=self._registry)

    def observe(self, service: InferenceService, *, version: str) -> None:
        """Adds the queues and the state of ``service``."""
        self._registry.register(_Service(service))
        Info("modelbox_sidecar", "Version of the sidecar.", registry=self._registry).info({"version": version})

    def observe_gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Adds a gauge that is read when it is scraped."""
        Gauge(name, help_text, registry=self._registry).set_function(read)

    def render(self) -> bytes:
        """The text that Prometheus reads; takes milliseconds, so call it in a thread."""
        return otel.render_prometheus(registry=self._registry)


class _Service(Collector):
    def __init__(self, service: InferenceService) -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        labels = ["model", "alias"]
        ready = GaugeMetricFamily("modelbox_sidecar_model_ready", "1 while the reference answers.", labels=labels)
        waiting = GaugeMetricFamily("modelbox_sidecar_queue_waiting", "Calls that wait for their turn.", labels=labels)
        running = GaugeMetricFamily("modelbox_sidecar_queue_running", "Calls whose turn it is.", labels=labels)
        refused = CounterMetricFamily(
            "modelbox_sidecar_queue_refused", "Calls that were refused because too many waited.", labels=labels
        )
        for served in self._service.models():
            values = [served.name, served.ref.alias or ""]
            ready.add_metric(values, int(served.live is not None))
            waiting.add_metric(values, served.gate.waiting)
            running.add_metric(values, served.gate.running)
            refused.add_metric(values, served.gate.refused)
        yield from (ready, waiting, running, refused)
        yield GaugeMetricFamily(
            "modelbox_sidecar_ready", "1 while every configured model answers.", value=int(self._service.ready())
        )
        cache = self._service.cache
        if cache is not None:
            requests = CounterMetricFamily(
                "modelbox_sidecar_prediction_cache_requests",
                "Calls looked up in the prediction cache.",
                labels=["outcome"],
            )
            requests.add_metric(["hit"], cache.hits)
            requests.add_metric(["miss"], cache.misses)
            yield requests
            yield GaugeMetricFamily(
                "modelbox_sidecar_prediction_cache_bytes", "Memory of the prediction cache.", value=cache.size_bytes
            )

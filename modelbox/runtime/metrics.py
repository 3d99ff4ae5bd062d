"""What Prometheus scrapes: calls of both protocols, database timings, streams, the process.

Owns the names of the server's metrics (listed in ``docs/metrics.md``) and the one registry that they live in. Labels
are bounded: methods and routes as they are declared, never a path, name or id of a caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

__all__ = ("Metrics",)


_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The server's metrics. Concurrency: any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._calls = Histogram(
            "modelbox_api_duration_seconds",
            "Time from a call's first byte to its last, by protocol, method and status.",
            ["protocol", "method", "status"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._running = Gauge(
            "modelbox_api_running", "Calls that run now, streams included.", ["protocol"], registry=self._registry
        )
        # Finding a series by its labels costs more than counting in it.
        self._call_series: dict[tuple[str, str, str], Histogram] = {}
        self._running_series = {protocol: self._running.labels(protocol) for protocol in ("grpc", "http")}
        self._database = Histogram(
            "modelbox_database_duration_seconds",
            "Time of a database operation: a function that reads or writes, or a commit.",
            ["operation", "outcome"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._bytes = Counter(
            "modelbox_transfer_bytes",
            "Bytes of files, by protocol and direction (in: uploaded, out: downloaded).",
            ["protocol", "direction"],
            registry=self._registry,
        )
        self._slow = Counter(
            "modelbox_slow_readers", "Streams cut off because nobody read them.", ["protocol"], registry=self._registry
        )
        self._info = Info("modelbox_server", "Version of the server.", registry=self._registry)
        ProcessCollector(registry=self._registry)

    def describe(self, **labels: str) -> None:
        """Sets the labels of ``modelbox_server_info``."""
        self._info.info(labels)

    def observe_gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Adds a gauge that is read when it is scraped."""
        Gauge(name, help_text, registry=self._registry).set_function(read)

    def observe_call(self, protocol: str, method: str, status: str, seconds: float) -> None:
        """Counts a call."""
        labels = (protocol, method, status)
        series = self._call_series.get(labels)
        if series is None:
            series = self._call_series[labels] = self._calls.labels(*labels)
        series.observe(seconds)

    def observe_database(self, operation: str, seconds: float, succeeded: bool) -> None:
        """Counts a database operation."""
        self._database.labels(operation, "ok" if succeeded else "failed").observe(seconds)

    def count_bytes(self, protocol: str, direction: str, size_bytes: int) -> None:
        """Counts transferred bytes."""
        self._bytes.labels(protocol, direction).inc(size_bytes)

    def count_slow_reader(self, protocol: str) -> None:
        """Counts a stream that was cut off."""
        self._slow.labels(protocol).inc()

    @contextmanager
    def running(self, protocol: str) -> Iterator[None]:
        """Counts a call while it runs."""
        self.count_running(protocol, 1)
        try:
            yield
        finally:
            self.count_running(protocol, -1)

    def count_running(self, protocol: str, more: int) -> None:
        """Counts calls that begin, or end."""
        self._running_series[protocol].inc(more)

    def render(self) -> bytes:
        """The text that Prometheus reads; takes milliseconds, so call it in a thread."""
        return generate_latest(self._registry)

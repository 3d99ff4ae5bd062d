"""Where the metrics go: always to `/metrics` for Prometheus, and to an OTLP collector where one is named."""

from __future__ import annotations

from collections.abc import Mapping

import modelbox.otel
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider

__all__ = ("PROMETHEUS_CONTENT_TYPE", "configure_telemetry", "flush_telemetry")

PROMETHEUS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FLUSH_WITHIN_MS = 5_000


def configure_telemetry(environ: Mapping[str, str]) -> None:
    """Sets the exporters up; call it once, before the first model is loaded.

    Args:
        environ: ``OTEL_EXPORTER_OTLP_ENDPOINT``, such as ``http://collector:4318``, turns OTLP over HTTP on.
    """
    modelbox.otel.configure_prometheus()
    if environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        modelbox.otel.configure_otlp()  # reads the endpoint and all other OTEL_EXPORTER_OTLP_… itself


def flush_telemetry() -> None:
    """Sends what was counted since the last export; blocks.

    Call it before the process ends: uvicorn ends itself by the signal that it got, so nothing runs at exit.
    """
    provider = metrics.get_meter_provider()
    if isinstance(provider, MeterProvider):
        provider.force_flush(timeout_millis=_FLUSH_WITHIN_MS)

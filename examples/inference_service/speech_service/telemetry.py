"""Where the metrics go: always to `/metrics` for Prometheus, and to an OTLP collector where one is named."""

from __future__ import annotations

from collections.abc import Mapping

import modelbox.otel

__all__ = ("PROMETHEUS_CONTENT_TYPE", "configure_telemetry")

PROMETHEUS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def configure_telemetry(environ: Mapping[str, str]) -> None:
    """Sets the exporters up; call it once, before the first model is loaded.

    Args:
        environ: ``OTEL_EXPORTER_OTLP_ENDPOINT``, such as ``http://collector:4318``, turns OTLP over HTTP on.
    """
    modelbox.otel.configure_prometheus()
    if environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        modelbox.otel.configure_otlp()  # reads the endpoint and all other OTEL_EXPORTER_OTLP_… itself

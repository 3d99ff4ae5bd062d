"""What the exporters really say: Prometheus' text, and OTLP as a collector receives it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from modelbox.loader.ledger import CallLabels, Ledger

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from modelbox import otel
from modelbox.events import DownloadProgress, ReloadFailed, ReloadSucceeded, SessionFreed, StaleChanged
from modelbox.loader.ledger import CallLabels
from modelbox.loader.stats import Outcome
from modelbox.refs import Digest, ModelRef
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

received = []
class Collector(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip
            body = gzip.decompress(body)
        received.append(ExportMetricsServiceRequest.FromString(body))
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
collector = HTTPServer(("127.0.0.1", 0), Collector)
threading.Thread(target=collector.serve_forever, daemon=True).start()

otel.configure_prometheus()
otel.configure_otlp(endpoint=f"http://127.0.0.1:{collector.server_port}/v1/metrics", interval_s=3600)
telemetry = otel.Telemetry()
ref, digest = "ns/model@prod", Digest("sha256:" + "0" * 64)
stats = telemetry.ledger.stats(CallLabels(model="ns/model", version=3, alias="prod"))
for _ in range(5):
    stats.record_ok(2_000_000)
stats.record(Outcome.INVALID, 1000)
stats.record_batch([1000, 2000], [10, 20])
telemetry(ReloadSucceeded(ref=ref, version=3, digest=digest, previous_version=2, stage_s={"open": 0.5}))
telemetry(ReloadFailed(ref=ref, version=4, digest=digest, stage="open", code="load", reason="x", quarantined=True))
telemetry(SessionFreed(ref=ref, version=2, digest=digest, forced=False))
telemetry(DownloadProgress(ref=ref, version=3, done_bytes=0, total_bytes=30))
telemetry(DownloadProgress(ref=ref, version=3, done_bytes=10, total_bytes=30))
telemetry(DownloadProgress(ref=ref, version=3, done_bytes=30, total_bytes=30))
telemetry(StaleChanged(ref=ref, stale=True))
meter = otel.ModelMeter(ModelRef.parse(ref), lambda: 3)
meter.counter("speech.seconds", unit="s").add(1.5)
meter.histogram("confidence").record(0.5, {"channel": "phone"})
text = otel.render_prometheus().decode()
otel.flush()
metrics = {m.name: m for r in received for rm in r.resource_metrics for sm in rm.scope_metrics for m in sm.metrics}
duration = metrics["modelbox.call.duration"].histogram.data_points[0]
print(json.dumps({
    "prometheus": text,
    "otlp": sorted(metrics),
    "monotonic": metrics["modelbox.calls"].sum.is_monotonic,
    "calls": sum(p.as_int for p in metrics["modelbox.calls"].sum.data_points),
    "count": duration.count, "sum": duration.sum, "unit": metrics["modelbox.call.duration"].unit,
    "buckets": len(duration.bucket_counts) - len(duration.explicit_bounds),
}))
"""


@pytest.fixture(scope="module")
def exported() -> dict[str, object]:
    # A process of its own: OpenTelemetry's provider can be set only once in a process.
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(
    "line",
    [
        'modelbox_calls_total{alias="prod",model="ns/model",outcome="ok",version="3"} 7.0',
        'modelbox_calls_total{alias="prod",model="ns/model",outcome="invalid",version="3"} 1.0',
        'modelbox_call_duration_seconds_count{alias="prod",model="ns/model",version="3"} 7.0',
        'modelbox_batch_size_sum{alias="prod",model="ns/model",version="3"} 2.0',
        'modelbox_queue_duration_seconds_count{alias="prod",model="ns/model",version="3"} 2.0',
        'modelbox_reloads_total{alias="prod",model="ns/model",outcome="ok"} 1.0',
        'modelbox_reloads_total{alias="prod",model="ns/model",outcome="quarantined"} 1.0',
        'modelbox_reload_duration_seconds_sum{alias="prod",model="ns/model",stage="open"} 0.5',
        'modelbox_sessions_freed_total{alias="prod",model="ns/model",outcome="drained"} 1.0',
        'modelbox_stale{alias="prod",model="ns/model"} 1.0',
        'modelbox_download_bytes_total{alias="prod",model="ns/model"} 30.0',
        'modelbox_cache_requests_total{alias="prod",model="ns/model",outcome="miss"} 1.0',
        'speech_seconds_total{alias="prod",model="ns/model",version="3"} 1.5',
        'confidence_count{alias="prod",channel="phone",model="ns/model",version="3"} 1.0',
    ],
)
def test_prometheus_says(exported: dict[str, object], line: str) -> None:
    text = str(exported["prometheus"])
    assert line in text.splitlines(), "\n".join(found for found in text.splitlines() if line.split("{")[0] in found)


def test_the_age_of_what_is_known_is_shown(exported: dict[str, object]) -> None:
    (line,) = (
        line for line in str(exported["prometheus"]).splitlines() if line.startswith("modelbox_state_age_seconds{")
    )
    assert line.startswith('modelbox_state_age_seconds{alias="prod",model="ns/model"} ')
    assert float(line.rpartition(" ")[2]) >= 0


def test_a_collector_receives_true_sums_and_histograms(exported: dict[str, object]) -> None:
    names = exported["otlp"]
    assert isinstance(names, list)
    assert {"modelbox.calls", "modelbox.call.duration", "modelbox.reloads", "speech.seconds"} <= set(names)
    assert exported["monotonic"] is True
    assert exported["calls"] == 8
    assert (exported["count"], exported["unit"], exported["buckets"]) == (7, "s", 1)
    assert exported["sum"] == pytest.approx(0.010003, abs=1e-6)


def test_no_label_holds_what_is_unbounded(exported: dict[str, object]) -> None:
    assert "sha256" not in str(exported["prometheus"])


def test_a_ledger_keeps_the_newest_versions_of_each_reference() -> None:
    ledger = Ledger()
    first = ledger.stats(CallLabels(model="ns/a", version=1, alias="prod"))
    for version in range(2, 200):
        ledger.stats(CallLabels(model="ns/a", version=version, alias="prod"))
    other = ledger.stats(CallLabels(model="ns/b", version=1, alias="prod"))
    kept = [labels.version for labels, _ in ledger.entries() if labels.model == "ns/a"]
    assert kept == list(range(150, 200))
    assert ledger.stats(CallLabels(model="ns/b", version=1, alias="prod")) is other
    assert ledger.stats(CallLabels(model="ns/a", version=1, alias="prod")) is not first


def test_every_metric_is_documented() -> None:
    from modelbox import otel

    page = (ROOT / "docs" / "metrics.md").read_text()
    names = [
        value
        for name, value in vars(otel).items()
        if name.isupper() and isinstance(value, str) and "." in value and not name.endswith("_SPAN")
    ]
    assert len(names) >= 9
    for name in names:
        assert f"`{name}`" in page


async def test_a_sampled_call_gets_a_span_and_others_do_not() -> None:
    from opentelemetry.sdk.trace import TracerProvider

    from modelbox import otel
    from modelbox.refs import ModelRef

    assert not otel.is_sampled()
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("request"):
        assert otel.is_sampled()
        with otel.predict_span(ModelRef.parse("ns/model@prod")) as answered_by:
            answered_by(3)
    assert not otel.is_sampled()

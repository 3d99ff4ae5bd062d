"""Dashboard, alerts and autoscaling ask only for what our programs really export."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from tests.deploy.promql import Exported, exported_by, problems_with
from tests.server import ServerProcess
from tests.sidecar import SidecarProcess

DEPLOY = Path(__file__).parents[2] / "deploy"

# Everything that happens to a model, once.
LIBRARY = """
from modelbox import otel
from modelbox.events import DownloadProgress, ReloadFailed, ReloadSucceeded, SessionFreed, StaleChanged
from modelbox.loader.ledger import CallLabels
from modelbox.refs import Digest

otel.configure_prometheus()
telemetry = otel.Telemetry()
ref, digest = "ns/model@prod", Digest("sha256:" + "0" * 64)
stats = telemetry.ledger.stats(CallLabels(model="ns/model", version=3, alias="prod"))
stats.record_ok(2_000_000)
stats.record_batch([1000, 2000], [10, 20])
telemetry(ReloadSucceeded(ref=ref, version=3, digest=digest, previous_version=2, stage_s={"open": 0.5}))
telemetry(ReloadFailed(ref=ref, version=4, digest=digest, stage="open", code="load", reason="x", quarantined=True))
telemetry(SessionFreed(ref=ref, version=2, digest=digest, forced=False))
telemetry(DownloadProgress(ref=ref, version=3, done_bytes=0, total_bytes=30))
telemetry(DownloadProgress(ref=ref, version=3, done_bytes=30, total_bytes=30))
telemetry(StaleChanged(ref=ref, stale=True))
print(otel.render_prometheus().decode())
"""


def _queries() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "modelbox.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']}", target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield f"annotation {annotation['name']}", annotation["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']}", variable["query"]["query"]
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]
    for rule in _adapter_rules():
        yield f"adapter {rule['name']['as']}, series", rule["seriesQuery"]
        yield f"adapter {rule['name']['as']}", rule["metricsQuery"]


def _adapter_rules() -> list[dict[str, Any]]:
    values = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-adapter-values.yaml").read_text())
    rules: list[dict[str, Any]] = values["rules"]["custom"]
    return rules


QUERIES = dict(_queries())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """What a model, a server and a sidecar export, and what Prometheus adds by itself."""
    # A process of its own: OpenTelemetry's provider can be set only once in a process.
    library = subprocess.run([sys.executable, "-c", LIBRARY], capture_output=True, text=True, timeout=110, check=True)
    found: Exported = {"up": set(), **exported_by(library.stdout)}
    directory = tmp_path_factory.mktemp("exporters")
    with ServerProcess(directory / "server") as server:
        urlopen(f"{server.url}/healthz").close()
        sidecar = SidecarProcess(directory, server.url, "ns/model@prod")
        with contextlib.closing(sidecar.listen()):
            for url in (server.metrics_url, sidecar.metrics_url):
                with urlopen(url) as page:
                    for name, labels in exported_by(page.read().decode()).items():
                        found.setdefault(name, set()).update(labels)
    return found


@pytest.mark.parametrize("where", QUERIES)
def test_asks_for_what_is_exported(exported: Exported, where: str) -> None:
    assert problems_with(QUERIES[where], exported) == []


@pytest.mark.external
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_prometheus_itself_reads_all_of_it(tmp_path: Path) -> None:
    directory = DEPLOY / "prometheus"
    subprocess.run(["promtool", "check", "config", str(directory / "prometheus.yml")], check=True)
    # Debian's build knows no Kubernetes to find targets in; the rest of that file is as everywhere.
    cluster = yaml.safe_load((directory / "kubernetes.yml").read_text())
    for job in cluster["scrape_configs"]:
        assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    (tmp_path / "kubernetes.yml").write_text(yaml.safe_dump(cluster))
    subprocess.run(["promtool", "check", "config", str(tmp_path / "kubernetes.yml")], check=True)
    rules = [
        {"record": f"query:{number}", "expr": _filled_in(query)}
        for number, (where, query) in enumerate(QUERIES.items())
        if not where.startswith("variable")
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", str(path)], check=True)


def _filled_in(query: str) -> str:
    """A query as Grafana or the adapter would send it."""
    for placeholder, value in {
        "$__rate_interval": "1m",
        "$job": ".*",
        "$model": ".*",
        "<<.GroupBy>>": "pod",
        "<<.LabelMatchers>>": 'pod="p"',
    }.items():
        query = query.replace(placeholder, value)
    return query


def test_the_autoscaler_asks_for_what_the_adapter_gives() -> None:
    (autoscaler,) = yaml.safe_load_all((DEPLOY / "kubernetes" / "autoscaling.yaml").read_text())
    asked = {m["pods"]["metric"]["name"] for m in autoscaler["spec"]["metrics"] if m["type"] == "Pods"}
    assert asked == {rule["name"]["as"] for rule in _adapter_rules()}


def test_the_dashboard_lies_on_one_grid() -> None:
    panels = json.loads((DEPLOY / "grafana" / "dashboards" / "modelbox.json").read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        assert max(x for x, _ in cells) < 24, f"{panel['title']} is wider than the page"
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_alerts_say_what_to_do() -> None:
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
            assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
            assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]


@pytest.mark.parametrize("config", ["prometheus.yml"])
def test_prometheus_scrapes_what_compose_starts(config: str) -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    scraped = yaml.safe_load((DEPLOY / "prometheus" / config).read_text())
    assert all((DEPLOY / "prometheus" / name).is_file() for name in scraped["rule_files"])
    targets = [t for job in scraped["scrape_configs"] for static in job["static_configs"] for t in static["targets"]]
    assert {target.partition(":")[0] for target in targets} <= set(services)
    # The ports that the programs have by default.
    assert set(targets) == {"server-1:2112", "server-2:2112", "sidecar:8002", "example:8080"}


def test_alerts_name_jobs_that_are_scraped() -> None:
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    text = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    assert {job for job in (c["job_name"] for c in scraped) if f'job="{job}"' in text} == {"modelbox-server"}

"""Claims: what is printed, what is written, and when the demo has held."""

from __future__ import annotations

import io
import json
from pathlib import Path

from examples.demo.latency import figures
from examples.demo.report import Report


def test_a_claim_is_one_line_with_its_evidence() -> None:
    out = io.StringIO()
    report = Report(out)
    report.claim("0 failed calls", True, "0 of 120")
    report.claim("the services follow", False, "still version 2")
    assert out.getvalue().splitlines() == [
        "  ok       0 failed calls: 0 of 120",
        "  FAIL     the services follow: still version 2",
    ]


def test_nothing_claimed_is_nothing_held() -> None:
    assert not Report(io.StringIO()).held


def test_one_claim_that_failed_fails_the_demo_and_is_repeated_at_the_end() -> None:
    out = io.StringIO()
    report = Report(out)
    report.claim("first", True, "yes")
    assert report.held
    report.claim("second", False, "no")
    assert not report.held
    report.finish()
    assert "1 of 2 claims held" in out.getvalue()
    assert out.getvalue().count("second: no") == 2


def test_json_holds_claims_and_figures_without_nan(tmp_path: Path) -> None:
    report = Report(io.StringIO())
    report.claim("first", True, "yes")
    report.figures.append(figures("before", []))
    report.write_json(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["held"] is True
    assert content["claims"] == [{"name": "first", "held": True, "evidence": "yes"}]
    assert content["figures"][0]["p99_ms"] is None

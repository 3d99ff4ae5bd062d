"""Reading a metrics page back, against the library that writes such pages."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client import Histogram as PrometheusHistogram

from examples.demo.metrics import Histogram, read_page


def test_counters_and_histograms_by_version() -> None:
    registry = CollectorRegistry()
    calls = Counter("modelbox_calls", "Calls.", ["model", "version", "outcome"], registry=registry)
    calls.labels("a/b", "1", "ok").inc(3)
    calls.labels("a/b", "2", "ok").inc(4)
    calls.labels("a/b", "2", "error").inc(5)
    duration = PrometheusHistogram(
        "call_duration_seconds", "Duration.", ["version"], buckets=(0.001, 0.01), registry=registry
    )
    for seconds in (0.0005, 0.002, 0.003, 0.5):
        duration.labels("2").observe(seconds)
    page = read_page(generate_latest(registry).decode())

    assert page.by_version("modelbox_calls_total", outcome="ok") == {1: 3, 2: 4}
    assert page.by_version("modelbox_calls_total") == {1: 3, 2: 9}
    assert page.by_version("absent_total") == {}
    histograms = page.histograms_by_version("call_duration_seconds")
    assert list(histograms) == [2]
    assert histograms[2].counts == {0.001: 1, 0.01: 3, math.inf: 4}


def test_quantiles_are_linear_within_a_bucket() -> None:
    histogram = Histogram(counts={1.0: 10.0, 2.0: 30.0, math.inf: 40.0})
    assert histogram.quantile(0.125) == pytest.approx(0.5)
    assert histogram.quantile(0.5) == pytest.approx(1.5)
    assert histogram.quantile(0.75) == pytest.approx(2.0)


def test_a_quantile_beyond_the_last_bound_is_that_bound() -> None:
    assert Histogram(counts={1.0: 1.0, math.inf: 10.0}).quantile(0.99) == 1.0


def test_no_values_have_no_quantile() -> None:
    assert math.isnan(Histogram().quantile(0.5))

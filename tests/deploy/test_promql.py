"""The checker of queries finds what is wrong, and only that."""

from __future__ import annotations

import pytest

from tests.deploy.promql import Exported, exported_by, problems_with, read_series

EXPORTED: Exported = {"calls_total": {"model"}, "time_bucket": {"model", "le"}, "idle_total": set()}


@pytest.mark.parametrize(
    ("query", "series"),
    [
        ("up", {"up"}),
        ('sum by (model) (rate(calls_total{outcome="error, by (x)"}[5m])) / 2e3 > 0.01', {"calls_total"}),
        ("histogram_quantile(0.99, sum by (le, model) (rate(time_bucket[$__rate_interval])))", {"time_bucket"}),
        ('label_values(calls_total{job=~"$job"}, model)', {"calls_total"}),
        ('sum by (<<.GroupBy>>) (rate(calls_total{<<.LabelMatchers>>,container="c"}[1m]))', {"calls_total"}),
        ("sum(a_sum) / sum(b_count)", {"a_sum", "b_count"}),
    ],
)
def test_reads_the_series_of_a_query(query: str, series: set[str]) -> None:
    assert read_series(query) == series


@pytest.mark.parametrize(
    "query",
    [
        'sum by (model, job) (rate(calls_total{model="a"}[5m]))',
        "histogram_quantile(0.5, sum by (le) (rate(time_bucket[5m])))",
        'rate(idle_total{whatever="x"}[5m])',
        "label_values(calls_total, model)",
    ],
)
def test_accepts_what_is_exported(query: str) -> None:
    assert problems_with(query, EXPORTED) == []


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("rate(calls[5m])", "nobody exports calls"),
        ("sum(calls_total) / sum(missing_total)", "nobody exports missing_total"),
        ('calls_total{digest="x"}', "calls_total has no label digest"),
        ("sum by (le) (calls_total)", "calls_total has no label le"),
        ("label_values(calls_total, digest)", "calls_total has no label digest"),
        ("1 > 0", "reads nothing: 1 > 0"),
    ],
)
def test_finds_what_is_not_exported(query: str, problem: str) -> None:
    assert problems_with(query, EXPORTED) == [problem]


def test_knows_series_without_samples() -> None:
    page = '# TYPE a_total counter\n# TYPE b histogram\nb_bucket{le="+Inf",m="x"} 1\nb_sum{m="x"} 1\nb_count{m="x"} 1\n'
    assert exported_by(page) == {"a_total": set(), "b_bucket": {"le", "m"}, "b_sum": {"m"}, "b_count": {"m"}}

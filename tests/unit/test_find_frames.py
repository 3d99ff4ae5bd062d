"""Pages of find as rows, frames and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from modelbox.errors import ConfigError
from modelbox.frames import FindPage
from modelbox.tracking import Found

FIRST = Found(
    columns_json=json.dumps(
        {
            "id": ["run_1", "run_2"],
            "name": ["a,b", 'say "größe"'],
            "started_at": [1_500_000, None],
            "metrics.loss": ["NaN", 0.5],
            "params.net": [{"depth": 3}, None],
            "params.lr": [0.1, "auto"],
            "params.debug": [True, None],
        }
    ).encode(),
    time_columns=("started_at",),
    number_columns=("metrics.loss",),
    count=2,
    next_token="more",
)
SECOND = Found(
    columns_json=b'{"id":["run_3"],"name":["c"],"started_at":[null],"metrics.acc":["-Infinity"]}',
    time_columns=("started_at",),
    number_columns=("metrics.acc",),
    count=1,
)


def test_a_page() -> None:
    page = FindPage.from_found(FIRST)
    assert page.ids == ("run_1", "run_2")
    assert len(page) == 2
    assert page.next_token == "more"
    assert page.columns["started_at"] == [datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC), None]
    assert math.isnan(page.columns["metrics.loss"][0])
    second = page.rows()[1]
    assert second["metrics.loss"] == 0.5
    assert second["params.lr"] == "auto"
    assert list(page)[1] == second
    assert "more" in repr(page)


def test_pages_are_put_together() -> None:
    page = FindPage.from_found(FIRST, SECOND)
    assert page.ids == ("run_1", "run_2", "run_3")
    assert page.columns["metrics.acc"] == [None, None, -math.inf]
    assert page.columns["params.lr"] == [0.1, "auto", None]
    assert {len(values) for values in page.columns.values()} == {3}
    assert set(page.number_columns) == {"metrics.loss", "metrics.acc"}
    assert page.next_token == ""


def test_nothing() -> None:
    page = FindPage.from_found()
    assert len(page) == 0
    assert page.rows() == []
    out = io.StringIO()
    page.to_csv(out)
    assert out.getvalue() == "id\r\n"


def test_csv(tmp_path: Path) -> None:
    FindPage.from_found(FIRST).to_csv(tmp_path / "found.csv")
    with (tmp_path / "found.csv").open(encoding="utf-8", newline="") as file:
        names, first, second = csv.reader(file)
    row = dict(zip(names, first, strict=True))
    assert row["name"] == "a,b"
    assert row["started_at"] == "1970-01-01T00:00:01.500000Z"
    assert math.isnan(float(row["metrics.loss"]))
    assert json.loads(row["params.net"]) == {"depth": 3}
    assert row["params.debug"] == "true"
    assert dict(zip(names, second, strict=True))["name"] == 'say "größe"'
    assert second[names.index("started_at")] == ""


def test_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    frame = FindPage.from_found(FIRST, SECOND).to_pandas()
    assert list(frame["id"]) == ["run_1", "run_2", "run_3"]
    assert str(frame["started_at"].dtype) == "datetime64[us, UTC]"
    assert frame["started_at"][0] == pandas.Timestamp("1970-01-01T00:00:01.5Z")
    assert frame["started_at"].isna().tolist() == [False, True, True]
    assert str(frame["metrics.loss"].dtype) == "float64"
    assert frame["metrics.acc"][2] == -math.inf
    assert frame["params.lr"].tolist()[:2] == [0.1, "auto"]
    assert len(FindPage.from_found().to_pandas()) == 0


def test_polars() -> None:
    polars = pytest.importorskip("polars")
    frame = FindPage.from_found(FIRST, SECOND).to_polars()
    assert frame["id"].to_list() == ["run_1", "run_2", "run_3"]
    assert frame["started_at"].dtype == polars.Datetime("us", "UTC")
    assert frame["metrics.acc"].to_list() == [None, None, -math.inf]
    assert frame["params.lr"].to_list() == ["0.1", '"auto"', None]
    assert frame["params.debug"].to_list() == [True, None, None]


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    page = FindPage.from_found(FIRST)
    with pytest.raises(ConfigError, match=f"pip install {name}"):
        page.to_pandas() if name == "pandas" else page.to_polars()

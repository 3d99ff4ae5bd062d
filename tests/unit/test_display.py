"""What notebooks show: escaped, bounded, and made only when it is asked for."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox import display
from modelbox.errors import InvalidError
from modelbox.frames import FindPage
from modelbox.manifest import Manifest, ManifestFile
from modelbox.objects import Model, ModelVersion
from modelbox.refs import Digest
from modelbox.run import LiveRun
from modelbox.series import Sample, Series
from modelbox.signature import Signature, TensorSpec
from modelbox.tracking import Experiment, MetricKind, MetricSummary, Run, RunStatus
from tests.faults.registry import fault

EVIL = "<script>alert('1')</script>&\""
AT = datetime(2026, 5, 3, 12, tzinfo=UTC)
DIGEST = Digest("sha256:" + "0" * 64)


def series(values: Any, steps: Any = None, key: str = "loss") -> Series:
    array = np.asarray(values, np.float64)
    placed = np.arange(len(array)) if steps is None else np.asarray(steps, np.int64)
    return Series(object="run_1", key=key, kind=MetricKind.NUMBER, steps=placed, times_us=placed, values=array)


def text_series(*payloads: str | bytes) -> Series:
    steps = np.arange(len(payloads))
    kind = MetricKind.TEXT if isinstance(payloads[0], str) else MetricKind.BYTES
    return Series(
        object="run_1",
        key=EVIL,
        kind=kind,
        steps=steps,
        times_us=steps,
        values=np.full(len(payloads), np.nan),
        payloads=payloads,
    )


SUMMARY = MetricSummary(
    object="run_1",
    key=EVIL,
    kind=MetricKind.NUMBER,
    count=3,
    min=0.25,
    max=1.0,
    latest=math.nan,
    latest_step=7,
    latest_at=AT,
    first_step=0,
)
MANIFEST = Manifest(
    framework="onnx",
    files=(ManifestFile(path="model.onnx", size_bytes=7, digest=DIGEST, media_type="application/x-onnx"),),
    entrypoint="model.onnx",
    signature=Signature(inputs=(TensorSpec(name="x<y", dtype="float32", shape=(-1, 4)),), outputs=()),
)
SHOWN: dict[str, Any] = {
    "experiment": Experiment(
        id="exp_1", namespace="ns", name="digits", owner=EVIL, description=EVIL, created_at=AT, mod_rev=1
    ),
    "run": Run(
        id="run_1",
        namespace="ns",
        experiment_id="exp_1",
        experiment="digits",
        name=EVIL,
        status=RunStatus.FAILED,
        reason=EVIL,
        started_at=AT,
        ended_at=AT + timedelta(hours=2),
        created_at=AT,
        mod_rev=1,
    ),
    "live run": LiveRun("ns/digits", None, name=EVIL),
    "model": Model(
        id="mdl_1", namespace="ns", name="m", description=EVIL, metadata={EVIL: [EVIL]}, created_at=AT, mod_rev=1
    ),
    "version": ModelVersion(
        id="ver_1",
        namespace="ns",
        model="m",
        version=7,
        digest=DIGEST,
        manifest=MANIFEST,
        description=EVIL,
        created_at=AT,
        mod_rev=1,
    ),
    "page": FindPage(columns={"id": ["run_1", "run_2"], EVIL: [None, EVIL], "empty": [None, None]}),
    "series": series([1, 2], key=EVIL),
    "text": text_series(EVIL, EVIL),
    "bytes": text_series(b"<script>"),
    "sample": series([1, 2]).sample(),
    "summary": SUMMARY,
    "summaries": display.metrics([SUMMARY]),
}


def parsed(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<page>{markup}</page>")


@fault(69)
@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)
def test_text_is_escaped_and_the_markup_well_formed(shown: Any) -> None:
    page = parsed(shown._repr_html_())
    tags = {element.tag for element in page.iter()}
    assert tags <= {"page", "div", "table", "thead", "tbody", "tr", "th", "td", "span", "svg", "path", "text", "circle"}
    assert not [name for element in page.iter() for name in element.attrib if name.startswith("on")]


@pytest.mark.parametrize("name", ["experiment", "run", "live run", "model", "page", "series", "text", "summaries"])
def test_nothing_of_the_text_is_lost(name: str) -> None:
    assert EVIL in "".join(parsed(SHOWN[name]._repr_html_()).itertext())


def test_a_run_says_how_it_ended() -> None:
    text = " ".join(parsed(SHOWN["run"]._repr_html_()).itertext())
    assert "2:00:00" in text
    assert "failed: " in text
    assert "parent" not in text


def test_a_version_lists_files_and_tensors() -> None:
    text = " ".join(parsed(SHOWN["version"]._repr_html_()).itertext())
    assert "model.onnx" in text
    assert "x<y" in text


def test_what_no_object_has_is_left_out_of_a_page() -> None:
    assert "empty" not in SHOWN["page"]._repr_html_()


def test_large_objects_stay_small() -> None:
    rows = FindPage(columns={f"c{number}": ["x" * 10_000] * 10_000 for number in range(100)} | {"id": ["i"] * 10_000})
    began = time.process_time()
    page = rows._repr_html_()
    assert len(page) < 600_000
    assert page.count("<tr") == display.MAX_ROWS + 1
    assert "first 50 rows and 20 of 101 columns" in page
    long = series(np.random.default_rng(0).normal(size=2_000_000))._repr_html_()
    assert len(long) < 60_000
    assert len(text_series(*["x" * 100_000] * 1000)._repr_html_()) < 60_000
    many = display.plot(*[series(range(3000)).curve(str(number)) for number in range(100)]).html
    assert len(many) < 1_000_000
    assert "and 80 more" in many
    # Seconds where it is done point by point.
    assert time.process_time() - began < 10


def test_a_peak_is_drawn_among_many_points() -> None:
    values = np.zeros(1_000_000)
    values[123_456] = 1.0
    sample = series(values).sample(500)
    assert len(sample) == 500
    assert sample.maxs.max() == 1.0
    heights = [
        float(pair.split()[1])
        for path in parsed(series(values)._repr_html_()).iter("path")
        if path.attrib.get("opacity") == ".2"
        for pair in path.attrib["d"].strip("MZ").split("L")
    ]
    assert min(heights) < 20


@pytest.mark.parametrize(
    "values",
    [
        [],
        [math.nan],
        [math.inf, -math.inf],
        [5.0],
        [0.0, 0.0],
        [1e308, -1e308],
        [5e-324, 1e-323],
        [1, math.nan, 3],
        [1e15, 1e15 + 1],
    ],
    ids=str,
)
def test_whatever_is_in_a_series_is_drawn(values: list[float]) -> None:
    drawn = series(values)._repr_html_()
    parsed(drawn)
    assert "nan" not in drawn.replace("no finite", "").lower().split("points")[0]
    if any(map(math.isfinite, values)):
        assert "<svg" in drawn
    else:
        assert "no finite numbers" in drawn


floats = st.floats(width=32)


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), floats), min_size=1, max_size=50), st.integers(1, 20))
def test_a_sample_tells_the_truth(points: list[tuple[int, float]], buckets: int) -> None:
    points.sort(key=lambda point: point[0])
    steps, values = [step for step, _ in points], [value for _, value in points]
    sample = series(values, steps).sample(buckets)
    assert 1 <= len(sample) <= buckets
    assert sample.counts.sum() == len(points)
    at = 0
    for number in range(len(sample)):
        part = values[at : at + int(sample.counts[number])]
        numbers = [value for value in part if not math.isnan(value)]
        assert int(sample.first_steps[number]) == steps[at]
        at += len(part)
        assert int(sample.last_steps[number]) == steps[at - 1]
        if numbers:
            assert (sample.mins[number], sample.maxs[number]) == (min(numbers), max(numbers))
        else:
            assert math.isnan(sample.mins[number])
            assert math.isnan(sample.means[number])
        if all(map(math.isfinite, numbers)) and numbers:
            assert sample.means[number] == pytest.approx(math.fsum(numbers) / len(numbers), rel=1e-9, abs=1e-30)


def test_text_and_no_buckets_are_refused() -> None:
    with pytest.raises(InvalidError):
        text_series("a").sample()
    with pytest.raises(InvalidError):
        series([1]).sample(0)
    assert isinstance(series([]).sample(), Sample)


def test_only_a_notebook_pays_for_it() -> None:
    script = (
        "import sys, modelbox.client, modelbox.frames, modelbox.objects, modelbox.run, modelbox.series;"
        "print('modelbox.display' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "False"

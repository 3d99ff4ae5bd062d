"""The harness's statistics, and that the benchmarks run. No figure is asserted: it belongs to a machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.__main__ import GROUPS, main
from bench.figure import Figure, Unit, shown
from bench.measure import Series, calls_per_s, difference, interleave, quantile, ratio, time_calls
from bench.report import print_table

ROOT = Path(__file__).parents[3]


@given(
    st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50),
    st.floats(0, 1),
)
def test_quantile_is_the_usual_one(values: list[float], q: float) -> None:
    assert quantile(values, q) == pytest.approx(float(np.quantile(values, q)), rel=1e-9, abs=1e-6)


def test_quantile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_rounds_pair_so_that_a_slow_spell_does_not_count() -> None:
    # Ours is always twice the floor; in the last two rounds the machine is ten times slower for both.
    floor = Series(rounds=((1.0, 1.0), (1.0, 1.2), (10.0, 10.0), (11.0, 9.0)))
    ours = Series(rounds=((2.0, 2.0), (2.2, 2.2), (20.0, 20.0), (20.0, 20.0)))
    assert ratio(ours, floor) == pytest.approx(2.0)
    assert difference(Series(rounds=((3.0,), (4.0,), (90.0,))), Series(rounds=((1.0,), (1.0,), (88.0,)))) == 2.0


def test_subjects_of_unequal_rounds_do_not_compare() -> None:
    with pytest.raises(ValueError, match="argument"):
        ratio(Series.of([1.0]), Series(rounds=((1.0,), (2.0,))))


def test_series_end_at_their_bad_side() -> None:
    series = Series.of([float(n) for n in range(101)])
    assert (series.p1, series.p50, series.p99) == (1.0, 50.0, 99.0)
    cost = Figure(name="a", what="", unit=Unit.SECONDS, measured=series)
    rate = Figure(name="b", what="", unit=Unit.PER_SECOND, measured=series)
    assert (cost.bad_end(series), rate.bad_end(series)) == (99.0, 1.0)


async def _turns(seed: int) -> tuple[list[str], dict[str, Series]]:
    order: list[str] = []

    def subject(name: str) -> Callable[[], Awaitable[Sequence[float]]]:
        async def turn() -> Sequence[float]:
            order.append(name)
            return [float(len(order))]

        return turn

    taken = await interleave({name: subject(name) for name in "abc"}, rounds=5, warm_up=2, seed=seed)
    return order, taken


async def test_subjects_take_turns_in_the_order_of_the_seed() -> None:
    order, taken = await _turns(1)
    assert len(order) == 7 * 3
    assert all(sorted(order[n : n + 3]) == ["a", "b", "c"] for n in range(0, len(order), 3))
    assert order == (await _turns(1))[0]
    assert order != (await _turns(2))[0]
    for name, series in taken.items():
        # What came in the first two rounds is not there.
        assert series.values == tuple(n for n, who in enumerate(order, start=1) if who == name and n > 6)


async def test_calls_are_timed_and_counted() -> None:
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1

    took = await time_calls(call, 10)
    assert calls == len(took) == 10
    assert min(took) > 0
    calls = 0
    rate = await calls_per_s(call, tasks=3, seconds=0.02)
    assert 0 < rate <= calls / 0.02


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2.5, Unit.SECONDS, "2.50 s"),
        (0.0123, Unit.SECONDS, "12.3 ms"),
        (4.56e-6, Unit.SECONDS, "4.56 µs"),
        (1.5e-7, Unit.SECONDS, "150 ns"),
        (123_456_789.0, Unit.BYTES_PER_SECOND, "123 MB/s"),
        (1234.4, Unit.PER_SECOND, "1,234/s"),
        (0.0, Unit.COUNT, "0"),
    ],
)
def test_values_are_shown_with_three_digits(value: float, unit: Unit, text: str) -> None:
    assert shown(value, unit) == text


def test_the_table_says_what_was_missed() -> None:
    about = {
        "processor": "P", "cores": 2, "system": "S", "file_system": "ext4", "python": "3", "versions": {},
        "commit": "c", "at": "now", "load_before": [],
    }  # fmt: skip
    reached = Figure(name="group.fast", what="w", unit=Unit.COUNT, measured=Series.of([1]), aim="≤ 2", reached=True)
    missed = Figure(name="group.slow", what="w", unit=Unit.COUNT, measured=Series.of([3]), aim="≤ 2", reached=False)
    out = StringIO()
    print_table([reached, missed], about, to=out)
    lines = out.getvalue().splitlines()
    assert any("group.fast" in line and "yes" in line for line in lines)
    assert any("group.slow" in line and "NO" in line for line in lines)


def test_unknown_groups_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prediction"])
    error = capsys.readouterr().err
    assert "unknown: prediction" in error
    assert "predict" in error


def test_every_group_is_a_module() -> None:
    modules = {path.stem for path in (ROOT / "bench" / "groups").glob("*.py")} - {"__init__"}
    assert modules == set(GROUPS)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_benchmarks_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "predict", "--json", str(tmp_path / "figures.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=350,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "figures.json").read_text())
    assert document["machine"]["versions"]["onnxruntime"]
    assert document["failed"] == {}
    names = [figure["name"] for figure in document["figures"]]
    assert [name for name in names if name.endswith(".trio")] == [
        "predict.tiny.trio", "predict.tasks.trio", "predict.batched.trio"
    ]  # fmt: skip
    for figure in document["figures"]:
        assert figure["measured"]["p50"] > 0
        assert figure["floor"]["p50"] > 0
        assert figure["reached"] in (True, False)
        assert figure["name"] in done.stdout

"""Comparing the speed of two versions: what is measured, what is left alone, and what nobody can say."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelbox.loader import slower
from modelbox.loader.generation import Generation
from modelbox.loader.session import Session, SessionOptions
from modelbox.loader.slower import Slowdown, compare_speed
from tests.heavy_models import slow_to_run
from tests.model_source import manifest_of, version_of
from tests.onnx_models import add_constant, endless_loop, same_text

LIMIT = 10.0


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take its time for the first run."""
    monkeypatch.setattr(slower, "_STOP_S", 60.0)


def session_of(directory: Path, content: bytes) -> Session:
    path = directory / f"{len(list(directory.iterdir()))}.onnx"
    path.write_bytes(content)
    return Session.open(path, options=SessionOptions())


def serving(session: Session) -> Generation:
    return Generation(number=1, version=version_of(manifest_of({"model.onnx": b"x"}), version=7), session=session)


def compared(directory: Path, old: bytes, new: bytes) -> tuple[Slowdown | None, Generation]:
    """A comparison as the loader makes it, and what served."""
    before, session = session_of(directory, old), session_of(directory, new)
    before.warm(60.0)
    generation = serving(before)
    found = compare_speed(session, session.warm(60.0), generation, LIMIT)
    assert generation.leases == 0
    return found, generation


def test_a_slower_version_is_found_and_a_faster_one(tmp_path: Path) -> None:
    fast, slow = add_constant(1), slow_to_run(1, 10_000)
    found, _ = compared(tmp_path, fast, slow)
    assert found is not None
    assert found.factor > LIMIT
    assert found.run_s > found.before_s
    assert found.before_version == 7
    assert "times as long as a run of version 7" in str(found)
    found, _ = compared(tmp_path, slow, fast)
    assert found is not None
    assert found.factor < 1


def test_a_long_run_of_what_serves_is_not_made_again(tmp_path: Path) -> None:
    session = session_of(tmp_path, add_constant(1))
    report = session.warm(60.0)
    before = session_of(tmp_path, endless_loop())
    before.run_s = 3.0
    found = compare_speed(session, report, serving(before), LIMIT)
    assert found is not None
    assert found.before_s == 3.0


def test_a_run_that_turns_out_to_be_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slower, "_STOP_S", 0.1)
    # Its own warm-up was on other inputs, or on none; these keep it busy.
    before = session_of(tmp_path, endless_loop())
    session = session_of(tmp_path, endless_loop_like())
    assert compare_speed(session, session.warm(60.0), serving(before), LIMIT) is None


def endless_loop_like() -> bytes:
    """Quick, with the interface of `endless_loop`."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        "quick",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.ones(1, np.float32), "c")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.mark.parametrize("old", [add_constant(1, name="other"), same_text()], ids=["another input", "another type"])
def test_other_inputs_are_not_compared(old: bytes, tmp_path: Path) -> None:
    found, _ = compared(tmp_path, old, add_constant(1))
    assert found is None


def test_what_was_replaced_meanwhile_is_not_run(tmp_path: Path) -> None:
    session = session_of(tmp_path, add_constant(1))
    report = session.warm(60.0)
    before = session_of(tmp_path, add_constant(2))
    generation = serving(before)
    generation.retire(before.close)
    assert compare_speed(session, report, generation, LIMIT) is None


def test_what_is_ended_meanwhile_is_not_compared(tmp_path: Path) -> None:
    session = session_of(tmp_path, add_constant(1))
    report = session.warm(60.0)
    before = session_of(tmp_path, add_constant(2))
    before.terminate()
    assert compare_speed(session, report, serving(before), LIMIT) is None


def test_a_warm_up_without_runs_compares_nothing(tmp_path: Path) -> None:
    from dataclasses import replace

    session = session_of(tmp_path, add_constant(1))
    report = replace(session.warm(60.0), feed=None, times_s=())
    assert compare_speed(session, report, serving(session_of(tmp_path, add_constant(2))), LIMIT) is None

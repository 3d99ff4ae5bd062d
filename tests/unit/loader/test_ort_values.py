"""Models with bfloat16 tensors run like others, and element types that no array can hold are refused by name."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import anyio
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from modelbox.errors import ConfigError, InputError, LoadError, PredictError, WarmupFailed
from modelbox.loader.generation import Generation
from modelbox.loader.optimise import write_optimised
from modelbox.loader.runner import JoinedPrediction, Mode, Runner, RunnerOptions
from modelbox.loader.session import Session, SessionOptions
from tests.onnx_models import add_element
from tests.unit.loader.inference import opened, version

BF16 = np.dtype(ml_dtypes.bfloat16)
X = np.arange(8).reshape(2, 4).astype(BF16)


def _model(tmp_path: Path, constant: float = 1.0, **more: Any) -> Session:
    return opened(tmp_path, add_element(constant, TensorProto.BFLOAT16, **more))


def test_runs_beside_other_types(tmp_path: Path) -> None:
    session = _model(tmp_path, also_float=True)
    assert [spec.dtype for spec in session.signature.outputs] == ["bfloat16", "float32"]
    narrow, wide = session.run({"x": X})
    assert narrow.dtype == BF16
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(narrow.astype(np.float32), X.astype(np.float32) + 1)
    np.testing.assert_array_equal(wide, X.astype(np.float32) + 1)


@pytest.mark.parametrize("x", [X[:, ::-1], X[::2], np.asfortranarray(X), X[:0], X.copy()], ids=str)
def test_any_layout_and_no_rows(tmp_path: Path, x: Any) -> None:
    (y,) = _model(tmp_path).run({"x": x})
    assert y.shape == x.shape
    np.testing.assert_array_equal(y.astype(np.float32), x.astype(np.float32) + 1)


def test_an_output_outlives_its_run_and_its_session(tmp_path: Path) -> None:
    session = _model(tmp_path)
    kept = [session.run({"x": np.full((64, 4), i, BF16)})[0][3:5] for i in range(20)]
    session.close()
    del session
    gc.collect()
    for i, y in enumerate(kept):
        np.testing.assert_array_equal(y.astype(np.float32), np.full((2, 4), i + 1, np.float32))
        y += 1  # the caller's own


def test_warm_up_measures_and_finds_independent_rows(tmp_path: Path) -> None:
    report = _model(tmp_path).warm(10.0)
    assert report.ran
    assert report.finite
    assert report.rows_independent
    assert report.run_s is not None


@pytest.mark.parametrize("right", [True, False])
def test_golden_files_are_compared(tmp_path: Path, right: bool) -> None:
    np.savez(tmp_path / "inputs.npz", x=X)
    np.savez(tmp_path / "outputs.npz", y=(X.astype(np.float32) + (1 if right else 2)).astype(BF16))
    session = _model(tmp_path)
    if right:
        assert session.warm(10.0, tmp_path).golden
    else:
        with pytest.raises(WarmupFailed, match="not the golden one"):
            session.warm(10.0, tmp_path)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("batching", [False, True])
async def test_a_runner_runs_and_joins_them(tmp_path: Path, mode: Mode, batching: bool) -> None:
    session = _model(tmp_path)
    session.warm(10.0)
    runner = Runner(RunnerOptions(mode=mode, batch_above_s=0.0))
    runner.swap(Generation(number=1, version=version(1), session=session, batching=batching))
    answers: dict[int, Any] = {}

    async def ask(i: int) -> None:
        answers[i] = await runner.predict({"x": np.full((1 + i % 3, 4), i, BF16)})

    async with anyio.create_task_group() as tasks:
        for i in range(12):
            tasks.start_soon(ask, i)
    for i, answer in answers.items():
        assert isinstance(answer, JoinedPrediction) is batching
        assert answer["y"].dtype == BF16
        np.testing.assert_array_equal(answer["y"].astype(np.float32), np.full((1 + i % 3, 4), i + 1, np.float32))
    np.testing.assert_array_equal(runner.predict_sync({"x": [[1, 2.5, 3, 4]]})["y"].astype("f4"), [[2, 3.5, 4, 5]])
    runner.close()


@pytest.mark.parametrize("x", [X.astype(np.float32), X.view(np.uint16), X[0], X[:, :2], [["a"] * 4]], ids=repr)
async def test_what_does_not_fit_is_refused(tmp_path: Path, x: Any) -> None:
    runner = Runner()
    runner.swap(Generation(number=1, version=version(1), session=_model(tmp_path)))
    with pytest.raises(InputError, match=r"expected bfloat16\[batch, 4\]"):
        await runner.predict({"x": x})
    runner.close()


@given(st.lists(st.integers(0, 0xFFFF), min_size=4, max_size=40).map(lambda bits: bits[: len(bits) // 4 * 4]))
def test_every_bit_comes_through(tmp_path_factory: pytest.TempPathFactory, bits: list[int]) -> None:
    x = np.array(bits, np.uint16).view(BF16).reshape(-1, 4)
    path = tmp_path_factory.getbasetemp() / "identity.onnx"
    if not path.exists():
        info = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["n", 4]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", info[:1], info[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        path.write_bytes(model.SerializeToString())
    (y,) = Session.open(path, options=SessionOptions()).run({"x": x})
    assert y.tobytes() == x.tobytes()


def test_a_failed_and_a_stopped_run_say_so(tmp_path: Path) -> None:
    session = _model(tmp_path)
    with pytest.raises(PredictError, match="the model failed"):
        session.run({"x": np.zeros((1, 5), BF16)})
    session.terminate()
    with pytest.raises(PredictError, match="stopped"):
        session.run({"x": X})


def test_the_optimised_form_runs_too(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(add_element(3, TensorProto.BFLOAT16))
    (tmp_path / "made").mkdir()
    made = write_optimised(source, tmp_path / "made", options=SessionOptions())
    (y,) = Session.open(source, options=SessionOptions(), optimised=made).run({"x": X})
    np.testing.assert_array_equal(y.astype(np.float32), X.astype(np.float32) + 3)


def test_without_ml_dtypes_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ConfigError, match=r"modelbox\[bfloat16\]"):
        _model(tmp_path)


@pytest.mark.parametrize("element", ["FLOAT8E4M3FN", "FLOAT8E5M2"])
def test_smaller_floats_are_refused_clearly(tmp_path: Path, element: str) -> None:
    model = add_element(1, getattr(TensorProto, element))
    with pytest.raises(LoadError, match=rf"input 'x' is a tensor of '{element.lower()}'.* cast it inside") as caught:
        opened(tmp_path, model)
    assert caught.value.fields["stage"] == "open"


def test_sequences_beside_bfloat16_are_refused_clearly(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["s"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["n"])],
        [helper.make_tensor_sequence_value_info("s", TensorProto.BFLOAT16, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9).SerializeToString()
    with pytest.raises(LoadError) as caught:
        opened(tmp_path, model)
    assert caught.value.fields["stage"] == "open"

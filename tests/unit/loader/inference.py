"""Opened models and generations for the tests of the inference half."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from modelbox.loader.generation import Generation
from modelbox.loader.session import Session, SessionOptions
from modelbox.manifest import Manifest, ManifestFile
from modelbox.objects import ModelVersion
from modelbox.refs import Digest
from tests.onnx_models import OPSET

_numbers = itertools.count(1)


def version(number: int) -> ModelVersion:
    file = ManifestFile(path="model.onnx", size_bytes=1, digest=Digest(f"sha256:{number:064x}"))
    manifest = Manifest(files=(file,))
    return ModelVersion(
        id=str(number),
        namespace="tests",
        model="m",
        version=number,
        digest=manifest.digest,
        manifest=manifest,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        mod_rev=number,
    )


def opened(directory: Path, model: bytes, *, options: SessionOptions | None = None) -> Session:
    path = directory / f"model-{next(_numbers)}.onnx"
    path.write_bytes(model)
    return Session.open(path, options=options or SessionOptions())


def generation(
    directory: Path, model: bytes, number: int = 1, *, batching: bool = False, warm: bool = True
) -> Generation:
    session = opened(directory, model)
    if warm:
        session.warm(10.0)
    return Generation(number=number, version=version(number), session=session, batching=batching)


def ones(rows: int = 1, columns: int = 4) -> dict[str, Any]:
    return {"x": np.ones((rows, columns), np.float32)}


def _model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], initializers: list[Any] | None = None, opset: Any = OPSET
) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers or [])
    return helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


def _floats(name: str, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def add_any_width(constant: float) -> bytes:
    """``y = x + constant`` on float32[batch, width], both free."""
    return _model(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        [_floats("x", ["batch", "width"])],
        [_floats("y", ["batch", "width"])],
        [numpy_helper.from_array(np.array(constant, np.float32), "c")],
    )


def row_mean() -> bytes:
    """``y = x - mean of x over the rows``: looks like a batch and is none."""
    return _model(
        [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "m"], ["y"]),
        ],
        [_floats("x", ["batch", 4])],
        [_floats("y", ["batch", 4])],
    )


def lookup() -> bytes:
    """Row ``i`` of a table of ten: an index beyond it fits the signature and fails the run."""
    return _model(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["batch"])],
        [_floats("y", ["batch", 4])],
        [numpy_helper.from_array(np.arange(40, dtype=np.float32).reshape(10, 4), "table")],
    )


def reciprocal() -> bytes:
    """``y = 1 / x``: infinite on zeros."""
    return _model(
        [helper.make_node("Reciprocal", ["x"], ["y"])], [_floats("x", ["batch", 4])], [_floats("y", ["batch", 4])]
    )


def many_nodes(count: int) -> bytes:
    """A chain of about ``count`` small nodes on float32[batch, 8], which costs time to optimise, not to read."""
    rng = np.random.default_rng(0)
    nodes: list[Any] = []
    weights: list[Any] = []
    last = "x"
    for i in range(max(count // 5, 1)):
        weights.append(numpy_helper.from_array((rng.standard_normal((8, 8)) * 0.3).astype(np.float32), f"w{i}"))
        weights.append(numpy_helper.from_array(rng.standard_normal(8).astype(np.float32), f"b{i}"))
        nodes += [
            helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"]),
            helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"]),
            helper.make_node("Sigmoid", [f"a{i}"], [f"s{i}"]),
            helper.make_node("Mul", [f"a{i}", f"s{i}"], [f"u{i}"]),
            helper.make_node("Tanh", [f"u{i}"], [f"t{i}"]),
        ]
        last = f"t{i}"
    return _model(nodes, [_floats("x", ["batch", 8])], [_floats(last, ["batch", 8])], weights)


def fails_on_zeros() -> bytes:
    """Reads row ``99 - i`` of ten: has one input shape, int64[1], and zeros of it fail the run."""
    return _model(
        [helper.make_node("Sub", ["c", "i"], ["j"]), helper.make_node("Gather", ["table", "j"], ["y"])],
        [helper.make_tensor_value_info("i", TensorProto.INT64, [1])],
        [_floats("y", [1, 4])],
        [
            numpy_helper.from_array(np.arange(40, dtype=np.float32).reshape(10, 4), "table"),
            numpy_helper.from_array(np.array([99]), "c"),
        ],
    )


def newer_than_any_runtime() -> bytes:
    return _model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [_floats("x", ["batch", 4])],
        [_floats("y", ["batch", 4])],
        opset=helper.make_opsetid("", 999),
    )

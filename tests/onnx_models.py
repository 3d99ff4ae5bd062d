"""Small ONNX models that tests publish, open and break."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = helper.make_opsetid("", 17)


def _model(graph: onnx.GraphProto, *, opsets: list[onnx.OperatorSetIdProto] | None = None) -> bytes:
    model = helper.make_model(graph, opset_imports=opsets or [OPSET], ir_version=9)
    return model.SerializeToString()


def add_constant(constant: float, *, name: str = "x", columns: int = 4) -> bytes:
    """``y = x + constant`` on float32[batch, columns]: which version answered shows in the answer."""
    shape: list[str | int | None] = ["batch", columns]
    graph = helper.make_graph(
        [helper.make_node("Add", [name, "c"], ["y"])],
        "add",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.array(constant, np.float32), "c")],
    )
    return _model(graph)


def add_element(constant: float, element: int, *, also_float: bool = False) -> bytes:
    """``y = x + constant`` on tensors [batch, 4] of an ONNX element type; ``wide`` is the same in float32."""
    shape: list[str | int | None] = ["batch", 4]
    outputs = [helper.make_tensor_value_info("y", element, shape)]
    if also_float:
        outputs.append(helper.make_tensor_value_info("wide", TensorProto.FLOAT, shape))
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["float", "c"], ["wide"]),
            helper.make_node("Cast", ["wide"], ["y"], to=element),
        ],
        "add",
        [helper.make_tensor_value_info("x", element, shape)],
        outputs,
        [numpy_helper.from_array(np.array(constant, np.float32), "c")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9).SerializeToString()


def loop_as_told() -> bytes:
    """``y = x + n`` by ``n`` additions of 1, on float32[batch, 4] and int64[batch]: takes as long as ``n`` says."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Add", ["sum_in", "one"], ["sum_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_in", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_out", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(np.array(1, np.float32), "one")],
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["n"], ["times"], keepdims=0),
            helper.make_node("Loop", ["times", "go", "x"], ["y"], body=body),
        ],
        "loop",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("n", TensorProto.INT64, ["batch"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.array(True), "go")],
    )
    return _model(graph)


def perceptron(width: int, layers: int, *, seed: int = 0) -> bytes:
    """``layers`` dense layers of ``width``² float32 weights on float32[batch, width]; 4 · width² · layers bytes."""
    rng = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    for layer in range(layers):
        scale = 1 / np.sqrt(width)
        weights.append(
            numpy_helper.from_array((rng.standard_normal((width, width)) * scale).astype(np.float32), f"w{layer}")
        )
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"]))
        last = "y" if layer == layers - 1 else f"r{layer}"
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [last]))
    shape: list[str | int | None] = ["batch", width]
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    return _model(graph)


def unknown_operator() -> bytes:
    """Needs ``com.acme.MyOp``, which no runtime has."""
    graph = helper.make_graph(
        [helper.make_node("MyOp", ["x"], ["y"], domain="com.acme")],
        "custom",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
    )
    return _model(graph, opsets=[OPSET, helper.make_opsetid("com.acme", 1)])


def endless_loop() -> bytes:
    """Opens, but a run of it (float32[1]) takes longer than anybody lives."""
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "one"], ["state_out"]), helper.make_node("Identity", ["go"], ["go_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, [1]),
        ],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["trips", "start", "x"], ["y"], body=body)],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.array(2**62, np.int64), "trips"), numpy_helper.from_array(np.array(True), "start")],
    )
    return _model(graph)


def same_text() -> bytes:
    """``same = text`` on string[count]."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["text"], ["same"])],
        "text",
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["count"])],
        [helper.make_tensor_value_info("same", TensorProto.STRING, ["count"])],
    )
    return _model(graph)

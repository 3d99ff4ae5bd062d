"""Small files that ask for much while they are opened or run, in ways that no look at the file tells."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ("hungry_to_open", "slow_to_open", "slow_to_run")


def hungry_to_open(mebibytes: int) -> bytes:
    """``y = x + 0`` on float32[n, 4], but opening it makes constants of so many MiB out of a few numbers.

    Their shape is itself computed, so the file does not have it: onnxruntime folds the product, then the constants.
    """
    each = 64
    nodes = [
        helper.make_node("ArgMax", ["x"], ["first"], axis=1, keepdims=0),
        helper.make_node("ReduceMin", ["first"], ["at"], keepdims=1, axes=[0]),
        helper.make_node("Mul", ["kilo", "kilos"], ["shape"]),
    ]
    given = [
        numpy_helper.from_array(np.array([1 << 10], np.int64), "kilo"),
        numpy_helper.from_array(np.array([each << 8], np.int64), "kilos"),
    ]
    last = "x"
    for number in range(mebibytes // each):
        # All different: equal ones would be made once.
        given.append(numpy_helper.from_array(np.array([number], np.float32), f"fill{number}"))
        nodes += [
            helper.make_node("Expand", [f"fill{number}", "shape"], [f"big{number}"]),
            helper.make_node("Gather", [f"big{number}", "at"], [f"one{number}"]),
            helper.make_node("Sub", [f"one{number}", f"fill{number}"], [f"none{number}"]),
            helper.make_node("Add", [last, f"none{number}"], [f"sum{number}"]),
        ]
        last = f"sum{number}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    return _on_rows(nodes, given)


def slow_to_open() -> bytes:
    """``y = x + 0`` on float32[n, 4], but before it is open, onnxruntime has multiplied matrices for minutes."""
    given = [
        numpy_helper.from_array(np.array([2048, 2048], np.int64), "shape"),
        numpy_helper.from_array(np.array(2.0**-11, np.float32), "part"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
    ]
    nodes = [helper.make_node("Expand", ["part", "shape"], ["m0"])]
    for number in range(3000):
        nodes.append(helper.make_node("MatMul", [f"m{number}", "m0"], [f"m{number + 1}"]))
    nodes += [
        helper.make_node("ReduceMax", ["m3000"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    return _on_rows(nodes, given)


def slow_to_run(constant: int, turns: int) -> bytes:
    """``y = x + constant`` on float32[n, 4], by way of so many additions of nothing."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["sum", "zero"], ["sum_on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_on", TensorProto.FLOAT, None),
        ],
    )
    given = [
        numpy_helper.from_array(np.array(constant, np.float32), "c"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.array(turns, np.int64), "turns"),
        numpy_helper.from_array(np.array(True), "true"),
    ]
    nodes = [
        helper.make_node("Add", ["x", "c"], ["first"]),
        helper.make_node("Loop", ["turns", "true", "first"], ["y"], body=body),
    ]
    return _on_rows(nodes, given)


def _on_rows(nodes: list[onnx.NodeProto], given: list[onnx.TensorProto]) -> bytes:
    shape: list[str | int | None] = ["n", 4]
    graph = helper.make_graph(
        nodes,
        "heavy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        given,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()

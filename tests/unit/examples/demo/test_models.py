"""The two versions that the demo publishes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from examples.demo.models import TOLERANCE, largest_difference, silero_vad, write_optimised
from examples.demo.steps import AUDIO


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("versions")
    first = silero_vad(directory)
    second = directory / "second.onnx"
    write_optimised(first, second)
    return first, second


def test_version_two_is_another_file_of_standard_operators(versions: tuple[Path, Path]) -> None:
    first, second = versions
    assert first.read_bytes() != second.read_bytes()
    assert {node.domain for node in onnx.load(second).graph.node} <= {"", "ai.onnx"}


def test_version_two_has_the_same_interface(versions: tuple[Path, Path]) -> None:
    def interface(path: Path) -> list[tuple[str, int, int]]:
        graph = onnx.load(path).graph
        return [
            (value.name, value.type.tensor_type.elem_type, len(value.type.tensor_type.shape.dim))
            for value in [*graph.input, *graph.output]
        ]

    first, second = versions
    assert interface(first) == interface(second)


def test_both_give_the_same_answers(versions: tuple[Path, Path]) -> None:
    assert largest_difference(*versions, AUDIO) <= TOLERANCE


def test_the_difference_of_two_models_is_seen(versions: tuple[Path, Path], tmp_path: Path) -> None:
    first, _ = versions
    model = onnx.load(first)
    for node in _nodes(model.graph):
        if node.op_type == "Sigmoid":
            node.op_type = "Tanh"
    onnx.save(model, tmp_path / "other.onnx")
    assert largest_difference(first, tmp_path / "other.onnx", AUDIO) > 100 * TOLERANCE


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    found: list[onnx.NodeProto] = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _nodes(attribute.g)
    return found

"""Modules of PyTorch, exported, compared with onnxruntime, published and asked again through ModelBox."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelbox
from modelbox import sync
from modelbox.errors import InvalidError, ModelInvalid
from tests.training import need

need("torch", "onnxscript")

import torch

from modelbox.integrations.torch import export, publish


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(0.5))
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x))


class Two(torch.nn.Module):
    def forward(self, left: Any, right: Any) -> Any:
        return left + right, left * right


def name() -> str:
    return f"torch/{secrets.token_hex(6)}"


def test_a_module_answers_as_it_did_before(box: sync.Client) -> None:
    net = Net()
    net.head.eval()
    path = name()
    with box.start_run(path, capture=False) as run:
        created = publish(
            box,
            net,
            torch.zeros(1, 4),
            path,
            run=run,
            metrics={"accuracy": 0.5},
            output_names=["scores"],
            aliases=["up"],
        )
    version = created.item
    assert version.manifest.signature is not None
    assert [str(spec) for spec in version.manifest.signature.inputs] == ["x: float32[batch, 4]"]
    assert [str(spec) for spec in version.manifest.signature.outputs] == ["scores: float32[batch, 3]"]
    assert [file.path for file in version.manifest.files] == ["model.onnx"]
    assert version.metadata["parameters"] == 4 * 8 + 8 + 8 * 3 + 3
    assert run.id in {node.id for node in box.get_lineage(f"{path}@1", direction="ancestors").nodes}
    assert version.metrics == {"accuracy": 0.5}
    assert not box.metric_summaries(run.id)
    # As it was: in training, but for the part that was not.
    assert (net.training, net.body.training, net.head.training) == (True, True, False)
    rows = torch.randn(5, 4)
    with box.load(f"{path}@up") as model:
        answers = model.predict({"x": rows.numpy()})
    with torch.no_grad():
        assert np.allclose(answers["scores"], net.eval()(rows).numpy(), atol=1e-5)


async def test_the_client_that_is_awaited_does_the_same(box: sync.Client) -> None:
    path = name()
    async with modelbox.Client() as client:
        created = await publish(client, Two(), (torch.zeros(2, 3), torch.ones(2, 3)), path)
        model = await client.load(f"{path}@latest")
        rows = np.full((4, 3), 3, np.float32)
        answers = await model.predict({"left": rows, "right": rows})
    assert created.item.version == 1
    assert sorted(float(value[0, 0]) for value in answers.values()) == [6.0, 9.0]


def test_a_fixed_shape_stays_fixed(tmp_path: Path, box: sync.Client) -> None:
    path = name()
    version = publish(box, Net(), torch.zeros(1, 4), path, dynamic_batch=False).item
    assert version.manifest.signature is not None
    assert version.manifest.signature.inputs[0].shape == (1, 4)


def test_what_cannot_be_exported_says_so(tmp_path: Path) -> None:
    class Branches(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    with pytest.raises(InvalidError, match="Branches cannot be exported to ONNX"):
        export(Branches(), torch.zeros(2, 2), tmp_path / "model.onnx")
    with pytest.raises(InvalidError, match="expected a tensor"):
        export(Net(), np.zeros((1, 4)), tmp_path / "model.onnx")
    with pytest.raises(InvalidError, match="no row"):
        export(Net(), torch.zeros(0, 4), tmp_path / "model.onnx")


def test_a_file_that_gives_something_else_is_refused(tmp_path: Path) -> None:
    class Changes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Any) -> Any:
            if not torch.compiler.is_compiling():
                return x + 1
            return x

    with pytest.raises(ModelInvalid, match="gives another"):
        export(Changes(), torch.zeros(2, 2), tmp_path / "model.onnx")
    assert export(Changes(), torch.zeros(2, 2), tmp_path / "model.onnx", check=False).exists()

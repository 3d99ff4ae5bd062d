"""Integrations where their library is not installed, and how hyperparameters become JSON."""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from dataclasses import dataclass

import pytest

from modelbox.errors import ConfigError
from modelbox.integrations._values import numbers, parameters


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("lightning", "lightning", "lightning"),
        ("keras", "keras", "keras"),
        ("transformers", "transformers", "transformers"),
        ("sklearn", "skl2onnx", "sklearn"),
        ("torch", "torch", "torch"),
    ],
)
def test_a_missing_library_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, library: str, extra: str
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == library or name == f"modelbox.integrations.{module}":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    if module == "sklearn":
        monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=rf"pip install 'modelbox\[{extra}\]'") as caught:
        importlib.import_module(f"modelbox.integrations.{module}")
    assert caught.value.fields["extra"] == extra


def test_nested_hyperparameters_have_keys_with_dots() -> None:
    @dataclass
    class Optimizer:
        lr: float
        betas: tuple[float, float]

    def activation() -> None: ...

    values = {"net": Namespace(width=4, layers={"depth": 2, "none": {}}), "activation": activation, "type": int}
    found = parameters(values)
    assert found.pop("activation").startswith("<function")
    assert found == {"net.width": 4, "net.layers.depth": 2, "net.layers.none": {}, "type": "builtins.int"}
    assert parameters(Optimizer(lr=0.1, betas=(0.9, 0.99)), "opt.") == {"opt.lr": 0.1, "opt.betas": (0.9, 0.99)}
    assert parameters(None) == {}
    assert len(parameters({"text": object(), "long": ["x" * 100_000]})["long"]) == 2000


def test_only_numbers_are_metrics() -> None:
    assert numbers({"loss": 1, "name": "x", "list": [1], "nan": float("inf"), "flag": True}) == {
        "loss": 1.0,
        "nan": float("inf"),
        "flag": 1.0,
    }
    assert numbers(None) == {}

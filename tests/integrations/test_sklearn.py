"""Estimators of scikit-learn, published and asked again through ModelBox."""

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

need("sklearn", "skl2onnx", "pandas")

import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from modelbox.integrations.sklearn import export, publish

DIGITS: Any = load_digits()
X = DIGITS.data[:600].astype(np.float32)
Y = DIGITS.target[:600]


def name() -> str:
    return f"sklearn/{secrets.token_hex(6)}"


def test_a_classifier_answers_as_it_did_before(box: sync.Client) -> None:
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(X, Y)
    path = name()
    with box.start_run(path, capture=False) as run:
        accuracy = float(pipeline.score(X, Y))
        created = publish(
            box, pipeline, path, X, run=run, metrics={"accuracy": accuracy}, aliases=["staging"], labels={"task": "ocr"}
        )
    version = created.item
    assert version.manifest.signature is not None
    assert [str(spec) for spec in version.manifest.signature.inputs] == ["X: float32[?, 64]"]
    assert [spec.name for spec in version.manifest.signature.outputs] == ["label", "probabilities"]
    assert version.metadata["classes"] == list(range(10))
    assert version.metrics == {"accuracy": accuracy}
    assert version.labels == {"task": "ocr"}
    params = box.get_params(run.id)
    assert params["logisticregression__max_iter"] == 200
    assert params["standardscaler__with_mean"] is True
    assert box.read_series(run.id, "accuracy").values.tolist() == [accuracy]
    assert box.get_run(run.id).id in {node.id for node in box.get_lineage(f"{path}@1", direction="ancestors").nodes}
    with box.load(f"{path}@staging") as model:
        answers = model.predict({"X": X[:50]})
    assert np.array_equal(answers["label"], pipeline.predict(X[:50]))
    assert np.allclose(answers["probabilities"], pipeline.predict_proba(X[:50]), atol=1e-4)


async def test_the_client_that_is_awaited_does_the_same(box: sync.Client) -> None:
    forest = RandomForestClassifier(n_estimators=5, random_state=0).fit(X, Y)
    path = name()
    async with modelbox.Client() as client:
        run = (await client.create_run(path)).item
        created = await publish(client, forest, path, X, run=run.id)
        assert (await client.get_params(run.id))["n_estimators"] == 5
        model = await client.load(f"{path}@latest")
        answers = await model.predict({"X": X[:20]})
    assert created.item.version == 1
    assert np.array_equal(answers["label"], forest.predict(X[:20]))


def test_a_regressor_and_a_frame_with_texts(tmp_path: Path, box: sync.Client) -> None:
    data: Any = load_diabetes()
    rows = data.data[:100].astype(np.float32)
    regressor = LinearRegression().fit(rows, data.target[:100])
    assert export(regressor, tmp_path / "model.onnx", rows).stat().st_size > 0
    frame = pd.DataFrame({"age": np.arange(20, dtype=np.float32), "town": ["Ulm", "Bonn"] * 10})
    columns = make_column_transformer((OneHotEncoder(), ["town"]), (StandardScaler(), ["age"]))
    pipeline = make_pipeline(columns, LogisticRegression()).fit(frame, [0, 1] * 10)
    path = name()
    version = publish(box, pipeline, path, frame).item
    assert version.manifest.signature is not None
    assert [str(spec) for spec in version.manifest.signature.inputs] == ["age: float32[?, 1]", "town: string[?, 1]"]


def test_what_cannot_be_exported_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="LogisticRegression cannot be exported to ONNX"):
        export(LogisticRegression(), tmp_path / "model.onnx", X)


def test_a_file_that_answers_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forest = RandomForestClassifier(n_estimators=3, random_state=0).fit(X, Y)
    predict = forest.predict
    # As a class of one's own does that skl2onnx takes for the one it derives from.
    monkeypatch.setattr(forest, "predict", lambda rows: (predict(rows) + 1) % 10, raising=False)
    with pytest.raises(ModelInvalid, match="gives another label"):
        export(forest, tmp_path / "model.onnx", X)
    assert export(forest, tmp_path / "model.onnx", X, check=False).exists()

"""The callback in Keras's own ``fit``, with torch as the backend."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbox import sync
from modelbox.tracking import RunStatus
from tests.training import need

need("torch", "keras")

import keras

from modelbox.integrations.keras import ModelBoxCallback


def model() -> Any:
    net = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)])
    net.compile(optimizer=keras.optimizers.Adam(learning_rate=0.25), loss="mse", metrics=["mae"])
    return net


X = np.linspace(-1, 1, 64, dtype=np.float32).reshape(32, 2)
Y = X.sum(axis=1)


def test_a_fit_is_recorded(box: sync.Client, tmp_path: Path) -> None:
    path = f"keras/{secrets.token_hex(6)}"
    callback = ModelBoxCallback(
        path, name="first", params={"width": 4}, tags={"kind": "test"}, checkpoints=2, every_batches=3, capture=False
    )
    net = model()
    history = net.fit(X, Y, epochs=4, batch_size=8, validation_split=0.25, verbose=0, callbacks=[callback]).history
    (run,) = box.iter_runs(path)
    assert (run.id, run.name, run.status) == (callback.run.id, "first", RunStatus.FINISHED)
    for key in ("loss", "mae", "val_loss", "val_mae"):
        series = box.read_series(run.id, key)
        assert series.steps.tolist() == [0, 1, 2, 3]
        assert series.values.tolist() == pytest.approx(history[key])
    assert box.read_series(run.id, "learning_rate").values.tolist() == [0.25] * 4
    assert box.read_series(run.id, "batch/loss").steps.tolist() == [0, 3, 6, 9]
    params = box.get_params(run.id)
    assert (params["width"], params["epochs"], params["optimizer.name"]) == (4, 4, "adam")
    assert box.get_tags(run.id) == {"kind": "test"}
    checkpoints = sorted(box.iter_checkpoints(run.id), key=lambda one: one.epoch)
    assert [(one.epoch, one.step) for one in checkpoints] == [(1, 6), (3, 12)]
    (artifact,) = box.iter_artifacts(checkpoints[-1].id)
    box.download_artifact(artifact.id, tmp_path / "got")
    (local,) = (tmp_path / "got").rglob("model.keras")
    assert np.allclose(keras.models.load_model(local).predict(X, verbose=0), net.predict(X, verbose=0))


def test_a_fit_that_breaks_is_said_by_the_run_that_was_handed_in(box: sync.Client) -> None:
    class Breaks(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise ValueError("the data are odd")

    path = f"keras/{secrets.token_hex(6)}"
    with pytest.raises(ValueError, match="odd"):
        with box.start_run(path, capture=False) as run:
            model().fit(X, Y, epochs=4, verbose=0, callbacks=[ModelBoxCallback(run=run), Breaks()])
    assert box.get_run(run.id).status is RunStatus.FAILED
    assert box.read_series(run.id, "loss").steps.tolist() == [0, 1]


def test_training_goes_on_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelbox.integrations._run._FLUSH_S", 0.1)
    callback = ModelBoxCallback("keras/away", url="http://127.0.0.1:9", capture=False)
    assert len(model().fit(X, Y, epochs=2, verbose=0, callbacks=[callback]).history["loss"]) == 2
    assert callback.run.dropped == callback.run.skipped == 0

"""The logger under Lightning's own trainer: what it records, what checkpoints become, what failures do not stop."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbox import sync
from modelbox.tracking import Run, RunStatus
from tests.training import need

need("torch", "lightning")

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from modelbox.integrations.lightning import ModelBoxLogger

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Net(LightningModule):
    def __init__(self, width: int = 4, activation: Any = torch.nn.ReLU) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, width), activation(), torch.nn.Linear(width, 1))

    def training_step(self, batch: Any, _: int) -> Any:
        loss = torch.nn.functional.mse_loss(self.layers(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val_loss", torch.nn.functional.mse_loss(self.layers(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def data() -> Any:
    x = torch.linspace(-1, 1, 64).reshape(32, 2)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)


def trainer(logger: ModelBoxLogger, **settings: Any) -> Any:
    defaults = {"max_epochs": 3, "log_every_n_steps": 1, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(logger=logger, accelerator="cpu", **(defaults | settings))


def experiment() -> str:
    return f"lightning/{secrets.token_hex(6)}"


def only_run(box: sync.Client, path: str) -> Run:
    (run,) = box.iter_runs(path)
    return run


def test_a_fit_is_recorded(box: sync.Client, tmp_path: Path) -> None:
    path = experiment()
    logger = ModelBoxLogger(path, name="first", tags={"kind": "test"}, upload_checkpoints=True, capture=False)
    saver = ModelCheckpoint(tmp_path / "ckpt", save_top_k=-1)
    trainer(logger, callbacks=[saver]).fit(Net(), data(), data())
    run = only_run(box, path)
    assert (run.id, run.name, run.status) == (logger.version, "first", RunStatus.FINISHED)
    assert box.read_series(run.id, "loss").steps.tolist() == list(range(12))
    assert box.read_series(run.id, "val_loss").steps.tolist() == [3, 7, 11]
    assert box.get_params(run.id) == {"width": 4, "activation": "torch.nn.modules.activation.ReLU"}
    assert box.get_tags(run.id) == {"kind": "test"}
    checkpoints = sorted(box.iter_checkpoints(run.id), key=lambda checkpoint: checkpoint.epoch)
    assert [(one.epoch, one.step) for one in checkpoints] == [(0, 4), (1, 8), (2, 12)]
    last = box.read_series(run.id, "val_loss").values[-1]
    assert checkpoints[-1].metrics["val_loss"] == pytest.approx(float(last))
    for checkpoint in checkpoints:
        (artifact,) = box.iter_artifacts(checkpoint.id)
        box.download_artifact(artifact.id, tmp_path / checkpoint.id)
        (local,) = (tmp_path / checkpoint.id).rglob("*.ckpt")
        assert local.read_bytes() == Path(checkpoint.path).read_bytes()
    assert logger.run.skipped == 0
    assert not logger.run.rejections


def test_checkpoints_by_steps_are_numbered_by_step_and_stay_where_they_are(box: sync.Client, tmp_path: Path) -> None:
    path = experiment()
    logger = ModelBoxLogger(path, capture=False, prefix="a/")
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    trainer(logger, callbacks=[saver]).fit(Net(), data())
    run = only_run(box, path)
    assert sorted(one.epoch for one in box.iter_checkpoints(run.id)) == [3, 6, 9, 12]
    assert all(not list(box.iter_artifacts(one.id)) for one in box.iter_checkpoints(run.id))
    assert box.read_series(run.id, "a/loss").steps.tolist() == list(range(12))


def test_what_is_tested_after_the_fit_belongs_to_the_run(box: sync.Client) -> None:
    path = experiment()
    logger = ModelBoxLogger(path, capture=False)
    using = trainer(logger, enable_checkpointing=False)
    module = Net()
    using.fit(module, data())
    using.test(module, data(), verbose=False)
    logger.run.flush(timeout=30)
    run = only_run(box, path)
    assert run.status is RunStatus.FINISHED
    assert len(box.read_series(run.id, "val_loss").steps) == 1


def test_an_exception_in_training_is_the_runs_reason(box: sync.Client) -> None:
    class Breaks(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            if args[-1] == 2:
                raise ValueError("the data are odd")

    path = experiment()
    logger = ModelBoxLogger(path, capture=False)
    with pytest.raises(ValueError, match="odd"):
        trainer(logger, callbacks=[Breaks()], enable_checkpointing=False).fit(Net(), data())
    run = only_run(box, path)
    assert run.status is RunStatus.FAILED
    assert run.reason == "ValueError: the data are odd"


def test_a_run_of_ones_own_is_ones_own_to_end(box: sync.Client) -> None:
    path = experiment()
    with box.start_run(path, capture=False) as live:
        logger = ModelBoxLogger(run=live)
        trainer(logger, enable_checkpointing=False, max_epochs=1).fit(Net(), data())
        live.flush(timeout=30)
        assert box.get_run(live.id).status is RunStatus.RUNNING
        live.log_metric("after", 1.0)
    assert box.get_run(live.id).status is RunStatus.FINISHED
    assert {summary.key for summary in box.metric_summaries(live.id)} == {"loss", "epoch", "after"}


def test_training_goes_on_without_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logger = ModelBoxLogger("lightning/away", url="http://127.0.0.1:9", capture=False, upload_checkpoints=True)
    module = Net()
    before = module.layers[0].weight.detach().clone()
    using = trainer(logger, max_epochs=1, default_root_dir=tmp_path)
    monkeypatch.setattr("modelbox.integrations.lightning._FLUSH_S", 0.1)
    using.fit(module, data())
    assert using.state.finished
    assert not torch.equal(before, module.layers[0].weight)
    assert logger.run.dropped == logger.run.skipped == 0


def test_a_training_that_goes_on_from_a_checkpoint_logs_each_step_once(box: sync.Client, tmp_path: Path) -> None:
    class Dies(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 7:
                raise KeyboardInterrupt

    path, remembered = experiment(), tmp_path / "run"

    def fit(*callbacks: Any) -> ModelBoxLogger:
        torch.manual_seed(0)
        logger = ModelBoxLogger(path, capture=False, resume_file=remembered)
        saver = ModelCheckpoint(tmp_path / "ckpt", save_last=True)
        last = tmp_path / "ckpt" / "last.ckpt"
        using = trainer(logger, callbacks=[saver, *callbacks])
        using.fit(Net(), data(), data(), ckpt_path=last if last.exists() else None, weights_only=False)
        return logger

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(Dies())
    run = only_run(box, path)
    assert run.status is RunStatus.INTERRUPTED
    first = box.read_series(run.id, "loss")
    assert first.steps.tolist() == list(range(6))
    # Steps 4 and 5 are trained once more, from the checkpoint after step 3.
    fit()
    assert only_run(box, path).status is RunStatus.FINISHED
    again = box.read_series(run.id, "loss")
    assert again.steps.tolist() == list(range(12))
    assert np.array_equal(again.values[:6], first.values)
    assert box.read_series(run.id, "val_loss").steps.tolist() == [3, 7, 11]
    assert sorted(one.epoch for one in box.iter_checkpoints(run.id)) == [0, 1, 2]
    assert not remembered.exists()

"""The callback in the Trainer of transformers, with a tiny model made here."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Any

import pytest

from modelbox import sync
from modelbox.errors import UsageError
from modelbox.tracking import RunStatus
from tests.training import need

need("torch", "transformers", "accelerate")

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from modelbox.integrations.transformers import ModelBoxCallback

logging.getLogger("transformers").setLevel(logging.ERROR)


def trainer(directory: Path, callback: ModelBoxCallback, **settings: Any) -> Any:
    config = BertConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=8,
    )
    rows = [{"input_ids": torch.tensor([index % 16, 1, 2]), "labels": torch.tensor(index % 2)} for index in range(16)]
    defaults = {
        "output_dir": str(directory),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_steps": 3,
        "eval_steps": 3,
        "eval_strategy": "steps",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "learning_rate": 0.125,
        "hub_token": "secret-token",
    }
    return Trainer(
        BertForSequenceClassification(config),
        TrainingArguments(**(defaults | settings)),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[callback],
    )


def test_a_training_is_recorded(box: sync.Client, tmp_path: Path) -> None:
    path = f"transformers/{secrets.token_hex(6)}"
    callback = ModelBoxCallback(path, name="first", params={"rows": 16}, upload_checkpoints=True, capture=False)
    trainer(tmp_path / "out", callback).train()
    (run,) = box.iter_runs(path)
    assert (run.id, run.name, run.status) == (callback.run.id, "first", RunStatus.FINISHED)
    assert box.read_series(run.id, "loss").steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert box.read_series(run.id, "eval/loss").steps.tolist() == [3, 6]
    params = box.get_params(run.id)
    assert (params["learning_rate"], params["max_steps"], params["rows"]) == (0.125, 6, 16)
    assert "secret-token" not in str(params)
    assert box.get_metadata(run.id)["model.hidden_size"] == 8
    checkpoints = sorted(box.iter_checkpoints(run.id), key=lambda one: one.epoch)
    assert [(one.epoch, one.step) for one in checkpoints] == [(3, 3), (6, 6)]
    assert checkpoints[1].path == str(tmp_path / "out" / "checkpoint-6")
    assert checkpoints[1].metrics.keys() >= {"eval/loss"}
    (artifact,) = box.iter_artifacts(checkpoints[1].id)
    assert {"config.json", "model.safetensors"} <= {file.path for file in artifact.files}


def test_a_training_that_goes_on_from_a_checkpoint_logs_each_step_once(box: sync.Client, tmp_path: Path) -> None:
    class Dies(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *others: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    path, remembered = f"transformers/{secrets.token_hex(6)}", tmp_path / "run"
    first = trainer(tmp_path / "out", ModelBoxCallback(path, capture=False, resume_file=remembered))
    first.add_callback(Dies())
    with pytest.raises(KeyboardInterrupt):
        first.train()
    again = ModelBoxCallback(path, capture=False, resume_file=remembered)
    trainer(tmp_path / "out", again).train(resume_from_checkpoint=True)
    (run,) = box.iter_runs(path)
    assert run.status is RunStatus.FINISHED
    # Step 4 was trained twice.
    assert box.read_series(run.id, "loss").steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert sorted(one.epoch for one in box.iter_checkpoints(run.id)) == [3, 6]
    assert not remembered.exists()


def test_an_evaluation_without_a_training_is_recorded(box: sync.Client, tmp_path: Path) -> None:
    path = f"transformers/{secrets.token_hex(6)}"
    callback = ModelBoxCallback(path, capture=False)
    trainer(tmp_path, callback).evaluate()
    callback.run.flush(timeout=30)
    (run,) = box.iter_runs(path)
    assert len(box.read_series(run.id, "eval/loss")) == 1


def test_training_goes_on_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelbox.integrations._run._FLUSH_S", 0.1)
    callback = ModelBoxCallback("transformers/away", url="http://127.0.0.1:9", capture=False)
    assert trainer(tmp_path, callback, save_strategy="no", eval_strategy="no").train().global_step == 6
    assert callback.run.dropped == callback.run.skipped == 0


def test_a_callback_has_one_run() -> None:
    with pytest.raises(UsageError, match="one of them"):
        ModelBoxCallback()

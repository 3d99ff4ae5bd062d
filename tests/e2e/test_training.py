"""The proof of tracking: a training on real data that is killed in the middle, as its server is, ends complete."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbox import sync
from modelbox.spool import spool_status
from modelbox.tracking import Checkpoint, RunStatus
from tests.server import ProgramProcess, ServerProcess
from tests.training import need

need("torch", "lightning", "onnxscript", "sklearn")

import torch

from examples.training.data import digits

# Most of it is three imports of torch, which take long on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

EPOCHS, STEPS_OF_EPOCH = 6, 23
STEPS = EPOCHS * STEPS_OF_EPOCH


class Training(ProgramProcess):
    """One of the scripts, started as often as it takes."""

    def __init__(self, script: str, work: Path, url: str, *, pace: float) -> None:
        super().__init__(
            f"examples.training.{script}",
            settings={
                "work": work / "training",
                "epochs": EPOCHS,
                "pace": pace,
                "experiment": f"lab/{script}",
                "model": f"lab/{script}",
            },
            env={"MODELBOX_URL": url, "MODELBOX_SPOOL_DIR": str(work / "spool"), "OMP_NUM_THREADS": "1"},
        )

    def reach(self, step: int, *, after: int = 0) -> None:
        self.wait_for(rf"(?m)^step {step}$", timeout=120, after=after)

    def complete(self) -> None:
        assert self.wait(timeout=200) == 0, self.output[-3000:]
        assert "\npublished lab/" in self.output


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with ServerProcess(tmp_path / "server") as process:
        yield process


def check(client: sync.Client, name: str, work: Path, *, accuracy: str, epoch_steps: list[int]) -> np.ndarray:
    """That everything is there, once; returns the losses."""
    (run,) = client.iter_runs(f"lab/{name}")
    assert run.status is RunStatus.FINISHED
    assert not any(one.records for one in spool_status(work / "spool"))
    loss = client.read_series(run.id, "loss")
    assert loss.steps.tolist() == list(range(STEPS))
    assert client.read_series(run.id, accuracy).steps.tolist() == epoch_steps
    params = client.get_params(run.id)
    assert (params["epochs"], params["batch"], params["lr"], params["width"]) == (EPOCHS, 64, 0.005, 64)
    assert "python" in client.get_metadata(run.id)
    checkpoints: list[Checkpoint] = sorted(client.iter_checkpoints(run.id), key=lambda one: one.epoch)
    assert [(one.epoch, one.step) for one in checkpoints] == [
        (epoch, (epoch + 1) * STEPS_OF_EPOCH) for epoch in range(EPOCHS)
    ]
    for checkpoint in checkpoints:
        (artifact,) = client.iter_artifacts(checkpoint.id)
        (local,) = [
            path for path in client.download_artifact(artifact.id, work / checkpoint.id).rglob("*") if path.is_file()
        ]
        state = torch.load(local, weights_only=True)
        assert state["epoch"] == checkpoint.epoch
    version = client.get_version(f"lab/{name}@staging")
    assert version.version == 1
    assert run.id in {node.id for node in client.get_lineage(f"lab/{name}@1", direction="ancestors").nodes}
    _, _, images, labels = digits()
    with client.load(f"lab/{name}@staging") as model:
        answers = model.predict({"image": images.numpy()})
    right = float((answers["scores"].argmax(1) == labels.numpy()).mean())
    assert right > 0.9
    assert right == pytest.approx(next(iter(version.metrics.values())), abs=1e-6)
    return np.asarray(loss.values)


def test_with_torch_the_server_is_killed_then_the_program_which_goes_on_alone(
    server: ServerProcess, tmp_path: Path
) -> None:
    training = Training("digits", tmp_path, server.url, pace=0.05)
    try:
        training.spawn()
        training.reach(30)
        server.kill()
        training.reach(55)
        training.kill()
        before = len(training.output)
        # Nobody is there to ask: which run it is, and what was logged, is known on this machine.
        training.spawn()
        training.reach(2 * STEPS_OF_EPOCH, after=before)
        training.reach(75, after=before)
        assert len(set(re.findall(r"(?m)^run (\S+)$", training.output))) == 1
        server.restart()
        training.complete()
    finally:
        training.close()
    with sync.Client(server.url, cache_dir=tmp_path / "cache") as client:
        losses = check(client, "digits", tmp_path, accuracy="accuracy", epoch_steps=list(range(EPOCHS)))
        # The same as if nothing had happened.
        calm = Training("digits", tmp_path / "calm", server.url, pace=0)
        calm._settings["experiment"] = calm._settings["model"] = "lab/calm"
        calm.spawn()
        calm.complete()
        assert np.array_equal(
            losses, check(client, "calm", tmp_path / "calm", accuracy="accuracy", epoch_steps=list(range(EPOCHS)))
        )


def test_with_lightning_the_program_is_killed_twice_and_the_server_while_it_goes_on(
    server: ServerProcess, tmp_path: Path
) -> None:
    training = Training("digits_lightning", tmp_path, server.url, pace=0.05)
    try:
        training.spawn()
        training.reach(30)
        training.kill()
        before = len(training.output)
        training.spawn()
        training.reach(STEPS_OF_EPOCH, after=before)
        training.reach(60, after=before)
        server.kill()
        training.reach(80, after=before)
        training.kill()
        before = len(training.output)
        training.spawn()
        training.reach(90, after=before)
        # It comes back while the training goes on.
        back = threading.Thread(target=server.restart)
        back.start()
        training.complete()
        back.join()
    finally:
        training.close()
    with sync.Client(server.url, cache_dir=tmp_path / "cache") as client:
        steps = [(epoch + 1) * STEPS_OF_EPOCH - 1 for epoch in range(EPOCHS)]
        check(client, "digits_lightning", tmp_path, accuracy="accuracy", epoch_steps=steps)

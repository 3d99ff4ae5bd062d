"""Types that users of the public interface rely on: checked by mypy, never run."""

from __future__ import annotations

from typing import assert_type

import numpy as np

import modelbox
from modelbox import sync
from modelbox.integrations import tensorboard
from modelbox.objects import Alias, Created, ModelVersion, Resolved
from modelbox.signature import Signature


async def loading() -> None:
    model = await modelbox.load("langtech/wav2vec@prod")
    assert_type(model, modelbox.LiveModel)
    assert_type(model.version, int)
    assert_type(model.digest, modelbox.Digest)
    assert_type(model.signature, Signature)
    assert_type(model.stale, bool)
    prediction = await model.predict({"x": np.zeros((1, 4), np.float32), "rate": 16000})
    assert_type(prediction, modelbox.Prediction)
    assert_type(prediction.version, ModelVersion)
    async with model.lease() as lease:
        assert_type(lease, modelbox.Lease)
        assert_type(await lease.predict({"x": [[1.0]]}), modelbox.Prediction)
    async for event in model.events():
        assert_type(event, modelbox.ModelEvent)


async def registry() -> None:
    async with modelbox.Client("http://127.0.0.1:8080") as client:
        assert_type(client, modelbox.Client)
        assert_type(await client.publish("ns/m", "model.onnx"), Created[ModelVersion])
        assert_type(await client.promote("ns/m@prod", 1), Alias)
        assert_type(await client.resolve("ns/m@prod"), Resolved)
        async for version in client.iter_versions("ns/m"):
            assert_type(version, ModelVersion)


def without_async() -> None:
    with sync.load("langtech/wav2vec@prod") as model:
        assert_type(model, sync.SyncModel)
        assert_type(model.predict({"x": [[1.0]]}), modelbox.Prediction)


async def training() -> None:
    async with modelbox.Client("http://127.0.0.1:8080") as client, client.start_run("ns/experiment") as run:
        assert_type(run, modelbox.LiveRun)
        run.log_metric("loss", 0.5, step=1)
        assert_type(run.log_checkpoint(1), str)
        assert_type((await client.get_run(run.id)).status, modelbox.RunStatus)
    with modelbox.start_run("ns/experiment", params={"lr": 0.1}) as other:
        assert_type(other, modelbox.LiveRun)
        assert_type(other.child("part"), modelbox.LiveRun)
        other.finish(modelbox.RunStatus.FAILED, "out of luck")


async def event_files(client: modelbox.Client, blocking: sync.Client) -> None:
    assert_type(await tensorboard.import_directory(client, "logs", "ns/e"), tuple[tensorboard.ImportedRun, ...])
    assert_type(tensorboard.import_directory(blocking, "logs", "ns/e"), tuple[tensorboard.ImportedRun, ...])
    assert_type(await tensorboard.export_run(client, "run", "logs"), tensorboard.ExportedRun)
    assert_type(tensorboard.export_run(blocking, "run", "logs"), tensorboard.ExportedRun)

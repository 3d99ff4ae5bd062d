"""Our own client with the smallest role that should do: nothing that it calls by itself needs more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

import modelbox
from modelbox.errors import AuthError, NotFoundError
from modelbox.tracking import DatasetComponent, RunStatus
from tests.onnx_models import add_constant
from tests.permissions.world import Live, live_server, make_token

ZERO = np.zeros((1, 4), np.float32)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(tmp_path_factory.mktemp("clients") / "data") as server:
        yield server


@asynccontextmanager
async def _client(
    live: Live, directory: Path, account: str, role: str, namespace: str, model: str = ""
) -> AsyncIterator[modelbox.Client]:
    async with live.caller(live.admin) as admin:
        token = await make_token(admin, account, [(role, namespace, model)])
    async with modelbox.Client(
        live.url, token=token, cache_dir=str(directory / account), spool_dir=str(directory / f"{account}-spool")
    ) as client:
        yield client


async def test_a_writer_trains_and_publishes(live: Live, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(add_constant(1.0))
    async with _client(live, tmp_path, "trainer", "writer", "speech") as client:
        await client.create_dataset_version("speech/corpus", [DatasetComponent(type="path", location="/data/speech")])
        async with client.start_run("speech/exp", name="first", params={"lr": 0.1}) as run:
            for step in range(50):
                run.log_metric("loss", 1 / (step + 1), step=step)
            run.set_labels({"team": "speech"})
            run.log_event("gpu.lost", source="scheduler")
            run.use_dataset("speech/corpus@1")
            run.log_checkpoint(0, step=49, metrics={"acc": 0.5}, files=tmp_path / "model.onnx")
            run.log_artifact("weights", tmp_path / "model.onnx")
            run.add_comment("*good*")
            run.set_readme("# First")
            with run.child("part") as child:
                child.log_metric("loss", 2.0)
            await run.aflush(timeout=100)
        assert (run.rejections, run.skipped, run.dropped) == ((), 0, 0)
        found = await client.get_run(run.id)
        assert (found.status, found.created_by) == (RunStatus.FINISHED, "trainer")
        assert len((await client.read_series(run.id, "loss")).values) == 50
        published = await client.publish("speech/vad", tmp_path / "model.onnx", run=run.id, aliases=["staging"])
        assert published.item.created_by == "trainer"
        with pytest.raises(AuthError):
            await client.delete_model("speech/vad")
        with pytest.raises(AuthError, match="writer"):
            await client.create_model("elsewhere/vad", owner="me")


async def test_a_reader_of_one_model_serves_it(live: Live, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}.onnx").write_bytes(add_constant(float(number)))
    async with (
        _client(live, tmp_path, "publisher", "promoter", "vision") as publisher,
        _client(live, tmp_path, "serving", "reader", "vision", "cats") as client,
    ):
        for number in (1, 2):
            await publisher.publish("vision/cats", tmp_path / f"{number}.onnx")
        await publisher.publish("vision/dogs", tmp_path / "1.onnx")
        await publisher.promote("vision/cats@prod", 1)
        model = await client.load("vision/cats@prod")
        assert (await model.predict({"x": ZERO}))["y"].max() == 1.0
        with pytest.raises(NotFoundError):
            await client.load("vision/dogs@latest")
        assert [one.path async for one in client.iter_models()] == ["vision/cats"]
        with pytest.raises(AuthError, match="writer"):
            await client.promote("vision/cats@prod", 2)
        async for instance in publisher.iter_instances("vision/cats"):
            assert instance.report.ref == "vision/cats@prod"

"""Runs of a program against a real server: what is logged is what is read, under every event loop."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

import modelbox
from modelbox import sync
from modelbox.errors import Unavailable
from modelbox.tracking import DatasetComponent, RunStatus
from tests.server import ServerProcess


@pytest.fixture
def namespace() -> str:
    return f"ns-{secrets.token_hex(4)}"


async def test_what_is_logged_is_what_is_read(shared_server: ServerProcess, tmp_path: Path, namespace: str) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    at = datetime(2026, 5, 3, 10, tzinfo=UTC)
    async with modelbox.Client(shared_server.url, spool_dir=tmp_path / "spool", actor="ada@test") as client:
        data = await client.create_dataset_version(
            f"{namespace}/speech", [DatasetComponent(type="path", location="/data/speech")]
        )
        async with client.start_run(
            f"{namespace}/exp", name="first", params={"lr": 0.1}, tags={"a": "b"}, flush_timeout_s=60
        ) as run:
            for step in range(500):
                run.log_metric("loss", 1 / (step + 1), step=step)
            run.log_metric("edge", float("-inf"))
            run.log_metric("tensor", b"\0\xff")
            run.log_metric("text", "ünï")
            run.log_params({"layers": [1, 2]})
            run.set_labels({"team": "speech"})
            run.log_event("gpu.lost", source="scheduler", at=at, metadata={"gpu": 3})
            run.use_dataset(f"{namespace}/speech@1")
            checkpoint = run.log_checkpoint(0, step=499, metrics={"acc": 0.5}, files=tmp_path / "model.bin")
            run.log_artifact("weights", tmp_path / "model.bin")
            run.add_comment("*good*")
            run.set_readme("# First")
            with run.child("part") as child:
                child.log_metric("loss", 2.0)
            await run.aflush(timeout=60)
            assert (await client.get_run(run.id)).status is RunStatus.RUNNING
        assert (run.rejections, run.skipped, run.dropped) == ((), 0, 0)

        found = await client.get_run(run.id)
        assert (found.name, found.status, found.created_by) == ("first", RunStatus.FINISHED, "ada@test")
        assert found.ended_at is not None
        series = await client.read_series(run.id, "loss")
        assert np.array_equal(series.values, 1 / (np.arange(500) + 1))
        assert (await client.read_series(run.id, "tensor")).payloads == (b"\0\xff",)
        assert (await client.read_series(run.id, "text")).payloads == ("ünï",)
        assert (await client.read_series(run.id, "edge")).values.tolist() == [float("-inf")]
        assert await client.get_params(run.id) == {"lr": 0.1, "layers": [1, 2]}
        assert await client.get_tags(run.id) == {"a": "b"}
        assert await client.get_labels(run.id) == {"team": "speech"}
        assert "python" in await client.get_metadata(run.id)
        (event,) = [one async for one in client.iter_events(run.id)]
        assert (event.name, event.source, event.at, event.metadata) == ("gpu.lost", "scheduler", at, {"gpu": 3})
        assert (await client.get_checkpoint(checkpoint)).metrics == {"acc": 0.5}
        for parent, name in ((run.id, "weights"), (checkpoint, "files")):
            artifacts = {one.name: one async for one in client.iter_artifacts(parent)}
            target = await client.download_artifact(artifacts[name].id, tmp_path / name)
            assert (target / "model.bin").read_bytes() == b"weights"
        assert [one.text async for one in client.iter_comments(run.id)] == ["*good*"]
        assert (await client.get_readme(run.id)).text == "# First"
        lineage = await client.get_lineage(run.id, direction="ancestors")
        assert {(edge.source, edge.target, edge.type) for edge in lineage.edges} == {(data.item.id, run.id, "used")}
        assert (await client.get_run(child.id)).parent_id == run.id


def test_a_resumed_run_goes_on(shared_server: ServerProcess, tmp_path: Path, namespace: str) -> None:
    with sync.Client(shared_server.url, spool_dir=tmp_path / "spool") as client:
        with pytest.raises(ValueError, match="out of luck"):
            with client.start_run(f"{namespace}/exp", capture=False, flush_timeout_s=60) as first:
                first.log_metric("loss", 0.5, step=0)
                raise ValueError("out of luck")
        failed = client.get_run(first.id)
        assert (failed.status, failed.reason) == (RunStatus.FAILED, "ValueError: out of luck")
        with client.start_run(f"{namespace}/exp", resume=first.id, capture=False, flush_timeout_s=60) as second:
            second.log_metric("loss", 0.25)  # counts on from what the server has
            second.flush(timeout=60)
            assert client.get_run(first.id).status is RunStatus.RUNNING
        assert client.get_run(first.id).status is RunStatus.FINISHED
        series = client.read_series(first.id, "loss")
        assert (series.steps.tolist(), series.values.tolist()) == ([0, 1], [0.5, 0.25])


def test_what_the_server_refuses_is_told_and_the_rest_arrives(
    shared_server: ServerProcess, tmp_path: Path, namespace: str
) -> None:
    with sync.Client(shared_server.url, spool_dir=tmp_path / "spool") as client:
        with client.start_run(f"{namespace}/exp", params={"lr": 0.1}, capture=False, flush_timeout_s=60) as first:
            pass
        with client.start_run(f"{namespace}/exp", resume=first.id, capture=False, flush_timeout_s=60) as second:
            # This program does not know that there is another value already.
            second.log_params({"lr": 0.2, "layers": 3})
            second.use_dataset(f"{namespace}/nothing@1")
            second.log_metric("loss", 0.5)
            second.flush(timeout=60)
        assert client.get_params(first.id) == {"lr": 0.1, "layers": 3}
        assert client.read_series(first.id, "loss").values.tolist() == [0.5]
        codes = sorted(one.code for one in second.rejections)
        assert codes == ["conflict", "not_found"]


def test_a_run_needs_no_server(server: ServerProcess, tmp_path: Path) -> None:
    server.kill()
    with sync.Client(server.url, spool_dir=tmp_path / "spool") as client:
        with client.start_run("lab/offline", capture=False, flush_timeout_s=0.2) as run:
            for step in range(100):
                run.log_metric("loss", 0.5, step=step)
        with pytest.raises(Unavailable):
            client.get_run(run.id)
        server.restart()
        run.flush(timeout=60)
        assert client.get_run(run.id).status is RunStatus.FINISHED
        assert len(client.read_series(run.id, "loss")) == 100

"""Events, comments, readmes, datasets, lineage and artifacts of any object, from the client to the disk and back."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from modelbox.client import Client
from modelbox.errors import ConflictError, InvalidError, NotFoundError
from modelbox.feed import Change
from modelbox.tracking import DatasetComponent, NewEdge
from tests.server import ServerProcess

AT = datetime(2026, 5, 3, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def ns() -> str:
    return f"ns-{secrets.token_hex(4)}"


@pytest.fixture
async def client(shared_server: ServerProcess) -> AsyncIterator[Client]:
    async with Client(shared_server.url, actor="ada@test") as opened:
        yield opened


async def test_events_since_a_time(client: Client, ns: str) -> None:
    run = (await client.create_run(f"{ns}/digits")).item
    logged = [
        await client.log_event(
            run.id, "gpu.lost", source="scheduler", at=AT + timedelta(minutes=minute), metadata={"gpu": minute}
        )
        for minute in (3, 1, 2)
    ]
    event = logged[-1]
    assert (event.object, event.namespace, event.created_by, event.metadata) == (run.id, ns, "ada@test", {"gpu": 2})
    assert event.at == AT + timedelta(minutes=2)
    await client.log_event(ns, "moved", at=AT)
    since = AT + timedelta(minutes=2)
    assert [event.metadata["gpu"] async for event in client.iter_events(run.id, since=since)] == [3, 2]
    assert [event.name async for event in client.iter_events(ns, until=since)] == ["gpu.lost", "moved"]
    assert [event async for event in client.iter_events(ns, name="moved", source="scheduler")] == []


async def test_comments_and_a_readme(client: Client, ns: str) -> None:
    model = (await client.create_model(f"{ns}/m")).item
    comment = await client.add_comment(f"{ns}/m", "looks good — ÄÖ")
    edited = await client.edit_comment(comment.id, "looks bad")
    assert (edited.object, edited.created_by) == (model.id, "ada@test")
    assert edited.edited_at is not None
    assert [one async for one in client.iter_comments(model.id)] == [edited]
    assert await client.delete_objects(comment.id) == 1
    assert [one async for one in client.iter_comments(model.id)] == []
    assert await client.restore_objects(comment.id) == 1
    assert len([one async for one in client.iter_comments(model.id)]) == 1
    await client.set_readme(model.id, "# m\n")
    assert (await client.get_readme(f"{ns}/m")).text == "# m\n"
    await client.set_readme(f"{ns}/m", "")
    with pytest.raises(NotFoundError, match="readme"):
        await client.get_readme(model.id)


async def test_a_path_from_data_to_a_version(client: Client, ns: str, tmp_path: Path) -> None:
    parts = (
        DatasetComponent(type="path", location="/data/digits", digest="sha256:" + "0" * 64, size_bytes=10, rows=0),
        DatasetComponent(type="query", location="select 1", source="postgres://db/x"),
    )
    data = (await client.create_dataset_version(f"{ns}/digits", parts)).item
    assert (data.version, data.components) == (1, parts)
    assert (await client.create_dataset_version(f"{ns}/digits", reversed(parts))).existed
    assert await client.get_dataset_version(f"{ns}/digits") == data
    run = (await client.create_run(f"{ns}/training", name="first")).item
    checkpoint = (await client.create_checkpoint(run.id, 3)).item
    await client.add_edge(data.id, run.id, "used")
    file = tmp_path / "model.bin"
    file.write_bytes(b"weights")
    artifact = (await client.upload_artifact(checkpoint.id, "weights", file)).item
    assert (artifact.parent, artifact.namespace) == (checkpoint.id, ns)
    version = (await client.publish(f"{ns}/m", file, framework="raw", checkpoint=checkpoint.id)).item
    lineage = await client.get_lineage(f"{ns}/m@1", direction="ancestors")
    assert [(node.id, node.title, node.depth) for node in lineage.nodes] == [
        (version.id, f"{ns}/m@1", 0),
        (checkpoint.id, f"{ns}/training: first, epoch 3", 1),
        (run.id, f"{ns}/training: first", 2),
        (data.id, f"{ns}/digits@1", 3),
    ]
    assert {(edge.source, edge.type) for edge in lineage.edges} == {
        (data.id, "used"),
        (run.id, "produced"),
        (checkpoint.id, "produced"),
    }
    with pytest.raises(ConflictError, match="cycle") as caught:
        await client.add_edge(version.id, data.id, "derived")
    assert caught.value.fields["cycle"] == [version.id, data.id, run.id, checkpoint.id, version.id]
    assert await client.remove_edges([NewEdge(source=data.id, target=run.id, type="used")]) == 1
    await client.add_edge(version.id, data.id, "derived")
    with pytest.raises(InvalidError):
        await client.add_edge(version.id, version.id, "derived")


async def test_the_feed_tells_of_records(client: Client, ns: str) -> None:
    run = (await client.create_run(f"{ns}/digits")).item
    seen: list[tuple[str, str]] = []
    async with client.changes(namespace=ns, list_first=True) as feed:
        with anyio.fail_after(60):
            # Namespace, experiment and run are there already; nothing before them is told again.
            for _ in range(3):
                await anext(feed)
            event = await client.log_event(run.id, "a")
            comment = await client.add_comment(run.id, "b")
            await client.set_readme(run.id, "c")
            dataset = (await client.create_dataset(f"{ns}/d")).item
            await client.add_edge(dataset.id, run.id, "used")
            while len(seen) < 5:
                change = await anext(feed)
                assert isinstance(change, Change)
                seen.append((change.kind, change.object))
    assert seen == [
        ("event", event.id),
        ("comment", comment.id),
        ("readme", f"{run.id}/readme"),
        ("dataset", dataset.id),
        ("lineage", f"{dataset.id}->{run.id}:used"),
    ]

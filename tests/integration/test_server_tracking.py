"""Everything that training records, over gRPC by the client's calls, on a real server process."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from modelbox import errors
from modelbox import tracking as t
from modelbox._proto.modelbox import v1 as pb
from modelbox._transport.grpc import rpc
from modelbox._transport.source import RemoteSource
from modelbox._transport.tracking import TrackingCalls
from modelbox._wire import tracking as wire
from modelbox.config import load_client_config
from modelbox.feed import Filter, Revision
from modelbox.objects import NewModel
from modelbox.series import Point, columns_of, join_series, number_columns, sample_of
from tests.faults.registry import fault
from tests.server import ServerProcess

NOW = datetime(2026, 5, 3, 10, tzinfo=UTC)
DELIVER = rpc("TrackingService", "Deliver", pb.DeliverRequest, pb.DeliverResponse)
ZERO = struct.pack("<q", 0)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def _source(server: ServerProcess) -> AsyncIterator[RemoteSource]:
    source = RemoteSource(load_client_config(url=server.url, actor="ana"))
    try:
        yield source
    finally:
        await source.aclose()


async def _run(calls: TrackingCalls, namespace: str, **values: Any) -> t.Run:
    new = t.NewRun(experiment=f"{namespace}/speech", started_at=NOW, **values)
    return (await calls.create_run(new)).item


async def test_experiments(shared_server: ServerProcess) -> None:
    async with _source(shared_server) as source:
        calls = source.tracking
        new = t.NewExperiment(namespace="exps", name="speech", owner="ana", framework="pytorch", description="ü")
        created = await calls.create_experiment(new)
        assert not created.existed
        assert created.item.created_by == "ana"
        assert (created.item.id, created.item.path, created.item.description) == (new.id, "exps/speech", "ü")
        again = await calls.create_experiment(replace(new, id=t.new_id(t.ObjectKind.EXPERIMENT), owner="bo"))
        assert again.existed
        assert again.item == created.item
        assert await calls.get_experiment("exps/speech") == await calls.get_experiment(new.id) == created.item
        changed = await calls.update_experiment("exps/speech", t.ExperimentPatch(owner="bo"))
        assert (changed.owner, changed.framework) == ("bo", "pytorch")
        await calls.create_experiment(t.NewExperiment(namespace="exps", name="vision"))
        first = await calls.list_experiments("exps", page_size=1)
        second = await calls.list_experiments("exps", page_size=1, page_token=first.next_token)
        assert [one.name for one in (*first.items, *second.items)] == ["speech", "vision"]
        assert not second.next_token
        with pytest.raises(errors.NotFoundError, match="speech"):
            await calls.get_experiment("exps/speach")
        with pytest.raises(errors.InvalidError):
            await calls.create_experiment(t.NewExperiment(namespace="exps", name="No Spaces"))


async def test_runs(shared_server: ServerProcess) -> None:
    async with _source(shared_server) as source:
        calls = source.tracking
        new = t.NewRun(
            experiment="runs/speech",
            name="first",
            started_at=NOW,
            params={"lr": 0.1, "layers": [1, {"a": None}]},
            tags={"stage": "dev"},
            metadata={"git": {"dirty": True}},
        )
        created = await calls.create_run(new)
        assert not created.existed
        run = created.item
        assert (run.id, run.experiment, run.status, run.started_at) == (new.id, "speech", t.RunStatus.RUNNING, NOW)
        assert (await calls.create_run(new)).existed
        found = {(one.kind, one.key): one.value for one in await calls.get_attributes([run.id])}
        assert found == {
            (t.AttributeKind.PARAM, "lr"): 0.1,
            (t.AttributeKind.PARAM, "layers"): [1, {"a": None}],
            (t.AttributeKind.TAG, "stage"): "dev",
            (t.AttributeKind.METADATA, "git"): {"dirty": True},
        }
        ended = await calls.update_run(
            run.id, t.RunPatch(status=t.RunStatus.FAILED, reason="boom", ended_at=NOW + timedelta(hours=1))
        )
        assert (ended.name, ended.status, ended.reason) == ("first", t.RunStatus.FAILED, "boom")
        assert ended.ended_at == NOW + timedelta(hours=1)
        resumed = await calls.update_run(run.id, t.RunPatch(status=t.RunStatus.RUNNING))
        assert (resumed.ended_at, resumed.reason) == (None, "")
        child = await _run(calls, "runs", parent_id=run.id)
        cloned = await calls.clone_run(run.id, id=t.new_id(t.ObjectKind.RUN), name="again")
        assert (cloned.item.cloned_from, cloned.item.name) == (run.id, "again")
        assert {one.key for one in await calls.get_attributes([cloned.item.id], [t.AttributeKind.PARAM])} == {
            "lr",
            "layers",
        }
        listed = await calls.list_runs("runs/speech")
        assert [one.id for one in listed.items] == [cloned.item.id, child.id, run.id]
        assert await calls.get_run(run.id) == resumed
        with pytest.raises(errors.NotFoundError):
            await calls.get_run(t.new_id(t.ObjectKind.RUN))
        with pytest.raises(errors.InvalidError, match="is not an id"):
            await calls.get_run("run_1")


async def test_checkpoints_and_the_bin(shared_server: ServerProcess) -> None:
    async with _source(shared_server) as source:
        calls = source.tracking
        run = await _run(calls, "bin")
        new = t.NewCheckpoint(parent_id=run.id, epoch=0, step=0, path="/tmp/x", metrics={"acc": 0.5})
        created = await calls.create_checkpoint(new)
        assert (created.item.epoch, created.item.step, dict(created.item.metrics)) == (0, 0, {"acc": 0.5})
        without_step = await calls.create_checkpoint(t.NewCheckpoint(parent_id=run.id, epoch=1))
        assert without_step.item.step is None
        assert (await calls.create_checkpoint(t.NewCheckpoint(parent_id=run.id, epoch=0))).item == created.item
        assert [one.epoch for one in (await calls.list_checkpoints(run.id)).items] == [0, 1]
        assert await calls.get_checkpoint(new.id) == created.item

        assert await calls.delete_objects([run.id]) == 3
        assert (await calls.list_runs("bin/speech")).items == ()
        (binned,) = (await calls.list_runs("bin/speech", include_deleted=True)).items
        assert binned.deleted_at is not None
        assert await calls.restore_objects([run.id]) == 3
        assert (await calls.get_run(run.id)).deleted_at is None
        await calls.log_metrics([number_columns(run.id, "loss", [1], [0.5], 0)])
        await calls.delete_objects([run.id])
        later = datetime.now(UTC) + timedelta(minutes=1)
        assert await calls.purge("bin", before=later, dry_run=True) == 3
        assert await calls.purge("bin", before=later) == 3
        with pytest.raises(errors.NotFoundError):
            await calls.get_run(run.id)
        with pytest.raises(errors.NotFoundError):
            await calls.log_metrics([number_columns(run.id, "loss", [2], [0.5], 0)])


async def test_attributes(shared_server: ServerProcess) -> None:
    async with _source(shared_server) as source:
        calls = source.tracking
        run = await _run(calls, "attrs", params={"lr": 0.1})
        edit = t.AttributesEdit(object=run.id, kind=t.AttributeKind.PARAM, values={"lr": 0.2})
        with pytest.raises(errors.ConflictError) as caught:
            await calls.set_attributes(edit)
        assert (caught.value.fields["current"], caught.value.fields["given"]) == (0.1, 0.2)
        assert await calls.set_attributes(replace(edit, values={"lr": 0.1})) == 0
        assert await calls.set_attributes(replace(edit, overwrite=True)) > 0
        await calls.set_attributes(
            t.AttributesEdit(object=run.id, kind=t.AttributeKind.METADATA, values={"a.b": [1, "ü"], "gone": 1})
        )
        await calls.set_attributes(t.AttributesEdit(object=run.id, kind=t.AttributeKind.METADATA, remove=("gone",)))
        (only,) = await calls.get_attributes([run.id], [t.AttributeKind.METADATA])
        assert (only.key, only.value, only.updated_by) == ("a.b", [1, "ü"], "ana")
        history = await calls.list_attribute_history(run.id, t.AttributeKind.METADATA, "gone")
        assert [(one.value, one.deleted) for one in history.items] == [(None, True), (1, False)]
        # On what is no run, by path, and over the registry's own record.
        await source.grpc.create_model(NewModel(namespace="attrs", name="wav2vec"))
        label = t.AttributesEdit(object="attrs/wav2vec", kind=t.AttributeKind.LABEL, values={"lang": "de"})
        await calls.set_attributes(label)
        assert (await source.grpc.get_model("attrs", "wav2vec")).labels == {"lang": "de"}


async def test_metrics(shared_server: ServerProcess) -> None:
    async with _source(shared_server) as source:
        calls = source.tracking
        run = (await _run(calls, "metrics")).id
        points = [
            *(Point(key="loss", step=step, time_us=step, value=1 / (step + 1)) for step in range(100)),
            Point(key="odd", step=0, time_us=0, value=float("nan")),
            Point(key="odd", step=1, time_us=0, value=float("-inf")),
            Point(key="note", step=-(2**63), time_us=0, value="täxt"),
            Point(key="blob", step=2**63 - 1, time_us=0, value=b"\0\xff"),
        ]
        columns = columns_of(run, points)
        assert await calls.log_metrics([columns]) == (104, 0)
        assert await calls.log_metrics([columns]) == (0, 104)
        summaries = {one.key: one for one in await calls.get_metric_summaries([run])}
        assert (summaries["loss"].count, summaries["loss"].max, summaries["loss"].latest_step) == (100, 1.0, 99)
        assert summaries["note"].kind is t.MetricKind.TEXT
        assert summaries["note"].latest is None
        assert np.isneginf(summaries["odd"].latest or 0)

        async def read(key: str, **bounds: int) -> Any:
            return join_series(run, key, [part async for part in calls.read_series(run, key, **bounds)])

        assert (await read("loss")).steps.tolist() == list(range(100))
        assert (await read("loss", from_step=0, to_step=0)).steps.tolist() == [0]
        assert np.isnan((await read("odd")).values[0])
        assert (await read("note")).payloads == ("täxt",)
        assert (await read("blob")).payloads == (b"\0\xff",)
        sample = sample_of(await calls.sample_series(run, "loss", buckets=10))
        assert sample.counts.tolist() == [10] * 10
        assert sample.first_steps.tolist() == list(range(0, 100, 10))
        with pytest.raises(errors.NotFoundError, match="loss"):
            await read("lozz")
        with pytest.raises(errors.InvalidError):
            await calls.log_metrics([number_columns(run, "note", [5], [1.0], 0)])


@fault(62)
async def test_a_long_series_comes_in_parts(shared_server: ServerProcess) -> None:
    async with _source(shared_server) as source:
        calls = source.tracking
        run = (await _run(calls, "long")).id
        steps = np.arange(100_000)
        await calls.log_metrics([number_columns(run, "loss", steps, steps / 7, 0)])
        parts = [part async for part in calls.read_series(run, "loss")]
        assert [len(part) for part in parts] == [65_536, 100_000 - 65_536]
        assert join_series(run, "loss", parts).values.tolist() == (steps / 7).tolist()
        # Left early, it holds up nothing.
        async for _ in calls.read_series(run, "loss"):
            break
        assert (await calls.get_run(run)).id == run


@pytest.mark.parametrize(
    "broken",
    [
        {"steps": b"\0" * 7},
        {"steps": ZERO * 2},
        {"times_us": ZERO * 2},
        {"values": b""},
        {"key_index": struct.pack("<I", 1)},
        {"key_index": struct.pack("<I", 2**32 - 1)},
        {"key_index": b"\0"},
        {"keys": ("a", "b")},
        {"keys": ()},
        {"keys": ("a" * 251,)},
        {"keys": ("a\0b",)},
        {"kinds": b"\7"},
        {"kinds": b"\1"},
        {"kinds": b"\1", "payloads": (b"\xff",)},
        {"kinds": b"\2", "payloads": (b"a", b"b")},
        {"kinds": b"\1\1", "payloads": (b"a", b"b")},
        {"payloads": (b"a",)},
        {"kinds": b"\2", "payloads": (b"a" * (1 << 20) + b"b",)},
    ],
    ids=str,
)
async def test_columns_that_do_not_fit_together_are_refused(
    shared_server: ServerProcess, broken: dict[str, Any]
) -> None:
    async with _source(shared_server) as source:
        calls = source.tracking
        run = (await _run(calls, "broken")).id
        whole = t.MetricColumns(object=run, keys=("a",), steps=ZERO, times_us=ZERO, values=struct.pack("<d", 1.0))
        with pytest.raises((errors.InvalidError, errors.LimitError)):
            await calls.log_metrics([whole, replace(whole, **broken)])
        assert await calls.get_metric_summaries([run]) == ()
        assert await calls.log_metrics([whole]) == (1, 0)


async def test_events_comments_and_readmes(shared_server: ServerProcess) -> None:
    async with _source(shared_server) as source:
        calls = source.tracking
        run = (await _run(calls, "notes")).id
        for hour in range(3):
            new = t.NewEvent(
                object=run,
                name="gpu.lost",
                source="scheduler",
                at=NOW + timedelta(hours=hour),
                metadata={"node": {"n": hour}},
            )
            event = await calls.log_event(new)
            assert (event.metadata, event.namespace, event.object) == ({"node": {"n": hour}}, "notes", run)
            assert await calls.log_event(new) == event
        found = await calls.list_events("notes", since=NOW + timedelta(hours=1), page_size=1)
        rest = await calls.list_events(
            "notes", since=NOW + timedelta(hours=1), page_size=1, page_token=found.next_token
        )
        assert [one.at.hour for one in (*found.items, *rest.items)] == [12, 11]
        assert (await calls.list_events(run, until=NOW + timedelta(hours=1))).items[0].at == NOW
        assert (await calls.list_events(run, name="other")).items == ()

        comment = await calls.add_comment(t.NewComment(object=run, text="why?"))
        edited = await calls.edit_comment(comment.id, "because")
        assert (edited.text, edited.edited_at is not None) == ("because", True)
        assert (await calls.list_comments(run)).items == (edited,)
        assert await calls.delete_objects([comment.id]) == 1
        assert (await calls.list_comments(run)).items == ()
        (gone,) = (await calls.list_comments(run, include_deleted=True)).items
        assert gone.deleted_at is not None

        readme = await calls.set_readme(t.ReadmeEdit(object=run, text="# Speech"))
        assert (readme.text, readme.updated_by) == ("# Speech", "ana")
        assert await calls.get_readme(run) == readme
        await calls.set_readme(t.ReadmeEdit(object=run, text=""))
        with pytest.raises(errors.NotFoundError):
            await calls.get_readme(run)


async def test_datasets_and_lineage(shared_server: ServerProcess) -> None:
    async with _source(shared_server) as source:
        calls = source.tracking
        dataset = await calls.create_dataset(t.NewDataset(namespace="data", name="speech", owner="ana"))
        assert not dataset.existed
        part = t.DatasetComponent(type="s3", location="s3://bucket/key", size_bytes=0)
        query = t.DatasetComponent(type="query", location="select 1", source="db", rows=7)
        new = t.NewDatasetVersion(namespace="data", dataset="speech", components=(part, query), description="all")
        version = await calls.create_dataset_version(new)
        assert (version.item.version, version.item.components) == (1, (part, query))
        again = replace(new, id=t.new_id(t.ObjectKind.DATASET_VERSION))
        assert await calls.create_dataset_version(again) == replace(version, existed=True)
        assert await calls.get_dataset_version("data/speech@1") == version.item
        assert (await calls.get_dataset("data/speech")).latest_version == 1
        assert [one.version for one in (await calls.list_dataset_versions("data/speech")).items] == [1]
        assert [one.name for one in (await calls.list_datasets("data")).items] == ["speech"]

        first, second = (await _run(calls, "data")).id, (await _run(calls, "data")).id
        edges = t.NewEdges(
            edges=(
                t.NewEdge(source=version.item.id, target=first, type="used"),
                t.NewEdge(source=first, target=second, type="derived"),
            )
        )
        assert await calls.add_edges(edges) == 2
        assert await calls.add_edges(edges) == 0
        with pytest.raises(errors.ConflictError, match="cycle"):
            await calls.add_edges(t.NewEdges(edges=(t.NewEdge(source=second, target=version.item.id, type="x"),)))
        graph = await calls.get_lineage([second], "ancestors")
        assert {one.id: one.depth for one in graph.nodes} == {second: 0, first: 1, version.item.id: 2}
        assert {(one.source, one.target, one.type) for one in graph.edges} == {
            (one.source, one.target, one.type) for one in edges.edges
        }
        near = await calls.get_lineage([first], max_depth=1)
        assert {one.id for one in near.nodes} == {first, second, version.item.id}
        assert await calls.remove_edges(edges.edges[1:]) == 1
        assert len((await calls.get_lineage([second], "ancestors")).nodes) == 1


async def test_find(shared_server: ServerProcess) -> None:
    async with _source(shared_server) as source:
        calls = source.tracking
        for lr in (0.1, 0.2, 0.3):
            run = await _run(calls, "found", name=f"r{lr}", params={"lr": lr})
            await calls.log_metrics([number_columns(run.id, "acc", [1], [1 - lr], 0)])
        query: dict[str, Any] = {"order_by": ["metrics.acc desc"], "within": "found", "columns": ["name", "metrics"]}
        first = await calls.find("runs", where="params.lr < 0.25", page_size=1, **query)
        columns = json.loads(first.columns_json)
        assert (columns["name"], columns["metrics.acc"], first.count) == (["r0.1"], [0.9], 1)
        second = await calls.find("runs", where="params.lr < 0.25", page_size=1, page_token=first.next_token, **query)
        assert (json.loads(second.columns_json)["name"], second.next_token) == (["r0.2"], "")
        with pytest.raises(errors.FindError) as caught:
            await calls.find("runs", where="params.lr <")
        assert caught.value.fields["position"] == 11
        assert "^" in caught.value.message


async def test_a_spool_is_delivered_once(shared_server: ServerProcess) -> None:
    async with _source(shared_server) as source:
        calls = source.tracking
        spool = "0123456789abcdef" * 2
        experiment = t.NewExperiment(namespace="spool", name="speech")
        run = t.NewRun(experiment=experiment.id, started_at=NOW, params={"lr": 0.1})
        part = t.DatasetComponent(type="path", location="/d")
        data = t.NewDatasetVersion(namespace="spool", dataset="d", components=(part,))
        payloads: list[t.OperationPayload] = [
            experiment,
            run,
            number_columns(run.id, "loss", [1, 2], [0.5, 0.25], 0),
            t.AttributesEdit(object=run.id, kind=t.AttributeKind.PARAM, values={"lr": 0.2}),
            t.NewCheckpoint(parent_id=run.id, epoch=1),
            t.NewEvent(object=run.id, name="seen", at=NOW),
            t.NewComment(object=run.id, text="hm"),
            t.ReadmeEdit(object=run.id, text="# hm"),
            data,
            t.NewEdges(edges=(t.NewEdge(source=data.id, target=run.id, type="used"),)),
            number_columns(t.new_id(t.ObjectKind.RUN), "loss", [1], [0.5], 0),
            t.RunEdit(id=run.id, patch=t.RunPatch(status=t.RunStatus.FINISHED)),
        ]
        operations = [t.Operation(seq=seq, payload=one) for seq, one in enumerate(payloads, 1)]
        delivered = await calls.deliver(spool, operations)
        assert delivered.seq == 12
        refused = {one.seq: one.code for one in delivered.rejections}
        assert refused.pop(4) == "conflict"
        assert refused.pop(11) == "not_found"
        assert not refused, delivered
        again = await calls.deliver(spool, operations)
        assert again.seq == 12
        assert (await calls.get_run(run.id)).status is t.RunStatus.FINISHED
        (summary,) = await calls.get_metric_summaries([run.id])
        assert summary.count == 2
        assert len((await calls.list_comments(run.id)).items) == 1


async def test_what_cannot_be_read_of_a_spool_holds_up_nothing(shared_server: ServerProcess) -> None:
    async with _source(shared_server) as source:
        calls = source.tracking
        run = (await _run(calls, "unread")).id
        tag = t.AttributesEdit(object=run, kind=t.AttributeKind.TAG, values={"a": "b"})
        known = wire.pack_operation(t.Operation(seq=2, payload=tag))
        deep = pb.SetAttributesRequest(object=run, kind="metadata", values_json=b'{"a":' * 5000 + b"1" + b"}" * 5000)
        operations = [pb.Operation(seq=1, set_attributes=deep), known, pb.Operation(seq=3)]
        request = pb.DeliverRequest(spool="f" * 32, operations=operations)
        for sent in (request, pb.DeliverRequest(spool="f" * 32, operations=[pb.Operation(seq=4)])):
            delivered = await source.grpc.unary(DELIVER, sent, wire.unpack_delivered)
            assert delivered.seq == sent.operations[-1].seq
            assert {one.seq for one in delivered.rejections} == {one.seq for one in sent.operations} - {2}
            assert {one.code for one in delivered.rejections} == {"invalid"}
        assert [one.value for one in await calls.get_attributes([run])] == ["b"]


async def test_what_is_acknowledged_survives_a_kill(server: ServerProcess) -> None:
    async with _source(server) as source:
        calls = source.tracking
        run = await _run(calls, "killed", params={"lr": 1})
        await calls.log_metrics([number_columns(run.id, "loss", [1], [0.5], 0)])
        operation = t.Operation(seq=1, payload=t.RunEdit(id=run.id, patch=t.RunPatch(name="named")))
        await calls.deliver("a" * 32, [operation])
        server.kill()
        server.restart()
        assert (await calls.get_run(run.id)).name == "named"
        assert [one.count for one in await calls.get_metric_summaries([run.id])] == [1]
        assert (await calls.deliver("a" * 32, [operation])).rejections == ()


async def test_reading_a_series_goes_on_after_a_kill(server: ServerProcess) -> None:
    async with _source(server) as source:
        calls = source.tracking
        run = (await _run(calls, "killed")).id
        steps = np.arange(500_000)
        for begin in range(0, 500_000, 100_000):
            some = steps[begin : begin + 100_000]
            await calls.log_metrics([number_columns(run, "loss", some // 10, some / 7, some % 10)])
        parts = []
        async for part in calls.read_series(run, "loss"):
            parts.append(part)
            if len(parts) == 1:
                server.kill()
                server.restart()
        series = join_series(run, "loss", parts)
        assert (series.values == steps / 7).all()
        assert (series.times_us == steps % 10).all()


async def test_changes_are_in_the_feed_with_their_actor(shared_server: ServerProcess) -> None:
    async with _source(shared_server) as source:
        run = await _run(source.tracking, "fed")
        listed = await source.grpc.list_state(Filter(namespace="fed"))
        states = {(one.kind, one.object) for one in listed.items}
        assert ("run", run.id) in states
        assert ("experiment", run.experiment_id) in states
        async with source.grpc.watch(Filter(namespace="fed"), listed.token) as items:
            await source.tracking.update_run(run.id, t.RunPatch(name="seen"))
            async for item in items:
                if isinstance(item, Revision):
                    revision = item
                    break
            else:
                pytest.fail("the feed ended")
        (change,) = revision.changes
        assert (change.actor, change.object, change.state["name"]) == ("ana", run.id, "seen")

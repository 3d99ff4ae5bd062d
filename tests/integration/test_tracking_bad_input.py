"""What training programs get wrong, through the client on a real server: refused with an error that helps, or resolved
by a stated rule; and the rest of a run goes on.

Columns that do not fit together are in `test_server_tracking`, requests over HTTP in `test_server_tracking_rest`, what
a run leaves out by itself in `tests/unit/test_run.py`.
"""

from __future__ import annotations

import io
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from modelbox import sync
from modelbox._proto.modelbox import v1 as pb
from modelbox._transport.grpc import rpc
from modelbox._transport.source import RemoteSource
from modelbox._wire.tracking import pack_attributes_edit
from modelbox.config import load_client_config
from modelbox.errors import ConflictError, InvalidError, LimitError, ModelBoxError, NotFoundError
from modelbox.objects import ArtifactFile, JsonValue
from modelbox.refs import Digest
from modelbox.series import number_columns
from modelbox.tracking import (
    AttributeKind,
    AttributesEdit,
    DatasetComponent,
    NewComment,
    ObjectKind,
    Operation,
    RunStatus,
    new_id,
)
from tests.server import ServerProcess

BEYOND = 2**63
MIB = 1 << 20
FILE = ArtifactFile(path="f", size_bytes=1, digest=Digest(f"sha256:{0:064x}"), uri="s3://bucket/f")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def client(shared_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sync.Client]:
    directory = tmp_path_factory.mktemp("client")
    with sync.Client(shared_server.url, spool_dir=directory / "spool", cache_dir=directory / "cache") as made:
        yield made


@pytest.fixture
def run(client: sync.Client) -> str:
    return client.create_run(f"ns-{secrets.token_hex(4)}/e").item.id


def nested(levels: int) -> JsonValue:
    """JSON that deep."""
    value: JsonValue = 1
    for _ in range(levels):
        value = {"a": value}
    return value


Call = Callable[[sync.Client, str], object]

REFUSED: dict[str, tuple[Call, type[ModelBoxError], str]] = {
    # Steps outside of int64, and what is none: never wrapped, never cut off.
    "step": (lambda c, r: c.log_metrics(r, {"a": 1.0}, step=BEYOND), InvalidError, f"{BEYOND} of 'a' does not fit"),
    "step below": (lambda c, r: c.log_metrics(r, {"a": 1.0}, step=-BEYOND - 1), InvalidError, "does not fit"),
    "step 1.5": (lambda c, r: c.log_metrics(r, {"a": 1.0}, step=1.5), InvalidError, "1.5 of 'a' is not valid"),  # type: ignore[arg-type]
    "steps": (
        lambda c, r: c.log_series(r, "a", [1, BEYOND], [1.0, 2.0]),
        InvalidError,
        "the step 9.22.* of 'a' is not valid",
    ),
    "huge steps": (lambda c, r: c.log_series(r, "a", [1, 2**70], [1.0, 2.0]), InvalidError, "'a' are not numbers"),
    "steps 1.5": (lambda c, r: c.log_series(r, "a", [1.0, 1.5], [1.0, 2.0]), InvalidError, "the step 1.5 of 'a'"),
    "steps nan": (lambda c, r: c.log_series(r, "a", [float("nan")], [1.0]), InvalidError, "the step nan of 'a'"),
    "times": (lambda c, r: c.log_series(r, "a", [1], [1.0], times_us=0.5), InvalidError, "the time 0.5 of 'a'"),
    "unsigned": (
        lambda c, r: c.log_series(r, "a", np.array([BEYOND], np.uint64), [1.0]),
        InvalidError,
        "whole number of 64 bits",
    ),
    "read": (lambda c, r: c.read_series(r, "a", from_step=BEYOND), InvalidError, f"{BEYOND} is not a step"),
    "sample": (lambda c, r: c.sample_series(r, "a", to_step=-BEYOND - 1), InvalidError, "is not a step"),
    "buckets": (lambda c, r: c.sample_series(r, "a", buckets=2**32 + 1), InvalidError, "expected 1 to 10000"),
    "checkpoint step": (lambda c, r: c.create_checkpoint(r, 0, step=BEYOND), InvalidError, f"{BEYOND} is not a step"),
    "epoch": (lambda c, r: c.create_checkpoint(r, BEYOND), InvalidError, f"{BEYOND} is not a epoch"),
    "negative epoch": (lambda c, r: c.create_checkpoint(r, -1), InvalidError, "epochs count from 0"),
    "rows": (
        lambda c, r: c.create_dataset_version("ns/d", [DatasetComponent(type="path", location="/d", rows=BEYOND)]),
        InvalidError,
        "number of rows",
    ),
    # Keys over the limit.
    "metric key": (lambda c, r: c.log_metrics(r, {"k" * 251: 1.0}), LimitError, "251 characters.* 250 allowed"),
    "param key": (lambda c, r: c.set_params(r, {"k" * 251: 1}), LimitError, "251 characters.* 250 allowed"),
    "tag key": (lambda c, r: c.set_tags(r, {"ü" * 251: ""}), LimitError, "251 characters.* 250 allowed"),
    "removed key": (
        lambda c, r: c.remove_attributes(r, AttributeKind.PARAM, ["k" * 251]),
        LimitError,
        "251 characters",
    ),
    "checkpoint key": (lambda c, r: c.create_checkpoint(r, 0, metrics={"k" * 251: 1.0}), LimitError, "251 characters"),
    "run key": (lambda c, r: c.create_run("ns/e", params={"k" * 251: 1}), LimitError, "251 characters"),
    # Values over 64 KiB, and what no message holds.
    "value": (lambda c, r: c.set_params(r, {"v": "x" * 65_535}), LimitError, "'v' has 65537 bytes.* as artifacts"),
    "list": (lambda c, r: c.set_metadata(r, {"v": ["x" * 40_000] * 2}), LimitError, "'v' has 80008 bytes"),
    "message": (lambda c, r: c.set_params(r, {"v": "x" * 9 * MIB}), LimitError, "more than the 8388608 allowed"),
    "text": (lambda c, r: c.log_metrics(r, {"t": "x" * (MIB + 1)}), LimitError, "upload it as an artifact"),
    # A million tags.
    "tags": (lambda c, r: c.set_tags(r, {f"t{n}": "" for n in range(1_000_000)}), LimitError, "allowed"),
    "fewer tags": (lambda c, r: c.set_tags(r, {f"t{n}": "" for n in range(1001)}), LimitError, "1001 keys.* 1000 that"),
    "tags of a run": (
        lambda c, r: c.create_run("ns/e", tags={f"t{n}": "" for n in range(50_000)}),
        LimitError,
        "50000 keys of kind tag",
    ),
    # More in one call than a call takes.
    "points": (
        lambda c, r: c.log_metrics(r, {f"m{n}": 1.0 for n in range(100_001)}),
        LimitError,
        "100001 points at once.* send them in parts",
    ),
    "ids": (lambda c, r: c.delete_objects(*[r] * 101), LimitError, "101 ids"),
    "summaries": (lambda c, r: c.metric_summaries(*[r] * 101), LimitError, "101 objects"),
    # Two kinds of values in one metric.
    "kind": (lambda c, r: c.log_metrics(r, {"kept": "text"}), InvalidError, "kept"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_with_an_error_that_helps(client: sync.Client, run: str, case: str) -> None:
    call, error, expected = REFUSED[case]
    client.log_metrics(run, {"kept": 1.0}, step=1)
    with pytest.raises(error, match=expected):
        call(client, run)
    # Nothing of it was kept, and the run takes what comes next.
    client.log_metrics(run, {"kept": 2.0}, step=2)
    client.set_params(run, {"lr": 0.1})
    assert [(one.key, one.count) for one in client.metric_summaries(run)] == [("kept", 2)]
    assert {one.key for one in client.get_attributes(run)} == {"lr"}
    assert list(client.iter_checkpoints(run)) == []


UNKNOWN = new_id(ObjectKind.RUN)
ORPHANS: dict[str, Call] = {
    "experiment": lambda c, r: c.create_run(new_id(ObjectKind.EXPERIMENT)),
    "parent": lambda c, r: c.create_run("ns/e", parent=UNKNOWN),
    "clone": lambda c, r: c.clone_run(UNKNOWN),
    "checkpoint": lambda c, r: c.create_checkpoint(UNKNOWN, 0),
    "metrics": lambda c, r: c.log_metrics(UNKNOWN, {"a": 1.0}),
    "params": lambda c, r: c.set_params(UNKNOWN, {"a": 1}),
    "event": lambda c, r: c.log_event(UNKNOWN, "seen"),
    "comment": lambda c, r: c.add_comment(UNKNOWN, "hm"),
    "readme": lambda c, r: c.set_readme(UNKNOWN, "# hm"),
    "edge from": lambda c, r: c.add_edge(UNKNOWN, r, "used"),
    "edge to": lambda c, r: c.add_edge(r, UNKNOWN, "used"),
    "files": lambda c, r: c.upload_artifact(UNKNOWN, "a", {"f": __file__}),
    "tracked": lambda c, r: c.track_artifact(UNKNOWN, "a", [FILE]),
    "delete": lambda c, r: c.delete_objects(r, UNKNOWN),
    "within": lambda c, r: c.find("runs", within=UNKNOWN),
    "model": lambda c, r: c.set_tags("ns/nothing", {"a": ""}),
}


@pytest.mark.parametrize("case", ORPHANS)
def test_an_unknown_parent_is_named(client: sync.Client, run: str, case: str) -> None:
    client.create_experiment("ns/e")
    with pytest.raises(NotFoundError, match=r"was it made on this server|there are no models|ns/nothing"):
        ORPHANS[case](client, run)
    assert client.get_run(run).deleted_at is None


def test_the_limits_themselves_are_kept(client: sync.Client, run: str) -> None:
    client.log_series(run, "ü" * 250, [-BEYOND, BEYOND - 1], [1.0, 2.0], times_us=1)
    assert client.read_series(run, "ü" * 250).steps.tolist() == [-BEYOND, BEYOND - 1]
    client.set_params(run, {"k" * 250: "x" * 65_534})
    assert client.get_params(run) == {"k" * 250: "x" * 65_534}
    client.set_metadata(run, {"deep": nested(15)})
    assert client.get_metadata(run) == {"deep": nested(15)}
    client.log_metrics(run, {"t": "x" * MIB}, step=1)
    assert client.read_series(run, "t").payloads == ("x" * MIB,)
    assert client.create_checkpoint(run, BEYOND - 1, step=-BEYOND).item.step == -BEYOND


def test_a_million_tags_a_few_at_a_time(client: sync.Client, run: str) -> None:
    for first in range(0, 1000, 250):
        client.set_tags(run, {f"t{number}": "" for number in range(first, first + 250)})
    for first in range(1000, 1_000_000, 250_000):
        with pytest.raises(LimitError, match="more than the 1000 that an object may have"):
            client.set_tags(run, {f"t{first}": ""})
    client.set_tags(run, {"t0": "again"})
    client.remove_attributes(run, AttributeKind.TAG, ["t1"])
    client.set_tags(run, {"room": ""})
    assert client.get_tags(run) == {f"t{number}": "" for number in range(2, 1000)} | {"t0": "again", "room": ""}


@pytest.mark.parametrize("levels", [17, 900, 10_000, 100_000])
def test_deep_json_is_refused_everywhere(client: sync.Client, run: str, levels: int) -> None:
    deep = {"deep": nested(levels)}
    calls: list[Callable[[], object]] = [
        lambda: client.set_metadata(run, deep),
        lambda: client.set_params(run, deep),
        lambda: client.create_run("ns/e", params=deep),
        lambda: client.create_run("ns/e", metadata=deep),
        lambda: client.log_event(run, "seen", metadata=deep),
        lambda: client.track_artifact(run, "a", [FILE], metadata=deep),
        lambda: client.create_model("ns/deep", metadata=deep),
    ]
    for call in calls:
        with pytest.raises((LimitError, InvalidError), match=r"nested|recursion"):
            call()
    assert client.get_attributes(run) == ()


@pytest.mark.parametrize("levels", [17, 900, 10_000, 1_000_000])
@pytest.mark.parametrize("brackets", [(b'{"a":', b"}"), (b"[", b"]")], ids=["objects", "lists"])
async def test_deep_json_as_bytes_is_refused(
    shared_server: ServerProcess, run: str, levels: int, brackets: tuple[bytes, bytes]
) -> None:
    deep = b'{"deep":' + brackets[0] * levels + b"1" + brackets[1] * levels + b"}"
    source = RemoteSource(load_client_config(url=shared_server.url))
    requests: list[tuple[str, str, Any]] = [
        ("TrackingService", "SetAttributes", pb.SetAttributesRequest(object=run, kind="metadata", values_json=deep)),
        ("TrackingService", "CreateRun", pb.CreateRunRequest(experiment="ns/e", params_json=deep)),
        ("NoteService", "LogEvent", pb.LogEventRequest(object=run, name="e", metadata_json=deep)),
    ]
    try:
        for service, name, request in requests:
            method = rpc(service, name, type(request), pb.SetAttributesResponse)
            with pytest.raises((InvalidError, LimitError), match=r"nested|JSON"):
                await source.grpc.unary(method, request, lambda answer: answer)
        # The connection lives.
        kept = pack_attributes_edit(AttributesEdit(object=run, kind=AttributeKind.TAG, values={"a": "b"}))
        method = rpc("TrackingService", "SetAttributes", pb.SetAttributesRequest, pb.SetAttributesResponse)
        await source.grpc.unary(method, kept, lambda answer: answer)
    finally:
        await source.aclose()
    bodies = {
        "runs": b'{"experiment":"ns/e","params":' + deep + b"}",
        "events": b'{"object":"' + run.encode() + b'","name":"e","metadata":' + deep + b"}",
        "find": b'{"collection":"runs","where":' + deep + b"}",
        "metrics": b'{"object":"' + run.encode() + b'","points":' + deep + b"}",
    }
    async with aiohttp.ClientSession(shared_server.url) as session:
        for path, body in bodies.items():
            async with session.post(f"/api/v1/{path}", data=io.BytesIO(body)) as response:
                answer = await response.json()
                assert response.status in (400, 413), answer
                assert answer["code"].split(".")[0] in ("invalid", "limit")


async def test_a_delivery_beyond_the_limit_is_refused_whole(shared_server: ServerProcess, run: str) -> None:
    source = RemoteSource(load_client_config(url=shared_server.url))
    operations = [Operation(seq=seq, payload=NewComment(object=run, text="hm")) for seq in range(1, 10_002)]
    try:
        with pytest.raises(LimitError, match="10001 operations in one delivery, more than the 10000 allowed"):
            await source.tracking.deliver("ab" * 16, operations)
        assert (await source.tracking.list_comments(run)).items == ()
        with pytest.raises(LimitError, match="100001 points at once"):
            columns = [number_columns(run, "a", range(50_000), np.zeros(50_000), 0)] * 2
            await source.tracking.log_metrics([*columns, number_columns(run, "b", [1], [1.0], 0)])
    finally:
        await source.aclose()


def test_two_writers_of_one_key(client: sync.Client, run: str) -> None:
    refused: list[ConflictError] = []

    def write(number: int) -> None:
        for step in range(50):
            client.log_series(run, "shared", [step], [float(number)], times_us=step)
            client.log_series(run, "own times", [step], [float(number)], times_us=number)
            client.set_tags(run, {"last": str(number)})
            try:
                client.set_params(run, {f"p{step}": number})
            except ConflictError as exc:
                refused.append(exc)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Of two values for one point the first stays; points of different times are different points.
    shared, own = client.read_series(run, "shared"), client.read_series(run, "own times")
    assert shared.steps.tolist() == list(range(50))
    assert own.steps.tolist() == [step for step in range(50) for _ in range(4)]
    assert own.values.tolist() == [float(number) for _ in range(50) for number in range(4)]
    # Of two values of a parameter, the second is refused, and told what stands.
    params = client.get_params(run)
    assert len(params) == 50
    assert len(refused) == 150
    for error in refused:
        assert error.fields["current"] == params[str(error.fields["key"])] != error.fields["given"]
    # Of two values of a tag, the last one stays, and the history has both.
    (last,) = client.get_tags(run).values()
    newest = next(client.iter_attribute_history(run, AttributeKind.TAG, "last"))
    assert newest.value == last


def test_the_rest_of_a_run_goes_on(client: sync.Client, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with client.start_run(
        f"ns-{secrets.token_hex(4)}/e", capture=False, params={"lr": 0.1}, flush_timeout_s=60
    ) as live:
        live.flush(60)
        # What only the server can know.
        client.log_metrics(live.id, {"text by now": "x"}, step=0)
        client.set_params(live.id, {"taken": 1})
        live.log_params({"taken": 2, "free": 3})
        live.log_metrics({"text by now": 1.0, "loss": 0.5}, step=1)
        live.use_dataset("ns/no-such-dataset@3")
        live.produced("ns/no-such-model@7")
        # What is known here.
        live.log_metric("loss", 0.25, step=BEYOND)
        live.log_metric("k" * 251, 1.0)
        live.log_params({"deep": nested(10_000), "big": "x" * 70_000, "good": 1})
        live.set_tags({f"t{number}": "" for number in range(1_000_000)})
        live.log_metric("blob", "x" * (MIB + 1))
        live.log_artifact("gone", tmp_path / "nothing")
        live.log_metric("loss", 0.125, step=2)
        live.flush(60)
        assert {one.code for one in live.rejections} == {"conflict", "invalid", "not_found"}
        assert len(live.rejections) == 4
        assert live.skipped == 6 + 999_000
    assert client.get_run(live.id).status is RunStatus.FINISHED
    assert client.get_params(live.id) == {"lr": 0.1, "taken": 1, "free": 3, "good": 1}
    assert len(client.get_tags(live.id)) == 1000
    assert {one.key: one.count for one in client.metric_summaries(live.id)} == {"text by now": 1, "loss": 2}

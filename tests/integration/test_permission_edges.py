"""The gate's edges, on a real server: bad tokens, ids that are taken, deliveries, digests, models, roles of servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from grpclib.client import Channel
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError

from modelbox._proto.modelbox import v1 as pb
from modelbox.errors import ConfigError
from modelbox.runtime.permissions import table
from modelbox.runtime.permissions.deliveries import OPERATIONS
from modelbox.tokens import Token
from tests.faults.registry import fault
from tests.integration.server_core import digest_of, manifest
from tests.permissions.cases import Place
from tests.permissions.world import FILE, Answer, Caller, Live, live_server, make_place, make_token

HERE, THERE = "hereab", "therea"
SPOOL = "5" * 32


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True, slots=True)
class World:
    """Two places, and a writer of the first one."""

    live: Live
    here: Place
    there: Place
    writer: str
    of_model: str


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(tmp_path_factory.mktemp("edges") / "data") as server:
        yield server


@pytest.fixture(scope="module")
async def world(live: Live) -> World:
    async with live.caller(live.admin) as admin:
        return World(
            live=live,
            here=await make_place(admin, HERE),
            there=await make_place(admin, THERE),
            writer=await make_token(admin, "writer", [("writer", HERE, "")]),
            of_model=await make_token(admin, "of-model", [("writer", HERE, "shared")]),
        )


@asynccontextmanager
async def _writer(world: World) -> AsyncIterator[Caller]:
    async with world.live.caller(world.writer) as caller:
        yield caller


# -- tokens ----------------------------------------------------------------------------------------------------------


def _bad_headers(token: str) -> list[str]:
    other = Token.parse(token)
    wrong = Token(kid=other.kid, secret=("0" if other.secret[0] != "0" else "1") + other.secret[1:])
    return [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {token}",
        token,
        f"Bearer {token[:-1]}",
        f"Bearer {token}x",
        f"Bearer {token[:20]}",
        f"Bearer {token} {token}",
        f"Bearer {token}, Bearer {token}",
        f"Bearer {token.upper()}",
        f"Bearer mbx_{'a' * 12}_{'0' * 43}_{'0' * 6}",
        f"Bearer {Token.new().reveal()}",
        f"Bearer {wrong.reveal()}",
        "Bearer " + "x" * 4000,
    ]


@fault(68)
async def test_bad_credentials_are_nobody(tmp_path: Path) -> None:
    # A server of its own: many of them from one address are held up.
    with live_server(tmp_path / "data") as live:
        for header in _bad_headers(live.admin):
            async with live.caller(authorization=header) as caller:
                for streams in (False, True) if header.strip() == header != "" else ():
                    # The others are no metadata of gRPC.
                    answer = await caller.call("AccessService/WhoAmI", {}, streams=streams)
                    _check_nobody(answer, live.admin)
                _check_nobody(await caller.request("GET /api/v1/whoami", {}), live.admin)
        async with live.caller(live.admin) as good:
            assert (await good.request("GET /api/v1/whoami", {})).status == "200"


def _check_nobody(answer: Answer, token: str) -> None:
    assert answer.code in ("auth.unknown", "busy"), answer
    assert answer.status.partition(" ")[0] in ("UNAUTHENTICATED", "UNAVAILABLE", "401", "503"), answer
    assert token.split("_")[2][:20] not in answer.body.decode()


class _Garbage:
    """A message of no type."""

    def SerializeToString(self) -> bytes:  # as codecs call it
        return b"\xff" * 40


async def test_nothing_is_read_for_nobody(world: World) -> None:
    host, _, port = world.live.grpc_address.rpartition(":")
    channel = Channel(host, int(port))
    try:
        for metadata in ([], [("x-twice", "1"), ("x-twice", "2")]):
            for name in ("MetricService/LogMetrics", "RegistryService/GetModel"):
                path = f"/modelbox.v1.{name}"
                async with channel.request(
                    path, Cardinality.UNARY_UNARY, _Garbage, pb.Model, metadata=metadata, timeout=30
                ) as stream:
                    await stream.send_message(_Garbage(), end=True)
                    with pytest.raises(GRPCError) as failed:
                        await stream.recv_initial_metadata()
                        await stream.recv_trailing_metadata()
                    assert failed.value.status is Status.UNAUTHENTICATED
    finally:
        channel.close()
    async with aiohttp.ClientSession(world.live.url) as session, session.post("/api/v1/runs", data=b"{") as response:
        assert response.status == 401


@fault(68)
async def test_a_token_in_the_address_is_none(world: World) -> None:
    async with world.live.caller() as nobody:
        for name in ("token", "access_token", "authorization"):
            answer = await nobody.request("GET /api/v1/whoami", {"query": {name: world.writer}})
            assert answer.status == "401"


async def test_two_headers_are_none(world: World) -> None:
    headers = [("Authorization", f"Bearer {world.writer}")] * 2
    async with aiohttp.ClientSession(world.live.url) as session:
        async with session.get("/api/v1/whoami", headers=headers) as response:
            assert response.status == 401
        async with session.get("/api/v1/whoami", headers=headers[:1]) as response:
            assert response.status == 200


@fault(68)
async def test_a_revoked_token_is_worth_nothing_on_open_connections(world: World) -> None:
    async with world.live.caller(world.live.admin) as admin:
        token = await make_token(admin, "leaver", [("reader", HERE, "")])
        async with world.live.caller(token) as leaver:
            for _ in range(3):
                # The same headers again, which the server knows by then.
                assert (await leaver.call("TrackingService/GetRun", {"id": world.here.run})).status == "OK"
            await admin.do("AccessService/RevokeToken", id=Token.parse(token).kid)
            for streams in (False, True):
                answer = await leaver.call("TrackingService/GetRun", {"id": world.here.run}, streams=streams)
                assert answer.code == "auth.unknown"
            assert (await leaver.request("GET /api/v1/runs", {})).status == "401"


async def test_a_role_that_is_taken_away_counts_at_once(world: World) -> None:
    async with world.live.caller(world.live.admin) as admin:
        token = await make_token(admin, "mover", [("writer", HERE, "")])
        async with world.live.caller(token) as mover:
            metric = {"columns": [_points(world.here.run)]}
            assert (await mover.call("MetricService/LogMetrics", metric)).status == "OK"
            assert (await mover.call("MetricService/LogMetrics", metric)).status == "OK"
            await admin.do("AccessService/GrantRole", account="mover", role="reader", namespace=HERE)
            assert (await mover.call("MetricService/LogMetrics", metric)).code == "auth"
            await admin.do("AccessService/RevokeRole", account="mover", namespace=HERE)
            assert (await mover.call("MetricService/LogMetrics", metric)).code == "not_found"


def _points(object: str) -> pb.MetricColumns:
    return pb.MetricColumns(object=object, keys=["loss"], steps=bytes(8), times_us=bytes(8), values=bytes(8))


# -- ids that are taken ----------------------------------------------------------------------------------------------


def _taken(p: Place, there: Place) -> list[tuple[str, dict[str, Any], str, dict[str, Any]]]:
    """Calls and requests that make something ``here`` by the id of something ``there``."""
    experiment = f"{p.ns}/speech"
    return [
        ("TrackingService/CreateRun", {"experiment": experiment, "id": there.run}, "POST /api/v1/runs", {}),
        (
            "TrackingService/CreateExperiment",
            {"namespace": p.ns, "name": "stolen", "id": there.experiment},
            "POST /api/v1/experiments",
            {},
        ),
        (
            "TrackingService/CreateCheckpoint",
            {"parent_id": p.run, "epoch": 77, "id": there.checkpoint},
            "POST /api/v1/checkpoints",
            {},
        ),
        ("NoteService/LogEvent", {"object": p.run, "name": "x", "id": there.event}, "POST /api/v1/events", {}),
        ("NoteService/AddComment", {"object": p.run, "text": "x", "id": there.comment}, "POST /api/v1/comments", {}),
        (
            "DatasetService/CreateDataset",
            {"namespace": p.ns, "name": "stolen", "id": there.dataset},
            "POST /api/v1/datasets",
            {},
        ),
        (
            "TrackingService/CloneRun",
            {"source_id": p.run, "id": there.run},
            "POST /api/v1/runs/{run}/clone",
            {"run": p.run},
        ),
    ]


async def test_an_id_that_is_taken_elsewhere_shows_nothing(world: World) -> None:
    async with _writer(world) as caller:
        for name, fields, route, parts in _taken(world.here, world.there):
            for streams in (False, True):
                answer = await caller.call(name, fields, streams=streams)
                assert answer.code == "not_found" or answer.error()["fields"] == {"current": None}, (name, answer)
                assert THERE not in answer.body.decode(), name
            body = {key: value for key, value in fields.items() if key != "source_id"}
            answer = await caller.request(route, {**parts, "body": body})
            assert answer.code == "not_found", (route, answer)
            assert THERE not in answer.body.decode(), route


async def test_an_id_that_is_taken_here_is_idempotent(world: World) -> None:
    async with _writer(world) as caller:
        fields = {"experiment": f"{HERE}/speech", "id": world.here.run}
        answer = await caller.do("TrackingService/CreateRun", **fields)
        assert pb.CreateRunResponse.parse(answer.body).existed
        event = {"object": world.here.run, "name": "other", "id": world.here.event}
        assert (await caller.call("NoteService/LogEvent", event)).error()["fields"]["current"]["namespace"] == HERE


# -- deliveries ------------------------------------------------------------------------------------------------------


def _tag(seq: int, object: str) -> pb.Operation:
    request = pb.SetAttributesRequest(object=object, kind="tag", values_json=b'{"by": "spool"}')
    return pb.Operation(seq=seq, set_attributes=request)


def _run(seq: int, experiment: str, id: str) -> pb.Operation:
    return pb.Operation(seq=seq, create_run=pb.CreateRunRequest(experiment=experiment, id=id))


async def _deliver(caller: Caller, spool: str, *operations: pb.Operation, streams: bool = False) -> Answer:
    fields = {"spool": spool, "operations": list(operations)}
    return await caller.call("TrackingService/Deliver", fields, streams=streams)


@pytest.mark.parametrize("streams", [False, True])
async def test_a_delivery_is_judged_operation_by_operation(world: World, streams: bool) -> None:
    new, absent = f"run_{1 + streams:024x}", "run_" + "e" * 24
    async with _writer(world) as caller:
        answer = await _deliver(
            caller,
            f"{1 + streams:032x}",
            _run(1, f"{HERE}/speech", new),
            _tag(2, new),
            _tag(3, world.there.run),
            _tag(4, absent),
            _tag(5, world.here.run),
            _run(6, f"{HERE}/speech", world.there.victim),
            _tag(7, world.there.victim),
            pb.Operation(seq=8, log_metrics=_points(world.there.run)),
            pb.Operation(seq=9, log_metrics=_points(new)),
            streams=streams,
        )
        assert answer.status == "OK", answer
        delivered = pb.DeliverResponse.parse(answer.body)
        assert delivered.delivered_seq == 9
        refused = {one.seq: one for one in delivered.rejections}
        assert sorted(refused) == [3, 4, 6, 7, 8]
        assert {one.code for one in refused.values()} == {"not_found"}
        assert refused[3].message.replace(world.there.run, absent) == refused[4].message
        tags = await caller.get("attributes", object=new, kind="tag")
        assert [one["key"] for one in tags["items"]] == ["by"]
    async with world.live.caller(world.live.admin) as admin:
        for untouched in (world.there.run, world.there.victim):
            assert (await admin.get("attributes", object=untouched, kind="tag"))["items"] == []


async def test_a_delivery_that_somebody_may_still_allow_fails_as_a_whole(world: World) -> None:
    async with _writer(world) as caller:
        answer = await _deliver(caller, SPOOL, _tag(1, world.here.run), _run(2, f"{THERE}/speech", "run_" + "d" * 24))
        assert answer.code == "auth"
        assert answer.error()["fields"]["namespace"] == THERE


def test_every_operation_has_a_row() -> None:
    fields = pb.Operation.__dataclass_fields__
    kinds = {name for name, one in fields.items() if one.metadata["betterproto"].group == "operation"}
    assert kinds == set(OPERATIONS)


# -- bytes -----------------------------------------------------------------------------------------------------------


@fault(68)
async def test_a_digest_grants_nothing(world: World) -> None:
    digest = digest_of(b"only there")
    async with world.live.caller(world.live.admin) as admin:
        upload = await admin.post("uploads", {"namespace": THERE, "digest": digest, "size_bytes": 10})
        await admin.patch(f"uploads/{upload['upload_id']}", b"only there", **{"Upload-Offset": "0"})
    async with _writer(world) as caller:
        begun = await caller.post("uploads", {"namespace": HERE, "digest": digest, "size_bytes": 10})
        assert not begun["complete"]
        fields = {"namespace": HERE, "model": "thief", "manifest_json": manifest(b"only there").to_json()}
        assert (await caller.call("RegistryService/PublishVersion", fields)).code == "not_found"
        files = [pb.ArtifactFile(path="a", size_bytes=10, digest=digest)]
        artifact = {"parent": world.here.run, "name": "stolen", "files": files}
        assert (await caller.call("ArtifactService/CreateArtifact", artifact)).code == "not_found"


async def test_a_body_means_what_the_gate_has_read(world: World) -> None:
    # In UTF-7 this names another namespace than in UTF-8, which is what JSON is in.
    body = (
        f'{{"namespace": "{HERE}", "digest": "{digest_of(FILE)}", "size_bytes": {len(FILE)}, '
        f'"x": "+ACI-, +ACI-namespace+ACI-: +ACI-{THERE}"}}'
    )
    headers = {"Authorization": f"Bearer {world.writer}", "Content-Type": "application/json; charset=utf-7"}
    async with (
        aiohttp.ClientSession(world.live.url, headers=headers) as session,
        session.post("/api/v1/uploads", data=body.encode()) as response,
    ):
        assert (await response.json())["complete"]
        assert response.status == 200


# -- one model of a namespace ----------------------------------------------------------------------------------------


@fault(68)
async def test_a_role_of_one_model_and_the_bytes_of_another(world: World) -> None:
    hidden = b"of the model that is hidden"
    digest = digest_of(hidden)
    begun = {"namespace": HERE, "digest": digest, "size_bytes": len(hidden)}
    file = pb.ArtifactFile(path="a", size_bytes=len(hidden), digest=digest)
    async with world.live.caller(world.live.admin) as admin:
        upload = await admin.post("uploads", begun)
        await admin.patch(f"uploads/{upload['upload_id']}", hidden, **{"Upload-Offset": "0"})
        await admin.do(
            "RegistryService/PublishVersion", namespace=HERE, model="secret", manifest_json=manifest(hidden).to_json()
        )
    async with world.live.caller(world.of_model) as caller:
        fields = {"namespace": HERE, "model": "shared", "manifest_json": manifest(hidden).to_json()}
        artifact = {"parent": f"{HERE}/shared", "name": "stolen", "files": [file]}
        for _ in range(2):
            assert (await caller.call("RegistryService/PublishVersion", fields)).code == "not_found"
            assert (await caller.call("ArtifactService/CreateArtifact", artifact)).code == "not_found"
            upload = await caller.post("uploads", begun)
            assert (upload["complete"], upload["offset"]) == (False, 0)
            answer = await caller.do("ArtifactService/BeginUpload", **begun)
            assert not pb.BeginUploadResponse.parse(answer.body).complete
        await caller.patch(f"uploads/{upload['upload_id']}", hidden, **{"Upload-Offset": "0"})
        assert (await caller.post("uploads", begun))["complete"]
        assert (await caller.call("ArtifactService/CreateArtifact", artifact)).status == "OK"


async def test_a_role_of_one_model(world: World) -> None:
    async with world.live.caller(world.of_model) as caller:
        assert (await caller.call("RegistryService/GetModel", {"namespace": HERE, "name": "shared"})).status == "OK"
        hidden = await caller.call("RegistryService/GetModel", {"namespace": HERE, "name": "secret"})
        absent = await caller.call("RegistryService/GetModel", {"namespace": HERE, "name": "absent"})
        assert hidden.about({"secret": "absent"}) == absent.about({})
        assert hidden.code == "not_found"
        assert (await caller.call("TrackingService/GetRun", {"id": world.here.run})).code == "not_found"
        listed = await caller.do("RegistryService/ListModels", namespace=HERE)
        assert [one.name for one in pb.ListModelsResponse.parse(listed.body).models] == ["shared"]
        begun = {"namespace": HERE, "digest": digest_of(b"new"), "size_bytes": 3}
        assert (await caller.call("ArtifactService/BeginUpload", begun)).status == "OK"
        begun = {"namespace": HERE, "digest": digest_of(FILE), "size_bytes": len(FILE)}
        assert (await caller.post("uploads", begun))["complete"]
        readme = {"object": f"{HERE}/shared", "text": "mine"}
        assert (await caller.call("NoteService/SetReadme", readme)).status == "OK"
        assert (await caller.call("NoteService/SetReadme", {"object": HERE, "text": "mine"})).code == "auth"
        event = pb.Event.parse((await caller.do("NoteService/LogEvent", object=f"{HERE}/shared", name="seen")).body)
        listed = await caller.do("NoteService/ListEvents", object=event.object)
        assert [one.id for one in pb.ListEventsResponse.parse(listed.body).events] == [event.id]


# -- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "missing"),
    [("CALLS", "RegistryService/GetModel"), ("ROUTES", "GET /api/v1/runs/{run}"), ("ROUTES", "GET /metrics")],
)
def test_a_missing_row_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str, missing: str
) -> None:
    monkeypatch.setattr(table, rows, {name: rule for name, rule in getattr(table, rows).items() if name != missing})
    with pytest.raises(ConfigError, match=missing.replace("{", r"\{")), live_server(tmp_path / "data"):
        pass

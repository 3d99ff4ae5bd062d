"""Lists of a real server show callers what they may see, whichever way they ask; and watches end when that changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import anyio
import pytest
from grpclib.client import Channel

from modelbox._proto.modelbox import v1 as pb
from modelbox.access import ANYBODY
from modelbox.errors import LimitError, error_from_dict
from modelbox.feed import ResumeToken
from modelbox.find import COLLECTIONS
from modelbox.runtime.permissions.table import CALLS, ROUTES
from tests.permissions.cases import Place
from tests.permissions.world import Caller, Live, live_server, make_place, make_token, names_of

OWN, OTHER = "ownabc", "otherx"

Asks = Sequence[Mapping[str, Any]]

OF_CALLS: dict[str, Asks] = {
    "RegistryService/ListModels": [{}, {"namespace": OWN}],
    "RegistryService/ListNamespaces": [{}],
    "ArtifactService/ListArtifacts": [{"namespace": OWN}],
    "WatchService/List": [{}, {"filter": pb.Filter(kinds=["run", "attributes"])}],
    "FleetService/ListInstances": [{}, {"path": OWN}],
    "TrackingService/ListExperiments": [{}],
    "TrackingService/ListRuns": [{}, {"parent": OWN}],
    "NoteService/ListEvents": [{"object": OWN}],
    "DatasetService/ListDatasets": [{}],
    "FindService/Find": [{"collection": name, "columns": ["id", "namespace"]} for name in COLLECTIONS],
    "RetentionService/ListPolicies": [{}],
    "RetentionService/ListLocks": [{}, {"scope": OWN}],
    "SpaceService/ListQuotas": [{}],
    "SpaceService/ListUsage": [{}, {"namespace": OWN}],
    "RuleService/ListRules": [{}],
    "RuleService/ListProtections": [{}],
}
OF_ROUTES: dict[str, Asks] = {
    "GET /api/v1/experiments": [{}],
    "GET /api/v1/runs": [{}, {"parent": OWN}],
    "GET /api/v1/events": [{"object": OWN}],
    "GET /api/v1/datasets": [{}],
    "GET /api/v1/find": [{"collection": name, "columns": "namespace"} for name in COLLECTIONS],
    "POST /api/v1/find": [{"collection": name, "columns": ["namespace"]} for name in COLLECTIONS],
    "GET /api/v1/retention": [{}],
    "GET /api/v1/locks": [{}, {"scope": OWN}],
    "GET /api/v1/quotas": [{}],
    "GET /api/v1/space": [{}, {"namespace": OWN}],
    "GET /api/v1/rules": [{}],
    "GET /api/v1/protections": [{}],
}
STREAMS = {"WatchService/Watch", "GET /api/v1/changes"}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True, slots=True)
class World:
    live: Live
    own: Place
    other: Place


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(tmp_path_factory.mktemp("scoped") / "data", max_watches=2, bookmark_interval_s=0.5) as server:
        yield server


@pytest.fixture(scope="module")
async def world(live: Live) -> World:
    async with live.caller(live.admin) as admin:
        own, other = await make_place(admin, OWN), await make_place(admin, OTHER)
        for place in (own, other):
            policy = pb.RetentionPolicy(scope=place.ns, kind="versions", keep_last=3)
            await admin.do("RetentionService/SetPolicy", policy=policy)
            await admin.do("RetentionService/LockVersion", namespace=place.ns, model=place.model, version=1)
            await admin.do("SpaceService/SetQuota", namespace=place.ns, limit_bytes=1 << 40)
            await admin.do("RuleService/SetRule", rule=pb.Rule(scope=place.path, labels=["team"], alias="never"))
            await admin.do("RuleService/ProtectAlias", scope=place.path, alias="never")
            report = pb.InstanceReport(instance_id=place.ns, host="h", pid=1, ref=f"{place.path}@beta", state="active")
            await admin.do("FleetService/Report", reports=[report])
            await admin.post("events", {"object": place.path, "name": "seen"})
        # What is shared leads from one namespace into the other and back.
        for source, target in ((other.dataset_version, own.run), (own.run, other.checkpoint)):
            await admin.post("lineage", {"edges": [{"source": source, "target": target, "type": "made"}]})
    return World(live=live, own=own, other=other)


def test_every_list_is_asked() -> None:
    for table, asked in ((CALLS, OF_CALLS), (ROUTES, OF_ROUTES)):
        lists = {name for name, rule in table.items() if any(need.listing for need in rule.needs)}
        assert lists - STREAMS == set(asked) - {"RegistryService/ListNamespaces"}


async def answers(caller: Caller) -> AsyncIterator[tuple[str, bytes]]:
    for name, asks in OF_CALLS.items():
        for fields in asks:
            answer = await caller.call(name, fields)
            assert answer.status == "OK", (name, answer)
            yield f"{name} {fields}", answer.body
    for route, asks in OF_ROUTES.items():
        for fields in asks:
            request = await caller.request(route, {"body" if route.startswith("POST") else "query": fields})
            assert request.status == "200", (route, request)
            yield f"{route} {fields}", request.body


def tells_of(place: Place, body: bytes) -> bool:
    return any(name.encode() in body for name in names_of(place))


@pytest.mark.parametrize("role", ["reader", "admin"])
async def test_lists_show_what_the_caller_may_see(world: World, role: str) -> None:
    async with world.live.caller(world.live.admin) as admin:
        token = await make_token(admin, f"{role}-of-own", [(role, OWN, "")])
        everything = {name: body async for name, body in answers(admin)}
    async with world.live.caller(token) as caller:
        async for name, body in answers(caller):
            assert tells_of(world.own, body), name
            assert not tells_of(world.other, body), name
            assert tells_of(world.other, everything[name]) or OWN in name, name


async def test_lists_show_a_model_to_who_sees_no_more(world: World) -> None:
    async with world.live.caller(world.live.admin) as admin:
        token = await make_token(admin, "of-a-model", [("reader", OWN, world.own.model)])
    hidden = [name for name in names_of(world.own) if name != OWN] + names_of(world.other)
    async with world.live.caller(token) as caller:
        shown = set()
        async for name, body in answers(caller):
            assert not any(one.encode() in body for one in hidden), name
            assert b"secret" not in body, name
            if OWN.encode() in body:
                shown.add(name.partition(" {")[0])
    assert {"RegistryService/ListModels", "RegistryService/ListNamespaces", "FleetService/ListInstances"} < shown
    assert {"RetentionService/ListLocks", "GET /api/v1/locks", "GET /api/v1/find", "WatchService/List"} < shown
    assert not any(name.startswith(("TrackingService", "DatasetService", "GET /api/v1/runs")) for name in shown)


async def test_lists_show_nothing_to_who_has_no_role(world: World) -> None:
    async with world.live.caller(world.live.admin) as admin:
        token = await make_token(admin, "no-role")
    async with world.live.caller(token) as caller:
        for name, asks in OF_CALLS.items():
            for fields in asks:
                answer = await caller.call(name, fields)
                assert answer.status == "OK" or answer.code == "not_found", (name, fields)
                assert answer.code or not tells_of(world.own, answer.body)
                assert not tells_of(world.other, answer.body)


async def test_lineage_ends_where_the_caller_may_not_look(world: World) -> None:
    async with world.live.caller(world.live.admin) as admin:
        token = await make_token(admin, "looks-up", [("reader", OWN, "")])
        found = await admin.get("lineage", object=world.own.run, direction="both")
        assert {world.other.dataset_version, world.other.checkpoint} <= {node["id"] for node in found["nodes"]}
    async with world.live.caller(token) as caller:
        found = await caller.get("lineage", object=world.own.run, direction="both")
        assert {node["id"] for node in found["nodes"]} == {world.own.run}
        assert (found["edges"], found["truncated"]) == ([], False)


# -- watches ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def watching(live: Live, token: str) -> AsyncIterator[aiohttp.StreamReader]:
    """The stream of changes over HTTP, once it has begun."""
    async with aiohttp.ClientSession(live.url, headers={"authorization": f"Bearer {token}"}) as session:
        async with session.get("/api/v1/changes") as response:
            if response.status != 200:
                raise error_from_dict(await response.json())
            assert await until(response.content, b"event: bookmark") == []
            yield response.content


async def until(stream: aiohttp.StreamReader, line: bytes) -> list[bytes]:
    """What comes before a line; all that there is if it does not come."""
    before: list[bytes] = []
    with anyio.fail_after(60):
        while data := await stream.readline():
            if data.startswith(line):
                return before
            before.append(data)
    raise AssertionError(f"the stream ended: {before[-4:]}")


async def watch_over_grpc(live: Live, token: str, ended: list[str], started: anyio.Event) -> None:
    host, _, port = live.grpc_address.rpartition(":")
    channel = Channel(host, int(port))
    try:
        stub = pb.WatchServiceStub(channel, metadata={"authorization": f"Bearer {token}"})
        async for item in stub.watch(pb.WatchRequest()):
            started.set()
            if item.resync is not None:
                ended.append(item.resync.reason)
    finally:
        channel.close()


async def test_a_revoked_token_ends_its_watches(world: World) -> None:
    async with world.live.caller(world.live.admin) as admin, anyio.create_task_group() as tasks:
        await make_token(admin, "watcher", [("reader", OWN, "")])
        made = pb.CreateTokenResponse.parse((await admin.do("AccessService/CreateToken", account="watcher")).body)
        stays = pb.CreateTokenResponse.parse((await admin.do("AccessService/CreateToken", account="watcher")).body)
        assert made.info is not None
        ended: list[str] = []
        started = anyio.Event()
        tasks.start_soon(watch_over_grpc, world.live, made.token, ended, started)
        async with watching(world.live, made.token) as stream, watching(world.live, stays.token) as other:
            with anyio.fail_after(60):
                await started.wait()
            await admin.do("AccessService/RevokeToken", id=made.info.id)
            await until(stream, b"event: resync")
            assert b'"reason":"authz"' in (await stream.read())
            # Another token of the same account goes on.
            await admin.do("RegistryService/CreateModel", namespace=OWN, name="after")
            told = await until(other, b"event: revision")
            assert not any(line.startswith(b"event: resync") for line in told)
    assert ended == ["authz"]


@pytest.mark.parametrize("change", ["narrowed", "widened"])
async def test_other_roles_end_a_watch_which_goes_on_after_a_list(world: World, change: str) -> None:
    async with world.live.caller(world.live.admin) as admin:
        account = f"watcher-{change}"
        roles = [("reader", OWN, ""), *([("reader", OTHER, "")] if change == "narrowed" else [])]
        token = await make_token(admin, account, roles)
        async with watching(world.live, token) as stream:
            call = "RevokeRole" if change == "narrowed" else "GrantRole"
            fields = {"account": account, "namespace": OTHER} | ({} if change == "narrowed" else {"role": "reader"})
            await admin.do(f"AccessService/{call}", **fields)
            await until(stream, b"event: resync")
        async with watching(world.live, token) as stream:
            await admin.do("RegistryService/UpdateModel", namespace=OTHER, name="secret", owner=change)
            await admin.do("RegistryService/UpdateModel", namespace=OWN, name="secret", owner=change)
            told = b""
            with anyio.fail_after(60):
                while f"{OWN}/secret".encode() not in told:
                    told += await stream.readline()
            assert (f"{OTHER}/secret".encode() in told) is (change == "widened")


async def test_a_token_has_so_many_watches(world: World) -> None:
    async with world.live.caller(world.live.admin) as admin:
        token = await make_token(admin, "watches-much", [("reader", OWN, "")])
    async with watching(world.live, token), watching(world.live, token):
        async with world.live.caller(token) as caller:
            refused = await caller.request("GET /api/v1/changes", {})
            assert (refused.code, "max_watches" in refused.body.decode()) == ("limit", True)
    # The server hears in its own time that they were closed.
    with anyio.fail_after(60):
        while True:
            try:
                async with watching(world.live, token):
                    break
            except LimitError:
                await anyio.sleep(0.01)


def test_without_access_control_the_feeds_tokens_are_what_they_were() -> None:
    token = ResumeToken(server_id="s", epoch="e", rev=7, chain="c", scope=ANYBODY.scope.mark)
    assert str(token) == "WyJzIiwiZSIsNywiYyJd"
    assert ResumeToken.parse(str(token)) == token

"""Roles x calls x routes x namespaces, on a real server: what each cell says follows from the meaning of the case."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
from grpclib.const import Cardinality

from tests.faults.registry import fault
from tests.permissions.cases import CALLS, ROUTES, Case, Place
from tests.permissions.world import (
    Answer,
    Caller,
    Live,
    absent_place,
    live_server,
    make_place,
    make_token,
    names_of,
)

ROLES = ("reader", "writer", "promoter", "admin")
HERE, THERE, NOWHERE = "hereab", "therea", "nowher"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True, slots=True)
class World:
    """The server, three places, and a token for each kind of caller."""

    live: Live
    here: Place
    there: Place
    nowhere: Place
    tokens: Mapping[str, str]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(tmp_path_factory.mktemp("permissions") / "data") as server:
        yield server


@pytest.fixture(scope="module")
async def world(live: Live) -> World:
    async with live.caller(live.admin) as admin:
        tokens = {role: await make_token(admin, f"{role}-here", [(role, HERE, "")]) for role in ROLES}
        tokens["stranger"] = await make_token(admin, "stranger")
        tokens["reads-all"] = await make_token(admin, "reads-all", [("reader", "", "")])
        tokens["of-model"] = await make_token(admin, "of-model", [("writer", HERE, "shared")])
        tokens["rules-all"] = live.admin
        return World(
            live=live,
            here=await make_place(admin, HERE),
            there=await make_place(admin, THERE),
            nowhere=absent_place(NOWHERE),
            tokens=tokens,
        )


def _is_hidden(answer: Answer) -> bool:
    return answer.code == "not_found" and "not for you to see" in answer.body.decode()


def _is_refused(answer: Answer) -> bool:
    return answer.code == "auth"


def _passes(answer: Answer) -> bool:
    return not answer.code.startswith("auth") and not _is_hidden(answer)


def _check_here(role: str, case: Case, answer: Answer, what: str) -> None:
    """Where the caller has a role."""
    assert answer.code not in ("modelbox", "storage"), f"{role}: {what} fails: {answer}"
    allowed = case.answer in ("any", "open") or (
        case.answer != "server" and ROLES.index(role) >= ROLES.index(case.role)
    )
    if allowed:
        assert case.answer == "any" or _passes(answer), f"{role}: {what} is kept out: {answer}"
    else:
        assert _is_refused(answer), f"{role}: {what} is let in: {answer}"
        assert answer.error()["fields"]["role"] == case.role, what


def _check_elsewhere(case: Case, there: Answer, nowhere: Answer, world: World, what: str) -> None:
    """Where the caller has none: what is there looks like what is not."""
    same = dict(zip(names_of(world.there), names_of(world.nowhere), strict=True))
    if case.fields(world.there) != case.fields(world.nowhere):
        assert there.about(same) == nowhere.about({}), what
    if case.answer == "hidden":
        assert _is_hidden(there), f"{what} shows: {there}"
    elif case.answer in ("made", "server"):
        assert _is_refused(there), f"{what} is let in: {there}"
        assert there.error()["fields"]["role"] == case.role, what
    elif case.answer == "open":
        assert _passes(there), what


async def _call(caller: Caller, name: str, case: Case, place: Place, *, streams: bool) -> Answer:
    return await caller.call(name, case.fields(place), streams=streams)


async def test_every_method_and_route_has_a_case(live: Live) -> None:
    assert set(CALLS) == {path.removeprefix("/").removeprefix("modelbox.v1.") for path in live.calls}
    assert set(ROUTES) | {"GET /metrics"} == {
        route for route in (*live.routes, *live.metric_routes) if not route.startswith("HEAD ")
    }
    # HEAD answers as GET, and passes the same gate.
    assert {f"GET {route[5:]}" for route in live.routes if route.startswith("HEAD ")} <= set(ROUTES)


@fault(68)
@pytest.mark.parametrize("role", ROLES)
async def test_methods_where_the_caller_has_a_role(world: World, role: str) -> None:
    async with world.live.caller(world.tokens[role]) as caller:
        for (name, case), streams in itertools.product(CALLS.items(), (False, True)):
            answer = await _call(caller, name, case, world.here, streams=streams)
            _check_here(role, case, answer, f"{name} (streams: {streams})")


@fault(68)
@pytest.mark.parametrize("role", ["stranger", "admin", "of-model"])
async def test_methods_where_the_caller_has_none(world: World, role: str) -> None:
    async with world.live.caller(world.tokens[role]) as caller:
        for (name, case), streams in itertools.product(CALLS.items(), (False, True)):
            there = await _call(caller, name, case, world.there, streams=streams)
            nowhere = await _call(caller, name, case, world.nowhere, streams=streams)
            _check_elsewhere(case, there, nowhere, world, f"{name} (streams: {streams})")


@fault(68)
@pytest.mark.parametrize("role", ROLES)
async def test_routes_where_the_caller_has_a_role(world: World, role: str) -> None:
    async with world.live.caller(world.tokens[role]) as caller:
        for route, case in ROUTES.items():
            _check_here(role, case, await caller.request(route, case.fields(world.here)), route)


@fault(68)
@pytest.mark.parametrize("role", ["stranger", "admin", "of-model"])
async def test_routes_where_the_caller_has_none(world: World, role: str) -> None:
    async with world.live.caller(world.tokens[role]) as caller:
        for route, case in ROUTES.items():
            there = await caller.request(route, case.fields(world.there))
            nowhere = await caller.request(route, case.fields(world.nowhere))
            _check_elsewhere(case, there, nowhere, world, route)
            if route.startswith("GET ") and case.answer == "hidden":
                head = await caller.request(f"HEAD {route[4:]}", case.fields(world.there))
                assert head.status == "404", route


@pytest.mark.parametrize("role", ["reads-all", "rules-all"])
async def test_roles_everywhere(world: World, role: str) -> None:
    has = "reader" if role == "reads-all" else "admin"
    async with world.live.caller(world.tokens[role]) as caller:
        for name, case in CALLS.items():
            allowed = not case.role or ROLES.index(has) >= ROLES.index(case.role)
            answer = await caller.call(name, case.fields(world.there))
            assert case.answer == "any" or _passes(answer) == allowed, (name, answer)
        for route, case in ROUTES.items():
            allowed = not case.role or ROLES.index(has) >= ROLES.index(case.role)
            answer = await caller.request(route, case.fields(world.there))
            assert case.answer == "any" or _passes(answer) == allowed, (route, answer)


async def test_without_a_token_only_what_is_open(world: World) -> None:
    async with world.live.caller() as caller:
        for name, case in CALLS.items():
            for streams in (False, True):
                answer = await _call(caller, name, case, world.here, streams=streams)
                assert (answer.code == "auth.unknown") == (case.answer != "open"), (name, answer)
                assert answer.status.startswith("UNAUTHENTICATED") == (case.answer != "open"), (name, answer)
        for route, case in ROUTES.items():
            answer = await caller.request(route, case.fields(world.here))
            assert (answer.status == "401") == (case.answer != "open"), (route, answer)
            assert (dict(answer.headers).get("WWW-Authenticate") == "Bearer") == (case.answer != "open"), route


def test_the_cases_cover_both_forms_of_calls(live: Live) -> None:
    forms = {method.cardinality for method in live.calls.values()}
    assert {Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM, Cardinality.STREAM_UNARY} <= forms

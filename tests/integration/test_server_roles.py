"""What servers of each role answer, over all methods and routes that there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbox.runtime import roles
from modelbox.runtime.roles import RoleRules
from tests.permissions.cases import CALLS, ROUTES, Place
from tests.permissions.world import Caller, Live, live_server, make_place, make_token

HERE, THERE = "hereab", "therea"
_FILE = "GET /api/v1/models/{ns}/{model}/versions/{selector}/files/{path}"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(tmp_path_factory.mktemp("roles") / "data") as server:
        yield server


def test_every_name_in_the_rules_is_there(live: Live) -> None:
    calls = {path.removeprefix("/") for path in live.calls}
    assert roles._BYTES_CALLS <= roles._WITH_BYTES_CALLS <= calls
    assert roles._BYTES_ROUTES <= roles._WITH_BYTES_ROUTES <= set(live.routes)


def test_each_call_is_for_somebody(live: Live) -> None:
    every, control, blobs = (RoleRules(role) for role in roles.ROLES)
    for path in live.calls:
        name = path.removeprefix("/")
        assert not every.refuses_call(name)
        assert not (control.refuses_call(name) and blobs.refuses_call(name)), name
        if not name.startswith("modelbox."):
            assert not control.refuses_call(name), name
            assert not blobs.refuses_call(name), name
    for route in live.routes:
        assert not every.refuses_route(route)
        assert not (control.refuses_route(route) and blobs.refuses_route(route)), route
        if route.startswith("HEAD "):
            same = f"GET {route[5:]}"
            assert control.refuses_route(route) == control.refuses_route(same), route
            assert blobs.refuses_route(route) == blobs.refuses_route(same), route


@pytest.mark.parametrize("role", ["control", "blobs"])
async def test_who_may_not_is_not_told_where_else_to_go(tmp_path: Path, role: str) -> None:
    data = tmp_path / "data"
    with live_server(data) as live:
        async with live.caller(live.admin) as admin:
            here, there = await make_place(admin, HERE), await make_place(admin, THERE)
            reader = await make_token(admin, "reader", [("reader", HERE, "")])
    with live_server(data, role=role) as live:
        rules = RoleRules(role)
        ours = [name for name in CALLS if not name.startswith("grpc.")]
        refused_calls = [name for name in ours if rules.refuses_call(f"modelbox.v1.{name}")]
        refused_routes = [route for route in ROUTES if rules.refuses_route(route)]
        assert ("ArtifactService/Download" if role == "control" else "RegistryService/GetModel") in refused_calls
        assert (_FILE if role == "control" else "GET /api/v1/runs/{run}") in refused_routes
        async with live.caller() as nobody:
            for name in refused_calls:
                for streams in (False, True):
                    answer = await nobody.call(name, CALLS[name].fields(here), streams=streams)
                    assert answer.code == "auth.unknown", name
            for route in refused_routes:
                assert (await nobody.request(route, ROUTES[route].fields(here))).status == "401", route
        async with live.caller(reader) as caller:
            await _check_reader(caller, refused_calls, refused_routes, here, there)


async def _check_reader(
    caller: Caller, refused_calls: list[str], refused_routes: list[str], here: Place, there: Place
) -> None:
    for name in refused_calls:
        if CALLS[name].answer != "hidden":
            continue
        for streams in (False, True):
            assert (await caller.call(name, CALLS[name].fields(there), streams=streams)).code == "not_found", name
            if CALLS[name].role == "reader":
                answer = await caller.call(name, CALLS[name].fields(here), streams=streams)
                assert "this server has role" in answer.status or answer.code == "busy", (name, answer)
    for route in refused_routes:
        if ROUTES[route].answer != "hidden":
            continue
        hidden = await caller.request(route, ROUTES[route].fields(there))
        assert hidden.code == "not_found", route
        assert "Location" not in dict(hidden.headers), route
        if ROUTES[route].role == "reader":
            answer = await caller.request(route, ROUTES[route].fields(here))
            assert b"this server has role" in answer.body or answer.code == "busy", (route, answer)

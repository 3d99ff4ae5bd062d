"""The registry's and the fleet's services over SQLite: what they check, and how they page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from modelbox.errors import InvalidError, LimitError, ModelBoxError, NotFoundError
from modelbox.manifest import Manifest
from modelbox.objects import (
    InstanceReport,
    InstanceState,
    JsonValue,
    ModelPatch,
    NewModel,
    NewVersion,
    VersionPatch,
)
from modelbox.refs import ModelRef
from modelbox.signing import Bundle, statement_of
from tests.faults.registry import fault

from .server_core import Core, manifest, open_core

BAD_NAMES = ["", "..", "a/b", "a\\b", "a\0", "A", "a..b", ".a", "%2e%2e", "ａ", "a\u202e", "a" * 65, "a" * 10_000]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path / "data") as opened:
        yield opened


def nested(depth: int) -> JsonValue:
    value: JsonValue = 1
    for _ in range(depth):
        value = [value]
    return value


@fault(60)
@pytest.mark.parametrize("name", BAD_NAMES)
async def test_bad_names_are_refused_everywhere(core: Core, name: str) -> None:
    registry = core.registry
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: registry.create_model(NewModel(namespace=name, name="m"), actor=""),
        lambda: registry.create_model(NewModel(namespace="ns", name=name), actor=""),
        lambda: registry.get_model("ns", name),
        lambda: registry.update_model(name, "m", ModelPatch(), actor=""),
        lambda: registry.delete_model("ns", name, actor=""),
        lambda: registry.publish_version(NewVersion(namespace=name, model="m", manifest=manifest(b"")), actor=""),
        lambda: registry.publish_version(
            NewVersion(namespace="ns", model="m", manifest=manifest(b""), aliases=(name,)), actor=""
        ),
        lambda: registry.update_version("ns", name, 1, VersionPatch(), actor=""),
        lambda: registry.delete_version(name, "m", 1, actor=""),
        lambda: registry.list_versions("ns", name),
        lambda: registry.move_alias("ns", "m", name, 1, actor=""),
        lambda: registry.rollback_alias("ns", "m", name, actor=""),
        lambda: registry.delete_alias("ns", "m", name, actor=""),
        lambda: registry.list_aliases("ns", name),
        lambda: registry.list_alias_moves(name, "m"),
    ]
    for call in calls:
        with pytest.raises(InvalidError):
            await call()
    assert (await core.feed_store.head()).rev == 0


async def test_a_signature_of_something_else_is_not_taken(core: Core) -> None:
    published = (await core.publish(b"one")).item
    registry, made = core.registry, published.manifest
    other = replace(made, framework="other")

    def bundle(subject: str, of: Manifest = made) -> str:
        return Bundle(payload=statement_of(subject, of), signature=b"by nobody whom the server knows").to_json()

    for text in (bundle("ns/m@2"), bundle("ns/other@1"), bundle("ns/m@1", other), "nonsense", "{}"):
        with pytest.raises(InvalidError):
            await registry.update_version("ns", "m", 1, VersionPatch(bundle=text), actor="")
        new = NewVersion(namespace="ns", model="m", manifest=made, bundle=text, expected_version=1)
        with pytest.raises(InvalidError):
            await registry.publish_version(new, actor="")
    with pytest.raises(InvalidError, match="number"):
        await registry.publish_version(
            NewVersion(namespace="ns", model="m", manifest=made, bundle=bundle("ns/m@1")), actor=""
        )
    assert await registry.get_version(published.ref) == published
    signed = await registry.update_version("ns", "m", 1, VersionPatch(bundle=bundle("ns/m@1")), actor="")
    assert signed.bundle == bundle("ns/m@1")


@pytest.mark.parametrize("alias", ["latest", "7"])
async def test_latest_and_numbers_cannot_be_moved_by_hand(core: Core, alias: str) -> None:
    await core.publish(b"one")
    registry = core.registry
    for call in (
        lambda: registry.move_alias("ns", "m", alias, 1, actor=""),
        lambda: registry.rollback_alias("ns", "m", alias, actor=""),
        lambda: registry.delete_alias("ns", "m", alias, actor=""),
        lambda: registry.publish_version(
            NewVersion(namespace="ns", model="m", manifest=manifest(b"one"), aliases=(alias,)), actor=""
        ),
    ):
        with pytest.raises(InvalidError):
            await call()


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"labels": {f"k{i}": "" for i in range(257)}}, LimitError),
        ({"labels": {"k": "x" * 1025}}, LimitError),
        ({"labels": {"": "x"}}, InvalidError),
        ({"labels": {"a\n": "x"}}, InvalidError),
        ({"labels": {"a": "\0"}}, InvalidError),
        ({"labels": {"a": "\ud800"}}, InvalidError),
        ({"metadata": {"a": nested(17)}}, LimitError),
        ({"metadata": {"a": nested(10_000)}}, LimitError),
        ({"metadata": {"a": "x" * 70_000}}, LimitError),
        ({"metadata": {f"a{i}": "x" * 1000 for i in range(70)}}, LimitError),
        ({"metadata": {"a": float("nan")}}, InvalidError),
        ({"metadata": {"a": [float("inf")]}}, InvalidError),
        ({"metadata": {"a": object()}}, InvalidError),
        ({"metadata": {"a": {1: 2}}}, InvalidError),
        ({"metadata": {"a": 10**400}}, InvalidError),
        ({"owner": "x" * 257}, LimitError),
        ({"description": "x" * 16_385}, LimitError),
        ({"task": "a\0b"}, InvalidError),
    ],
)
async def test_limits_of_what_callers_send(core: Core, fields: dict[str, object], error: type[ModelBoxError]) -> None:
    with pytest.raises(error):
        await core.registry.create_model(NewModel(namespace="ns", name="m", **fields), actor="")  # type: ignore[arg-type]
    assert (await core.feed_store.head()).rev == 0


@pytest.mark.parametrize("metrics", [{"a": float("nan")}, {"a": float("-inf")}, {"a": True}, {"": 1.0}])
async def test_metrics_of_a_version_are_finite_numbers(core: Core, metrics: dict[str, float]) -> None:
    await core.publish(b"one")
    with pytest.raises(InvalidError):
        await core.registry.update_version("ns", "m", 1, VersionPatch(metrics=metrics), actor="")


async def test_what_is_within_the_limits_comes_back_as_it_was(core: Core) -> None:
    metadata = {"deep": nested(15), "é \U0001f600": {"\u2028": [1, -2.5e300, True, None, "\\u0000", 2**70]}}
    new = NewModel(namespace="ns", name="m", metadata=metadata, labels={"a b": "ü"}, description="d" * 16_384)
    made = (await core.registry.create_model(new, actor="a" * 256)).item
    assert made.metadata == metadata
    assert await core.registry.get_model("ns", "m") == made


@pytest.mark.parametrize("page_size", [-1, 1001, True, 1 << 40])
async def test_page_sizes(core: Core, page_size: int) -> None:
    with pytest.raises(InvalidError):
        await core.registry.list_models(page_size=page_size)


async def test_pages_by_token(core: Core) -> None:
    for number in range(5):
        await core.registry.create_model(NewModel(namespace="ns", name=f"m{number}"), actor="")
    seen, token = [], ""
    while True:
        page = await core.registry.list_models(namespace="ns", page_size=2, page_token=token)
        seen += [model.name for model in page.items]
        if not (token := page.next_token):
            break
    assert seen == [f"m{number}" for number in range(5)]


async def test_page_tokens_fit_their_list_only(core: Core) -> None:
    for number in range(3):
        await core.publish(b"%d" % number)
        await core.registry.create_model(NewModel(namespace="ns", name=f"m{number}"), actor="")
    of_models = (await core.registry.list_models(namespace="ns", page_size=1)).next_token
    of_versions = (await core.registry.list_versions("ns", "m", page_size=1)).next_token
    assert of_models
    assert of_versions
    for call in (
        lambda: core.registry.list_models(page_token=of_models),
        lambda: core.registry.list_models(namespace="ns", page_token=of_versions),
        lambda: core.registry.list_versions("ns", "m0", page_token=of_versions),
        lambda: core.registry.list_models(namespace="ns", page_token=of_models[:-3]),
        lambda: core.registry.list_models(page_token="x"),
        lambda: core.registry.list_models(page_token="W10"),
        lambda: core.registry.list_models(page_token="\udcff"),
    ):
        with pytest.raises(InvalidError):
            await call()


@pytest.mark.parametrize("version", [0, -1, True, 1 << 63])
async def test_versions_count_from_one(core: Core, version: int) -> None:
    await core.publish(b"one")
    with pytest.raises(InvalidError):
        await core.registry.move_alias("ns", "m", "prod", version, actor="")
    with pytest.raises(InvalidError):
        await core.registry.delete_version("ns", "m", version, actor="")


@pytest.mark.parametrize("expected", [-1, True])
async def test_expected_revisions_count_from_zero(core: Core, expected: int) -> None:
    await core.publish(b"one")
    with pytest.raises(InvalidError):
        await core.registry.move_alias("ns", "m", "prod", 1, expected_mod_rev=expected, actor="")


async def test_a_time_without_a_zone_is_refused(core: Core) -> None:
    await core.publish(b"one")
    with pytest.raises(InvalidError):
        await core.registry.list_alias_moves("ns", "m", at=datetime(2026, 1, 1))


async def test_what_prod_was_then(core: Core) -> None:
    await core.publish(b"one", aliases=["prod"])
    core.clock.advance(days=1)
    then = core.clock()
    core.clock.advance(days=1)
    await core.publish(b"two", aliases=["prod"])
    page = await core.registry.list_alias_moves("ns", "m", alias="prod", at=then, page_size=1)
    assert [move.to_version for move in page.items] == [1]
    assert (await core.registry.resolve(ModelRef.parse("ns/m@prod"))).version.version == 2


# -- the fleet -----------------------------------------------------------------------------------------------------


def report(**fields: object) -> InstanceReport:
    values: dict[str, object] = {
        "instance_id": "i",
        "host": "h",
        "pid": 1,
        "ref": "ns/m@prod",
        "state": InstanceState.ACTIVE,
    }
    return InstanceReport(**(values | fields))  # type: ignore[arg-type]


async def test_silent_instances_are_lost(core: Core) -> None:
    assert await core.fleet.report([report()]) == 30
    core.clock.advance(seconds=91)
    assert (await core.fleet.list_instances(path="ns/m")).items == ()
    lost = (await core.fleet.list_instances(path="ns", include_lost=True)).items
    assert [(item.report, item.alive) for item in lost] == [(report(), False)]
    await core.fleet.report([report(version=2)])
    found = (await core.fleet.list_instances()).items
    assert [(item.report.version, item.alive) for item in found] == [(2, True)]
    assert found[0].first_seen_at < found[0].last_seen_at


@pytest.mark.parametrize(
    "fields",
    [
        {"ref": "nix"},
        {"instance_id": ""},
        {"instance_id": "a\0"},
        {"pid": -1},
        {"version": 1 << 63},
        {"reason": "\ud800"},
    ],
)
async def test_bad_reports_are_refused_whole(core: Core, fields: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        await core.fleet.report([report(), report(**fields)])
    assert (await core.fleet.list_instances()).items == ()


async def test_paths_of_the_fleet(core: Core) -> None:
    for path in ("..", "ns/", "/m", "ns/../x"):
        with pytest.raises(InvalidError):
            await core.fleet.list_instances(path=path)
    with pytest.raises(LimitError):
        await core.fleet.report([report()] * 1001)
    with pytest.raises(NotFoundError):
        await core.registry.get_model("ns", "m")

"""What every database must leave out for whoever may not see everything: just that, wherever things are listed.

The property of all of these: what somebody sees is what everybody together sees, without the rest, on pages that are
as full as can be.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest

from modelbox.access import ALL, Scope
from modelbox.errors import ConflictError, ModelBoxError, NotFoundError
from modelbox.find import COLLECTIONS, parse_columns, parse_order, parse_where
from modelbox.retention import Retained
from modelbox.runtime.find_ports import FindKey, FindQuery
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.store import find as find_module
from modelbox.runtime.store import lineage as lineage_module
from modelbox.runtime.store.artifacts import SqlArtifactStore
from modelbox.runtime.store.database import MainDatabase
from modelbox.runtime.store.datasets import SqlDatasetStore
from modelbox.runtime.store.find import SqlFindStore
from modelbox.runtime.store.fleet import SqlFleetStore
from modelbox.runtime.store.lineage import SqlLineageStore
from modelbox.runtime.store.notes import SqlNoteStore
from modelbox.runtime.store.registry import SqlRegistryStore
from modelbox.runtime.store.retention import SqlRetentionStore
from modelbox.runtime.store.space import SqlSpaceStore
from modelbox.runtime.store.tracking import SqlTrackingStore
from modelbox.tracking import NewEdge, NewEdges
from tests.scope_world import AT, CASES, Allowed, ScopeWorld, build_world

__all__ = ("ScopeContract", "world")

T = TypeVar("T")


@pytest.fixture(scope="module")
async def world(database: MainDatabase) -> ScopeWorld:
    """One for all tests: they only read, but for edges, which they write down."""
    return await build_world(database)


async def all_pages(read: Callable[[int, Key | None], Awaitable[Listed[T]]], limit: int) -> list[T]:
    """The items of all pages; all but the last one are full."""
    items: list[T] = []
    after: Key | None = None
    while True:
        page = await read(limit, after)
        items += page.items
        if page.next_key is None:
            return items
        assert len(page.items) == limit
        after = page.next_key


async def check(
    world: ScopeWorld,
    read: Callable[[Scope, int, Key | None], Awaitable[Listed[T]]],
    shows: Callable[[Allowed, T], bool],
) -> None:
    everything = await all_pages(lambda limit, after: read(ALL, limit, after), 1000)
    assert everything
    for number, allowed in enumerate(CASES):
        scope, limit = allowed.scope, (1, 2, 3, 1000)[number % 4]
        expected = [item for item in everything if shows(allowed, item)]
        assert await all_pages(lambda size, after: read(scope, size, after), limit) == expected, allowed.name  # noqa: B023


def model_of(parent: str) -> tuple[str, str]:
    namespace, _, rest = parent.partition("/")
    return namespace, rest.partition("@")[0]


class ScopeContract:
    """Lists, find, lineage and the feed under a scope."""

    async def test_lists_of_the_registry(self, world: ScopeWorld) -> None:
        store = SqlRegistryStore(world.database)

        async def models(scope: Scope, limit: int, after: Key | None) -> Listed[Any]:
            return await store.list_models(namespace="", limit=limit, after=after, scope=scope)

        async def namespaces(scope: Scope, limit: int, after: Key | None) -> Listed[Any]:
            return await store.list_namespaces(limit=limit, after=after, scope=scope)

        await check(world, models, lambda allowed, one: allowed.sees(one.namespace, one.name))
        await check(world, namespaces, lambda allowed, one: allowed.names(one.name))

        async def of_alpha(scope: Scope, limit: int, after: Key | None) -> Listed[Any]:
            return await store.list_models(namespace="alpha", limit=limit, after=after, scope=scope)

        await check(world, of_alpha, lambda allowed, one: allowed.sees(one.namespace, one.name))

    async def test_lists_of_tracking(self, world: ScopeWorld) -> None:
        tracking, datasets = SqlTrackingStore(world.database), SqlDatasetStore(world.database)

        async def experiments(scope: Scope, limit: int, after: Key | None) -> Listed[Any]:
            return await tracking.list_experiments(
                namespace="", include_deleted=True, limit=limit, after=after, scope=scope
            )

        async def runs(scope: Scope, limit: int, after: Key | None) -> Listed[Any]:
            return await tracking.list_runs("", include_deleted=True, limit=limit, after=after, scope=scope)

        async def all_datasets(scope: Scope, limit: int, after: Key | None) -> Listed[Any]:
            return await datasets.list_datasets(
                namespace="", include_deleted=False, limit=limit, after=after, scope=scope
            )

        for read in (experiments, runs, all_datasets):
            await check(world, read, lambda allowed, one: allowed.sees(one.namespace))
        # A child run of another namespace is below one that may be seen.
        above = world.runs["alpha"][-1]
        children = await tracking.list_runs(above, include_deleted=True, limit=9, after=None)
        assert {run.namespace for run in children.items} == {"beta"}
        scope = Scope(namespaces=frozenset({"alpha"}))
        assert (await tracking.list_runs(above, include_deleted=True, limit=9, after=None, scope=scope)).items == ()

    async def test_lists_of_what_is_said_and_attached(self, world: ScopeWorld) -> None:
        notes, artifacts = SqlNoteStore(world.database), SqlArtifactStore(world.database)

        async def of_beta(scope: Scope, limit: int, after: Key | None) -> Listed[Any]:
            return await artifacts.list_artifacts(parent="", namespace="beta", limit=limit, after=after, scope=scope)

        await check(world, of_beta, lambda allowed, one: allowed.sees(*world.places[one.id]))
        everything = await notes.list_events("beta", since=None, until=None, name="", source="", limit=100, after=None)
        assert len({world.places[event.object] for event in everything.items}) == 3
        for allowed in CASES:
            expected = [event for event in everything.items if allowed.sees(*world.places[event.object])]
            found: list[Any] = []
            try:

                async def events(limit: int, after: Key | None, scope: Scope = allowed.scope) -> Listed[Any]:
                    return await notes.list_events(
                        "beta", since=None, until=None, name="", source="", limit=limit, after=after, scope=scope
                    )

                found = await all_pages(events, 2)
            except NotFoundError:
                assert not allowed.names("beta")
            assert found == expected, allowed.name

    async def test_lists_of_the_fleet_of_space_and_of_what_is_kept(self, world: ScopeWorld) -> None:
        fleet, space, retention = (
            SqlFleetStore(world.database),
            SqlSpaceStore(world.database),
            SqlRetentionStore(world.database),
        )

        async def instances(scope: Scope, limit: int, after: Key | None) -> Listed[Any]:
            return await fleet.list_instances(
                namespace="", model="", seen_since=None, lease_s=90, at=AT, limit=limit, after=after, scope=scope
            )

        async def usage(scope: Scope, limit: int, after: Key | None) -> Listed[Any]:
            return await space.list_usage("", limit=limit, after=after, scope=scope)

        async def usage_of_models(scope: Scope, limit: int, after: Key | None) -> Listed[Any]:
            return await space.list_usage("alpha", limit=limit, after=after, scope=scope)

        async def plan(scope: Scope, limit: int, after: Key | None) -> Listed[Any]:
            return await retention.plan("", Retained.VERSIONS, None, limit=limit, after=after, visible=scope)

        async def plan_of_runs(scope: Scope, limit: int, after: Key | None) -> Listed[Any]:
            return await retention.plan("", Retained.RUNS, None, limit=limit, after=after, visible=scope)

        await check(world, instances, lambda allowed, one: allowed.sees(*model_of(one.report.ref)))
        await check(world, usage, lambda allowed, one: allowed.sees(one.path))
        await check(world, usage_of_models, lambda allowed, one: allowed.sees(*model_of(one.path)))
        await check(world, plan, lambda allowed, one: allowed.sees(*model_of(one.name)))
        await check(world, plan_of_runs, lambda allowed, one: allowed.sees(*world.places[one.id]))
        quotas, policies = await space.list_quotas(""), await retention.list_policies("")
        locks = await retention.list_locks("", "", limit=100)
        assert (len(quotas), len(policies), len(locks)) == (3, 12, 6)
        for allowed in CASES:
            scope = allowed.scope
            assert list(await space.list_quotas("", scope=scope)) == [q for q in quotas if allowed.sees(q.namespace)]
            assert list(await retention.list_policies("", visible=scope)) == [
                policy for policy in policies if allowed.sees(*model_of(policy.scope))
            ]
            expected = [lock for lock in locks if allowed.sees(lock.namespace, lock.model)]
            assert list(await retention.list_locks("", "", limit=100, visible=scope)) == expected
            # A limit is one of what may be seen.
            assert list(await retention.list_locks("", "", limit=2, visible=scope)) == expected[:2]

    @pytest.mark.parametrize("few", [0, 2000], ids=["walking", "beginning where there are few"])
    async def test_find(self, world: ScopeWorld, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(find_module, "_FEW", few)
        store = SqlFindStore(world.database)

        async def ids(
            collection: str, where: str, order: Sequence[str], scope: Scope, limit: int, within: str = ""
        ) -> list[str]:
            query = FindQuery(
                collection=collection,
                where=parse_where(collection, where, now=datetime(2026, 6, 1, tzinfo=UTC)),
                order=parse_order(collection, order),
                within=within,
                columns=parse_columns(collection, ("id",)),
                include_deleted=True,
                visible=scope,
            )
            found: list[str] = []
            after: FindKey | None = None
            while True:
                page = await store.find(query, limit=limit, after=after)
                found += json.loads(page.columns_json)["id"]
                if page.next_key is None:
                    return found
                assert page.count == limit
                after = page.next_key

        queries: dict[str, list[tuple[str, Sequence[str]]]] = {name: [("", ()), ("", ("id",))] for name in COLLECTIONS}
        queries["runs"] += [("", ("params.lr desc",)), ("params.lr > 0.05", ("params.deep.a", "name"))]
        queries["runs"] += [("tags.color = 'c1' or tags.team != 'beta'", ("started_at desc",))]
        queries["versions"] += [("", ("metrics.accuracy desc",)), ("metrics.accuracy >= 0.3", ())]
        queries["versions"] += [("not labels.from = '2'", ("metadata.n desc", "version"))]
        queries["models"] += [("name = 'm'", ("namespace desc",))]
        queries["events"] += [("metadata.n = 1", ("at desc",))]
        for collection, asked in queries.items():
            for where, order in asked:
                everything = await ids(collection, where, order, ALL, 1000)
                assert everything, collection
                for number, allowed in enumerate(CASES):
                    expected = [uid for uid in everything if allowed.sees(*world.places[uid])]
                    limit = (2, 3, 1000)[number % 3]
                    found = await ids(collection, where, order, allowed.scope, limit)
                    assert found == expected, (allowed.name, collection, where, order)
        # Within something that is hidden is as within something that is not there.
        scope = CASES[2].scope
        inside = await ids("runs", "", (), scope, 100, within="alpha")
        assert sorted(inside) == sorted(world.runs["alpha"])
        hidden = {"beta": "betb", "beta/e0": "betb/e0", world.runs["beta"][1]: "run_" + 24 * "0"}
        for name, absent in hidden.items():
            errors = [await error_of(ids("runs", "", (), scope, 100, within=one)) for one in (name, absent)]
            assert errors[0].replace(name, "X") == errors[1].replace(absent, "X")
        errors = [await error_of(ids("versions", "", (), scope, 9, within=one)) for one in ("beta/m", "betb/m")]
        assert errors[0] == errors[1].replace("betb", "beta")
        assert "alpha" in errors[0]
        assert "gamma" not in errors[0]

    async def test_lineage(self, world: ScopeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        store = SqlLineageStore(world.database)
        names = [name for name in world.objects if any(name in edge for edge in world.edges)]
        for leaps in (True, False):
            if not leaps:
                monkeypatch.setattr(lineage_module, "_leap", lambda *args, **kwargs: None)
            for number, allowed in enumerate(CASES):
                edges = [edge for edge in world.edges if all(allowed.sees(*world.places[end]) for end in edge)]
                seen = [name for name in names if allowed.sees(*world.places[name])][number::3]
                for seed in seen:
                    for down in (False, True):
                        found = await store.get_lineage(
                            (seed,), up=not down, down=down, max_depth=0, max_nodes=1000, scope=allowed.scope
                        )
                        depths = reachable(seed, edges if down else [(b, a) for a, b in edges])
                        assert {node.id: node.depth for node in found.nodes} == depths
                        assert {(edge.source, edge.target) for edge in found.edges} == {
                            edge for edge in edges if set(edge) <= depths.keys()
                        }
                        assert not found.truncated

    async def test_what_may_not_be_seen_is_not_there(self, world: ScopeWorld) -> None:
        lineage, notes, artifacts = (
            SqlLineageStore(world.database),
            SqlNoteStore(world.database),
            SqlArtifactStore(world.database),
        )
        tracking, datasets = SqlTrackingStore(world.database), SqlDatasetStore(world.database)
        scope = Scope(namespaces=frozenset({"alpha"}), models=frozenset({("gamma", "n")}))
        run = world.runs["beta"][1]
        nothing = run[:4] + 24 * "0"
        asks: list[Callable[[str], Awaitable[object]]] = [
            lambda name: lineage.get_lineage((name,), up=True, down=True, max_depth=0, max_nodes=9, scope=scope),
            lambda name: notes.list_comments(name, include_deleted=True, limit=9, after=None, scope=scope),
            lambda name: notes.list_events(
                name, since=None, until=None, name="", source="", limit=9, after=None, scope=scope
            ),
        ]
        both = [
            ("beta/m", "bet2/m"),
            ("beta/m@9", "bet2/m@9"),
            ("gamma/m", "gamma/2"),
            ("beta", "bet2"),
            (run, nothing),
        ]
        for ask in asks:
            for hidden, absent in both:
                assert await error_of(ask(hidden)) == (await error_of(ask(absent))).replace(absent, hidden).replace(
                    "bet2", "beta"
                )
        of_runs: list[Callable[[str], Awaitable[object]]] = [
            lambda name: tracking.list_runs(name, include_deleted=True, limit=9, after=None, scope=scope),
            lambda name: tracking.list_checkpoints(name, include_deleted=True, limit=9, after=None, scope=scope),
            lambda name: artifacts.list_artifacts(parent=name, namespace="", limit=9, after=None, scope=scope),
        ]
        for ask in of_runs:
            assert await error_of(ask(run)) == (await error_of(ask(nothing))).replace(nothing, run)
        assert await error_of(
            tracking.list_runs("beta/e0", include_deleted=True, limit=9, after=None, scope=scope)
        ) == (
            await error_of(tracking.list_runs("bet2/e0", include_deleted=True, limit=9, after=None, scope=scope))
        ).replace("bet2", "beta")
        assert await error_of(
            datasets.list_versions("beta/d", include_deleted=True, limit=9, after=None, scope=scope)
        ) == (
            await error_of(datasets.list_versions("bet2/d", include_deleted=True, limit=9, after=None, scope=scope))
        ).replace("bet2", "beta")
        # By a path, artifacts of what is not there are none.
        for name in ("beta/m", "bet2/m"):
            assert (
                await artifacts.list_artifacts(parent=name, namespace="", limit=9, after=None, scope=scope)
            ).items == ()

    async def test_a_cycle_through_what_may_not_be_seen_is_refused_without_naming_it(self, world: ScopeWorld) -> None:
        lineage = SqlLineageStore(world.database)
        first, hidden = world.runs["alpha"][0], world.runs["beta"][1]
        second = world.runs["alpha"][1]
        links = (NewEdge(source=first, target=hidden, type="x"), NewEdge(source=hidden, target=second, type="x"))
        for link in links:
            assert await lineage.add_edges(NewEdges(edges=(link,)), actor="ann", at=AT) == 1
            world.edges.append((link.source, link.target))
        closing = NewEdges(edges=(NewEdge(source=second, target=first, type="x"),))
        with pytest.raises(ConflictError) as everybody:
            await lineage.add_edges(closing, actor="ann", at=AT)
        with pytest.raises(ConflictError) as caught:
            await lineage.add_edges(closing, actor="ann", at=AT, scope=Scope(namespaces=frozenset({"alpha"})))
        assert set(as_list(everybody.value.fields["cycle"])) == {first, second, hidden}
        assert set(as_list(caught.value.fields["cycle"])) == {first, second}
        assert "beta" in everybody.value.message
        assert "beta" not in caught.value.message
        assert hidden not in caught.value.message


def as_list(value: object) -> list[str]:
    assert isinstance(value, list)
    return value


async def error_of(call: Awaitable[object]) -> str:
    """The error of a call as it travels."""
    with pytest.raises(NotFoundError) as caught:
        await call
    error: ModelBoxError = caught.value
    return json.dumps(error.to_dict(), sort_keys=True)


def reachable(seed: str, edges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Distances of what lies along edges."""
    depths, frontier = {seed: 0}, [seed]
    for name in frontier:
        for source, target in edges:
            if source == name and target not in depths:
                depths[target] = depths[name] + 1
                frontier.append(target)
    return depths

"""What every database must do about rules and protected aliases. Subclass the suites and give the fixture ``database``.

Callers are given to the stores as the boundary would find them; what is refused must leave nothing behind.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from modelbox.access import Caller, Grant, Role
from modelbox.errors import NotFoundError, RuleError
from modelbox.objects import Alias, ModelPatch, NewModel, NewVersion, VersionPatch
from modelbox.rules import AliasProtection, AliasRequest, Rule
from modelbox.runtime.store.approvals import SqlRuleStore
from modelbox.runtime.store.database import MainDatabase
from modelbox.runtime.store.datasets import SqlDatasetStore
from modelbox.runtime.store.lineage import SqlLineageStore
from modelbox.runtime.store.registry import SqlRegistryStore
from modelbox.runtime.store.tracking import SqlTrackingStore
from modelbox.tracking import (
    DatasetComponent,
    NewDatasetVersion,
    NewEdge,
    NewEdges,
    NewExperiment,
    NewRun,
)

from .metadata_stores import AT, history, hold, manifest

WAIT = timedelta(days=7)


def caller(name: str, role: Role, namespace: str = "ns", model: str = "") -> Caller:
    return Caller(name=name, grants=(Grant(role=role, namespace=namespace, model=model),))


WILL = caller("will", Role.WRITER)
PAT = caller("pat", Role.PROMOTER)
PIA = caller("pia", Role.PROMOTER)


class World:
    """A database, and what callers do with it."""

    def __init__(self, database: MainDatabase, *, protected: tuple[str, ...] = ()) -> None:
        self.database = database
        self.at = AT
        self.registry = SqlRegistryStore(database, protected=protected, approval_wait=WAIT)
        self.rules = SqlRuleStore(database, protected=protected)
        self.lineage = SqlLineageStore(database)

    async def publish(self, content: str, *, by: Caller = PAT, **parts: Any) -> int:
        await hold(self.database, "ns", content)
        new = NewVersion(namespace="ns", model="m", manifest=manifest(content), **parts)
        made = await self.registry.publish_version(new, actor=by.name, at=self.at, caller=by)
        return made.item.version

    async def move(
        self, alias: str, version: int, *, by: Caller, expected: int | None = None, model: str = "m"
    ) -> Alias | AliasRequest:
        return await self.registry.move_alias(
            "ns", model, alias, version, expected_mod_rev=expected, reason="why", actor=by.name, at=self.at, caller=by
        )

    async def rollback(self, alias: str, *, by: Caller) -> Alias:
        return await self.registry.rollback_alias(
            "ns", "m", alias, expected_mod_rev=None, reason="", actor=by.name, at=self.at, caller=by
        )

    async def delete(self, alias: str, *, by: Caller) -> AliasRequest | None:
        return await self.registry.delete_alias(
            "ns", "m", alias, expected_mod_rev=None, reason="", actor=by.name, at=self.at, caller=by
        )

    async def ask(self, alias: str, version: int, *, by: Caller = PAT) -> AliasRequest:
        asked = await self.move(alias, version, by=by)
        assert isinstance(asked, AliasRequest)
        return asked

    async def approve(self, request: AliasRequest, *, by: Caller = PIA, after: timedelta = timedelta()) -> AliasRequest:
        return await self.rules.approve_request(
            "ns", "m", request.id, comment="fine", caller=by, actor=by.name, at=self.at + after
        )

    async def reject(self, request: AliasRequest, *, by: Caller) -> AliasRequest:
        return await self.rules.reject_request(
            "ns", "m", request.id, comment="no", caller=by, actor=by.name, at=self.at
        )

    async def protect(self, scope: str, alias: str, *, approval: bool = False) -> None:
        protection = AliasProtection(scope=scope, alias=alias, approval=approval)
        await self.rules.protect_alias(protection, actor="ada", at=self.at)

    async def rule(self, scope: str = "ns", **parts: Any) -> Rule:
        return await self.rules.set_rule(Rule(scope=scope, **parts), actor="ada", at=self.at)

    async def requests(self, *, everything: bool = False, after: timedelta = timedelta()) -> tuple[AliasRequest, ...]:
        return (
            await self.rules.list_requests(
                "ns", "m", alias="", everything=everything, at=self.at + after, limit=100, after=None
            )
        ).items

    async def aliases(self) -> dict[str, int]:
        return {one.name: one.version for one in await self.registry.list_aliases("ns", "m") if one.name != "latest"}

    async def head(self) -> int:
        """The newest revision, after a look at the whole chain."""
        return (await history(self.database)).head.rev

    async def dataset(self, namespace: str = "ns") -> str:
        """A version of a dataset: its id; ``data@1`` by name."""
        part = DatasetComponent(type="path", location="/data")
        new = NewDatasetVersion(namespace=namespace, dataset="data", components=(part,))
        return (await SqlDatasetStore(self.database).create_version(new, actor="ann", at=self.at)).item.id

    async def run(self) -> str:
        tracking = SqlTrackingStore(self.database)
        experiment = NewExperiment(namespace="ns", name="e")
        made = await tracking.create_experiment(experiment, actor="ann", at=self.at)
        run = await tracking.create_run(
            NewRun(experiment=made.item.id, name="r", started_at=self.at), actor="ann", at=self.at
        )
        return run.item.id


def whats(error: RuleError) -> list[tuple[str, str]]:
    missing = error.fields["missing"]
    assert isinstance(missing, list)
    return [(one["what"], one["key"]) for one in missing]


class PublicationContract:
    """Rules for everything that is published."""

    async def test_all_that_is_missing_is_said_at_once_and_nothing_is_published(self, database: MainDatabase) -> None:
        world = World(database)
        await world.rule(labels=("team", "stage"), metadata=("license",), owner=True, description=True, dataset=True)
        await world.rule("ns/m", signed=True)
        await hold(database, "ns", "one")
        before = await world.head()
        with pytest.raises(RuleError) as raised:
            await world.publish("one", labels={"team": "asr", "stage": ""}, metadata={"license": None})
        assert whats(raised.value) == [
            ("label", "stage"),
            ("metadata", "license"),
            ("owner", ""),
            ("description", ""),
            ("dataset", ""),
            ("signature", ""),
        ]
        assert "rules of ns and ns/m" in str(raised.value)
        assert "modelbox models create ns/m --owner" in str(raised.value)
        assert await world.head() == before
        with pytest.raises(NotFoundError):
            await world.registry.get_model("ns", "m")

    async def test_what_has_it_all_is_published(self, database: MainDatabase) -> None:
        world = World(database)
        await world.rule(labels=("team",), metadata=("n",), owner=True, description=True, dataset=True, signed=True)
        await world.registry.create_model(NewModel(namespace="ns", name="m", owner="ann"), actor="ann", at=AT)
        dataset, run = await world.dataset(), await world.run()
        edges = NewEdges(edges=(NewEdge(source=dataset, target=run, type="used"),))
        await world.lineage.add_edges(edges, actor="ann", at=AT)
        parts: dict[str, Any] = {
            "labels": {"team": "asr"},
            # Zero is a value.
            "metadata": {"n": 0},
            "description": "first",
            "bundle": "{}",
        }
        with pytest.raises(RuleError) as raised:
            await world.publish("one", **parts)
        assert whats(raised.value) == [("dataset", "")]
        assert await world.publish("one", run=run, **parts) == 1

    async def test_a_dataset_counts_by_its_name_if_it_is_there_and_may_be_seen(self, database: MainDatabase) -> None:
        world = World(database)
        await world.rule(dataset=True)
        await world.dataset()
        await world.dataset("other")
        for number, named in enumerate(("ns/data@2", "ns/data", "ns/data@01x", "data@1", 7, None, ["other/data@1"])):
            with pytest.raises(RuleError):
                await world.publish(f"no {number}", metadata={"dataset": named})
        assert await world.publish("one", metadata={"dataset": ["nobody/data@1", "ns/data@1"]}) == 1
        both = Caller(
            name="bo", grants=(Grant(role=Role.WRITER, namespace="ns"), Grant(role=Role.READER, namespace="other"))
        )
        assert await world.publish("two", metadata={"dataset": "other/data@1"}, by=both) == 2

    async def test_what_a_version_must_have_it_keeps(self, database: MainDatabase) -> None:
        world = World(database)
        owned = NewModel(namespace="ns", name="m", owner="ann")
        await world.registry.create_model(owned, actor="ann", at=AT)
        labels = {"team": "asr", "review": "ok", "other": "x"}
        await world.publish("one", labels=labels, description="first", bundle="{}", metadata={"dataset": "ns/d@1"})
        await world.publish("two", labels={"team": "asr"}, aliases=("prod",))
        await world.rule(labels=("team", "language"), owner=True, signed=True, dataset=True)
        await world.rule("ns/m", alias="prod*", labels=("review",), description=True)

        async def edit(version: int, **parts: Any) -> None:
            await world.registry.update_version("ns", "m", version, VersionPatch(**parts), actor="ann", at=AT)

        # No alias of the second rule points to it; what it never had is not asked for, nor what is gone in lineage.
        await edit(1, remove_labels=("review",), description="", remove_metadata=("dataset",))
        await edit(1, labels={"team": "nlp"}, remove_labels=("other",))
        await world.move("staging", 1, by=PAT)
        await edit(1, labels={"review": "ok"}, description="first")
        await world.move("prod", 1, by=PAT)
        before = await world.head()
        for version, lost, parts in (
            (1, "the label team", {"remove_labels": ("team",)}),
            (1, "the label team", {"labels": {"team": ""}}),
            (1, "the label review and a description", {"remove_labels": ("review",), "description": ""}),
            (1, "a signature", {"bundle": ""}),
            (2, "the label team", {"remove_labels": ("team",)}),
        ):
            with pytest.raises(RuleError, match=f"must keep {lost} "):
                await edit(version, **parts)
        with pytest.raises(RuleError, match="ns/m must keep an owner"):
            await world.registry.update_model("ns", "m", ModelPatch(owner=""), actor="ann", at=AT)
        assert await world.head() == before
        await world.registry.update_model("ns", "m", ModelPatch(owner="bo"), actor="ann", at=AT)

    async def test_rules_of_others_do_not_hold(self, database: MainDatabase) -> None:
        world = World(database)
        for scope in ("n", "ns2", "ns/mm", "ns2/m"):
            await world.rule(scope, labels=("never",))
        await world.rule(alias="prod*", labels=("never",))
        assert await world.publish("one", aliases=("staging",)) == 1

    async def test_a_rule_is_set_replaced_listed_and_removed_as_revisions_of_its_namespace(
        self, database: MainDatabase
    ) -> None:
        world = World(database)
        first = await world.rule(labels=("a",))
        assert (first.updated_by, first.updated_at) == ("ada", AT)
        assert await world.rule(labels=("a",)) == first
        second = await world.rule(labels=("b", "a"), signed=True)
        other = await world.rule("ns/m", alias="prod*", owner=True)
        await world.rule("other", owner=True)
        assert list(await world.rules.list_rules("ns")) == [second, other]
        assert list(await world.rules.list_rules("ns/m")) == [second, other]
        assert list(await world.rules.list_rules("ns/x")) == [second]
        assert len(await world.rules.list_rules("")) == 3
        await world.rules.delete_rule("ns/m", "prod*", actor="ada", at=AT)
        with pytest.raises(NotFoundError) as raised:
            await world.rules.delete_rule("ns", "prod*", actor="ada", at=AT)
        assert raised.value.fields["exists"] == ["ns"]
        changes = [one for revision in (await history(database)).revisions for one in revision.changes]
        assert [(one.kind, one.namespace, one.object, one.action) for one in changes] == [
            ("rule", "ns", "rules/ns", "created"),
            ("rule", "ns", "rules/ns", "updated"),
            ("rule", "ns", "rules/ns/m@prod*", "created"),
            ("rule", "other", "rules/other", "created"),
            ("rule", "ns", "rules/ns/m@prod*", "deleted"),
        ]
        state = changes[1].state
        assert isinstance(state, dict)
        assert (state["labels"], state["signed"]) == (["b", "a"], True)


class PromotionContract:
    """Rules for what aliases point to."""

    async def test_an_alias_moves_once_the_version_has_what_it_must_have(self, database: MainDatabase) -> None:
        world = World(database)
        await world.publish("one", aliases=("prod", "staging"))
        await world.publish("two")
        await world.rule(alias="prod*", labels=("review",), description=True, owner=True)
        before = await world.head()
        for alias, version in (("prod", 2), ("prod-eu", 1)):
            with pytest.raises(RuleError) as raised:
                await world.move(alias, version, by=PAT)
            assert whats(raised.value) == [("label", "review"), ("owner", ""), ("description", "")]
        assert await world.head() == before
        missing = await world.rules.check_rules("ns", "m", 2, "prod", caller=PAT)
        assert [one.fix.partition(" --")[0] for one in missing] == [
            "modelbox labels set ns/m@2 review=TEXT",
            "modelbox models update ns/m",
            "modelbox models update ns/m@2",
        ]
        assert await world.rules.check_rules("ns", "m", 2, "staging", caller=PAT) == ()
        assert await world.rules.check_rules("ns", "m", 2, "", caller=PAT) == ()
        # Where it points already it stays, whatever the rules say by now.
        assert isinstance(await world.move("prod", 1, by=PAT), Alias)
        await world.move("staging", 2, by=PAT)
        patch = VersionPatch(labels={"review": "ok"}, description="second")
        await world.registry.update_version("ns", "m", 2, patch, actor="pat", at=AT)
        await world.registry.update_model("ns", "m", ModelPatch(owner="ann"), actor="pat", at=AT)
        await world.move("prod", 2, by=PAT)
        assert await world.aliases() == {"prod": 2, "staging": 2}
        # Back at once, although that version still lacks everything.
        await world.rollback("prod", by=PAT)
        assert (await world.aliases())["prod"] == 1

    async def test_a_publication_moves_no_alias_that_its_version_must_not_have(self, database: MainDatabase) -> None:
        world = World(database)
        await world.rule("ns/m", alias="prod", labels=("review",), signed=True)
        await hold(database, "ns", "one")
        before = await world.head()
        with pytest.raises(RuleError, match="cannot be prod"):
            await world.publish("one", aliases=("staging", "prod"), labels={"review": "ok"})
        assert await world.head() == before
        await world.publish("one", aliases=("staging",), labels={"review": "ok"})
        # The same files again: the version is there, and its signature comes now.
        with pytest.raises(RuleError):
            await world.publish("one", aliases=("prod",))
        assert await world.publish("one", aliases=("prod",), bundle="{}") == 1
        assert await world.aliases() == {"prod": 1, "staging": 1}

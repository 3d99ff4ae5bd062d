"""What every database must do about protected aliases and approvals. Subclass the suites; give ``database``.

Callers are given to the stores as the boundary would find them; what is refused must leave nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest

from modelbox.access import Role
from modelbox.errors import ApprovalNeeded, AuthError, ConflictError, InUseError, LimitError, NotFoundError, RuleError
from modelbox.objects import Alias, VersionPatch
from modelbox.rules import AliasRequest, RequestState
from modelbox.runtime.store import alias_requests
from modelbox.runtime.store.database import MainDatabase

from .metadata_stores import AT, history, hold
from .rule_stores import PAT, PIA, WAIT, WILL, World, caller


class ProtectionContract:
    """Aliases that only promoters move."""

    async def test_a_writer_changes_no_protected_alias_in_any_way(self, database: MainDatabase) -> None:
        world = World(database, protected=("prod*",))
        await world.publish("one", aliases=("prod", "staging"))
        await world.publish("two", by=WILL, aliases=("staging",))
        await world.move("prod", 2, by=PAT)
        await world.protect("ns/m", "blue")
        await hold(database, "ns", "three")
        before = await world.head()
        tries: list[Callable[[], Any]] = [
            lambda: world.move("prod", 1, by=WILL),
            lambda: world.move("prod", 2, by=WILL),
            lambda: world.move("prod-new", 1, by=WILL),
            lambda: world.move("blue", 1, by=WILL),
            lambda: world.rollback("prod", by=WILL),
            lambda: world.delete("prod", by=WILL),
            lambda: world.publish("three", by=WILL, aliases=("staging", "prod")),
            lambda: world.publish("two", by=WILL, aliases=("blue",)),
            lambda: world.move("prod", 1, by=caller("eve", Role.ADMIN, "other")),
            lambda: world.move("prod", 1, by=caller("eve", Role.PROMOTER, "ns", "other")),
        ]
        for one in tries:
            with pytest.raises(AuthError) as raised:
                await one()
            assert raised.value.fields["role"] == "promoter"
            assert type(raised.value) is AuthError
        assert await world.head() == before
        assert await world.aliases() == {"prod": 2, "staging": 2}
        # What is not protected is the writer's, and `latest` moves by itself.
        await world.protect("ns", "*")
        assert await world.publish("three", by=WILL) == 3
        await world.rules.unprotect_alias("ns", "*", actor="ada", at=AT)
        await world.rules.unprotect_alias("ns/m", "blue", actor="ada", at=AT)
        await world.move("blue", 1, by=WILL)

    async def test_a_promoter_of_the_model_alone_is_enough(self, database: MainDatabase) -> None:
        world = World(database, protected=("prod*",))
        await world.publish("one")
        moved = await world.move("prod", 1, by=caller("pat", Role.PROMOTER, "ns", "m"))
        assert isinstance(moved, Alias)
        assert moved.moved_by == "pat"

    async def test_what_the_settings_protect_only_they_let_go(self, database: MainDatabase) -> None:
        world = World(database, protected=("prod*",))
        await world.protect("ns", "prod*", approval=True)
        assert [(one.scope, one.alias, one.approval) for one in await world.rules.list_protections("ns/m")] == [
            ("", "prod*", False),
            ("ns", "prod*", True),
        ]
        await world.rules.unprotect_alias("ns", "prod*", actor="ada", at=AT)
        with pytest.raises(ConflictError, match="protected_aliases"):
            await world.rules.unprotect_alias("ns", "prod*", actor="ada", at=AT)
        with pytest.raises(NotFoundError):
            await world.rules.unprotect_alias("ns", "blue", actor="ada", at=AT)
        assert [(one.object, one.action) for r in (await history(database)).revisions for one in r.changes] == [
            ("protections/ns@prod*", "created"),
            ("protections/ns@prod*", "deleted"),
        ]


class ApprovalContract:
    """Moves that wait for a second person."""

    async def world(self, database: MainDatabase) -> World:
        world = World(database)
        for content in ("one", "two", "three"):
            await world.publish(content)
        await world.move("prod", 1, by=PAT)
        await world.protect("ns", "prod*", approval=True)
        return world

    async def test_a_move_is_made_in_the_revision_in_which_somebody_else_approves_it(
        self, database: MainDatabase
    ) -> None:
        world = await self.world(database)
        with pytest.raises(AuthError):
            await world.move("prod", 2, by=WILL)
        request = await world.ask("prod", 2)
        assert (request.from_version, request.to_version, request.state) == (1, 2, RequestState.PENDING)
        assert (request.requested_by, request.reason, request.expires_at) == ("pat", "why", AT + WAIT)
        before = await world.head()
        assert await world.ask("prod", 2) == request
        assert await world.requests() == (request,)
        for nobody in (PAT, WILL, caller("", Role.ADMIN)):
            with pytest.raises(AuthError):
                await world.approve(request, by=nobody)
        assert await world.head() == before
        assert await world.aliases() == {"prod": 1}
        approved = await world.approve(request)
        assert (approved.state, approved.decided_by, approved.comment) == (RequestState.APPROVED, "pia", "fine")
        assert await world.aliases() == {"prod": 2}
        assert await world.requests() == ()
        (revision,) = [one for one in (await history(database)).revisions if one.rev == before + 1]
        assert [(one.kind, one.action, one.actor) for one in revision.changes] == [
            ("rule", "updated", "pia"),
            ("alias", "moved", "pia"),
        ]
        moves = await world.registry.list_alias_moves("ns", "m", alias="prod", at=None, limit=1, after=None)
        assert moves.items[0].reason == "why (asked for by pat)"
        with pytest.raises(ConflictError, match="approved by pia already"):
            await world.approve(request, by=caller("joe", Role.ADMIN))

    async def test_what_moved_meanwhile_is_not_what_was_approved(self, database: MainDatabase) -> None:
        world = await self.world(database)
        two, three = await world.ask("prod", 2), await world.ask("prod", 3, by=PIA)
        assert [one.id for one in await world.requests()] == [three.id, two.id]
        await world.approve(two)
        with pytest.raises(ConflictError, match="outdated"):
            await world.approve(three, by=PAT)
        assert await world.aliases() == {"prod": 2}
        assert [one.state for one in await world.requests(everything=True)] == ["outdated", "approved"]

    async def test_only_one_of_many_approvals_at_once_moves_the_alias(self, database: MainDatabase) -> None:
        world = await self.world(database)
        asked = [await world.ask("prod", 2), await world.ask("prod", 3)]
        outcomes: list[object] = []

        async def approve(request: AliasRequest, name: str) -> None:
            try:
                outcomes.append(await world.approve(request, by=caller(name, Role.PROMOTER)))
            except ConflictError as exc:
                outcomes.append(exc)

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(approve, asked[number % 2], f"p{number}")
        (won,) = [one for one in outcomes if isinstance(one, AliasRequest)]
        assert len(outcomes) == 8
        assert await world.aliases() == {"prod": won.to_version}
        moves = await world.registry.list_alias_moves("ns", "m", alias="prod", at=None, limit=10, after=None)
        assert [one.to_version for one in moves.items] == [won.to_version, 1]

    async def test_a_request_expires(self, database: MainDatabase) -> None:
        world = await self.world(database)
        request = await world.ask("prod", 2)
        late = await world.ask("prod-eu", 2)
        assert len(await world.requests(after=WAIT - timedelta(seconds=1))) == 2
        assert await world.requests(after=WAIT) == ()
        with pytest.raises(ConflictError, match="expired"):
            await world.approve(request, after=WAIT)
        assert (await world.approve(late, after=WAIT - timedelta(seconds=1))).state is RequestState.APPROVED
        assert await world.aliases() == {"prod": 1, "prod-eu": 2}

    async def test_the_version_must_still_be_there_and_fit(self, database: MainDatabase) -> None:
        world = await self.world(database)
        gone, unfit = await world.ask("prod", 2), await world.ask("prod", 3)
        await world.registry.delete_version("ns", "m", 2, actor="ann", at=AT)
        with pytest.raises(NotFoundError):
            await world.approve(gone)
        await world.rule(alias="prod", labels=("review",))
        with pytest.raises(RuleError):
            await world.approve(unfit)
        with pytest.raises(RuleError):
            await world.move("prod", 3, by=PIA)
        patch = VersionPatch(labels={"review": "ok"})
        await world.registry.update_version("ns", "m", 3, patch, actor="ann", at=AT)
        await world.approve(unfit)
        assert await world.aliases() == {"prod": 3}

    async def test_a_deletion_waits_too(self, database: MainDatabase) -> None:
        world = await self.world(database)
        request = await world.delete("prod", by=PAT)
        assert request is not None
        assert (request.from_version, request.to_version) == (1, None)
        assert await world.aliases() == {"prod": 1}
        await world.approve(request)
        assert await world.aliases() == {}

    async def test_a_request_is_refused_by_a_promoter_and_taken_back_by_whoever_asked(
        self, database: MainDatabase
    ) -> None:
        world = await self.world(database)
        one, two = await world.ask("prod", 2), await world.ask("prod", 3)
        with pytest.raises(AuthError):
            await world.reject(one, by=WILL)
        assert (await world.reject(one, by=PIA)).state is RequestState.REJECTED
        # No promoter any more, but still the one who asked.
        assert (await world.reject(two, by=caller("pat", Role.WRITER))).decided_by == "pat"
        for request in (one, two):
            with pytest.raises(ConflictError, match="rejected"):
                await world.approve(request)
        assert await world.aliases() == {"prod": 1}
        # And asked for anew, it is another one.
        assert (await world.ask("prod", 2)).id not in (one.id, two.id)
        with pytest.raises(NotFoundError):
            await world.rules.approve_request("ns", "m", "req_none", comment="", caller=PIA, actor="pia", at=AT)

    async def test_a_rollback_waits_for_nobody_and_history_says_so(self, database: MainDatabase) -> None:
        world = await self.world(database)
        await world.approve(await world.ask("prod", 2))
        waiting = await world.ask("prod", 3)
        with pytest.raises(AuthError):
            await world.rollback("prod", by=WILL)
        assert (await world.rollback("prod", by=PAT)).version == 1
        newest = (await world.requests(everything=True))[0]
        assert (newest.state, newest.requested_by, newest.from_version, newest.to_version) == (
            RequestState.BYPASSED,
            "pat",
            2,
            1,
        )
        moves = await world.registry.list_alias_moves("ns", "m", alias="prod", at=None, limit=1, after=None)
        assert moves.items[0].reason == "rolled back from version 2 (without approval)"
        last = (await history(database)).revisions[-1]
        assert [(one.kind, one.action) for one in last.changes] == [("rule", "created"), ("alias", "moved")]
        with pytest.raises(ConflictError, match="outdated"):
            await world.approve(waiting)

    async def test_a_publication_waits_for_nobody_and_so_moves_no_such_alias(self, database: MainDatabase) -> None:
        world = await self.world(database)
        await hold(database, "ns", "four")
        before = await world.head()
        for content in ("four", "three"):
            with pytest.raises(ApprovalNeeded, match="publish without this alias"):
                await world.publish(content, aliases=("staging", "prod"))
        assert await world.head() == before
        # Where it points there already, nothing moves.
        await world.approve(await world.ask("prod", 3))
        assert await world.publish("three", aliases=("prod",)) == 3

    async def test_a_compare_that_fails_asks_for_nothing(self, database: MainDatabase) -> None:
        world = await self.world(database)
        with pytest.raises(ConflictError):
            await world.move("prod", 2, by=PAT, expected=0)
        assert await world.requests(everything=True) == ()

    async def test_requests_go_with_their_model_and_are_not_without_end(
        self, database: MainDatabase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world = await self.world(database)
        monkeypatch.setattr(alias_requests, "_MAX_PENDING", 2)
        await world.ask("prod", 2)
        await world.ask("prod-eu", 2)
        with pytest.raises(LimitError):
            await world.ask("prod-us", 2)
        assert (await world.ask("prod", 2)).state is RequestState.PENDING
        with pytest.raises(InUseError):
            await world.registry.delete_model("ns", "m", actor="ann", at=AT)
        await world.rules.unprotect_alias("ns", "prod*", actor="ada", at=AT)
        await world.delete("prod", by=WILL)
        await world.registry.delete_model("ns", "m", actor="ann", at=AT)
        await world.publish("one")
        assert await world.requests(everything=True) == ()

    async def test_requests_come_in_pages(self, database: MainDatabase) -> None:
        world = await self.world(database)
        asked = [await world.ask(alias, 2) for alias in ("prod", "prod-a", "prod-b")]
        after = None
        seen: list[str] = []
        for size in (2, 1):
            page = await world.rules.list_requests("ns", "m", alias="", everything=True, at=AT, limit=2, after=after)
            assert len(page.items) == size
            seen += [one.id for one in page.items]
            after = page.next_key
        assert (seen, after) == ([one.id for one in reversed(asked)], None)
        only = await world.rules.list_requests("ns", "m", alias="prod-a", everything=False, at=AT, limit=5, after=None)
        assert [one.id for one in only.items] == [asked[1].id]

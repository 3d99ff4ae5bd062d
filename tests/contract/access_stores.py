"""What every database must do about accounts, roles and tokens. Subclass the suites; give the fixture ``database``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from sqlalchemy import select

from modelbox.access import ANYBODY, Caller, Grant, Permission, Role
from modelbox.accounts import AccountPatch, CreatedToken, NewToken, TokenInfo
from modelbox.errors import (
    AuthError,
    ConfigError,
    ConflictError,
    InvalidError,
    ModelBoxError,
    NotAuthenticated,
    NotFoundError,
    ServerBusy,
    StorageError,
)
from modelbox.feed import Kind
from modelbox.runtime.access_ports import AccessState, StoredToken
from modelbox.runtime.first_admin import make_first_admin, recover_admin
from modelbox.runtime.services import callers
from modelbox.runtime.services.access import AccessService
from modelbox.runtime.services.access_book import SKEW_S, Credentials
from modelbox.runtime.services.feed import FeedService
from modelbox.runtime.store.access import SqlAccessStore
from modelbox.runtime.store.database import MainDatabase
from modelbox.runtime.store.feed import SqlFeedStore
from modelbox.runtime.store.history import verify_chain
from modelbox.runtime.store.schema import access_tokens, feed_changes
from modelbox.tokens import Token

DAY_S = 86400.0
START = datetime(2026, 5, 3, 12, tzinfo=UTC)
ROOT = Caller(name="root", grants=(Grant(role=Role.ADMIN),))


class Clock:
    """Seconds since 1970, as tests set them."""

    def __init__(self) -> None:
        self.now = START.timestamp()

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A server's callers."""

    database: MainDatabase
    store: SqlAccessStore
    access: AccessService
    clock: Clock

    def show(self, token: str, *, address: str = "10.0.0.1", names: tuple[str, ...] = ()) -> Credentials:
        """What comes with a call."""
        header = f"Bearer {token}" if token else ""
        return self.access.credentials(header, address=address, certificate_names=names)

    def call(self, made: CreatedToken) -> Caller:
        """Who calls with a token."""
        return self.access.caller(self.show(made.token))

    async def account(self, name: str, *grants: Grant) -> Caller:
        """An account with roles, calling with a token of its own that is as wide."""
        await self.access.create_account(name, caller=ROOT)
        for grant in grants:
            await self.access.grant_role(name, grant, caller=ROOT)
        return self.call(await self.access.create_token(NewToken(account=name), caller=ROOT))

    async def changes(self) -> list[tuple[str, str, str, str, str]]:
        """Namespace, object, action, actor and state of all changes of access."""
        query = select(feed_changes).where(feed_changes.c.kind == Kind.ACCESS.value)
        rows = await self.database.read(
            lambda conn: conn.execute(query.order_by(feed_changes.c.rev, feed_changes.c.idx)).all()
        )
        return [(row.namespace, row.object, row.action, row.actor, row.state) for row in rows]

    async def used_at(self, token_id: str) -> datetime | None:
        info = await self.store.find_token(token_id)
        assert info is not None
        return info.used_at


@asynccontextmanager
async def open_access(database: MainDatabase, *, on: bool = True, clock: Clock | None = None) -> AsyncIterator[World]:
    clock = clock or Clock()
    store = SqlAccessStore(database)
    async with AccessService(store, on=on, clock=clock) as access:
        yield World(database=database, store=store, access=access, clock=clock)


@pytest.fixture
async def world(database: MainDatabase) -> AsyncIterator[World]:
    async with open_access(database) as opened:
        await opened.access.create_account("root", caller=ROOT)
        await opened.access.grant_role("root", Grant(role=Role.ADMIN), caller=ROOT)
        yield opened


async def refused(call: Callable[[], Awaitable[object]], error: type[ModelBoxError] = AuthError) -> ModelBoxError:
    with pytest.raises(error) as caught:
        await call()
    assert type(caught.value) is error
    return caught.value


class AccountContract:
    """Accounts and their roles."""

    async def test_an_account_is_made_once_changed_and_removed_with_all_it_has(self, world: World) -> None:
        access = world.access
        made = await access.create_account("ada", description="Ada", certificate_names=("ada.example",), caller=ROOT)
        assert (made.existed, made.item.name, made.item.created_by) == (False, "ada", "root")
        again = await access.create_account("ada", description="other", caller=ROOT)
        assert (again.existed, again.item) == (True, made.item)
        patch = AccountPatch(description="Ada L.", certificate_names=("ada.example", "spiffe://example/ada"))
        changed = await access.update_account("ada", patch, caller=ROOT)
        assert changed.certificate_names == ("ada.example", "spiffe://example/ada")
        assert changed.mod_rev > made.item.mod_rev
        assert await access.update_account("ada", patch, caller=ROOT) == changed
        await access.grant_role("ada", Grant(namespace="speech", role=Role.WRITER), caller=ROOT)
        token = await access.create_token(NewToken(account="ada"), caller=ROOT)
        assert world.call(token).may(Permission.WRITE, "speech")
        await access.delete_account("ada", caller=ROOT)
        with pytest.raises(NotAuthenticated):
            world.call(token)
        with pytest.raises(NotAuthenticated):
            access.caller(world.show("", names=("ada.example",)))
        assert [one.name for one in (await access.list_accounts(caller=ROOT)).items] == ["root"]
        assert (await access.list_grants(account="ada", caller=ROOT)).items == ()
        await refused(lambda: access.delete_account("ada", caller=ROOT), NotFoundError)
        await refused(lambda: access.update_account("ada", patch, caller=ROOT), NotFoundError)

    async def test_a_certificate_means_one_account_only(self, world: World) -> None:
        access = world.access
        await access.create_account("ada", certificate_names=("a.example", "b.example"), caller=ROOT)
        error = await refused(
            lambda: access.create_account("bob", certificate_names=("c.example", "b.example"), caller=ROOT),
            ConflictError,
        )
        assert error.fields["current"] == "ada"
        await access.create_account("bob", caller=ROOT)
        patch = AccountPatch(certificate_names=("a.example",))
        await refused(lambda: access.update_account("bob", patch, caller=ROOT), ConflictError)
        assert access.caller(world.show("", names=("b.example",))).name == "ada"
        await access.update_account("ada", AccountPatch(certificate_names=()), caller=ROOT)
        await access.update_account("bob", patch, caller=ROOT)
        assert access.caller(world.show("", names=("a.example",))).name == "bob"

    async def test_a_disabled_account_is_nobody_until_it_is_enabled(self, world: World) -> None:
        await world.access.create_account("ada", caller=ROOT)
        token = await world.access.create_token(NewToken(account="ada"), caller=ROOT)
        caller = world.call(token)
        await world.access.update_account("ada", AccountPatch(disabled=True), caller=ROOT)
        with pytest.raises(NotAuthenticated, match="disabled"):
            world.call(token)
        with pytest.raises(NotAuthenticated, match="disabled"):
            world.access.renewed(caller)
        await world.access.update_account("ada", AccountPatch(disabled=False), caller=ROOT)
        assert world.call(token) == caller

    async def test_an_account_has_one_role_in_each_place(self, world: World) -> None:
        access = world.access
        await access.create_account("ada", caller=ROOT)
        places = [Grant(role=Role.READER), Grant(namespace="a", role=Role.WRITER)]
        places.append(Grant(namespace="a", model="m", role=Role.PROMOTER))
        for grant in places:
            await access.grant_role("ada", grant, caller=ROOT)
        first = (await access.list_grants(account="ada", caller=ROOT)).items
        assert [one.grant for one in first] == places
        same = await access.grant_role("ada", places[1], caller=ROOT)
        assert same == first[1]
        await access.grant_role("ada", replace(places[1], role=Role.ADMIN), caller=ROOT)
        roles = [one.role for one in (await access.list_grants(account="ada", caller=ROOT)).items]
        assert roles == [Role.READER, Role.ADMIN, Role.PROMOTER]
        assert await access.revoke_role("ada", "a", caller=ROOT)
        assert not await access.revoke_role("ada", "a", caller=ROOT)
        assert [one.model for one in (await access.list_grants(namespace="a", caller=ROOT)).items] == ["m"]
        await refused(lambda: access.grant_role("bob", places[0], caller=ROOT), NotFoundError)
        await refused(lambda: access.revoke_role("bob", caller=ROOT), NotFoundError)

    async def test_nobody_takes_the_last_admin_away(self, world: World) -> None:
        access = world.access
        await access.create_account("bob", caller=ROOT)
        await access.grant_role("bob", Grant(namespace="a", role=Role.ADMIN), caller=ROOT)
        attempts: list[Callable[[], Awaitable[object]]] = [
            lambda: access.revoke_role("root", caller=ROOT),
            lambda: access.grant_role("root", Grant(role=Role.PROMOTER), caller=ROOT),
            lambda: access.update_account("root", AccountPatch(disabled=True), caller=ROOT),
            lambda: access.delete_account("root", caller=ROOT),
        ]
        for attempt in attempts:
            assert "roles grant" in str(await refused(attempt, ConflictError))
        assert [one.role for one in (await access.list_grants(account="root", caller=ROOT)).items] == [Role.ADMIN]
        await access.grant_role("bob", Grant(role=Role.ADMIN), caller=ROOT)
        await access.update_account("bob", AccountPatch(disabled=True), caller=ROOT)
        await refused(attempts[0], ConflictError)
        await access.update_account("bob", AccountPatch(disabled=False), caller=ROOT)
        await access.delete_account("root", caller=ROOT)

    async def test_history_tells_of_every_change_and_of_no_secret(self, world: World) -> None:
        access, before = world.access, len(await world.changes())
        made = await access.create_token(
            NewToken(account="ci", role=Role.WRITER, namespaces=("speech",), create_account=True), caller=ROOT
        )
        await access.grant_role("ci", Grant(namespace="speech", model="m", role=Role.READER), caller=ROOT)
        await access.revoke_token(made.info.id, caller=ROOT)
        await access.delete_account("ci", caller=ROOT)
        told = (await world.changes())[before:]
        token = f"token:{made.info.id}"
        assert [(namespace, path, action, actor) for namespace, path, action, actor, _ in told] == [
            ("", "account:ci", "created", "root"),
            ("speech", "role:ci:speech", "created", "root"),
            ("speech", token, "created", "root"),
            ("speech", "role:ci:speech/m", "created", "root"),
            ("speech", token, "deleted", "root"),
            ("speech", token, "deleted", "root"),
            ("speech", "role:ci:speech", "deleted", "root"),
            ("speech", "role:ci:speech/m", "deleted", "root"),
            ("", "account:ci", "deleted", "root"),
        ]
        everything = "".join(state for *_, state in told)
        parsed = Token.parse(made.token)
        assert parsed.secret not in everything
        assert parsed.digest.hex() not in everything.lower()
        assert await world.database.read(verify_chain) > 0

    async def test_lists_come_in_pages_however_few_of_them_one_may_see(self, world: World) -> None:
        access = world.access
        for number in range(7):
            await access.create_account(f"a{number}", caller=ROOT)
            place = "mine" if number % 3 == 0 else "theirs"
            await access.grant_role(f"a{number}", Grant(namespace=place, role=Role.READER), caller=ROOT)
        mine = await world.account("zoe", Grant(namespace="mine", role=Role.ADMIN))
        names, token = [], ""
        while True:
            page = await access.list_accounts(page_size=2, page_token=token, caller=mine)
            assert len(page.items) == 2 or not page.next_token
            names += [one.name for one in page.items]
            token = page.next_token
            if not token:
                break
        assert names == ["a0", "a3", "a6", "zoe"]
        first = await access.list_grants(page_size=3, caller=mine)
        rest = await access.list_grants(page_size=3, page_token=first.next_token, caller=mine)
        assert [one.account for one in (*first.items, *rest.items)] == ["a0", "a3", "a6", "zoe"]
        assert not rest.next_token
        assert len((await access.list_accounts(caller=ROOT)).items) == 9


class TokenContract:
    """Tokens: what they let do, who makes and revokes them, and when they end."""

    async def test_a_token_is_shown_once_and_only_its_hash_is_kept(self, world: World) -> None:
        made = await world.access.create_token(NewToken(account="root", description="mine"), caller=ROOT)
        assert made.info.expires_at == START + timedelta(days=90)
        assert not made.account_created
        row = await world.database.read(
            lambda conn: conn.execute(select(access_tokens).where(access_tokens.c.kid == made.info.id)).one()
        )
        assert bytes(row.secret_hash) == Token.parse(made.token).digest
        assert Token.parse(made.token).secret not in repr(tuple(row))
        caller = world.call(made)
        assert (caller.name, caller.token_id, caller.address) == ("root", made.info.id, "10.0.0.1")
        who = world.access.whoami(caller)
        assert (who.access, who.name, who.expires_at) == (True, "root", made.info.expires_at)

    async def test_a_token_for_somebody_new_makes_the_account_with_just_that_role(self, world: World) -> None:
        new = NewToken(account="ci", role=Role.WRITER, namespaces=("b", "a", "a"), create_account=True)
        made = await world.access.create_token(new, caller=ROOT)
        assert made.account_created
        assert made.info.namespaces == ("a", "b")
        grants = (Grant(namespace="a", role=Role.WRITER), Grant(namespace="b", role=Role.WRITER))
        assert world.call(made).grants == grants
        again = await world.access.create_token(replace(new, namespaces=("a",)), caller=ROOT)
        assert not again.account_created
        assert world.call(again).grants == grants[:1]
        assert [one.grant for one in (await world.access.list_grants(account="ci", caller=ROOT)).items] == list(grants)
        unknown = NewToken(account="nobody", role=Role.READER)
        await refused(lambda: world.access.create_token(unknown, caller=ROOT), NotFoundError)
        without = NewToken(account="nobody", create_account=True)
        await refused(lambda: world.access.create_token(without, caller=ROOT), InvalidError)

    async def test_a_token_ends_when_it_is_revoked_at_once_and_for_good(self, world: World) -> None:
        made = await world.access.create_token(NewToken(account="root"), caller=ROOT)
        caller = world.call(made)
        ended = await world.access.revoke_token(made.info.id, caller=ROOT)
        assert (ended.revoked_at, ended.revoked_by) == (START, "root")
        with pytest.raises(NotAuthenticated):
            world.call(made)
        with pytest.raises(NotAuthenticated):
            world.access.renewed(caller)
        world.clock.now += 60
        assert await world.access.revoke_token(made.info.id, caller=ROOT) == ended
        assert made.info.id not in [one.id for one in (await world.access.list_tokens(caller=ROOT)).items]
        listed = await world.access.list_tokens(include_ended=True, caller=ROOT)
        assert ended in listed.items

    async def test_a_token_ends_by_itself_and_says_so_to_whoever_waits(self, world: World) -> None:
        made = await world.access.create_token(NewToken(account="root", expires_in_s=3600), caller=ROOT)
        caller = world.call(made)
        assert world.access.expires_in(caller) == 3600 + SKEW_S
        assert world.access.expires_in(ROOT) is None
        world.clock.now += 3600 + SKEW_S
        assert world.access.expires_in(caller) == 0.0
        with pytest.raises(NotAuthenticated, match="expired"):
            world.call(made)
        with pytest.raises(NotAuthenticated, match="expired"):
            world.access.renewed(caller)
        assert (await world.access.list_tokens(caller=ROOT)).items == ()

    @pytest.mark.parametrize("lasts_s", [0, -1, 59.0, 366 * DAY_S, float("nan"), float("inf"), True])
    async def test_no_token_holds_for_ever_or_not_at_all(self, world: World, lasts_s: float) -> None:
        new = NewToken(account="root", expires_in_s=lasts_s)
        await refused(lambda: world.access.create_token(new, caller=ROOT), InvalidError)

    async def test_everybody_makes_and_revokes_their_own_no_wider_than_they_are(self, world: World) -> None:
        access = world.access
        ada = await world.account("ada", Grant(namespace="a", role=Role.WRITER), Grant(namespace="b", role=Role.READER))
        narrow = await access.create_token(NewToken(role=Role.READER, namespaces=("a",)), caller=ada)
        assert narrow.info.account == narrow.info.created_by == "ada"
        wide = await access.create_token(NewToken(account="ada"), caller=ada)
        caller = world.call(narrow)
        assert caller.grants == (Grant(namespace="a", role=Role.READER),)
        wider = [
            NewToken(),
            NewToken(role=Role.READER),
            NewToken(namespaces=("a",)),
            NewToken(role=Role.WRITER, namespaces=("a",)),
            NewToken(role=Role.READER, namespaces=("a", "b")),
        ]
        for new in wider:
            await refused(lambda new=new: access.create_token(new, caller=caller))  # type: ignore[misc]
        same = await access.create_token(NewToken(role=Role.READER, namespaces=("a",)), caller=caller)
        await refused(lambda: access.revoke_token(wide.info.id, caller=caller))
        await access.revoke_token(same.info.id, caller=caller)
        await access.revoke_token(narrow.info.id, caller=caller)
        await access.revoke_token(wide.info.id, caller=ada)

    async def test_an_admin_of_a_namespace_rules_there_and_nowhere_else(self, world: World) -> None:
        access = world.access
        await world.account("bob", Grant(namespace="b", role=Role.WRITER))
        everywhere = await access.create_token(NewToken(account="root"), caller=ROOT)
        ada = await world.account("ada", Grant(namespace="a", role=Role.ADMIN))
        await access.grant_role("bob", Grant(namespace="a", role=Role.READER), caller=ada)
        await access.grant_role("bob", Grant(namespace="a", model="m", role=Role.ADMIN), caller=ada)
        made = await access.create_token(
            NewToken(account="ci", role=Role.WRITER, namespaces=("a",), create_account=True), caller=ada
        )
        assert world.call(made).grants == (Grant(namespace="a", role=Role.WRITER),)
        inside = await access.create_token(NewToken(account="root", namespaces=("a",)), caller=ada)
        assert world.call(inside).grants == (Grant(namespace="a", role=Role.ADMIN),)
        denied: list[Callable[[], Awaitable[object]]] = [
            lambda: access.grant_role("bob", Grant(namespace="b", role=Role.READER), caller=ada),
            lambda: access.grant_role("ada", Grant(role=Role.ADMIN), caller=ada),
            lambda: access.revoke_role("bob", "b", caller=ada),
            lambda: access.revoke_role("root", caller=ada),
            lambda: access.create_token(NewToken(account="bob"), caller=ada),
            lambda: access.create_token(NewToken(account="bob", namespaces=("a", "b")), caller=ada),
            lambda: access.create_token(NewToken(account="nobody", namespaces=("b",)), caller=ada),
            lambda: access.create_account("eve", caller=ada),
            lambda: access.update_account("bob", AccountPatch(certificate_names=("x",)), caller=ada),
            lambda: access.delete_account("bob", caller=ada),
        ]
        for attempt in denied:
            await refused(attempt)
        hidden = await refused(lambda: access.revoke_token(everywhere.info.id, caller=ada), NotFoundError)
        absent_id = Token.new().kid
        absent = await refused(lambda: access.revoke_token(absent_id, caller=ada), NotFoundError)
        assert str(hidden).replace(everywhere.info.id, "ID") == str(absent).replace(absent_id, "ID")
        await access.revoke_token(made.info.id, caller=ada)
        seen = {one.account for one in (await access.list_tokens(caller=ada)).items}
        assert seen == {"ada", "root"}
        assert {one.name for one in (await access.list_accounts(caller=ada)).items} == {"ada", "bob", "ci"}
        places = {one.namespace for one in (await access.list_grants(caller=ada)).items}
        assert places == {"a"}

    async def test_an_admin_of_a_model_gives_roles_of_it_only(self, world: World) -> None:
        ada = await world.account("ada", Grant(namespace="a", model="m", role=Role.ADMIN))
        await world.access.create_account("bob", caller=ROOT)
        await world.access.grant_role("bob", Grant(namespace="a", model="m", role=Role.WRITER), caller=ada)
        for grant in (Grant(namespace="a", model="n", role=Role.READER), Grant(namespace="a", role=Role.READER)):
            await refused(lambda grant=grant: world.access.grant_role("bob", grant, caller=ada))  # type: ignore[misc]
        new = NewToken(account="bob", namespaces=("a",))
        await refused(lambda: world.access.create_token(new, caller=ada))

    async def test_who_is_no_admin_changes_and_sees_only_what_is_their_own(self, world: World) -> None:
        access = world.access
        ada = await world.account("ada", Grant(role=Role.PROMOTER))
        await world.account("bob", Grant(namespace="a", role=Role.READER))
        for attempt in (
            lambda: access.create_account("eve", caller=ada),
            lambda: access.grant_role("ada", Grant(namespace="a", role=Role.ADMIN), caller=ada),
            lambda: access.create_token(NewToken(account="bob"), caller=ada),
            lambda: access.create_token(NewToken(account="nobody"), caller=ada),
        ):
            await refused(attempt)
        assert [one.name for one in (await access.list_accounts(caller=ada)).items] == ["ada"]
        assert [one.account for one in (await access.list_grants(caller=ada)).items] == ["ada"]
        assert [one.account for one in (await access.list_tokens(caller=ada)).items] == ["ada"]

    async def test_when_a_token_was_used_is_noted_once_an_hour_beside_the_feed(self, world: World) -> None:
        made = await world.access.create_token(NewToken(account="root"), caller=ROOT)
        told = len(await world.changes())
        assert await world.used_at(made.info.id) is None
        world.call(made)
        await world.access.note_uses()
        assert await world.used_at(made.info.id) == START
        world.clock.now += 1800
        world.call(made)
        await world.access.note_uses()
        assert await world.used_at(made.info.id) == START
        world.clock.now += 1801
        world.call(made)
        await world.access.note_uses()
        assert await world.used_at(made.info.id) == START + timedelta(seconds=3601)
        # Another replica, which knows nothing of that, writes it no more often.
        await world.store.note_uses([(made.info.id, START + timedelta(seconds=3700))], older_than_s=3600)
        assert await world.used_at(made.info.id) == START + timedelta(seconds=3601)
        assert len(await world.changes()) == told

    async def test_two_of_one_id_are_refused(self, world: World) -> None:
        made = await world.access.create_token(NewToken(account="root"), caller=ROOT)
        twin = StoredToken(digest=bytes(32), info=made.info)
        await refused(lambda: world.store.create_token(twin, new_account=[], actor="root", at=START), ConflictError)
        assert world.call(made).name == "root"


class CallerContract:
    """Knowing callers: at once here, soon on other replicas, and with patience for none that guesses."""

    async def test_a_replica_follows_the_feed(self, database: MainDatabase, world: World) -> None:
        async with AsyncExitStack() as stack:
            feed = await stack.enter_async_context(
                FeedService(SqlFeedStore(database), poll_interval_s=0.05, compact_interval_s=None)
            )
            other = await stack.enter_async_context(open_access(database, clock=world.clock))
            feed.observe(Kind.ACCESS, other.access.changed)
            changed = anyio.Event()
            forget = other.access.on_change(lambda: changed.set())
            made = await world.access.create_token(NewToken(account="root"), caller=ROOT)
            with anyio.fail_after(60):
                await changed.wait()
            forget()
            caller = other.access.caller(other.show(made.token))
            assert caller.name == "root"
            revoked = anyio.Event()
            other.access.on_change(lambda: revoked.set())
            await world.access.revoke_token(made.info.id, caller=ROOT)
            with anyio.fail_after(60):
                await revoked.wait()
            with pytest.raises(NotAuthenticated):
                other.access.renewed(caller)

    async def test_a_replica_looks_once_for_a_token_that_it_has_not_heard_of(
        self, database: MainDatabase, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Longer than any database takes for the next token.
        monkeypatch.setattr(callers, "_LOOK_AGAIN_S", 3600.0)
        async with open_access(database, clock=world.clock) as other:
            made = await world.access.create_token(NewToken(account="root"), caller=ROOT)
            with pytest.raises(NotAuthenticated):
                other.access.caller(other.show(made.token))
            assert (await other.access.admit(other.show(made.token))).name == "root"
            newer = await world.access.create_token(NewToken(account="root"), caller=ROOT)
            # It has just looked: whoever tries unknown tokens keeps no database busy.
            with pytest.raises(NotAuthenticated):
                await other.access.admit(other.show(newer.token))
            await other.access.refresh()
            assert (await other.access.admit(other.show(newer.token))).name == "root"

    async def test_nothing_is_told_that_did_not_change(self, world: World) -> None:
        told: list[None] = []
        world.access.on_change(lambda: told.append(None))
        await world.access.refresh()
        assert told == []
        await world.access.create_account("ada", caller=ROOT)
        assert len(told) == 1

    async def test_readings_that_are_asked_for_at_once_are_one(self, database: MainDatabase) -> None:
        loads: list[None] = []

        class Counting(SqlAccessStore):
            async def load(self, *, expired_since: datetime) -> AccessState:
                loads.append(None)
                return await super().load(expired_since=expired_since)

        access = AccessService(Counting(database), on=True)
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(access.refresh)
        assert len(loads) <= 2

    async def test_while_the_database_is_away_the_last_book_stays(self, database: MainDatabase) -> None:
        class Away(SqlAccessStore):
            away = False

            async def load(self, *, expired_since: datetime) -> AccessState:
                if self.away:
                    raise StorageError("the database is away")
                return await super().load(expired_since=expired_since)

        store = Away(database)
        made = await recover_admin(store)
        async with AccessService(store, on=True) as access:
            store.away = True
            await access.create_account("ada", caller=ROOT)
            shown = access.credentials(f"Bearer {made.token}", address="10.0.0.1")
            assert access.caller(shown).name == "admin"
            unknown = access.credentials(f"Bearer {Token.new().reveal()}", address="10.0.0.1")
            with pytest.raises(NotAuthenticated):
                await access.admit(unknown)

    async def test_who_guesses_has_to_wait_and_a_good_token_never_has(self, world: World) -> None:
        made = await world.access.create_token(NewToken(account="root"), caller=ROOT)
        errors = []
        for _ in range(40):
            with pytest.raises(ModelBoxError) as caught:
                world.access.caller(world.show(Token.new().reveal()))
            errors.append(caught.value)
        assert type(errors[0]) is NotAuthenticated
        # Not each from one on: every two seconds one more may try, and nobody knows how long this took.
        busy = [error for error in errors if type(error) is ServerBusy]
        assert busy
        assert all(float(str(error.fields["retry_after_s"])) > 0 for error in busy)
        assert world.call(made).name == "root"
        with pytest.raises(NotAuthenticated):
            world.access.caller(world.show(Token.new().reveal(), address="10.0.0.2"))
        # Who shows nothing has not guessed.
        for _ in range(40):
            with pytest.raises(NotAuthenticated):
                world.access.caller(world.show("", address="10.0.0.3"))

    async def test_without_access_control_everybody_is_who_they_say_and_nobody_changes_it(
        self, database: MainDatabase
    ) -> None:
        async with open_access(database, on=False) as world:
            access = world.access
            shown = access.credentials("Bearer whatever", declared="ada@desk", address="127.0.0.1")
            caller = await access.admit(shown)
            assert caller == replace(ANYBODY, name="ada@desk", address="127.0.0.1")
            assert access.renewed(caller) == caller
            assert access.expires_in(caller) is None
            assert not access.whoami(caller).access
            for attempt in (
                lambda: access.create_account("ada", caller=caller),
                lambda: access.update_account("ada", AccountPatch(disabled=True), caller=caller),
                lambda: access.delete_account("ada", caller=caller),
                lambda: access.grant_role("ada", Grant(role=Role.ADMIN), caller=caller),
                lambda: access.revoke_role("ada", caller=caller),
                lambda: access.create_token(NewToken(account="ada"), caller=caller),
                lambda: access.revoke_token("0" * 12, caller=caller),
            ):
                await refused(attempt)
            assert await world.changes() == []


class FirstAdminContract:
    """The first admin's token, and the way back in."""

    async def test_the_first_start_makes_an_admin_and_a_file_for_its_user_alone(
        self, database: MainDatabase, tmp_path: Path
    ) -> None:
        store, path = SqlAccessStore(database), tmp_path / "below" / "admin-token"
        assert await make_first_admin(store, path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert [one.name for one in path.parent.iterdir()] == ["admin-token"]
        async with AccessService(store, on=True) as access:
            caller = access.caller(access.credentials(f"Bearer {path.read_text().strip()}"))
            assert (caller.name, caller.grants) == ("admin", (Grant(role=Role.ADMIN),))
        path.unlink()
        assert not await make_first_admin(store, path)
        assert not path.exists()

    async def test_a_token_that_is_there_is_taken(self, database: MainDatabase, tmp_path: Path) -> None:
        store, path, token = SqlAccessStore(database), tmp_path / "admin-token", Token.new()
        path.write_text(f"  {token.reveal()}\n")
        assert await make_first_admin(store, path)
        assert Token.parse(path.read_text().strip()) == token
        assert (await self._infos(store))[token.kid].account == "admin"

    @pytest.mark.parametrize("text", [b"", b"secret", b"\xff\xfe", b"mbx_0123456789ab_x_y"])
    async def test_a_file_that_holds_no_token_stops_the_start_and_is_not_repeated(
        self, database: MainDatabase, tmp_path: Path, text: bytes
    ) -> None:
        path = tmp_path / "admin-token"
        path.write_bytes(text)
        error = await refused(lambda: make_first_admin(SqlAccessStore(database), path), ConfigError)
        assert str(path) in str(error)
        assert not text or text.decode(errors="replace") not in str(error)
        assert (await SqlAccessStore(database).load(expired_since=START)).accounts == ()

    async def test_replicas_that_start_at_once_make_one_account_and_leave_one_file(
        self, database: MainDatabase, tmp_path: Path
    ) -> None:
        store, made = SqlAccessStore(database), []
        paths = [tmp_path / str(number) / "admin-token" for number in range(4)]

        async def start(path: Path) -> None:
            if await make_first_admin(store, path):
                made.append(path)

        async with anyio.create_task_group() as tasks:
            for path in paths:
                tasks.start_soon(start, path)
        assert len(made) == 1
        assert [path for path in paths if path.exists()] == made
        infos = await self._infos(store)
        assert list(infos) == [Token.parse(made[0].read_text().strip()).kid]

    async def test_replicas_that_share_the_file_share_its_token(self, database: MainDatabase, tmp_path: Path) -> None:
        store, path, made = SqlAccessStore(database), tmp_path / "admin-token", []

        async def start() -> None:
            made.append(await make_first_admin(store, path))

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(start)
        infos = await self._infos(store)
        assert sum(made) == len(infos) == 1
        assert [one.name for one in tmp_path.iterdir() if "admin-token" in one.name] == ["admin-token"]
        assert Token.parse(path.read_text().strip()).kid in infos

    async def test_the_way_back_in_needs_nobody(self, world: World) -> None:
        first = await recover_admin(world.store)
        await world.access.refresh()
        assert world.call(first).may(Permission.ADMIN)
        await world.access.update_account("admin", AccountPatch(disabled=True), caller=ROOT)
        await world.access.grant_role("admin", Grant(role=Role.READER), caller=ROOT)
        second = await recover_admin(world.store)
        await world.access.refresh()
        assert world.call(second).may(Permission.ADMIN)
        assert world.call(first).may(Permission.ADMIN)
        told = [path for _, path, _, actor, _ in await world.changes() if actor == "server"]
        assert told[-3:] == ["account:admin", "role:admin:*", f"token:{second.info.id}"]

    async def _infos(self, store: SqlAccessStore) -> dict[str, TokenInfo]:
        return {one.info.id: one.info for one in (await store.load(expired_since=START)).tokens}

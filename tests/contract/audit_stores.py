"""What the audit log must be on every database, and what is found of tampering with it.

Subclass the suites and give the fixture ``database``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import anyio
import pytest
from sqlalchemy import Connection, delete, insert, select, update

from modelbox.access import ANYBODY, Caller, Scope
from modelbox.audit import AuditEntry, AuditFilter, Denial
from modelbox.errors import AuthError, InvalidError, ServerBusy, StorageError
from modelbox.feed import Filter, Kind
from modelbox.objects import ModelPatch, NewModel
from modelbox.runtime.audit_ports import DeniedCalls
from modelbox.runtime.caller import CALLER, REQUEST_ID, Origin
from modelbox.runtime.services.audit import AuditService
from modelbox.runtime.store import audit as audit_module
from modelbox.runtime.store.audit import SqlAuditStore
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.feed import SqlFeedStore
from modelbox.runtime.store.history import read_head_within, verify_chain, verify_part
from modelbox.runtime.store.registry import SqlRegistryStore
from modelbox.runtime.store.schema import feed_changes, feed_head

from .metadata_stores import AT, publish

EVERYTHING = AuditFilter()


@contextmanager
def called_by(name: str, *, token_id: str = "", address: str = "", request_id: str = "") -> Any:
    """What a boundary does around a call."""
    caller = CALLER.set(Caller(name=name, token_id=token_id, address=address, grants=ANYBODY.grants))
    request = REQUEST_ID.set(request_id)
    try:
        yield
    finally:
        CALLER.reset(caller)
        REQUEST_ID.reset(request)


async def entries(database: Database, wanted: AuditFilter = EVERYTHING, **options: Any) -> list[AuditEntry]:
    """All that fits, page by page."""
    service = AuditService(SqlAuditStore(database))
    found: list[AuditEntry] = []
    token = ""
    while True:
        page = await service.list(wanted, page_token=token, **options)
        found += page.items
        token = page.next_token
        if not token:
            return found


class AuditContract:
    """`modelbox.runtime.audit_ports.AuditStore`, and the columns that history keeps of callers."""

    async def test_each_change_says_whose_call_made_it(self, database: Database) -> None:
        registry = SqlRegistryStore(database)

        async def create(number: int) -> None:
            name = f"m{number}"
            with called_by(
                f"bot-{number}", token_id=f"kid{number}", address=f"10.0.0.{number}", request_id=f"r-{number}"
            ):
                await registry.create_model(NewModel(namespace="ns", name=name), actor=f"bot-{number}", at=AT)

        # Together, so that databases that write several calls in one transaction do.
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(create, number)
        await registry.create_model(NewModel(namespace="ns", name="by-itself"), actor="", at=AT)
        found = {one.object: one for one in await entries(database) if one.kind == Kind.MODEL}
        for number in range(20):
            one = found[f"ns/m{number}"]
            assert (one.actor, one.token_id) == (f"bot-{number}", f"kid{number}")
            assert (one.address, one.request_id) == (f"10.0.0.{number}", f"r-{number}")
        alone = found["ns/by-itself"]
        assert (alone.actor, alone.token_id, alone.address, alone.request_id) == ("", "", "", "")
        assert await database.read(verify_chain) == 21

    async def test_an_entry_has_the_state_before_and_after(self, database: Database) -> None:
        registry = SqlRegistryStore(database)
        await registry.create_model(NewModel(namespace="ns", name="m", owner="ann"), actor="ann", at=AT)
        await registry.update_model("ns", "m", ModelPatch(owner="bob"), actor="bob", at=AT)
        await registry.update_model("ns", "m", ModelPatch(owner="eve"), actor="eve", at=AT)
        await registry.delete_model("ns", "m", actor="ann", at=AT)
        await registry.create_model(NewModel(namespace="ns", name="m", owner="new"), actor="ann", at=AT)
        found = await entries(database, AuditFilter(object="ns/m"))

        def owner(state: Any) -> Any:
            return None if state is None else state["owner"]

        assert [(one.action, owner(one.before), owner(one.after)) for one in found] == [
            ("created", None, "new"),
            ("deleted", "eve", None),
            ("updated", "bob", "eve"),
            ("updated", "ann", "bob"),
            ("created", None, "ann"),
        ]
        assert [one.rev for one in found] == [5, 4, 3, 2, 1]
        assert all(len(bytes.fromhex(one.chain)) == 32 for one in found)

    async def test_an_alias_that_moved_says_from_where(self, database: Database) -> None:
        await publish(database, "one", aliases=("prod",))
        await publish(database, "two")
        await SqlRegistryStore(database).move_alias(
            "ns", "m", "prod", 2, expected_mod_rev=None, reason="better", actor="ann", at=AT
        )
        (moved, made) = await entries(database, AuditFilter(object="ns/m@prod", kinds=("alias",)))
        assert moved.before is not None
        assert moved.after is not None
        assert made.before is None
        assert (moved.before["version"], moved.after["version"]) == (1, 2)
        assert moved.after["reason"] == "better"

    async def test_every_filter_finds_what_it_should_and_nothing_else(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = SqlRegistryStore(database)
        for number in range(12):
            who = ("ann", "bob", "eve")[number % 3]
            place = ("left", "right")[number % 2]
            with called_by(who, token_id=f"k-{who}", address=f"::{number % 3}", request_id=f"call-{number}"):
                await registry.create_model(
                    NewModel(namespace=place, name=f"m{number}"), actor=who, at=AT + timedelta(hours=number)
                )
        for number in (4, 5):
            await registry.delete_model(
                ("left", "right")[number % 2], f"m{number}", actor="ann", at=AT + timedelta(days=1)
            )
        everything = await entries(database)
        wanted: dict[str, tuple[AuditFilter, Callable[[AuditEntry], bool]]] = {
            "actor": (AuditFilter(actor="bob"), lambda one: one.actor == "bob"),
            "namespace": (AuditFilter(namespace="right"), lambda one: one.namespace == "right"),
            "object": (AuditFilter(object="left/m4"), lambda one: one.object == "left/m4"),
            "place": (AuditFilter(object="left"), lambda one: one.object == "left"),
            "kinds": (AuditFilter(kinds=("namespace",)), lambda one: one.kind == "namespace"),
            "actions": (AuditFilter(actions=("deleted", "moved")), lambda one: one.action == "deleted"),
            "token": (AuditFilter(token_id="k-eve"), lambda one: one.token_id == "k-eve"),
            "address": (AuditFilter(address="::2"), lambda one: one.address == "::2"),
            "request": (AuditFilter(request_id="call-7"), lambda one: one.request_id == "call-7"),
            "since": (AuditFilter(since=AT + timedelta(hours=8)), lambda one: one.at >= AT + timedelta(hours=8)),
            "until": (AuditFilter(until=AT + timedelta(hours=3)), lambda one: one.at < AT + timedelta(hours=3)),
            "between": (
                AuditFilter(since=AT + timedelta(hours=2), until=AT + timedelta(hours=5), namespace="left"),
                lambda one: AT + timedelta(hours=2) <= one.at < AT + timedelta(hours=5) and one.namespace == "left",
            ),
            "nobody": (AuditFilter(actor="nobody"), lambda one: False),
        }
        for window in (20_000, 3):
            monkeypatch.setattr(audit_module, "_WINDOW", window)
            for name, (filter_, fits) in wanted.items():
                right = [one for one in everything if fits(one)]
                assert right or name == "nobody"
                assert await entries(database, filter_) == right, name
                assert await entries(database, filter_, oldest_first=True, page_size=2) == right[::-1], name

    async def test_a_models_path_takes_in_what_is_below(self, database: Database) -> None:
        await publish(database, "one", aliases=("prod",))
        await SqlRegistryStore(database).create_model(NewModel(namespace="ns", name="m2"), actor="", at=AT)
        found = {one.object for one in await entries(database, AuditFilter(object="ns/m"))}
        assert found == {"ns/m", "ns/m@1", "ns/m@latest", "ns/m@prod"}
        assert {one.object for one in await entries(database, AuditFilter(object="ns/m@prod"))} == {"ns/m@prod"}

    @pytest.mark.parametrize("page_size", [1, 2, 1000])
    @pytest.mark.parametrize("oldest_first", [False, True])
    async def test_pages_hold_everything_once_in_order(
        self, database: Database, monkeypatch: pytest.MonkeyPatch, page_size: int, oldest_first: bool
    ) -> None:
        for content in ("one", "two", "three"):
            await publish(database, content)
        everything = await entries(database, oldest_first=oldest_first)
        places = [(one.rev, one.idx) for one in everything]
        assert places == sorted(places, reverse=not oldest_first)
        assert len(places) == 10
        monkeypatch.setattr(audit_module, "_WINDOW", 1)
        assert await entries(database, oldest_first=oldest_first, page_size=page_size) == everything
        batches = [batch async for batch in AuditService(SqlAuditStore(database)).export(EVERYTHING)]
        assert [one for batch in batches for one in batch] == sorted(everything, key=lambda one: (one.rev, one.idx))

    async def test_an_admin_of_a_namespace_sees_that_and_nobody_else_anything(self, database: Database) -> None:
        registry = SqlRegistryStore(database)
        for place in ("a", "b", "c"):
            await registry.create_model(NewModel(namespace=place, name="m"), actor="", at=AT)
        everything = await entries(database)
        of_two = Scope(namespaces=frozenset("abc"), administers=frozenset({"a", "c"}))
        assert await entries(database, scope=of_two) == [one for one in everything if one.namespace in ("a", "c")]
        assert await entries(database, AuditFilter(namespace="a"), scope=of_two) == [
            one for one in everything if one.namespace == "a"
        ]
        assert await entries(database, AuditFilter(namespace="nowhere"), scope=of_two) == []
        service = AuditService(SqlAuditStore(database))
        with pytest.raises(AuthError, match="admin of b"):
            await service.list(AuditFilter(namespace="b"), scope=of_two)
        reader = Scope(everything=True)
        for wanted in (EVERYTHING, AuditFilter(namespace="a")):
            with pytest.raises(AuthError) as caught:
                await service.list(wanted, scope=reader)
            assert caught.value.fields == {"role": "admin"}

    async def test_a_page_token_is_for_its_own_question(self, database: Database) -> None:
        await publish(database, "one")
        service = AuditService(SqlAuditStore(database))
        token = (await service.list(EVERYTHING, page_size=1)).next_token
        with pytest.raises(InvalidError, match="page token"):
            await service.list(AuditFilter(actor="ann"), page_token=token)
        with pytest.raises(InvalidError, match="page token"):
            await service.list(EVERYTHING, page_token=token, oldest_first=True)

    async def test_denials_are_in_history_with_their_own_callers(self, database: Database) -> None:
        await publish(database, "one")
        denied = [
            DeniedCalls(
                actor=name,
                origin=Origin(token_id=f"k-{name}", address="192.0.2.7", request_id=f"r-{name}"),
                namespace="ns",
                denial=Denial(
                    method="RegistryService/MoveAlias",
                    permission="promote",
                    object="ns/m",
                    count=count,
                    first_at=AT,
                    last_at=AT + timedelta(seconds=5),
                ),
            )
            for name, count in (("ann", 3), ("bob", 1))
        ]
        await SqlAuditStore(database).add_denials(denied, at=AT)
        found = await entries(database, AuditFilter(kinds=("denial",)))
        assert [(one.actor, one.token_id, one.request_id, one.after["count"]) for one in found] == [
            ("bob", "k-bob", "r-bob", 1),
            ("ann", "k-ann", "r-ann", 3),
        ]
        assert all(one.before is None and one.action == "denied" and one.rev == 2 for one in found)
        assert [one.actor for one in await entries(database, AuditFilter(actor="bob"))] == ["bob"]
        assert await database.read(verify_chain) == 2
        states = await SqlFeedStore(database).list_states(Filter(), limit=1000, after=None)
        assert not [one for one in states.items if one.kind == "denial"]

    async def test_what_was_compacted_is_in_the_log_and_what_was_forgotten_is_not(self, database: Database) -> None:
        store = SqlFeedStore(database)
        registry = SqlRegistryStore(database)
        await registry.create_model(NewModel(namespace="ns", name="m", owner="ann"), actor="ann", at=AT)
        await registry.update_model("ns", "m", ModelPatch(owner="bob"), actor="bob", at=AT + timedelta(days=1))
        await registry.update_model("ns", "m", ModelPatch(owner="eve"), actor="eve", at=AT + timedelta(days=2))
        far = AT + timedelta(days=99)
        assert await store.compact(keep_revs=0, before=far, batch=10) == 3
        assert [one.rev for one in await entries(database, AuditFilter(object="ns/m"))] == [3, 2, 1]
        assert await store.forget(before=AT + timedelta(days=1), batch=10) == 1
        found = await entries(database, AuditFilter(object="ns/m"))
        assert [(one.rev, one.before is None) for one in found] == [(3, False), (2, True)]

    async def test_a_snapshot_of_history_counts_what_it_has_of_it(self, database: Database) -> None:
        store = SqlFeedStore(database)
        far = AT + timedelta(days=99)
        for content in ("one", "two", "three", "four"):
            await publish(database, content)
        assert await store.compact(keep_revs=1, before=far, batch=10) == 3
        assert (await database.read(read_head_within)).rev == 4
        assert await store.forget(before=far, batch=2) == 2
        assert (await database.read(read_head_within)).rev == 4

        def lose(conn: Connection) -> bool:
            conn.execute(delete(feed_changes).where(feed_changes.c.rev == 4))
            return bool(getattr(conn.dialect, "is_mariadb", False))

        if await database.write(lose):
            with pytest.raises(ServerBusy):
                await database.read(read_head_within)


Spoil = Callable[[Connection], Any]


def _changing(rev: int, **values: Any) -> Spoil:
    return lambda conn: conn.execute(update(feed_changes).where(feed_changes.c.rev == rev).values(values)).rowcount


def _deleting(*revs: int) -> Spoil:
    return lambda conn: conn.execute(delete(feed_changes).where(feed_changes.c.rev.in_(revs))).rowcount


def _exchanging(one: int, other: int) -> Spoil:
    def exchange(conn: Connection) -> None:
        for old, new in ((one, 999), (other, one), (999, other)):
            conn.execute(update(feed_changes).where(feed_changes.c.rev == old).values(rev=new))

    return exchange


def _exchanging_within(rev: int) -> Spoil:
    def exchange(conn: Connection) -> None:
        for old, new in ((0, 999), (1, 0), (999, 1)):
            place = (feed_changes.c.rev == rev) & (feed_changes.c.idx == old)
            conn.execute(update(feed_changes).where(place).values(idx=new))

    return exchange


def _inserting(rev: int, idx: int) -> Spoil:
    def add(conn: Connection) -> None:
        row = dict(conn.execute(select(feed_changes).where(feed_changes.c.rev == 2)).mappings().first() or {})
        there = conn.execute(select(feed_changes.c.chain).where(feed_changes.c.rev == rev)).scalar()
        changed = {"rev": rev, "idx": idx, "actor": "mallory", "chain": there or row["chain"]}
        conn.execute(insert(feed_changes).values({**row, **changed}))

    return add


def _head(**values: Any) -> Spoil:
    return lambda conn: conn.execute(update(feed_head).values(values)).rowcount


TAMPERED: Sequence[tuple[str, Spoil, list[tuple[int, str]]]] = [
    *(
        (f"{name} altered", _changing(3, **{name: value}), [(3, "revision 3 .* was altered: it says 0 ")])
        for name, value in (
            ("namespace", "other"),
            ("object", "ns/other"),
            ("kind", "alias"),
            ("action", "moved"),
            ("actor", "mallory"),
            ("at_us", 7),
            ("state", "{}"),
            ("token_id", "other"),
            ("address", "::1"),
            ("request_id", ""),
            ("chain", b"\x01" * 32),
        )
    ),
    ("caller removed", _changing(3, token_id="", address="", request_id=""), [(3, "revision 3 .* was altered")]),
    ("caller given", _changing(2, token_id="kid"), [(2, "revision 2 .* was altered")]),
    ("one missing", _deleting(4), [(4, "revision 4 of the change feed is missing")]),
    ("several missing", _deleting(2, 3, 4), [(2, "revisions 2 to 4 of the change feed are missing")]),
    ("the oldest missing", _deleting(1), [(1, "revision 1 of the change feed is missing")]),
    ("the newest missing", _deleting(6), [(6, "revision 6 of the change feed is missing")]),
    ("neighbours exchanged", _exchanging(3, 4), [(3, "revisions 3 and 4 .* were exchanged")]),
    ("others exchanged", _exchanging(2, 5), [(2, "revisions 2 and 5 .* were exchanged")]),
    ("exchanged within", _exchanging_within(1), [(1, "its changes 0 and 1 were exchanged")]),
    ("inserted", _inserting(4, 1), [(4, r"change 1 \(.* by mallory\) was inserted")]),
    ("inserted behind the head", _inserting(7, 0), [(7, "revision 7 .* was inserted behind its head, 6")]),
    ("inserted at the beginning", _inserting(0, 0), [(0, "revision 0 .* was inserted")]),
    ("the head's chain", _head(chain=b"\x02" * 32), [(6, "head does not fit")]),
    (
        "the place of compaction",
        _head(compact_rev=2, compact_chain=b"\x02" * 32, audit_rev=0, audit_chain=bytes(32)),
        [(2, "place of compaction")],
    ),
    ("the beginning", _head(audit_chain=b"\x02" * 32), [(1, "revision 1 .* was altered")]),
    (
        "two of them",
        lambda conn: (_changing(2, actor="x")(conn), _deleting(5)(conn)),
        [(2, "altered"), (5, "missing")],
    ),
]


class TamperingContract:
    """What the check says of rows that somebody changed behind the server's back."""

    async def test_tampering_is_told(self, database: Database) -> None:
        await self._history(database)
        for limit in (1000, 2):
            assert await self._faults(database, lambda conn: None, limit) == []
        for name, spoil, expected in TAMPERED:
            found = await self._faults(database, spoil, 1000)
            assert [rev for rev, _ in found] == [rev for rev, _ in expected], (name, found)
            assert all(re.search(text, said) for (_, said), (_, text) in zip(found, expected, strict=True)), found
            # Also where it is looked at in parts, something is said of it.
            assert expected[0][0] in {rev for rev, _ in await self._faults(database, spoil, 2)}, name
        assert await database.read(verify_chain) == 6

    async def test_what_needs_the_chain_stops_at_the_first_fault(self, database: Database) -> None:
        await self._history(database)
        await database.write(lambda conn: (_deleting(4)(conn), _changing(2, actor="x")(conn)))
        with pytest.raises(StorageError, match="revision 2 of the change feed was altered") as caught:
            await database.read(verify_chain)
        assert caught.value.fields["rev"] == 2

    async def _history(self, database: Database) -> None:
        """Revisions 1 (two changes) to 6; from 3 on they have callers."""
        registry = SqlRegistryStore(database)
        await registry.create_model(NewModel(namespace="ns", name="m", owner="0"), actor="ann", at=AT)
        for number in range(1, 6):
            with called_by("bob", token_id="kid", address="10.0.0.1", request_id="r") if number > 1 else called_by(""):
                await registry.update_model("ns", "m", ModelPatch(owner=str(number)), actor="bob", at=AT)

    async def _faults(self, database: Database, spoil: Spoil, limit: int) -> list[tuple[int, str]]:
        """What is said of history as ``spoil`` leaves it, which is undone."""

        def look(conn: Connection) -> None:
            spoil(conn)
            place = verify_part(conn, None, limit)
            faults = [*place.faults]
            while not place.done:
                place = verify_part(conn, place, limit)
                faults += place.faults
            raise InvalidError("undo it", faults=faults)

        with pytest.raises(InvalidError, match="undo it") as caught:
            await database.write(look)
        faults: list[tuple[int, str]] = caught.value.fields["faults"]  # type: ignore[assignment]  # as put there
        return faults

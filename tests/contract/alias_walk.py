"""A long walk of people who move, protect and approve at random, beside a model that says what must come of each step.

The model is written from ``docs/rules.md``, not from the code. Subclass the suite; give ``database``.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

import pytest

from modelbox.access import Role
from modelbox.errors import ApprovalNeeded, AuthError, ConflictError, ModelBoxError, NotFoundError
from modelbox.rules import AliasRequest, RequestState
from modelbox.runtime.store import approvals
from modelbox.runtime.store.alias_requests import request_of
from modelbox.runtime.store.database import MainDatabase
from modelbox.runtime.store.guard import Guard

from .metadata_stores import AT
from .rule_stores import WAIT, World, caller

PEOPLE = {
    name: caller(name, role)
    for name, role in (("will", Role.WRITER), ("pat", Role.PROMOTER), ("pia", Role.PROMOTER), ("ada", Role.ADMIN))
}
PATTERNS = ("prod*", "p*", "blue")
ALIASES = ("prod", "prod-eu", "blue", "free")


@dataclass(slots=True)
class Asked:
    """A request, as the model knows it."""

    id: str
    alias: str
    to: int | None
    stamp: int
    by: str
    until: datetime
    open: bool = True


class Model:
    """What must be true, by the words of the documentation."""

    def __init__(self) -> None:
        self.at = AT
        self.versions = 3
        self.aliases: dict[str, int] = {}
        self.came_from: dict[str, int | None] = {}
        self.stamps: dict[str, int] = {}
        self.protected: dict[str, bool] = {}
        self.asked: list[Asked] = []
        self._steps = 0

    def stamp(self, alias: str) -> int:
        """Changes with every move; the same for every absence."""
        return self.stamps[alias] if alias in self.aliases else 0

    def put(self, alias: str, version: int | None) -> None:
        self._steps += 1
        self.came_from[alias] = self.aliases.get(alias)
        if version is None:
            del self.aliases[alias]
        else:
            self.aliases[alias] = version
            self.stamps[alias] = self._steps

    def guard(self, alias: str, who: str) -> tuple[bool, bool]:
        """Whether they may, and whether it waits."""
        holding = [approval for pattern, approval in self.protected.items() if fnmatchcase(alias, pattern)]
        return not holding or who != "will", any(holding)

    def waits(self, one: Asked) -> bool:
        return one.open and self.at < one.until and one.stamp == self.stamp(one.alias)


class Walk:
    """The database and its model, step by step."""

    def __init__(self, world: World, dice: random.Random) -> None:
        self.world = world
        self.model = Model()
        self.dice = dice
        self.seen: dict[str, int] = {}

    async def step(self) -> None:
        """Does something, and compares what came of it."""
        steps: list[Callable[[str, str], Awaitable[str]]] = [
            *[self.move] * 5,
            self.rollback,
            self.delete,
            *[self.approve] * 4,
            self.reject,
            self.publish,
            self.protect,
            self.later,
        ]
        step = self.dice.choice(steps)
        alias, who = self.dice.choice(ALIASES), self.dice.choice(tuple(PEOPLE))
        outcome = f"{step.__name__}: {await step(alias, who)}"
        self.seen[outcome] = self.seen.get(outcome, 0) + 1
        assert await self.world.aliases() == self.model.aliases, outcome
        waiting = {one.id for one in await self.world.requests()}
        assert waiting == {one.id for one in self.model.asked if self.model.waits(one)}, outcome

    async def _expect(self, call: Awaitable[object], error: type[ModelBoxError] | None) -> object:
        if error is None:
            return await call
        with pytest.raises(error) as raised:
            await call
        assert type(raised.value) is error
        return None

    async def _ask(self, call: Awaitable[object], alias: str, to: int | None, who: str) -> str:
        request = await call
        assert isinstance(request, AliasRequest)
        mine = (alias, to, self.model.stamp(alias), who)
        there = [
            one for one in self.model.asked if self.model.waits(one) and (one.alias, one.to, one.stamp, one.by) == mine
        ]
        if there:
            assert request.id == there[0].id
            return "asked again"
        asked = Asked(id=request.id, alias=alias, to=to, stamp=mine[2], by=who, until=self.model.at + WAIT)
        self.model.asked.append(asked)
        return "asked"

    async def move(self, alias: str, who: str) -> str:
        version = self.dice.randint(1, self.model.versions)
        call = self.world.move(alias, version, by=PEOPLE[who])
        may, waits = self.model.guard(alias, who)
        if not may:
            await self._expect(call, AuthError)
            return "refused"
        if self.model.aliases.get(alias) == version:
            await call
            return "nothing"
        if waits:
            return await self._ask(call, alias, version, who)
        await call
        self.model.put(alias, version)
        return "moved"

    async def rollback(self, alias: str, who: str) -> str:
        call = self.world.rollback(alias, by=PEOPLE[who])
        may, waits = self.model.guard(alias, who)
        if not may:
            await self._expect(call, AuthError)
            return "refused"
        if alias not in self.model.aliases:
            await self._expect(call, NotFoundError)
            return "absent"
        earlier = self.model.came_from[alias]
        if earlier is None:
            await self._expect(call, ConflictError)
            return "nowhere"
        await call
        self.model.put(alias, earlier)
        newest = (await self.world.requests(everything=True))[:1]
        bypassed = bool(newest) and newest[0].state == "bypassed" and newest[0].requested_at == self.model.at
        assert bypassed or not waits
        return "past approval" if waits else "back"

    async def delete(self, alias: str, who: str) -> str:
        call = self.world.delete(alias, by=PEOPLE[who])
        may, waits = self.model.guard(alias, who)
        if not may:
            await self._expect(call, AuthError)
            return "refused"
        if alias not in self.model.aliases:
            await self._expect(call, NotFoundError)
            return "absent"
        if waits:
            return await self._ask(call, alias, None, who)
        await call
        self.model.put(alias, None)
        return "gone"

    def _any_request(self) -> tuple[Asked, AliasRequest] | None:
        if not self.model.asked:
            return None
        # The newest mostly, which may still wait.
        one = self.dice.choice(self.model.asked[-3:] if self.dice.random() < 0.8 else self.model.asked)
        return one, AliasRequest(
            id=one.id,
            namespace="ns",
            model="m",
            alias=one.alias,
            from_version=None,
            to_version=one.to,
            state="pending",  # type: ignore[arg-type]  # only the id counts
            requested_by=one.by,
            requested_at=self.model.at,
            expires_at=one.until,
        )

    async def approve(self, _: str, who: str) -> str:
        found = self._any_request()
        if found is None:
            return "nothing"
        one, request = found
        call = self.world.approve(request, by=PEOPLE[who])
        if not self.model.waits(one):
            await self._expect(call, ConflictError)
            return "too late"
        if who in ("will", one.by):
            await self._expect(call, AuthError)
            return "refused"
        await call
        one.open = False
        self.model.put(one.alias, one.to)
        return "moved"

    async def reject(self, _: str, who: str) -> str:
        found = self._any_request()
        if found is None:
            return "nothing"
        one, request = found
        call = self.world.reject(request, by=PEOPLE[who])
        if not self.model.waits(one):
            await self._expect(call, ConflictError)
            return "too late"
        if who == "will":
            await self._expect(call, AuthError)
            return "refused"
        await call
        one.open = False
        return "rejected"

    async def publish(self, alias: str, who: str) -> str:
        call = self.world.publish(f"content {self.model.versions}", by=PEOPLE[who], aliases=(alias,))
        may, waits = self.model.guard(alias, who)
        if not may or waits:
            await self._expect(call, ApprovalNeeded if may else AuthError)
            return "refused"
        self.model.versions += 1
        assert await call == self.model.versions
        self.model.put(alias, self.model.versions)
        return "moved"

    async def protect(self, alias: str, who: str) -> str:
        pattern = self.dice.choice(PATTERNS)
        if pattern in self.model.protected and self.dice.random() < 0.5:
            await self.world.rules.unprotect_alias("ns", pattern, actor=who, at=self.model.at)
            del self.model.protected[pattern]
            return "unprotected"
        approval = self.dice.random() < 0.6
        await self.world.protect("ns", pattern, approval=approval)
        self.model.protected[pattern] = approval
        return "protected"

    async def later(self, alias: str, who: str) -> str:
        self.model.at += timedelta(days=self.dice.randint(1, 3))
        self.world.at = self.model.at
        return "later"


async def walk(database: MainDatabase, *, steps: int) -> dict[str, int]:
    """Walks the same way on every database; returns how often came what."""
    world = World(database)
    for content in ("one", "two", "three"):
        await world.publish(content)
    walk = Walk(world, random.Random(20260503))
    for _ in range(steps):
        await walk.step()
    await world.head()
    return walk.seen


def _lets_everybody(guard: Guard, namespace: str, model: str, why: str, *, name: str) -> None:
    pass


def _forgets_what_moved(row: Any, model: Any, at: datetime) -> AliasRequest:
    request = request_of(row, model, at)
    outdated = request.state is RequestState.OUTDATED
    return replace(request, state=RequestState.PENDING) if outdated else request


class AliasWalkContract:
    """Nobody moves an alias whom the documentation does not let."""

    async def test_what_comes_of_each_step_is_what_the_documentation_says(self, database: MainDatabase) -> None:
        seen = await walk(database, steps=200)
        assert {"move: asked", "move: moved", "move: refused", "approve: moved", "approve: refused"} <= seen.keys()

    @pytest.mark.parametrize(
        ("where", "name", "bug"),
        [
            (Guard, "check_promoter", _lets_everybody),
            (approvals, "request_of", _forgets_what_moved),
        ],
    )
    async def test_the_walk_finds_a_bug(
        self, database: MainDatabase, monkeypatch: pytest.MonkeyPatch, where: object, name: str, bug: object
    ) -> None:
        monkeypatch.setattr(where, name, bug)
        with pytest.raises((AssertionError, pytest.fail.Exception, ModelBoxError)):
            await walk(database, steps=200)

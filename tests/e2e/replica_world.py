"""Writers, watchers and a model in use over several servers while things happen to these, and what must hold of it.

`observe` makes the traffic and records what everybody saw; the four checks say whether that may be. They raise
`Violation` and know nothing of how it was done, so that planted bugs can prove them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import numpy as np
from sqlalchemy import select

import modelbox
from modelbox.errors import ConflictError, TransportError
from modelbox.feed import Change, ResumeToken, Resync
from modelbox.runtime.store.history import verify_chain
from modelbox.runtime.store.opening import open_database
from modelbox.runtime.store.schema import feed_changes
from tests.onnx_models import add_constant
from tests.replicas import Replicas

__all__ = (
    "Observed",
    "Violation",
    "check_acknowledged",
    "check_converged",
    "check_prefixes",
    "check_serving",
    "observe",
)

MODEL = "many/model"
X = {"x": np.zeros((1, 4), np.float32)}
_LAST = 3
"""The version that everything points to in the end, and nothing before: nobody holds it by chance."""


class Violation(AssertionError):
    """Something was seen that must not be."""


@dataclass(frozen=True, slots=True, order=True)
class Told:
    """A change, as the feed tells it or as it is stored."""

    rev: int
    idx: int
    object: str
    version: int


@dataclass(kw_only=True)
class Observed:
    """What everybody saw.

    Attributes:
        acknowledged: Moves of aliases that were answered: alias, revision, version.
        told: What each watcher was told, in order.
        resyncs: How often a watcher was told that history is gone.
        snapshots: What was read of an alias, and the revision that the reader was told it is of.
        answers: Of the model: the empty text, or what failed.
        served: The version that the model was of in the end.
        stored: The history that the database holds in the end.
    """

    acknowledged: list[tuple[str, int, int]] = field(default_factory=list)
    told: list[list[Told]] = field(default_factory=list)
    resyncs: int = 0
    snapshots: list[tuple[str, int, int]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    served: int = 0
    stored: list[Told] = field(default_factory=list)

    def last_stored(self) -> dict[str, int]:
        """Where each alias points in the end that was moved meanwhile."""
        return {told.object: told.version for told in self.stored if not told.object.endswith("@latest")}


# -- the checks ----------------------------------------------------------------------------------------------------


def check_prefixes(seen: Observed) -> None:
    """Whatever anybody saw is a part of the one history without holes: told in order, read up to its revision."""
    if seen.resyncs:
        raise Violation(f"{seen.resyncs} watchers were told that history is gone")
    for number, told in enumerate(seen.told):
        if told != sorted(told):
            raise Violation(f"watcher {number} was told something out of order")
        first = told[0].rev if told else 0
        expected = [one for one in seen.stored if first <= one.rev <= (told[-1].rev if told else 0)]
        missing, invented = set(expected) - set(told), set(told) - set(expected)
        if missing or invented:
            raise Violation(f"watcher {number} missed {sorted(missing)[:3]}, and was told {sorted(invented)[:3]}")
    for object_, version, rev in seen.snapshots:
        was = [one.version for one in seen.stored if one.object == object_ and one.rev <= rev]
        if not was or was[-1] != version:
            raise Violation(f"{object_} was read as {version} at revision {rev}, and was {was[-1:]}")


def check_acknowledged(seen: Observed) -> None:
    """What was acknowledged is stored, at its revision."""
    stored = {(one.object, one.rev, one.version) for one in seen.stored}
    if lost := [one for one in seen.acknowledged if one not in stored]:
        raise Violation(f"{len(lost)} of {len(seen.acknowledged)} acknowledged changes are lost, such as {lost[0]}")
    if not seen.acknowledged:
        raise Violation("nothing was acknowledged at all")


def check_converged(seen: Observed) -> None:
    """In the end everybody holds what is stored."""
    last = seen.last_stored()
    for number, told in enumerate(seen.told):
        held = {one.object: one.version for one in told}
        if held != last:
            raise Violation(f"watcher {number} holds {held}, where {last} is stored")
    if seen.served != last[f"{MODEL}@prod"]:
        raise Violation(f"version {seen.served} is served, where {last[f'{MODEL}@prod']} is stored")


def check_serving(seen: Observed) -> None:
    """The model answered all the time."""
    if failed := [one for one in seen.answers if one]:
        raise Violation(f"{len(failed)} of {len(seen.answers)} predictions failed, such as {failed[0]}")
    if not seen.answers:
        raise Violation("nothing was answered at all")


# -- the traffic ---------------------------------------------------------------------------------------------------


async def observe(
    replicas: Replicas,
    database_url: str,
    directory: Path,
    *,
    during: Callable[[Observed], Awaitable[None]],
    settle_s: float = 40.0,
    urls: Sequence[str] = (),
) -> Observed:
    """Moves aliases, watches, reads and predicts, as long as ``during`` takes.

    Args:
        replicas: The servers; all must run when ``during`` returns.
        database_url: Where they keep what is stored.
        directory: For caches and models.
        during: What happens meanwhile; gets what was seen so far.
        settle_s: How long everybody may take to hold what is stored.
        urls: Where the clients connect, in turn; the balancer if there are none.
    """
    seen = Observed()
    stopping = anyio.Event()
    addresses = itertools.cycle(urls or [replicas.url])

    async with AsyncExitStack() as stack:

        async def client(name: str) -> modelbox.Client:
            made = modelbox.Client(next(addresses), cache_dir=str(directory / name), request_timeout_s=20)
            return await stack.enter_async_context(made)

        writers = [await client(f"writer{number}") for number in range(2)]
        watchers = [await client(f"watcher{number}") for number in range(2)]
        loader = await client("loader")
        for constant in (1, 2, _LAST):
            path = directory / f"{constant}.onnx"
            path.write_bytes(add_constant(constant))
            await writers[0].publish(MODEL, str(path), entrypoint=path.name)
        await writers[0].promote(f"{MODEL}@prod", 1)
        model = await loader.load(f"{MODEL}@prod")

        async def write(writer: modelbox.Client, alias: str) -> None:
            version = 1
            while not stopping.is_set():
                version = 3 - version
                try:
                    moved = await writer.promote(f"{MODEL}@{alias}", version)
                except (TransportError, ConflictError):
                    await anyio.sleep(0.02)
                    continue
                seen.acknowledged.append((f"{MODEL}@{alias}", moved.mod_rev, moved.version))
                await anyio.sleep(0.005)

        async def watch(watcher: modelbox.Client, told: list[Told]) -> None:
            async for item in watcher.changes(objects=[MODEL], kinds=["alias"]):
                if isinstance(item, Resync):
                    seen.resyncs += 1
                elif not told or (item.rev, item.idx) > (told[-1].rev, told[-1].idx):
                    told.append(_told(item))

        async def read() -> None:
            while not stopping.is_set():
                try:
                    found = await watchers[0].resolve(f"{MODEL}@prod")
                except TransportError:
                    await anyio.sleep(0.02)
                    continue
                seen.snapshots.append((f"{MODEL}@prod", found.version.version, ResumeToken.parse(found.token).rev))
                await anyio.sleep(0.02)

        async def predict() -> None:
            while not stopping.is_set():
                try:
                    outputs = await model.predict(X)
                    right = outputs["y"][0, 0] == outputs.version.version
                    seen.answers.append("" if right else f"{outputs['y']} of version {outputs.version}")
                except Exception as exc:
                    seen.answers.append(repr(exc))
                await anyio.sleep(0.005)

        async with anyio.create_task_group() as following:
            for watcher in watchers:
                seen.told.append([])
                following.start_soon(watch, watcher, seen.told[-1])
            with anyio.fail_after(60):
                # A watch begins at a moment of its own; nothing before it is anybody's loss.
                for version in itertools.cycle((1, 2)):
                    if all(seen.told):
                        break
                    await writers[0].promote(f"{MODEL}@begin", version)
                    await anyio.sleep(0.1)
            async with anyio.create_task_group() as load:
                for writer, alias in zip(itertools.cycle(writers), ("prod", "a", "b", "c"), strict=False):
                    load.start_soon(write, writer, alias)
                load.start_soon(read)
                load.start_soon(predict)
                await during(seen)
                stopping.set()
            last = 0
            for alias in ("prod", "a", "b", "c"):
                with anyio.fail_after(60):
                    while True:
                        try:
                            moved = await writers[0].promote(f"{MODEL}@{alias}", _LAST)
                        except (TransportError, ConflictError):
                            await anyio.sleep(0.1)
                            continue
                        seen.acknowledged.append((f"{MODEL}@{alias}", moved.mod_rev, moved.version))
                        last = moved.mod_rev
                        break
            await _until(
                lambda: all(told and told[-1].rev >= last for told in seen.told) and model.version == _LAST, settle_s
            )
            seen.served = model.version
            following.cancel_scope.cancel()
    seen.stored = await _stored(database_url, directory)
    return seen


async def _until(holds: Callable[[], bool], limit_s: float) -> None:
    """Waits until something holds, or for so long; the checks say whether it does."""
    with anyio.move_on_after(limit_s):
        while not holds():
            await anyio.sleep(0.02)


def _told(change: Change) -> Told:
    return Told(change.rev, change.idx, change.object, int(change.state["version"]))


async def _stored(database_url: str, directory: Path) -> list[Told]:
    async with open_database(database_url, data_dir=directory) as database:
        # Every server wrote into one chain.
        await database.read(verify_chain)
        query = select(feed_changes).where(feed_changes.c.kind == "alias")
        query = query.order_by(feed_changes.c.rev, feed_changes.c.idx)
        rows = await database.read(lambda conn: conn.execute(query).all())
    return [Told(row.rev, row.idx, row.object, int(json.loads(row.state)["version"])) for row in rows]

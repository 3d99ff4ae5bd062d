"""The change feed on each database: commits per second with eight writers, and a change on its way between replicas.

Two replicas share the database, but for SQLite, which has one. Every move is one revision and is on disk when it is
answered. The floors are the database alone: eight changes a commit, behind the lock of one row, by SQLAlchemy.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic, perf_counter

import anyio
from anyio import to_thread
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from bench.databases import Kind, NoDatabase
from bench.figure import Figure, Unit
from bench.groups.feed import WRITERS
from bench.groups.watch import watching
from bench.measure import Series, interleave, ratio
from bench.run import SEED, Run
from modelbox import Client
from modelbox.runtime.store.opening import parse_database_url
from tests.onnx_models import add_constant
from tests.server import ServerProcess

ARRIVES_S = 0.25


def measure(run: Run) -> list[Figure]:
    """The figures."""
    figures: list[Figure] = []
    for kind in Kind:
        try:
            url = run.databases.new_url(kind)
            floor_url = run.databases.new_url(kind)
        except NoDatabase as exc:
            run.say(f"{kind.value} is left out: {exc}")
            continue
        run.say(f"on {kind.value}")
        with _replicas(run, kind, url) as servers:
            figures += anyio.run(_measure, run, kind, servers, floor_url)
    return figures


@contextlib.contextmanager
def _replicas(run: Run, kind: Kind, url: str) -> Iterator[Sequence[ServerProcess]]:
    blobs = Path(tempfile.mkdtemp(dir=run.directory))
    with contextlib.ExitStack() as stack:
        count = 1 if kind is Kind.SQLITE else 2
        given = None if kind is Kind.SQLITE else blobs
        yield [stack.enter_context(run.server(database_url=url, blobs=given)) for _ in range(count)]


async def _measure(run: Run, kind: Kind, servers: Sequence[ServerProcess], floor_url: str) -> list[Figure]:
    seconds = 0.2 if run.quick else 1.0
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(run.client(server)) for server in servers]
        for number in (1, 2):
            path = run.directory / f"fed-{number}.onnx"
            path.write_bytes(add_constant(float(number)))
            await clients[0].publish("bench/fed", {"model.onnx": path})

        def moves(over: Sequence[Client]) -> Callable[[], Awaitable[Sequence[float]]]:
            async def turn() -> Sequence[float]:
                return [await _moves_per_s(over, seconds)]

            return turn

        subjects = {"eight": moves(clients[:1])}
        if len(clients) > 1:
            subjects["replicas"] = moves(clients)
        if floor_url:
            engine = create_async_engine(parse_database_url(floor_url))
            stack.push_async_callback(engine.dispose)
            await _make_floor(engine)

            async def floor() -> Sequence[float]:
                return [await _changes_per_s(engine, seconds)]

            subjects["floor"] = floor
        taken = await interleave(subjects, rounds=run.choose(6, 2), seed=SEED)
        arrivals = await _arrivals(run, clients[0], servers[-1])
    what = {"eight": f"{WRITERS} writers at one server", "replicas": f"{WRITERS} writers, half at each of two replicas"}
    rates = [
        Figure(
            name=f"backends.{kind.value}.feed.{name}",
            what=f"aliases moved per second on {kind.value} by {what[name]}",
            unit=Unit.PER_SECOND,
            measured=taken[name],
            floor=taken.get("floor"),
            floor_what="the database alone, eight changes a commit" if "floor" in taken else "",
            ratio=ratio(taken[name], taken["floor"]) if "floor" in taken else None,
        )
        for name in what
        if name in taken
    ]
    where = "the same server" if len(servers) == 1 else "another replica"
    return [
        *rates,
        Figure(
            name=f"backends.{kind.value}.arrival",
            what=f"moving an alias to its arrival at each of 100 watchers of {where}, on {kind.value}",
            unit=Unit.SECONDS,
            measured=arrivals,
            aim=f"p99 ≤ {ARRIVES_S:g} s",
            reached=arrivals.p99 <= ARRIVES_S,
        ),
    ]


async def _moves_per_s(clients: Sequence[Client], seconds: float) -> float:
    done = 0
    began = perf_counter()
    end = began + seconds

    async def write(number: int) -> None:
        nonlocal done
        version = 1
        while perf_counter() < end:
            await clients[number % len(clients)].promote(f"bench/fed@writer-{number}", version)
            version = 3 - version
            done += 1

    async with anyio.create_task_group() as group:
        for number in range(WRITERS):
            group.start_soon(write, number)
    return done / (perf_counter() - began)


async def _arrivals(run: Run, client: Client, at: ServerProcess) -> Series:
    """Seconds from the beginning of each of some moves to each of a hundred watchers."""
    watchers, changes = run.choose(100, 10), run.choose(40, 4)
    arrivals: list[tuple[float, ...]] = []
    with watching(at, watchers, "bench/fed") as lines:
        for change in range(changes + 2):
            began = monotonic()
            alias = await client.promote("bench/fed@watched", change % 2 + 1)
            with anyio.fail_after(60):
                while True:
                    arrived = json.loads(await to_thread.run_sync(next, lines, abandon_on_cancel=True))
                    if arrived["rev"] == alias.mod_rev:
                        break
            if change >= 2:  # two to warm up
                arrivals.append(tuple(one - began for one in arrived["at"]))
            await anyio.sleep(0.02)
    return Series(rounds=tuple(arrivals))


# -- the database alone ----------------------------------------------------------------------------------------------


async def _make_floor(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE head (id INTEGER PRIMARY KEY, rev BIGINT NOT NULL)"))
        await connection.execute(text("INSERT INTO head VALUES (1, 0)"))
        await connection.execute(text("CREATE TABLE change_log (rev BIGINT PRIMARY KEY, state VARCHAR(1000) NOT NULL)"))


async def _changes_per_s(engine: AsyncEngine, seconds: float) -> float:
    done = 0
    began = perf_counter()
    end = began + seconds
    async with engine.connect() as connection:
        while perf_counter() < end:
            rev = (await connection.execute(text("SELECT rev FROM head WHERE id = 1 FOR UPDATE"))).scalar_one()
            rows = [{"rev": rev + number, "state": "x" * 300} for number in range(1, WRITERS + 1)]
            await connection.execute(text("INSERT INTO change_log VALUES (:rev, :state)"), rows)
            await connection.execute(text("UPDATE head SET rev = :rev WHERE id = 1"), {"rev": rev + WRITERS})
            await connection.commit()
            done += WRITERS
    return done / (perf_counter() - began)

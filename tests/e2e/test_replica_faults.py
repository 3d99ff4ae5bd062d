"""Servers behind a balancer are stopped, killed and paused at random: nothing is lost, and nobody who asks notices.

The checks are in `tests.e2e.replica_world`; each is shown to find a planted bug.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import pytest

import modelbox
from modelbox.errors import TransportError
from modelbox.model import LiveModel
from tests.e2e.replica_world import (
    MODEL,
    Observed,
    Violation,
    X,
    check_acknowledged,
    check_converged,
    check_prefixes,
    check_serving,
    observe,
)
from tests.faults.registry import fault
from tests.onnx_models import add_constant
from tests.replicas import Replicas
from tests.servers.postgres import PostgresServer

_FAULTS = 6

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    url = postgres_server.new_database(migrated=True)
    yield url
    postgres_server.drop_database(url)


@fault(21, 22)
async def test_servers_that_are_killed_and_paused_at_random_are_one_server(database_url: str, tmp_path: Path) -> None:
    rng = random.Random(20261121)
    with Replicas(database_url, tmp_path, count=3) as replicas:

        async def break_things(_: Observed) -> None:
            for number in range(_FAULTS):
                await anyio.sleep(rng.uniform(0.1, 0.5))
                victim = replicas[rng.randrange(len(replicas))]
                if number % 2:
                    victim.pause()
                    await anyio.sleep(rng.uniform(0.2, 2.0))
                    victim.resume()
                else:
                    await anyio.to_thread.run_sync(victim.kill)
                    await anyio.sleep(rng.uniform(0.0, 0.3))
                    await anyio.to_thread.run_sync(functools.partial(victim.restart, timeout=60))

        with anyio.fail_after(300):
            seen = await observe(replicas, database_url, tmp_path, during=break_things)
    for check in (check_prefixes, check_acknowledged, check_converged, check_serving):
        check(seen)
    assert len(seen.acknowledged) > 30
    assert len(seen.snapshots) > 10
    assert len(seen.answers) > 100


# -- planted bugs --------------------------------------------------------------------------------------------------


def _found_by(check: Callable[[Observed], None], seen: Observed) -> None:
    with pytest.raises(Violation):
        check(seen)


@pytest.mark.parametrize(
    ("bug", "check"),
    [("skips_news", check_prefixes), ("loses_commits", check_acknowledged), ("stops_telling", check_converged)],
)
async def test_a_bug_of_a_server_is_found(
    bug: str, check: Callable[[Observed], None], database_url: str, tmp_path: Path
) -> None:
    with Replicas(database_url, tmp_path, count=1, modules=[f"tests.mutant_servers.{bug}"]) as replicas:
        with anyio.fail_after(300):
            seen = await observe(replicas, database_url, tmp_path, during=_much, settle_s=2.0)
    _found_by(check, seen)


async def test_a_model_that_needs_its_server_is_found(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = LiveModel.predict

    async def needy(model: LiveModel, *args: object, **options: object) -> object:
        if model.stale:
            raise TransportError("the server is away")
        return await predict(model, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LiveModel, "predict", needy)
    with Replicas(database_url, tmp_path, count=1) as replicas:

        async def restart(seen: Observed) -> None:
            await anyio.to_thread.run_sync(replicas[0].kill)
            with anyio.move_on_after(60):
                while not any(seen.answers):
                    await anyio.sleep(0.02)
            await anyio.to_thread.run_sync(functools.partial(replicas[0].restart, timeout=60))

        with anyio.fail_after(300):
            seen = await observe(replicas, database_url, tmp_path, during=restart)
    _found_by(check_serving, seen)


async def _much(seen: Observed) -> None:
    with anyio.move_on_after(120):
        # Enough for every seventh commit to lose some, however many writers share one.
        while len(seen.acknowledged) < 400:
            await anyio.sleep(0.05)


# -- one after the other -------------------------------------------------------------------------------------------


@fault(36)
async def test_a_rolling_restart_loses_nothing_and_fails_nobody(database_url: str, tmp_path: Path) -> None:
    failed: list[str] = []
    done = dict.fromkeys(("promote", "resolve", "upload", "predict"), 0)
    stopping = anyio.Event()
    with Replicas(database_url, tmp_path, count=2) as replicas:

        async def for_ever(what: str, call: Callable[[int], Awaitable[object]]) -> None:
            number = 0
            while not stopping.is_set():
                number += 1
                try:
                    await call(number)
                except Exception as exc:
                    failed.append(f"{what}: {exc!r}")
                done[what] = number
                await anyio.sleep(0.01)

        async with (
            modelbox.Client(replicas.url, cache_dir=str(tmp_path / "one")) as one,
            modelbox.Client(replicas.url, cache_dir=str(tmp_path / "two")) as two,
        ):
            for constant in (1, 2):
                path = tmp_path / f"{constant}.onnx"
                path.write_bytes(add_constant(constant))
                await one.publish(MODEL, str(path), entrypoint=path.name)
            await one.promote(f"{MODEL}@prod", 1)
            model = await two.load(f"{MODEL}@prod")

            async def upload(number: int) -> object:
                part = tmp_path / "part.bin"
                part.write_bytes(random.Random(number).randbytes(300_000))
                return await one.upload_artifact(MODEL, f"part{number}", str(part))

            async def go_on() -> None:
                begun = dict(done)
                with anyio.fail_after(60):
                    while any(done[what] < begun[what] + 3 for what in done):
                        await anyio.sleep(0.02)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(for_ever, "promote", lambda number: one.promote(f"{MODEL}@prod", 1 + number % 2))
                tasks.start_soon(for_ever, "resolve", lambda number: two.resolve(f"{MODEL}@prod"))
                tasks.start_soon(for_ever, "upload", upload)
                tasks.start_soon(for_ever, "predict", lambda number: model.predict(X))
                await go_on()
                for replica in replicas:
                    await anyio.to_thread.run_sync(functools.partial(replica.restart, timeout=60))
                    await go_on()
                stopping.set()
            last = await one.promote(f"{MODEL}@prod", 1)
            with anyio.fail_after(60):
                while model.version != last.version:
                    await anyio.sleep(0.02)
    assert failed == []


# -- who stands still ----------------------------------------------------------------------------------------------


@fault(31)
async def test_a_server_that_stands_still_with_the_lock_of_all_holds_up_the_others_for_seconds_only(
    database_url: str, tmp_path: Path
) -> None:
    when = tmp_path / "stop"
    with Replicas(
        database_url,
        tmp_path,
        count=2,
        advertised=False,
        modules=["tests.mutant_servers.stands_still"],
        env={"TEST_STOP_FILE": str(when)},
    ) as replicas:
        async with (
            modelbox.Client(replicas[0].url, cache_dir=str(tmp_path / "one")) as one,
            modelbox.Client(replicas[1].url, cache_dir=str(tmp_path / "two")) as two,
        ):
            await one.create_model("still/model")
            when.touch()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.create_model, "still/first")
                with anyio.fail_after(60):
                    while not replicas[0].stopped:
                        await anyio.sleep(0.02)
                # Nobody can write now, and everybody can read.
                assert (await two.get_model("still/model")).name == "model"
                with anyio.fail_after(25):
                    assert not (await two.create_model("still/second")).existed
                assert replicas[0].stopped
                replicas[0].resume()
            # Its own change was not lost: it was made again, behind the other's.
            names = [model.name async for model in two.iter_models("still")]
            assert sorted(names) == ["first", "model", "second"]

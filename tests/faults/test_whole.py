"""Random operations and faults over all of ModelBox at once, held against a model in memory."""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from tests.faults.registry import fault
from tests.faults.world import Story, Violation, World
from tests.servers.availability import unavailable
from tests.servers.debian import CannotHave
from tests.servers.mariadb import MariadbServer

T = TypeVar("T")

_STEPS = 25


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="mb-") as name, World(Path(name)) as world:
        yield world


@pytest.fixture
def world_on_mariadb() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="mb-") as name, ExitStack() as stack:
        try:
            world = stack.enter_context(World(Path(name), MariadbServer()))
        except CannotHave as exc:
            unavailable(str(exc))
        yield world


@fault(1, 22, 36)
@pytest.mark.timeout(900)
def test_random_operations_and_faults(world: World) -> None:
    # Whatever can be done is done in it.
    _live(world, seed=986)


@fault(1, 22, 36)
@pytest.mark.timeout(900)
def test_random_operations_and_faults_on_mariadb(world_on_mariadb: World) -> None:
    _live(world_on_mariadb, seed=2585)


def _live(world: World, *, seed: int) -> None:
    """A model's life, with what is done in it drawn from a seed; what comes of it is up to the moment."""
    dice, story = random.Random(seed), world.story()
    steps: list[tuple[str, int, Callable[[], None]]] = [
        ("publish", 3, story.publish),
        ("publish a broken version", 1, lambda: story.publish(broken=True)),
        ("promote", 8, lambda: story.promote(dice.choice)),
        ("promote with an old place", 2, lambda: story.promote_with_an_old_place(dice.choice)),
        ("roll back", 2, lambda: story.roll_back(dice.choice)),
        ("delete", 2, lambda: story.delete(dice.choice)),
        ("read", 4, lambda: story.read(dice.choice)),
        ("kill the database", 1, world.kill_database),
        ("start the database", 4, world.start_database),
        ("kill the sidecar", 1, world.kill_sidecar),
        *((f"kill server {number}", 1, partial(world.kill_server, number)) for number in range(2)),
        *((f"start server {number}", 2, partial(world.start_server, number)) for number in range(2)),
        *((f"stop server {number}", 1, partial(world.pause_server, number)) for number in range(2)),
        *((f"let server {number} go on", 1, partial(world.resume_server, number)) for number in range(2)),
    ]
    # Drawn beforehand: how often a step draws depends on what was answered in time.
    plan = dice.choices(steps, weights=[weight for _, weight, _ in steps], k=_STEPS)
    done: list[str] = []
    try:
        story.begin()
        for name, _, act in plan:
            done.append(name)
            act()
            story.check()
        story.end()
    except Exception as exc:
        exc.add_note(f"after: {', '.join(done)}")
        story.close()
        raise


class _Given:
    """Chooses what is named, where it can be had."""

    def __init__(self, *named: object) -> None:
        self._named = named

    def __call__(self, options: Sequence[T], /) -> T:
        return next(option for option in options if option in self._named)


# -- the checks, each with something that it must catch


@pytest.fixture(scope="module")
def lived(world: World) -> Story:
    """A short life without faults."""
    story = world.story()
    story.begin()
    story.publish()
    for version in (2, 1, 2):
        story.promote(_Given("prod", version))
    story.end()
    return story


def _told_less(story: Story) -> None:
    # The last but one, for whatever else was answered in time, both aliases move in the end.
    del story.told[1][-2]


def _lose_an_acknowledgement(story: Story) -> None:
    alias, rev, version = story.acknowledged[-1]
    story.acknowledged.append((alias, rev + 1000, version))


def _answer_by_another(story: Story) -> None:
    story.seen[0].answers[(999, 5.0)] = 1


def _answer_wrongly(story: Story) -> None:
    story.seen[3].answers[(1, 77.0)] = 1


def _fail_once(story: Story) -> None:
    story.seen[2].failures.append("it failed")


def _answer_nothing(story: Story) -> None:
    story.seen[1].answers.clear()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_told_less, "watcher 1 was never told"),
        (_lose_an_acknowledgement, "acknowledged moves are lost"),
        (_answer_by_another, "loader 0 answered by version 999, to which prod never pointed"),
        (_answer_wrongly, "sidecar: version 1 added 77"),
        (_fail_once, "1 calls of loader 1, staging failed, such as it failed"),
        (_answer_nothing, "loader 1 answered nothing"),
    ],
)
def test_what_must_not_be_is_noticed(lived: Story, spoil: Callable[[Story], None], says: str) -> None:
    lived.judge()
    spoilt = copy.copy(lived)
    for name in ("told", "acknowledged", "seen"):
        setattr(spoilt, name, copy.deepcopy(getattr(lived, name)))
    spoil(spoilt)
    with pytest.raises(Violation, match=says):
        spoilt.judge()

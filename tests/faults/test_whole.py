"""Random operations and faults over all of ModelBox at once, held against a model in memory."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.faults.registry import fault
from tests.faults.world import Story, Violation, World
from tests.servers.availability import unavailable
from tests.servers.debian import CannotHave
from tests.servers.mariadb import MariadbServer

T = TypeVar("T")


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
def test_random_operations_and_faults(world: World) -> None:
    _live(world, lives=2)


@fault(1, 22, 36)
def test_random_operations_and_faults_on_mariadb(world_on_mariadb: World) -> None:
    _live(world_on_mariadb, lives=1)


def _live(world: World, *, lives: int) -> None:
    class Whole(RuleBasedStateMachine):
        """Each run is another model's life in the same world."""

        story: Story | None = None

        @initialize()
        def begin(self) -> None:
            self.story = world.story()
            self.story.begin()

        @rule(broken=st.sampled_from([False, False, True]))
        def publish(self, broken: bool) -> None:
            assert self.story is not None
            self.story.publish(broken=broken)

        @rule(data=st.data())
        def promote(self, data: st.DataObject) -> None:
            assert self.story is not None
            self.story.promote(_Choose(data))

        @rule(data=st.data())
        def promote_again(self, data: st.DataObject) -> None:
            self.promote(data)

        @rule(data=st.data())
        def promote_with_an_old_place(self, data: st.DataObject) -> None:
            assert self.story is not None
            self.story.promote_with_an_old_place(_Choose(data))

        @rule(data=st.data())
        def roll_back(self, data: st.DataObject) -> None:
            assert self.story is not None
            self.story.roll_back(_Choose(data))

        @rule(data=st.data())
        def delete(self, data: st.DataObject) -> None:
            assert self.story is not None
            self.story.delete(_Choose(data))

        @rule(data=st.data())
        def read(self, data: st.DataObject) -> None:
            assert self.story is not None
            self.story.read(_Choose(data))

        @rule(number=st.integers(0, 1))
        def kill_server(self, number: int) -> None:
            world.kill_server(number)

        @rule(number=st.integers(0, 1))
        def start_server(self, number: int) -> None:
            world.start_server(number)

        @rule(number=st.integers(0, 1))
        def pause_server(self, number: int) -> None:
            world.pause_server(number)

        @rule(number=st.integers(0, 1))
        def resume_server(self, number: int) -> None:
            world.resume_server(number)

        @rule()
        def kill_database(self) -> None:
            world.kill_database()

        @rule()
        def start_database(self) -> None:
            world.start_database()

        @rule()
        def kill_sidecar(self) -> None:
            world.kill_sidecar()

        @invariant()
        def nothing_is_wrong(self) -> None:
            if self.story is not None:
                self.story.check()

        def teardown(self) -> None:
            if self.story is not None:
                self.story.end()

    run_state_machine_as_test(
        Whole,
        settings=settings(
            max_examples=lives,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            # Nothing of this repeats to the letter, so a smaller example would not be one.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


class _Choose:
    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def __call__(self, options: Sequence[T], /) -> T:
        return self._data.draw(st.sampled_from(options))


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
    for version in (3, 1, 2):
        story.promote(_Given("prod", version))
    story.end()
    return story


def _told_less(story: Story) -> None:
    del story.told[1][len(story.told[1]) // 2]


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

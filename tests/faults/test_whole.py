"""Random operations and faults over all of ModelBox at once, held against a model in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.faults.world import Story, World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="mb-") as name, World(Path(name)) as world:
        yield world


def test_random_operations_and_faults(world: World) -> None:
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
            self.story.promote(_choose(data))

        @rule(data=st.data())
        def promote_again(self, data: st.DataObject) -> None:
            self.promote(data)

        @rule(data=st.data())
        def promote_with_an_old_place(self, data: st.DataObject) -> None:
            assert self.story is not None
            self.story.promote_with_an_old_place(_choose(data))

        @rule(data=st.data())
        def roll_back(self, data: st.DataObject) -> None:
            assert self.story is not None
            self.story.roll_back(_choose(data))

        @rule(data=st.data())
        def delete(self, data: st.DataObject) -> None:
            assert self.story is not None
            self.story.delete(_choose(data))

        @rule(data=st.data())
        def read(self, data: st.DataObject) -> None:
            assert self.story is not None
            self.story.read(_choose(data))

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
            max_examples=2,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            # Nothing of this repeats to the letter, so a smaller example would not be one.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def _choose(data: st.DataObject):
    return lambda options: data.draw(st.sampled_from(options))

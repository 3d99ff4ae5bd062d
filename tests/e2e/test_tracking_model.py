"""Random programs against a real server, a model of tracking in plain Python beside them.

Whatever is called, in whatever order, with the server killed at any moment and spools delivered again: what was
acknowledged is there, nothing is there twice, summaries equal their points, find agrees with a loop over the model, and
the feed tells the same. `MODELBOX_TEST_TRACKING_EXAMPLES=200` looks longer than CI does.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from modelbox import sync
from modelbox.spool.push import Destination
from modelbox.tracking import (
    AttributeKind,
    Delivered,
    MetricColumns,
    NewComment,
    ObjectKind,
    Operation,
    RunStatus,
    new_id,
)
from tests.server import ServerProcess
from tests.tracking_model import Item, Live
from tests.tracking_world import World

EXAMPLES = int(os.environ.get("MODELBOX_TEST_TRACKING_EXAMPLES", "6"))

picks = st.integers(0, 2**16)
numbers = st.sampled_from([0.0, 0.5, 1.0, -1.0, 1e300, float("nan"), float("inf"), float("-inf")])
steps = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 2**63 - 1])
times = st.sampled_from([0, 1, 1_777_777_777_000_001])
points = st.dictionaries(
    st.sampled_from(["loss", "acc", "note"]),
    st.one_of(numbers, numbers, numbers, st.sampled_from(["", "täxt"])),
    min_size=1,
    max_size=3,
)
keys = st.sampled_from(["a", "b", "ü.c d"])
values: st.SearchStrategy[Any] = st.sampled_from([0, 1.5, "a", "", True, None, [], {"c": 1}, {"c": 2, "d": [1, "x"]}])
params = st.dictionaries(keys, values, max_size=3)
texts = st.dictionaries(keys, st.sampled_from(["", "x", "y z"]), min_size=1, max_size=2)
KINDS = (AttributeKind.TAG, AttributeKind.LABEL, AttributeKind.METADATA)


def of_kind(kind: AttributeKind, given: Mapping[str, str], number: int) -> Mapping[str, Any]:
    """Values that a kind may have: for metadata any JSON."""
    if kind is not AttributeKind.METADATA:
        return given
    some = [0, "a", {"c": number % 3}, None]
    return {key: some[number % 4] for key in given}


class Tracking(RuleBasedStateMachine):
    """What programs do with tracking."""

    server: ServerProcess
    directory: Path

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.server, self.directory)
        self.loggers = 0

    def teardown(self) -> None:
        """Compares everything, before a last kill and after it."""
        try:
            self.world.check(random.Random(1))
            self.world.kill()
            self.world.check(random.Random(2))
        finally:
            self.world.close()

    def _pick(self, number: int, *kinds: ObjectKind) -> Item:
        some = self.world.of(*(kinds or (ObjectKind.RUN, ObjectKind.EXPERIMENT, ObjectKind.CHECKPOINT)))
        return some[number % len(some)]

    def _runs(self) -> bool:
        return bool(self.world.of(ObjectKind.RUN))

    def _live(self, number: int) -> Live:
        return self.world.lives[number % len(self.world.lives)]

    @initialize(first=params)
    def begin(self, first: Mapping[str, Any]) -> None:
        """A run of each sort."""
        experiment = self._pick(0, ObjectKind.EXPERIMENT)
        self.world.create_run(experiment, params=first)
        self.world.start_live(experiment, None, params=first)

    # -- by calls

    @precondition(lambda self: len(self.world.of(ObjectKind.EXPERIMENT)) < 3)
    @rule()
    def create_experiment(self) -> None:
        self.world.create_experiment()

    @precondition(lambda self: len(self.world.of(ObjectKind.RUN)) < 10)
    @rule(where=picks, parent=picks, child=st.booleans(), given=params, live=st.booleans())
    def create_run(self, where: int, parent: int, child: bool, given: Mapping[str, Any], live: bool) -> None:
        experiment = self._pick(where, ObjectKind.EXPERIMENT)
        above = self._pick(parent, ObjectKind.RUN) if child else None
        if live and len(self.world.lives) < 3:
            self.world.start_live(experiment, above, params=given)
        else:
            self.world.create_run(experiment, above, params=given)

    @rule(which=picks, given=points, step=steps, time_us=times)
    def log(self, which: int, given: Mapping[str, Any], step: int, time_us: int) -> None:
        self.world.log(self._pick(which, ObjectKind.RUN), given, step, time_us)

    @rule(which=picks, given=st.lists(st.tuples(steps, numbers), min_size=1, max_size=30), time_us=times)
    def log_series(self, which: int, given: Sequence[tuple[int, float]], time_us: int) -> None:
        self.world.log_series(
            self._pick(which, ObjectKind.RUN), "loss", [step for step, _ in given], [one for _, one in given], time_us
        )

    @rule(which=picks, given=params, overwrite=st.booleans())
    def set_params(self, which: int, given: Mapping[str, Any], overwrite: bool) -> None:
        self.world.set_params(self._pick(which), given, overwrite=overwrite)

    @rule(which=picks, kind=st.sampled_from(KINDS), given=texts, number=picks)
    def set_values(self, which: int, kind: AttributeKind, given: Mapping[str, str], number: int) -> None:
        self.world.set_values(self._pick(which), kind, of_kind(kind, given, number))

    @rule(
        which=picks, kind=st.sampled_from(list(AttributeKind)), some=st.lists(keys, min_size=1, max_size=2, unique=True)
    )
    def remove_values(self, which: int, kind: AttributeKind, some: Sequence[str]) -> None:
        self.world.remove_values(self._pick(which), kind, some)

    @rule(which=picks)
    def log_event(self, which: int) -> None:
        self.world.log_event(self._pick(which))

    @rule(which=picks, epoch=st.integers(0, 3))
    def add_checkpoint(self, which: int, epoch: int) -> None:
        self.world.add_checkpoint(self._pick(which, ObjectKind.RUN, ObjectKind.EXPERIMENT), epoch)

    @rule(which=picks, status=st.sampled_from([RunStatus.FAILED, RunStatus.FINISHED, RunStatus.RUNNING]))
    def end(self, which: int, status: RunStatus) -> None:
        self.world.end(self._pick(which, ObjectKind.RUN), status)

    @rule(which=picks)
    def delete(self, which: int) -> None:
        self.world.delete(self._pick(which))

    @rule(which=picks)
    def restore(self, which: int) -> None:
        binned = [item for item in self.world.items.values() if item.root]
        self.world.restore(binned[which % len(binned)] if binned else self._pick(which))

    # -- through the spool

    @precondition(lambda self: self.world.lives)
    @rule(which=picks, given=st.lists(st.tuples(points, steps, times), min_size=1, max_size=10))
    def live_log(self, which: int, given: Sequence[tuple[Mapping[str, Any], int, int]]) -> None:
        for one, step, time_us in given:
            self.world.live_log(self._live(which), one, step, time_us)

    @precondition(lambda self: self.world.lives)
    @rule(which=picks, given=params, overwrite=st.booleans())
    def live_params(self, which: int, given: Mapping[str, Any], overwrite: bool) -> None:
        self.world.live_params(self._live(which), given, overwrite=overwrite)

    @precondition(lambda self: self.world.lives)
    @rule(which=picks, kind=st.sampled_from(KINDS), given=texts, number=picks)
    def live_values(self, which: int, kind: AttributeKind, given: Mapping[str, str], number: int) -> None:
        self.world.live_values(self._live(which), kind, of_kind(kind, given, number))

    @precondition(lambda self: self.world.lives)
    @rule(which=picks, epoch=st.integers(0, 3))
    def live_records(self, which: int, epoch: int) -> None:
        self.world.live_records(self._live(which), epoch)

    @precondition(lambda self: len(self.world.lives) > 1)
    @rule(which=picks)
    def finish_live(self, which: int) -> None:
        self.world.finish_live(self._live(which))

    @rule(number=picks)
    def replay(self, number: int) -> None:
        self.world.replay(number)

    # -- faults

    @rule(delay_ms=st.integers(0, 30))
    def kill_soon(self, delay_ms: int) -> None:
        self.world.kill_soon(delay_ms / 1000)

    @precondition(lambda self: self.loggers < 1)
    @rule(where=picks, lines=st.integers(5, 600))
    def killed_program(self, where: int, lines: int) -> None:
        self.loggers += 1
        self.world.killed_program(self._pick(where, ObjectKind.EXPERIMENT), lines)

    @precondition(lambda self: self.world.kills > self.world.checked)
    @invariant()
    def after_each_restart(self) -> None:
        if self.world.is_back:
            self.world.check(random.Random(self.world.kills))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracking")


@pytest.mark.slow
@pytest.mark.timeout(120 + 60 * EXAMPLES)
def test_whatever_is_done_what_was_acknowledged_is_there_once(shared_server: ServerProcess, directory: Path) -> None:
    machine = type("Tracking", (Tracking,), {"server": shared_server, "directory": directory})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            derandomize="MODELBOX_TEST_TRACKING_EXAMPLES" not in os.environ,
            database=None,
            # Smaller programs of the same fault would take many minutes.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


# -- the checker has teeth ---------------------------------------------------------------------------------------------


class Wrapped:
    """A client with a fault: one call that was answered is done otherwise."""

    def __init__(self, client: sync.Client, fault: str) -> None:
        self._client = client
        self._fault = fault
        self._done = False

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        what, _, called = self._fault.partition(" ")
        if called != name or self._done:
            return call

        def faulty(*args: Any, **values: Any) -> Any:
            if args[1:] == ("mark",):
                return call(*args, **values)
            self._done = True
            if what == "lose":
                return None
            answer = call(*args, **values)
            if what == "double":
                if "step" in values:
                    values["at"] += timedelta(seconds=1)
                call(*args, **values)
            return answer

        return faulty


class Hiding:
    """A client that hides a row of everything that it finds, or a change of the feed."""

    def __init__(self, client: sync.Client, what: str) -> None:
        self._client = client
        self._what = what

    def __getattr__(self, name: str) -> Any:
        if name == self._what:
            return {"find": self._find, "changes": self._changes}[name]
        return getattr(self._client, name)

    def _find(self, *args: Any, **values: Any) -> Any:
        page = self._client.find(*args, **values)
        return replace(page, columns={name: column[1:] for name, column in page.columns.items()})

    @contextmanager
    def _changes(self, *args: Any, **values: Any) -> Iterator[Any]:
        with self._client.changes(*args, **values) as feed:
            yield _Without(feed, "param")


class _Without:
    def __init__(self, feed: Any, kind: str) -> None:
        self._feed, self._kind = feed, kind

    def __iter__(self) -> _Without:
        return self

    def __next__(self) -> Any:
        change = next(self._feed)
        while change.object.endswith(f"/{self._kind}"):
            change = next(self._feed)
        return change

    @property
    def token(self) -> str:
        return str(self._feed.token)


class Misdelivering:
    """A way to the server that loses or doubles one operation, and says that it went well."""

    def __init__(self, to: Destination, fault: str) -> None:
        self._to = to
        self._fault, _, self._kind = fault.partition(" ")
        self._done = False

    async def deliver(self, spool: str, operations: Sequence[Operation]) -> Delivered:
        some = [one for one in operations if type(one.payload).__name__ == self._kind and one.seq > 2]
        if not some or self._done:
            return await self._to.deliver(spool, operations)
        self._done = True
        if self._fault == "lose":
            await self._to.deliver(spool, [one for one in operations if one is not some[0]])
            return Delivered(seq=operations[-1].seq)
        answer = await self._to.deliver(spool, operations)
        payload = some[0].payload
        if isinstance(payload, NewComment):
            again: Any = replace(payload, id=new_id(ObjectKind.COMMENT))
        else:
            assert isinstance(payload, MetricColumns)
            again = replace(payload, times_us=payload.steps)
        await self._to.deliver("f" * 32, [Operation(seq=operations[-1].seq, payload=again)])
        return answer

    async def upload(self, *args: Any, **values: Any) -> None:
        await self._to.upload(*args, **values)


def work(world: World) -> None:
    """Something of everything, the same each time."""
    (experiment,) = world.of(ObjectKind.EXPERIMENT)
    run = world.create_run(experiment, params={"a": 1.5})
    other = world.create_run(experiment, run, params={"b": {"c": 1}})
    for step in range(3):
        world.log(run, {"loss": 1.0 / (step + 1), "acc": float("nan")}, step, step + 1)
    world.log_series(other, "loss", [5, 1, 5], [0.5, float("inf"), 2.0], 7)
    world.set_params(run, {"a": 0}, overwrite=True)
    world.set_values(run, AttributeKind.TAG, {"a": "x"})
    world.remove_values(run, AttributeKind.TAG, ["a"])
    world.log_event(run)
    world.add_checkpoint(run, 1)
    world.end(other, RunStatus.FAILED)
    live = world.start_live(experiment, None, params={"a": "a"})
    world.flush()
    for step in range(3):
        world.live_log(live, {"loss": step / 2, "note": "täxt"}, step, step + 1)
    world.live_values(live, AttributeKind.METADATA, {"a": 1.5})
    world.live_records(live, 0)
    world.flush()
    world.delete(other)
    world.delete(run)
    world.restore(run)


@pytest.mark.parametrize(
    "fault",
    [
        "",
        "lose log_metrics",
        "double log_metrics",
        "lose set_params",
        "lose set_tags",
        "lose remove_attributes",
        "double log_event",
        "lose update_run",
        "hide find",
        "hide changes",
        "lose MetricColumns",
        "double MetricColumns",
        "lose AttributesEdit",
        "lose NewEvent",
        "double NewComment",
        "lose NewCheckpoint",
    ],
)
def test_a_fault_is_noticed(shared_server: ServerProcess, directory: Path, fault: str) -> None:
    what, _, where = fault.partition(" ")

    def wrap(client: sync.Client) -> Any:
        return Hiding(client, where) if what == "hide" else Wrapped(client, fault)

    def deliver_by(to: Destination) -> Destination:
        return Misdelivering(to, fault)

    world = World(shared_server, directory, wrap=wrap, deliver_by=deliver_by)
    try:
        work(world)
        if not fault:
            world.check(random.Random(0))
            return
        with pytest.raises(AssertionError):
            world.check(random.Random(0))
    finally:
        world.close()


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["points", "tags"])
def test_a_server_that_forgets_is_noticed(server: ServerProcess, directory: Path, lost: str) -> None:
    world = World(server, directory)
    try:
        work(world)
        (run, *_) = world.of(ObjectKind.RUN)
        if lost == "points":
            world.kill_and_forget(lambda: world.log(run, {"loss": 0.25}, 100, 100))
        else:
            world.kill_and_forget(lambda: world.set_values(run, AttributeKind.TAG, {"b": "x"}))
        with pytest.raises(AssertionError):
            world.check(random.Random(0))
    finally:
        world.close()

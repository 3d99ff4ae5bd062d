"""A model in memory against the spool: whatever breaks in whatever order, all that was appended arrives once."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import anyio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from modelbox.errors import ConflictError, ModelBoxError, Unavailable
from modelbox.spool.log import SpoolLog
from modelbox.spool.operations import operation_data
from modelbox.spool.push import Delivery
from modelbox.spool.reader import Spool, adopt, find_spools
from modelbox.tracking import NewComment
from tests.unit.spool.servers import MemoryServer

RUN = "run_" + "0" * 24


class Crashes(RuleBasedStateMachine):
    """One program at a time, which dies now and then; a server that loses answers and goes away."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.server = MemoryServer()
        self.server.refuse = lambda one: ConflictError("no") if getattr(one, "text", "").startswith("bad") else None
        self.points: set[tuple[str, int, float]] = set()
        self.texts: list[str] = []
        self.refused: list[str] = []
        self.told: set[str] = set()
        self.number = 0

    @initialize()
    def start(self) -> None:
        self.log = SpoolLog(self.directory, url="http://x:1", actor="a", max_bytes=1 << 20)
        # Small ones, so that there are several.
        self.log._segment_bytes = 600
        self.spool = Spool(self.log.directory, self.log)

    @rule(key=st.sampled_from("abc"), count=st.integers(1, 30))
    def log_points(self, key: str, count: int) -> None:
        for _ in range(count):
            self.number += 1
            assert self.log.append_point(RUN, key, self.number, 5, float(self.number))
            self.points.add((key, self.number, float(self.number)))

    @rule(keys=st.sets(st.sampled_from("abcdef"), min_size=1))
    def log_several(self, keys: set[str]) -> None:
        self.number += 1
        assert self.log.append_points(RUN, self.number, 5, dict.fromkeys(sorted(keys), 0.5))
        self.points |= {(key, self.number, 0.5) for key in keys}

    @rule(bad=st.booleans())
    def say(self, bad: bool) -> None:
        self.number += 1
        text = f"{'bad' if bad else 'good'} {self.number}"
        assert self.log.append_operation(operation_data(NewComment(object=RUN, text=text)))
        (self.refused if bad else self.texts).append(text)

    @rule(away=st.booleans(), lost=st.integers(0, 2))
    def deliver(self, away: bool, lost: int) -> None:
        self.server.away = Unavailable("away") if away else None
        self.server.lose_answers = lost
        self._deliver(self.spool)
        self.server.away, self.server.lose_answers = None, 0

    @rule(torn=st.integers(0, 60))
    def die(self, torn: int) -> None:
        """The program is killed, in the middle of a record that it had not finished."""
        name, _ = self.log.tail()
        self.spool.close()
        self.log.abandon()
        with (self.log.directory / name).open("ab") as segment:
            segment.write(b"\x29\0\0\0" + bytes(range(torn))[: 40 if torn else 0])
        self.start()

    @rule()
    def deliver_what_was_left(self) -> None:
        for about in find_spools(self.directory):
            with adopt(about.directory) as spool:
                if spool is not None and self._deliver(spool):
                    spool.remove()

    def _deliver(self, spool: Spool) -> bool:
        async def run() -> bool:
            try:
                delivery = Delivery(spool, self.server, refused=lambda one: self.told.add(one.rejection.message))
                await delivery.records()
                await delivery.uploads()
            except ModelBoxError:
                return False
            return True

        return anyio.run(run)

    @invariant()
    def nothing_is_there_twice_or_made_up(self) -> None:
        texts = [one.text for one in self.server.operations if isinstance(one, NewComment)]
        assert len(texts) == len(set(texts))
        assert set(texts) <= set(self.texts)
        assert {(key, step, value) for (_, key, step, _), value in self.server.points.items()} <= self.points

    def teardown(self) -> None:
        if not hasattr(self, "log"):
            return
        self.die(7)
        self.deliver_what_was_left()
        self.spool.close()
        assert self.log.close(delivered_seq=self.spool.delivered_seq)
        texts = [one.text for one in self.server.operations if isinstance(one, NewComment)]
        assert sorted(texts) == sorted(self.texts)
        assert {(key, step, value) for (_, key, step, _), value in self.server.points.items()} == self.points
        assert self.told <= {"no"}
        assert find_spools(self.directory) == []
        shutil.rmtree(self.directory)


Crashes.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestCrashes = Crashes.TestCase

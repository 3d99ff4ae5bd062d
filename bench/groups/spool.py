"""What logging costs the training loop: calls of a run, with the server taking it all meanwhile and with it away.

The floor is what no log on disk can do without: one bare ``os.write`` of a record's size to a file. "loop" is a step of
work in numpy with five metrics logged, against the same step without.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter

import anyio
import numpy as np

from bench.figure import Figure, Unit
from bench.measure import Series, interleave, ratio
from bench.run import SEED, Run
from modelbox import sync
from modelbox.run import LiveRun

AIM_S = 20e-6
LOOP_RATIO = 1.05
_RECORD = b"x" * 49
_TEN = {f"metric {number}": 0.5 for number in range(10)}
_FIVE = {f"metric {number}": 0.5 for number in range(5)}
_CALLS = {
    "metric": "log_metric",
    "metric.away": "log_metric while the server is away",
    "metrics": "log_metrics of ten values",
    "params": "log_params of one value",
    "event": "log_event",
}


def measure(run: Run) -> list[Figure]:
    """The figures."""
    taken = anyio.run(_measure, run)
    figures = [
        Figure(
            name=f"spool.{name}",
            what=what,
            unit=Unit.SECONDS,
            measured=taken[name],
            floor=taken["floor"],
            floor_what="os.write of 49 bytes",
            ratio=ratio(taken[name], taken["floor"]),
            aim="≤ 20 µs",
            reached=taken[name].p50 <= AIM_S,
        )
        for name, what in _CALLS.items()
    ]
    loop = ratio(taken["loop"], taken["loop floor"])
    return [
        *figures,
        Figure(
            name="spool.loop",
            what="a step of work with five metrics logged",
            unit=Unit.SECONDS,
            measured=taken["loop"],
            floor=taken["loop floor"],
            floor_what="the step alone",
            ratio=loop,
            aim=f"≤ {LOOP_RATIO}x",
            reached=loop <= LOOP_RATIO,
        ),
    ]


async def _measure(run: Run) -> dict[str, Series]:
    repeats = run.choose(2000, 200)
    with ExitStack() as stack:
        server = stack.enter_context(run.server())
        here = stack.enter_context(_started(run, server.url))
        away = stack.enter_context(_started(run, "http://127.0.0.1:9"))
        file = stack.enter_context(tempfile.TemporaryFile(dir=run.directory, buffering=0))
        fd = file.fileno()
        step = 0

        def log_metric(of: LiveRun) -> None:
            nonlocal step
            step += 1
            of.log_metric("loss", 0.25, step=step)

        def log_params() -> None:
            nonlocal step
            step += 1
            # One key: a run may have 2000 of them.
            here.log_params({"lr": step}, overwrite=True)

        weights = np.ones(100_000, np.float32)

        def work() -> None:
            # In one thread: threads of a linear algebra library would compete with the server for two cores.
            for _ in range(40):
                np.tanh(weights)

        def step_of_work() -> None:
            work()
            here.log_metrics(_FIVE)

        return await interleave(
            {
                "floor": _means(lambda: os.write(fd, _RECORD), repeats),
                "metric": _means(lambda: log_metric(here), repeats),
                "metric.away": _means(lambda: log_metric(away), repeats),
                "metrics": _means(lambda: here.log_metrics(_TEN), repeats),
                "params": _means(log_params, repeats // 40),
                "event": _means(lambda: here.log_event("bench"), repeats // 40),
                "loop": _means(step_of_work, repeats // 50, before=here.flush),
                "loop floor": _means(work, repeats // 50, before=here.flush),
            },
            rounds=run.choose(20, 3),
            warm_up=2,
            seed=SEED,
        )


@contextmanager
def _started(run: Run, url: str) -> Iterator[LiveRun]:
    spool = Path(tempfile.mkdtemp(dir=run.directory))
    with sync.Client(url, spool_dir=spool, actor="bench") as client:
        with client.start_run("bench/spool", capture=False, flush_timeout_s=30) as started:
            yield started


def _means(
    call: Callable[[], object], repeats: int, *, before: Callable[[], object] = lambda: None
) -> Callable[[], Awaitable[Sequence[float]]]:
    async def one_turn() -> Sequence[float]:
        before()
        began = perf_counter()
        for _ in range(repeats):
            call()
        took = perf_counter() - began
        return [took / repeats]

    return one_turn

"""Logs points until it is killed, and says of each step that it is on disk: what the kill test starts."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from modelbox.runtime.store.metrics import SqlMetricStore
from modelbox.runtime.store.opening import open_database
from tests.contract.metric_stores import log

WRITERS = 4


def run_of(number: int) -> str:
    """The id of a writer's run."""
    return f"run_{number:024x}"


async def main(where: str) -> None:
    """Four writers, each on the run of its own and on one that all share; ``where`` is a directory or an address."""
    url = where if "://" in where else ""
    async with open_database(url, data_dir=Path(where)) as database:
        store = SqlMetricStore(database.metrics)

        async def write(number: int) -> None:
            summary = await store.find_summary(run_of(number), "loss")
            step = 0 if summary is None else summary.latest_step + 1
            while True:
                await log(store, run_of(number), {"loss": [(step, 1, 0.5)], "note": [(step, 1, f"step {step}")]})
                await log(store, run_of(WRITERS), {"all": [(step * WRITERS + number, 1, float(step))]})
                print(number, step, flush=True)
                step += 1

        async with anyio.create_task_group() as tasks:
            for number in range(WRITERS):
                tasks.start_soon(write, number)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])

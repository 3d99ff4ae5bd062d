"""Ending what a shared database runs beside its transactions."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from modelbox.runtime.store.shared import end_task


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


async def test_a_task_ends_that_lost_its_first_cancellation() -> None:
    lost = 0

    async def stubborn() -> None:
        nonlocal lost
        while True:
            try:
                await anyio.sleep_forever()
            except asyncio.CancelledError:
                if lost:
                    raise
                lost += 1

    task = asyncio.get_running_loop().create_task(stubborn())
    await asyncio.sleep(0)
    with anyio.fail_after(60):
        await end_task(task)
    assert lost == 1
    assert task.cancelled()

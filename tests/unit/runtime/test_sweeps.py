"""What the server does by itself and again and again goes on, whatever it runs into."""

from __future__ import annotations

import inspect

import anyio
import pytest

from modelbox import errors
from modelbox.runtime.app import _sweep_for_ever

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.ModelBoxError) and kind.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_sweep_that_fails_is_done_again(kind: type[errors.ModelBoxError]) -> None:
    done = anyio.Event()
    calls = 0

    async def sweep() -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            done.set()
        raise kind("not now")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_sweep_for_ever, sweep, "what nobody needs", 0.001)
        with anyio.fail_after(30):
            await done.wait()
        tasks.cancel_scope.cancel()

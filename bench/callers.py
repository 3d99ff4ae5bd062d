"""Steady callers of a model, and what they see: latencies, failures, and answers that no version would give alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import anyio
import numpy as np

from modelbox import LiveModel

__all__ = ("Callers", "Seen", "calling")

_CLOSE = 1e-4


@dataclass(slots=True, kw_only=True)
class Seen:
    """One call: when it ended, how long it took (seconds), which version answered (0: it failed)."""

    at: float
    took_s: float
    version: int


@dataclass(slots=True, kw_only=True)
class Callers:
    """What the callers have seen so far.

    Attributes:
        expected: What each version answers, by number.
        mixed: Answers that are not what their version gives.
        errors: Of failed calls.
    """

    expected: Mapping[int, np.ndarray[Any, Any]]
    calls: list[Seen] = field(default_factory=list)
    mixed: int = 0
    errors: list[str] = field(default_factory=list)
    first_answer_at: dict[int, float] = field(default_factory=dict)
    _answered: dict[int, anyio.Event] = field(default_factory=dict)

    async def first_answer(self, version: int) -> float:
        """Waits until ``version`` has answered a call after this one; returns when, on the clock of `perf_counter`."""
        event = self._answered[version] = anyio.Event()
        await event.wait()
        return self.first_answer_at[version]

    def between(self, begin: float, end: float) -> list[float]:
        """Latencies in seconds of the calls that ended in a span of time."""
        return [call.took_s for call in self.calls if begin <= call.at < end]

    async def _keep_calling(self, model: LiveModel, inputs: Mapping[str, Any], pause_s: float) -> None:
        clock = perf_counter
        while True:
            began = clock()
            try:
                outputs = await model.predict(inputs)
            except Exception as exc:
                self.errors.append(repr(exc))
                self.calls.append(Seen(at=clock(), took_s=clock() - began, version=0))
                continue
            ended = clock()
            version: int = outputs.version.version  # type: ignore[attr-defined,unused-ignore]
            self.calls.append(Seen(at=ended, took_s=ended - began, version=version))
            if (event := self._answered.get(version)) is not None and not event.is_set():
                self.first_answer_at[version] = ended
                event.set()
            if not np.allclose(outputs["y"], self.expected[version], atol=_CLOSE):
                self.mixed += 1
            await anyio.sleep(pause_s)


@asynccontextmanager
async def calling(
    model: LiveModel,
    inputs: Mapping[str, Any],
    expected: Mapping[int, np.ndarray[Any, Any]],
    *,
    callers: int,
    pause_s: float,
) -> AsyncIterator[Callers]:
    """Callers that each call, pause for ``pause_s`` seconds, and call again, until the block ends."""
    seen = Callers(expected=expected)
    async with anyio.create_task_group() as group:
        for _ in range(callers):
            group.start_soon(seen._keep_calling, model, inputs, pause_s)
        yield seen
        group.cancel_scope.cancel()

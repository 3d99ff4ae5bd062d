"""A server for spools, in memory: takes each number of a spool once, as the real one does, and can be told to fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np

from modelbox.config import ClientConfig, load_client_config
from modelbox.errors import ModelBoxError, Unavailable
from modelbox.objects import JsonValue
from modelbox.tracking import Delivered, MetricColumns, Operation, OperationPayload, Rejection

__all__ = ("MemoryServer", "config_for", "points_of")


@dataclass(slots=True)
class MemoryServer:
    """What was delivered, once."""

    operations: list[OperationPayload] = field(default_factory=list)
    points: dict[tuple[str, str, int, int], float | bytes] = field(default_factory=dict)
    artifacts: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)
    calls: int = 0
    away: ModelBoxError | None = None
    """Raised by every call while it is set."""
    last_steps: dict[str, int] = field(default_factory=dict)
    """What is said of the metrics of every run."""
    hold_uploads: threading.Event | None = None
    """Uploads wait for it, in a thread."""
    uploads: int = 0
    """How many have begun."""
    lose_answers: int = 0
    """So many of the next answers do not arrive, though the call was done."""
    refuse: Callable[[OperationPayload], ModelBoxError | None] = lambda _: None
    """Says why an operation is refused for good."""
    fail_call: Callable[[Sequence[Operation]], ModelBoxError | None] = lambda _: None
    """Says why a call fails as a whole."""
    _last: dict[str, int] = field(default_factory=dict)
    _refused: dict[str, list[Rejection]] = field(default_factory=dict)

    async def deliver(self, spool: str, operations: Sequence[Operation]) -> Delivered:
        self.calls += 1
        if self.away is not None:
            raise self.away
        if (error := self.fail_call(operations)) is not None:
            raise error
        assert [one.seq for one in operations] == sorted({one.seq for one in operations})
        rejections = []
        for one in operations:
            error = self.refuse(one.payload)
            if isinstance(one.payload, MetricColumns):
                if error is None:
                    for point, value in points_of(one.payload):
                        self.points.setdefault(point, value)
            elif one.seq <= self._last.get(spool, 0):
                rejections += [known for known in self._refused.get(spool, []) if known.seq == one.seq]
                continue
            elif error is None:
                self.operations.append(one.payload)
            if error is not None:
                rejections.append(Rejection(seq=one.seq, code=error.code, message=error.message))
        before = [known for known in self._refused.get(spool, []) if known.seq >= operations[0].seq]
        self._refused[spool] = [*before, *(new for new in rejections if new not in before)]
        self._last[spool] = max([self._last.get(spool, 0), *(one.seq for one in operations)])
        if self.lose_answers:
            self.lose_answers -= 1
            raise Unavailable("the answer was lost")
        return Delivered(seq=operations[-1].seq, rejections=tuple(rejections))

    async def upload(
        self,
        parent: str,
        name: str,
        files: Mapping[str, Path],
        *,
        labels: Mapping[str, str],
        metadata: Mapping[str, JsonValue],
    ) -> None:
        if self.away is not None:
            raise self.away
        self.uploads += 1
        if self.hold_uploads is not None:
            await anyio.to_thread.run_sync(self.hold_uploads.wait, abandon_on_cancel=True)
        self.artifacts.append((parent, name, {path: local.read_bytes() for path, local in files.items()}))

    async def read_last_steps(self, object_id: str) -> Mapping[str, int]:
        if self.away is not None:
            raise self.away
        return self.last_steps

    def series(self, key: str) -> list[tuple[int, float | bytes]]:
        """Steps and values of one key, by step."""
        return sorted((step, value) for (_, name, step, _), value in self.points.items() if name == key)

    def of(self, kind: type) -> list[OperationPayload]:
        """The operations of one type."""
        return [one for one in self.operations if isinstance(one, kind)]


def points_of(columns: MetricColumns) -> list[tuple[tuple[str, str, int, int], float | bytes]]:
    """The points in some columns, by what identifies them."""
    count = len(columns)
    index = np.frombuffer(columns.key_index, "<u4").tolist() or [0] * count
    kinds = list(columns.kinds) or [0] * count
    payloads = iter(columns.payloads)
    steps, times = np.frombuffer(columns.steps, "<i8").tolist(), np.frombuffer(columns.times_us, "<i8").tolist()
    values = np.frombuffer(columns.values, "<f8").tolist()
    assert len(index) == len(kinds) == len(steps) == len(times) == len(values) == count
    found = [
        ((columns.object, columns.keys[index[at]], steps[at], times[at]), next(payloads) if kinds[at] else values[at])
        for at in range(count)
    ]
    assert next(payloads, None) is None
    return found


def config_for(directory: Path, **settings: Any) -> ClientConfig:
    """Settings for a spool below ``directory``, for a server that is not there."""
    known = {"url": "http://127.0.0.1:9", "spool_dir": directory / "spool", "actor": "tester", **settings}
    return load_client_config(env={"HOME": str(directory)}, **known)

"""From a model in memory to a published version, with either client.

Owns the directory that the file is exported to: it is there until the upload is done or given up.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio.to_thread

from modelbox import sync
from modelbox.client import Client
from modelbox.objects import Created, JsonValue, ModelVersion
from modelbox.run import LiveRun

__all__ = ("Export", "Published", "publish_export")

Published = Created[ModelVersion]

_FLUSH_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What is to be published.

    Attributes:
        path: ``namespace/model``.
        write: Writes the model's files into a directory.
        run: The run that made it, or its id.
        params: Hyperparameters that the run gets.
        metrics: Of the version, and of a live run.
        options: For `Client.publish`.
    """

    path: str
    write: Callable[[Path], object]
    run: LiveRun | str | None = None
    params: Mapping[str, JsonValue] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """Empty where there is no run."""
        return self.run.id if isinstance(self.run, LiveRun) else self.run or ""

    @property
    def arguments(self) -> dict[str, Any]:
        """For `Client.publish`, beside path and files."""
        given: dict[str, Any] = {"signature": "auto", "run": self.run_id, "metrics": self.metrics}
        return given | dict(self.options)

    def record(self, run: LiveRun) -> None:
        """Logs parameters and metrics to the run."""
        run.log_params(self.params)
        run.log_metrics(dict(self.metrics))


def publish_export(client: Client | sync.Client, export: Export) -> Published | Coroutine[Any, Any, Published]:
    """Exports and publishes: at once with the blocking client, otherwise when the result is awaited."""
    return _publish(client, export) if isinstance(client, Client) else _publish_sync(client, export)


async def _publish(client: Client, export: Export) -> Published:
    with tempfile.TemporaryDirectory(prefix="modelbox-export-") as directory:
        await anyio.to_thread.run_sync(export.write, Path(directory))
        if isinstance(export.run, LiveRun):
            export.record(export.run)
            # The version says which run made it, so the server must know the run first.
            await export.run.aflush(_FLUSH_S)
        elif export.run and export.params:
            await client.set_params(export.run, export.params)
        return await client.publish(export.path, directory, **export.arguments)


def _publish_sync(client: sync.Client, export: Export) -> Published:
    with tempfile.TemporaryDirectory(prefix="modelbox-export-") as directory:
        export.write(Path(directory))
        if isinstance(export.run, LiveRun):
            export.record(export.run)
            export.run.flush(_FLUSH_S)
        elif export.run and export.params:
            client.set_params(export.run, export.params)
        return client.publish(export.path, directory, **export.arguments)

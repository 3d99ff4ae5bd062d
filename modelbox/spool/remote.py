"""The central server as the destination of spools.

Owns the connection that delivers, and what a spool may say in words that the server's operations do not have: a data
set by its name. Belongs to one asyncio loop, the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from modelbox._transport.source import RemoteSource
from modelbox._transport.transfer import upload_artifact
from modelbox.config import ClientConfig
from modelbox.objects import JsonValue
from modelbox.spool.push import DATASET
from modelbox.tracking import Delivered, NewEdges, Operation

__all__ = ("Remote",)


class Remote:
    """`modelbox.spool.push.Destination` over the network; connects with the first call."""

    def __init__(self, config: ClientConfig) -> None:
        self._source = RemoteSource(config)
        self._datasets: dict[str, str] = {}

    async def aclose(self) -> None:
        """Closes all connections. Idempotent."""
        await self._source.aclose()

    async def deliver(self, spool: str, operations: Sequence[Operation]) -> Delivered:
        """See `modelbox.spool.push.Destination.deliver`."""
        return await self._source.tracking.deliver(spool, [await self._resolved(one) for one in operations])

    async def upload(
        self,
        parent: str,
        name: str,
        files: Mapping[str, Path],
        *,
        labels: Mapping[str, str],
        metadata: Mapping[str, JsonValue],
    ) -> None:
        """See `modelbox.spool.push.Destination.upload`."""
        await upload_artifact(self._source, parent, name, files, labels=labels, metadata=metadata, on_progress=None)

    async def last_steps(self, object_id: str) -> Mapping[str, int]:
        """The last step of each metric of an object, by key."""
        summaries = await self._source.tracking.get_metric_summaries([object_id])
        return {summary.key: summary.latest_step for summary in summaries}

    async def _resolved(self, operation: Operation) -> Operation:
        """Puts ids where a dataset is named."""
        edges = operation.payload
        if not isinstance(edges, NewEdges) or not any(edge.source.startswith(DATASET) for edge in edges.edges):
            return operation
        found = tuple(
            [
                replace(edge, source=await self._dataset(edge.source.removeprefix(DATASET)))
                if edge.source.startswith(DATASET)
                else edge
                for edge in edges.edges
            ]
        )
        return replace(operation, payload=NewEdges(edges=found))

    async def _dataset(self, name: str) -> str:
        if name not in self._datasets:
            version = await self._source.tracking.get_dataset_version(name)
            if "@" not in name:
                return version.id  # the newest, which may be another one next time
            self._datasets[name] = version.id
        return self._datasets[name]

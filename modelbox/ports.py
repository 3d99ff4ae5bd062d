"""What the loader needs from the outside, as protocols.

The loader sees only these; `modelbox._transport` implements them over gRPC and HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from modelbox.feed import FeedItem
from modelbox.manifest import ManifestFile
from modelbox.objects import InstanceReport, ModelVersion, Resolved
from modelbox.refs import ModelRef

__all__ = ("ByteStream", "ModelSource")

ByteStream = AsyncIterator[bytes]
"""Chunks of a file, in order; what they add up to is checked by whoever reads them."""


class ModelSource(Protocol):
    """The central server, as a loader sees it.

    Concurrency: every method may be called by many tasks of the engine's loop at once.
    Errors: `Unavailable`, `DeadlineExceeded` or `ProtocolError` for the transport, and what the server answers.
    """

    async def resolve(self, ref: ModelRef) -> Resolved:
        """What ``ref`` points to now.

        Raises:
            NotFoundError: The model, alias or version does not exist; says what does.
        """

    async def begin_download(self, version: ModelVersion) -> str:
        """Records one download in the change feed and returns its id for `open_file`."""

    def open_file(
        self, version: ModelVersion, file: ManifestFile, *, offset: int = 0, download_id: str = ""
    ) -> AbstractAsyncContextManager[ByteStream]:
        """Opens the bytes of one file from ``offset`` on."""

    def watch(self, objects: Sequence[str], token: str) -> AbstractAsyncContextManager[AsyncIterator[FeedItem]]:
        """Follows aliases and versions of these models (``namespace/model``) from ``token`` on, as one stream.

        The iterator ends with a `Resync`, or raises `Unavailable` when the connection breaks or is silent for longer
        than three bookmarks.
        """

    async def report(self, reports: Sequence[InstanceReport]) -> None:
        """Tells the server what this instance serves; also the heartbeat."""

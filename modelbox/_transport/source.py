"""The central server as the loader sees it: gRPC for what is small, HTTP for bytes.

Owns one `Connection` and one `HttpFiles` and makes a `modelbox.ports.ModelSource` of them. Belongs to one event loop:
make it, use it and close it there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

from modelbox._transport.access import AccessCalls
from modelbox._transport.audit import AuditCalls
from modelbox._transport.grpc import Connection
from modelbox._transport.http import HttpFiles
from modelbox._transport.rules import RuleCalls
from modelbox._transport.space import SpaceCalls
from modelbox._transport.tracking import TrackingCalls
from modelbox.config import ClientConfig
from modelbox.feed import FeedItem, Filter, Kind
from modelbox.manifest import ManifestFile
from modelbox.objects import InstanceReport, ModelVersion, Resolved
from modelbox.ports import ByteStream
from modelbox.refs import ModelRef

__all__ = ("RemoteSource",)


class RemoteSource:
    """`modelbox.ports.ModelSource` over the network.

    Makes no connection before its first call.

    Attributes:
        config: The settings in force.
        grpc: Remote calls about models, artifacts, the fleet and the feed.
        tracking: Remote calls about all that training records.
        space: Remote calls about retention and space.
        access: Remote calls about accounts, roles and tokens.
        audit: Remote calls about the audit log.
        rules: Remote calls about rules and protected aliases.
        http: Uploads and downloads.
    """

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self.http = HttpFiles(config)
        self.grpc = Connection(config, self.http)
        self.tracking = TrackingCalls(self.grpc)
        self.space = SpaceCalls(self.grpc)
        self.access = AccessCalls(self.grpc)
        self.audit = AuditCalls(self.grpc)
        self.rules = RuleCalls(self.grpc)

    async def aclose(self) -> None:
        """Closes all connections. Idempotent."""
        await self.grpc.aclose()
        await self.http.aclose()

    async def resolve(self, ref: ModelRef) -> Resolved:
        """What ``ref`` points to now."""
        return await self.grpc.resolve(ref)

    async def begin_download(self, version: ModelVersion) -> str:
        """Records one download in the change feed and returns its id for `open_file`."""
        return await self.grpc.begin_download(version.ref)

    def open_file(
        self, version: ModelVersion, file: ManifestFile, *, offset: int = 0, download_id: str = ""
    ) -> AbstractAsyncContextManager[ByteStream]:
        """Opens the bytes of one file from ``offset`` on."""
        return self.http.open_version_file(version.ref, file, offset=offset, download_id=download_id)

    def watch(self, objects: Sequence[str], token: str) -> AbstractAsyncContextManager[AsyncIterator[FeedItem]]:
        """Follows the change feed for these models from ``token`` on, as one stream."""
        return self.grpc.watch(Filter(objects=tuple(objects), kinds=(Kind.ALIAS, Kind.VERSION)), token)

    async def report(self, reports: Sequence[InstanceReport]) -> None:
        """Tells the server what this instance serves; also the heartbeat."""
        await self.grpc.report(reports)

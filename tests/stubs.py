"""The generated gRPC stubs for a test server, without the client library in between."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from grpclib.client import Channel
from grpclib.config import Configuration
from grpclib.exceptions import GRPCError

from modelbox import _wire as wire
from modelbox._proto.modelbox import v1 as pb
from modelbox.errors import ModelBoxError
from modelbox.manifest import Manifest, ManifestFile
from modelbox.refs import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Stubs:
    """All services over one channel."""

    channel: Channel
    registry: pb.RegistryServiceStub
    artifacts: pb.ArtifactServiceStub
    watch: pb.WatchServiceStub
    fleet: pb.FleetServiceStub
    server: pb.ServerServiceStub


@asynccontextmanager
async def connect(grpc_address: str, *, actor: str = "tester", window: int = 4 << 20) -> AsyncIterator[Stubs]:
    """Stubs for the server at ``host:port``; every call names ``actor`` and ends after 30 s."""
    host, _, port = grpc_address.rpartition(":")
    config = Configuration(http2_connection_window_size=window, http2_stream_window_size=window)
    async with Channel(host, int(port), config=config) as channel:
        metadata = {wire.ACTOR_KEY: actor}
        yield Stubs(
            channel=channel,
            registry=pb.RegistryServiceStub(channel, metadata=metadata, timeout=30),
            artifacts=pb.ArtifactServiceStub(channel, metadata=metadata, timeout=30),
            watch=pb.WatchServiceStub(channel, metadata=metadata),
            fleet=pb.FleetServiceStub(channel, metadata=metadata, timeout=30),
            server=pb.ServerServiceStub(channel, metadata=metadata, timeout=30),
        )


def digest_of(data: bytes) -> Digest:
    """Its SHA-256 as a digest."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def error_of(error: GRPCError, trailer: bytes | None) -> ModelBoxError:
    """What the client library would raise."""
    return wire.unpack_error(error.status.value, error.message or "", trailer)


async def upload(stubs: Stubs, namespace: str, data: bytes, *, chunk: int = 1 << 20) -> Digest:
    """Uploads bytes as a gRPC stream."""
    digest = digest_of(data)
    begun = await stubs.artifacts.begin_upload(
        pb.BeginUploadRequest(namespace=namespace, digest=digest, size_bytes=len(data))
    )
    if not begun.complete:

        async def messages() -> AsyncIterator[pb.UploadRequest]:
            yield pb.UploadRequest(upload_id=begun.upload_id, offset=begun.offset)
            for start in range(begun.offset, len(data), chunk):
                yield pb.UploadRequest(data=data[start : start + chunk])

        answer = await stubs.artifacts.upload(messages())
        assert (answer.digest, answer.size_bytes) == (digest, len(data))
    return digest


async def publish(
    stubs: Stubs, namespace: str, model: str, files: dict[str, bytes], *, aliases: tuple[str, ...] = ()
) -> pb.PublishVersionResponse:
    """Uploads files and publishes a version of them."""
    listed = [
        ManifestFile(path=path, size_bytes=len(data), digest=await upload(stubs, namespace, data))
        for path, data in files.items()
    ]
    manifest = Manifest(files=tuple(listed))
    return await stubs.registry.publish_version(
        pb.PublishVersionRequest(
            namespace=namespace, model=model, manifest_json=manifest.to_json(), aliases=list(aliases), reason="test"
        )
    )

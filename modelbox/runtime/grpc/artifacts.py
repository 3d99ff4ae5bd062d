"""ArtifactService over gRPC: decode, call the service, encode."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from modelbox import _wire as wire
from modelbox._proto.modelbox import v1 as pb
from modelbox.errors import ConflictError, InvalidError
from modelbox.refs import ModelRef
from modelbox.runtime.caller import current_actor, current_caller, current_scope
from modelbox.runtime.grpc.calls import Streaming
from modelbox.runtime.metrics import Metrics
from modelbox.runtime.services.artifacts import ArtifactService

__all__ = ("ArtifactAdapter",)


class ArtifactAdapter(Streaming, pb.ArtifactServiceBase):
    """See ``protos/modelbox/v1/artifacts.proto``."""

    def __init__(self, artifacts: ArtifactService, metrics: Metrics) -> None:
        self._artifacts = artifacts
        self._metrics = metrics

    async def begin_upload(self, message: pb.BeginUploadRequest) -> pb.BeginUploadResponse:
        """See the proto."""
        upload = await self._artifacts.begin_upload(
            message.namespace, message.digest, message.size_bytes, caller=current_caller()
        )
        return pb.BeginUploadResponse(upload_id=upload.id, offset=upload.offset, complete=upload.complete)

    async def upload(self, messages: AsyncIterator[pb.UploadRequest]) -> pb.UploadResponse:
        """See the proto."""
        requests = aiter(messages)
        first = await anext(requests, None)
        if first is None:
            raise InvalidError("an upload has at least one message, with upload_id and offset")

        async def chunks() -> AsyncIterator[bytes]:
            self._metrics.count_bytes("grpc", "in", len(first.data))
            yield first.data
            async for message in requests:
                self._metrics.count_bytes("grpc", "in", len(message.data))
                yield message.data

        upload = await self._artifacts.write_upload(first.upload_id, first.offset, chunks())
        if not upload.complete:
            raise ConflictError(
                f"the stream ended after {upload.offset} of {upload.size_bytes} bytes: continue there",
                current=upload.offset,
            )
        return pb.UploadResponse(digest=upload.digest, size_bytes=upload.size_bytes)

    async def begin_download(self, message: pb.BeginDownloadRequest) -> pb.BeginDownloadResponse:
        """See the proto."""
        download = await self._artifacts.begin_download(ModelRef.parse(message.ref), actor=current_actor())
        return pb.BeginDownloadResponse(download_id=download.id)

    async def download(self, message: pb.DownloadRequest) -> AsyncGenerator[pb.DownloadResponse, None]:
        """See the proto."""
        if bool(message.ref) == bool(message.artifact_id):
            raise InvalidError("a download names exactly one of ref and artifact_id")
        if message.artifact_id:
            file = await self._artifacts.open_artifact_file(message.artifact_id, message.path)
        else:
            file = await self._artifacts.open_version_file(
                ModelRef.parse(message.ref),
                message.path,
                download_id=message.download_id,
                actor=current_actor(),
                offset=message.offset,
            )
        async for chunk in file.read(message.offset):
            yield pb.DownloadResponse(data=chunk)
            self._metrics.count_bytes("grpc", "out", len(chunk))

    async def create_artifact(self, message: pb.CreateArtifactRequest) -> pb.CreateArtifactResponse:
        """See the proto."""
        created = await self._artifacts.create_artifact(
            wire.unpack_new_artifact(message), actor=current_actor(), caller=current_caller()
        )
        return pb.CreateArtifactResponse(artifact=wire.pack_artifact(created.item), existed=created.existed)

    async def get_artifact(self, message: pb.GetArtifactRequest) -> pb.Artifact:
        """See the proto."""
        return wire.pack_artifact(await self._artifacts.get_artifact(message.artifact_id))

    async def list_artifacts(self, message: pb.ListArtifactsRequest) -> pb.ListArtifactsResponse:
        """See the proto."""
        page = await self._artifacts.list_artifacts(
            parent=message.parent,
            namespace=message.namespace,
            page_size=message.page_size,
            page_token=message.page_token,
            scope=current_scope(),
        )
        return pb.ListArtifactsResponse(
            artifacts=[wire.pack_artifact(item) for item in page.items], next_page_token=page.next_token
        )

    async def delete_artifact(self, message: pb.DeleteArtifactRequest) -> pb.DeleteArtifactResponse:
        """See the proto."""
        await self._artifacts.delete_artifact(message.artifact_id, actor=current_actor())
        return pb.DeleteArtifactResponse()

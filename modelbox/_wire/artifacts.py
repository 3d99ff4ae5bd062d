"""Artifacts as messages and back."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire.values import pack_json, pack_time, present, unpack_json, unpack_time
from modelbox.objects import (
    Artifact,
    ArtifactFile,
    Created,
    NewArtifact,
)
from modelbox.refs import Digest


def pack_artifact_file(value: ArtifactFile) -> pb.ArtifactFile:
    """As a message."""
    return pb.ArtifactFile(
        path=value.path, size_bytes=value.size_bytes, digest=value.digest, media_type=value.media_type, uri=value.uri
    )


def unpack_artifact_file(message: pb.ArtifactFile) -> ArtifactFile:
    """From a message; the rules for paths, digests and URIs are the service's."""
    return ArtifactFile(
        path=message.path,
        size_bytes=message.size_bytes,
        digest=Digest(message.digest),
        media_type=message.media_type or "application/octet-stream",
        uri=message.uri,
    )


def pack_artifact(value: Artifact) -> pb.Artifact:
    """As a message."""
    return pb.Artifact(
        id=value.id,
        namespace=value.namespace,
        parent=value.parent,
        name=value.name,
        files=[pack_artifact_file(file) for file in value.files],
        labels=dict(value.labels),
        metadata_json=pack_json(value.metadata),
        created_at_us=pack_time(value.created_at),
        created_by=value.created_by,
        mod_rev=value.mod_rev,
    )


def unpack_artifact(message: pb.Artifact) -> Artifact:
    """From a message."""
    return Artifact(
        id=message.id,
        namespace=message.namespace,
        parent=message.parent,
        name=message.name,
        files=tuple(unpack_artifact_file(file) for file in message.files),
        labels=dict(message.labels),
        metadata=unpack_json(message.metadata_json),
        created_at=unpack_time(message.created_at_us),
        created_by=message.created_by,
        mod_rev=message.mod_rev,
    )


def pack_new_artifact(value: NewArtifact) -> pb.CreateArtifactRequest:
    """As a request."""
    return pb.CreateArtifactRequest(
        parent=value.parent,
        name=value.name,
        files=[pack_artifact_file(file) for file in value.files],
        labels=dict(value.labels),
        metadata_json=pack_json(value.metadata),
    )


def unpack_new_artifact(message: pb.CreateArtifactRequest) -> NewArtifact:
    """From a request."""
    return NewArtifact(
        parent=message.parent,
        name=message.name,
        files=tuple(unpack_artifact_file(file) for file in message.files),
        labels=dict(message.labels),
        metadata=unpack_json(message.metadata_json),
    )


def unpack_created_artifact(message: pb.CreateArtifactResponse) -> Created[Artifact]:
    """From an answer."""
    return Created(item=unpack_artifact(present(message.artifact, "the artifact")), existed=message.existed)

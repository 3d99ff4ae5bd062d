"""Namespaces, models, versions and aliases as messages and back."""

from __future__ import annotations

import hashlib

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire.values import pack_json, pack_time, present, unpack_json, unpack_time
from modelbox.errors import IntegrityError, InvalidError
from modelbox.manifest import Manifest
from modelbox.objects import (
    Alias,
    AliasMove,
    Created,
    Model,
    ModelPatch,
    ModelVersion,
    Namespace,
    NewModel,
    NewVersion,
    Resolved,
    VersionPatch,
)
from modelbox.refs import ModelRef, parse_digest


def pack_namespace(value: Namespace) -> pb.Namespace:
    """As a message."""
    return pb.Namespace(name=value.name, created_at_us=pack_time(value.created_at), mod_rev=value.mod_rev)


def unpack_namespace(message: pb.Namespace) -> Namespace:
    """From a message."""
    return Namespace(name=message.name, created_at=unpack_time(message.created_at_us), mod_rev=message.mod_rev)


def pack_model(value: Model) -> pb.Model:
    """As a message."""
    return pb.Model(
        id=value.id,
        namespace=value.namespace,
        name=value.name,
        owner=value.owner,
        task=value.task,
        description=value.description,
        labels=dict(value.labels),
        metadata_json=pack_json(value.metadata),
        latest_version=value.latest_version,
        created_at_us=pack_time(value.created_at),
        mod_rev=value.mod_rev,
    )


def unpack_model(message: pb.Model) -> Model:
    """From a message."""
    return Model(
        id=message.id,
        namespace=message.namespace,
        name=message.name,
        owner=message.owner,
        task=message.task,
        description=message.description,
        labels=dict(message.labels),
        metadata=unpack_json(message.metadata_json),
        latest_version=message.latest_version,
        created_at=unpack_time(message.created_at_us),
        mod_rev=message.mod_rev,
    )


def pack_version(value: ModelVersion) -> pb.ModelVersion:
    """As a message."""
    return pb.ModelVersion(
        id=value.id,
        namespace=value.namespace,
        model=value.model,
        version=value.version,
        digest=value.digest,
        manifest_json=value.manifest.to_json(),
        description=value.description,
        labels=dict(value.labels),
        metadata_json=pack_json(value.metadata),
        metrics=dict(value.metrics),
        created_at_us=pack_time(value.created_at),
        created_by=value.created_by,
        mod_rev=value.mod_rev,
        bundle_json=value.bundle.encode(),
    )


def unpack_version(message: pb.ModelVersion) -> ModelVersion:
    """From a message.

    Raises:
        InvalidError: The manifest does not parse, or ``digest`` is not a digest.
        IntegrityError: The manifest is not the one that ``digest`` names.
    """
    digest = parse_digest(message.digest)
    actual = "sha256:" + hashlib.sha256(message.manifest_json).hexdigest()
    if actual != digest:
        raise IntegrityError(
            f"the manifest of {message.namespace}/{message.model}@{message.version} is not the one that its digest "
            "names: it was changed on its way or where it is stored",
            expected=digest,
            actual=actual,
        )
    return ModelVersion(
        id=message.id,
        namespace=message.namespace,
        model=message.model,
        version=message.version,
        digest=digest,
        manifest=Manifest.from_json(message.manifest_json),
        description=message.description,
        labels=dict(message.labels),
        metadata=unpack_json(message.metadata_json),
        metrics=dict(message.metrics),
        created_at=unpack_time(message.created_at_us),
        created_by=message.created_by,
        mod_rev=message.mod_rev,
        bundle=unpack_bundle(message.bundle_json),
    )


def unpack_bundle(data: bytes) -> str:
    """The text of a signature; what it says is up to who verifies it.

    Raises:
        InvalidError: It is not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise InvalidError("the signature is not UTF-8 text") from exc


def pack_alias(value: Alias) -> pb.Alias:
    """As a message."""
    return pb.Alias(
        namespace=value.namespace,
        model=value.model,
        name=value.name,
        version=value.version,
        digest=value.digest,
        moved_at_us=pack_time(value.moved_at),
        moved_by=value.moved_by,
        reason=value.reason,
        mod_rev=value.mod_rev,
    )


def unpack_alias(message: pb.Alias) -> Alias:
    """From a message."""
    return Alias(
        namespace=message.namespace,
        model=message.model,
        name=message.name,
        version=message.version,
        digest=parse_digest(message.digest),
        moved_at=unpack_time(message.moved_at_us),
        moved_by=message.moved_by,
        reason=message.reason,
        mod_rev=message.mod_rev,
    )


def pack_alias_move(value: AliasMove) -> pb.AliasMove:
    """As a message."""
    return pb.AliasMove(
        namespace=value.namespace,
        model=value.model,
        name=value.name,
        from_version=value.from_version,
        to_version=value.to_version,
        moved_at_us=pack_time(value.moved_at),
        moved_by=value.moved_by,
        reason=value.reason,
        rev=value.rev,
    )


def unpack_alias_move(message: pb.AliasMove) -> AliasMove:
    """From a message."""
    return AliasMove(
        namespace=message.namespace,
        model=message.model,
        name=message.name,
        from_version=message.from_version,
        to_version=message.to_version,
        moved_at=unpack_time(message.moved_at_us),
        moved_by=message.moved_by,
        reason=message.reason,
        rev=message.rev,
    )


def pack_resolved(value: Resolved) -> pb.ResolveResponse:
    """As a message."""
    return pb.ResolveResponse(
        ref=str(value.ref),
        version=pack_version(value.version),
        alias=None if value.alias is None else pack_alias(value.alias),
        token=value.token,
        server_id=value.server_id,
    )


def unpack_resolved(message: pb.ResolveResponse) -> Resolved:
    """From a message."""
    return Resolved(
        ref=ModelRef.parse(message.ref),
        version=unpack_version(present(message.version, "the version")),
        alias=None if message.alias is None else unpack_alias(message.alias),
        token=message.token,
        server_id=message.server_id,
    )


def pack_new_model(value: NewModel) -> pb.CreateModelRequest:
    """As a request."""
    return pb.CreateModelRequest(
        namespace=value.namespace,
        name=value.name,
        owner=value.owner,
        task=value.task,
        description=value.description,
        labels=dict(value.labels),
        metadata_json=pack_json(value.metadata),
    )


def unpack_new_model(message: pb.CreateModelRequest) -> NewModel:
    """From a request."""
    return NewModel(
        namespace=message.namespace,
        name=message.name,
        owner=message.owner,
        task=message.task,
        description=message.description,
        labels=dict(message.labels),
        metadata=unpack_json(message.metadata_json),
    )


def unpack_created_model(message: pb.CreateModelResponse) -> Created[Model]:
    """From an answer."""
    return Created(item=unpack_model(present(message.model, "the model")), existed=message.existed)


def pack_model_patch(namespace: str, name: str, patch: ModelPatch) -> pb.UpdateModelRequest:
    """As a request."""
    return pb.UpdateModelRequest(
        namespace=namespace,
        name=name,
        owner=patch.owner,
        task=patch.task,
        description=patch.description,
        labels=dict(patch.labels),
        remove_labels=list(patch.remove_labels),
        metadata_json=pack_json(patch.metadata),
        remove_metadata=list(patch.remove_metadata),
    )


def unpack_model_patch(message: pb.UpdateModelRequest) -> ModelPatch:
    """From a request."""
    return ModelPatch(
        owner=message.owner,
        task=message.task,
        description=message.description,
        labels=dict(message.labels),
        remove_labels=tuple(message.remove_labels),
        metadata=unpack_json(message.metadata_json),
        remove_metadata=tuple(message.remove_metadata),
    )


def pack_new_version(value: NewVersion) -> pb.PublishVersionRequest:
    """As a request."""
    return pb.PublishVersionRequest(
        namespace=value.namespace,
        model=value.model,
        manifest_json=value.manifest.to_json(),
        description=value.description,
        labels=dict(value.labels),
        metadata_json=pack_json(value.metadata),
        metrics=dict(value.metrics),
        aliases=list(value.aliases),
        reason=value.reason,
        run=value.run,
        checkpoint=value.checkpoint,
        bundle_json=value.bundle.encode(),
        expected_version=value.expected_version,
    )


def unpack_new_version(message: pb.PublishVersionRequest) -> NewVersion:
    """From a request."""
    return NewVersion(
        namespace=message.namespace,
        model=message.model,
        manifest=Manifest.from_json(message.manifest_json),
        description=message.description,
        labels=dict(message.labels),
        metadata=unpack_json(message.metadata_json),
        metrics=dict(message.metrics),
        aliases=tuple(message.aliases),
        reason=message.reason,
        run=message.run,
        checkpoint=message.checkpoint,
        bundle=unpack_bundle(message.bundle_json),
        expected_version=message.expected_version,
    )


def unpack_created_version(message: pb.PublishVersionResponse) -> Created[ModelVersion]:
    """From an answer."""
    return Created(item=unpack_version(present(message.version, "the version")), existed=message.existed)


def pack_version_patch(namespace: str, model: str, version: int, patch: VersionPatch) -> pb.UpdateVersionRequest:
    """As a request."""
    return pb.UpdateVersionRequest(
        namespace=namespace,
        model=model,
        version=version,
        description=patch.description,
        labels=dict(patch.labels),
        remove_labels=list(patch.remove_labels),
        metadata_json=pack_json(patch.metadata),
        remove_metadata=list(patch.remove_metadata),
        metrics=dict(patch.metrics),
        remove_metrics=list(patch.remove_metrics),
        bundle_json=None if patch.bundle is None else patch.bundle.encode(),
    )


def unpack_version_patch(message: pb.UpdateVersionRequest) -> VersionPatch:
    """From a request."""
    return VersionPatch(
        description=message.description,
        labels=dict(message.labels),
        remove_labels=tuple(message.remove_labels),
        metadata=unpack_json(message.metadata_json),
        remove_metadata=tuple(message.remove_metadata),
        metrics=dict(message.metrics),
        remove_metrics=tuple(message.remove_metrics),
        bundle=None if message.bundle_json is None else unpack_bundle(message.bundle_json),
    )

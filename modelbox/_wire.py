"""The wire form: our objects as protobuf messages and back, errors as trailers and back.

Shared by the server's gRPC adapter and the client's transport, so that both sides agree by construction. Owns every
conversion between `modelbox.objects`/`modelbox.feed` and the generated messages; generated types never travel past the
two adapters. Refuses to do I/O and to know a gRPC library: statuses are their numbers.

``pack_*`` makes messages and never fails on valid objects. ``unpack_*`` takes messages that were made by anybody:
whatever is wrong with one raises `InvalidError` (the server answers with it, the client calls it a `ProtocolError`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import betterproto2

from ._proto.modelbox import v1 as pb
from .errors import (
    AuthError,
    ConflictError,
    DeadlineExceeded,
    IntegrityError,
    InvalidError,
    LimitError,
    ModelBoxError,
    NotFoundError,
    ProtocolError,
    StorageError,
    Unavailable,
    error_from_dict,
)
from .feed import Bookmark, Change, FeedItem, Filter, Resync, ResyncReason, Revision, Snapshot
from .manifest import Manifest
from .objects import (
    Alias,
    AliasMove,
    Artifact,
    ArtifactFile,
    Created,
    Instance,
    InstanceReport,
    InstanceState,
    JsonValue,
    Model,
    ModelPatch,
    ModelVersion,
    Namespace,
    NewArtifact,
    NewModel,
    NewVersion,
    Resolved,
    VersionPatch,
)
from .refs import Digest, ModelRef, parse_digest, shown

__all__ = (
    "ACTOR_KEY",
    "ERROR_KEY",
    "decode_message",
    "pack_alias",
    "pack_alias_move",
    "pack_artifact",
    "pack_artifact_file",
    "pack_change",
    "pack_error",
    "pack_feed_item",
    "pack_filter",
    "pack_instance",
    "pack_model",
    "pack_model_patch",
    "pack_namespace",
    "pack_new_artifact",
    "pack_new_model",
    "pack_new_version",
    "pack_report",
    "pack_resolved",
    "pack_snapshot",
    "pack_time",
    "pack_version",
    "pack_version_patch",
    "unpack_alias",
    "unpack_alias_move",
    "unpack_artifact",
    "unpack_artifact_file",
    "unpack_change",
    "unpack_created_artifact",
    "unpack_created_model",
    "unpack_created_version",
    "unpack_error",
    "unpack_feed_item",
    "unpack_filter",
    "unpack_instance",
    "unpack_model",
    "unpack_model_patch",
    "unpack_namespace",
    "unpack_new_artifact",
    "unpack_new_model",
    "unpack_new_version",
    "unpack_report",
    "unpack_resolved",
    "unpack_snapshot",
    "unpack_time",
    "unpack_version",
    "unpack_version_patch",
)

ACTOR_KEY = "modelbox-actor"
"""Request metadata (and HTTP header): who calls, for the history."""

ERROR_KEY = "modelbox-error-bin"
"""Trailer: the error as JSON, beside its gRPC status."""

MAX_ERROR_BYTES = 4096
"""A larger trailer would not pass every peer's limit for headers; then the fields stay behind."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


M = TypeVar("M", bound=betterproto2.Message)
T = TypeVar("T")


def decode_message(cls: type[M], data: bytes) -> M:
    """Reads the bytes of one message.

    The codec is pure Python and lets every kind of error through on malformed bytes; this is the one place that
    catches them.

    Raises:
        InvalidError: The bytes are not a message of this type.
    """
    try:
        return cls.parse(data)
    except Exception as exc:
        raise InvalidError(f"these {len(data)} bytes are not a valid {cls.__name__} message") from exc


# --- scalars -----------------------------------------------------------------------------------------------------


def pack_time(value: datetime) -> int:
    """Microseconds since 1970 in UTC."""
    return (value - _EPOCH) // _MICROSECOND


def unpack_time(us: int) -> datetime:
    """The time that `pack_time` packed."""
    try:
        return _EPOCH + us * _MICROSECOND
    except OverflowError as exc:
        raise InvalidError(f"{us} is not a time: expected microseconds since 1970") from exc


def _pack_json(values: Mapping[str, JsonValue]) -> dict[str, str]:
    try:
        return {key: _dumps(value) for key, value in values.items()}
    except (ValueError, TypeError, RecursionError) as exc:
        raise InvalidError(f"metadata must be JSON: {exc}") from exc


def _unpack_json(texts: Mapping[str, str]) -> dict[str, JsonValue]:
    values = {}
    for key, text in texts.items():
        try:
            values[key] = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as exc:
            raise InvalidError(f"the metadata of {shown(key)} is not JSON: {shown(text)}") from exc
    return values


def _dumps(value: JsonValue) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _refuse_constant(text: str) -> JsonValue:
    raise ValueError(f"{text} is not JSON")


def _present(message: T | None, what: str) -> T:
    if message is None:
        raise InvalidError(f"the message lacks {what}")
    return message


# --- the registry ------------------------------------------------------------------------------------------------


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
        metadata_json=_pack_json(value.metadata),
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
        metadata=_unpack_json(message.metadata_json),
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
        metadata_json=_pack_json(value.metadata),
        metrics=dict(value.metrics),
        created_at_us=pack_time(value.created_at),
        created_by=value.created_by,
        mod_rev=value.mod_rev,
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
        metadata=_unpack_json(message.metadata_json),
        metrics=dict(message.metrics),
        created_at=unpack_time(message.created_at_us),
        created_by=message.created_by,
        mod_rev=message.mod_rev,
    )


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
        version=unpack_version(_present(message.version, "the version")),
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
        metadata_json=_pack_json(value.metadata),
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
        metadata=_unpack_json(message.metadata_json),
    )


def unpack_created_model(message: pb.CreateModelResponse) -> Created[Model]:
    """From an answer."""
    return Created(item=unpack_model(_present(message.model, "the model")), existed=message.existed)


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
        metadata_json=_pack_json(patch.metadata),
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
        metadata=_unpack_json(message.metadata_json),
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
        metadata_json=_pack_json(value.metadata),
        metrics=dict(value.metrics),
        aliases=list(value.aliases),
        reason=value.reason,
    )


def unpack_new_version(message: pb.PublishVersionRequest) -> NewVersion:
    """From a request."""
    return NewVersion(
        namespace=message.namespace,
        model=message.model,
        manifest=Manifest.from_json(message.manifest_json),
        description=message.description,
        labels=dict(message.labels),
        metadata=_unpack_json(message.metadata_json),
        metrics=dict(message.metrics),
        aliases=tuple(message.aliases),
        reason=message.reason,
    )


def unpack_created_version(message: pb.PublishVersionResponse) -> Created[ModelVersion]:
    """From an answer."""
    return Created(item=unpack_version(_present(message.version, "the version")), existed=message.existed)


def pack_version_patch(namespace: str, model: str, version: int, patch: VersionPatch) -> pb.UpdateVersionRequest:
    """As a request."""
    return pb.UpdateVersionRequest(
        namespace=namespace,
        model=model,
        version=version,
        description=patch.description,
        labels=dict(patch.labels),
        remove_labels=list(patch.remove_labels),
        metadata_json=_pack_json(patch.metadata),
        remove_metadata=list(patch.remove_metadata),
        metrics=dict(patch.metrics),
        remove_metrics=list(patch.remove_metrics),
    )


def unpack_version_patch(message: pb.UpdateVersionRequest) -> VersionPatch:
    """From a request."""
    return VersionPatch(
        description=message.description,
        labels=dict(message.labels),
        remove_labels=tuple(message.remove_labels),
        metadata=_unpack_json(message.metadata_json),
        remove_metadata=tuple(message.remove_metadata),
        metrics=dict(message.metrics),
        remove_metrics=tuple(message.remove_metrics),
    )


# --- artifacts ---------------------------------------------------------------------------------------------------


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
        metadata_json=_pack_json(value.metadata),
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
        metadata=_unpack_json(message.metadata_json),
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
        metadata_json=_pack_json(value.metadata),
    )


def unpack_new_artifact(message: pb.CreateArtifactRequest) -> NewArtifact:
    """From a request."""
    return NewArtifact(
        parent=message.parent,
        name=message.name,
        files=tuple(unpack_artifact_file(file) for file in message.files),
        labels=dict(message.labels),
        metadata=_unpack_json(message.metadata_json),
    )


def unpack_created_artifact(message: pb.CreateArtifactResponse) -> Created[Artifact]:
    """From an answer."""
    return Created(item=unpack_artifact(_present(message.artifact, "the artifact")), existed=message.existed)


# --- the fleet ---------------------------------------------------------------------------------------------------


def pack_report(value: InstanceReport) -> pb.InstanceReport:
    """As a message."""
    return pb.InstanceReport(
        instance_id=value.instance_id,
        host=value.host,
        pid=value.pid,
        ref=value.ref,
        state=value.state,
        version=value.version,
        digest=value.digest,
        target_version=value.target_version,
        target_digest=value.target_digest,
        mod_rev=value.mod_rev,
        stage=value.stage,
        reason=value.reason,
        stale=value.stale,
    )


def unpack_report(message: pb.InstanceReport) -> InstanceReport:
    """From a message."""
    try:
        state = InstanceState(message.state)
    except ValueError as exc:
        raise InvalidError(
            f"{shown(message.state)} is not an instance's state: expected {', '.join(InstanceState)}"
        ) from exc
    return InstanceReport(
        instance_id=message.instance_id,
        host=message.host,
        pid=message.pid,
        ref=message.ref,
        state=state,
        version=message.version,
        digest=message.digest,
        target_version=message.target_version,
        target_digest=message.target_digest,
        mod_rev=message.mod_rev,
        stage=message.stage,
        reason=message.reason,
        stale=message.stale,
    )


def pack_instance(value: Instance) -> pb.Instance:
    """As a message."""
    return pb.Instance(
        report=pack_report(value.report),
        first_seen_at_us=pack_time(value.first_seen_at),
        last_seen_at_us=pack_time(value.last_seen_at),
        alive=value.alive,
    )


def unpack_instance(message: pb.Instance) -> Instance:
    """From a message."""
    return Instance(
        report=unpack_report(_present(message.report, "the report")),
        first_seen_at=unpack_time(message.first_seen_at_us),
        last_seen_at=unpack_time(message.last_seen_at_us),
        alive=message.alive,
    )


# --- the change feed ---------------------------------------------------------------------------------------------


def pack_filter(value: Filter) -> pb.Filter:
    """As a message."""
    return pb.Filter(namespace=value.namespace, objects=list(value.objects), kinds=list(value.kinds))


def unpack_filter(message: pb.Filter | None) -> Filter:
    """From a message; an absent one lets everything through."""
    if message is None:
        return Filter()
    return Filter(namespace=message.namespace, objects=tuple(message.objects), kinds=tuple(message.kinds))


def pack_change(value: Change) -> pb.Change:
    """As a message."""
    return pb.Change(
        rev=value.rev,
        idx=value.idx,
        namespace=value.namespace,
        object=value.object,
        kind=value.kind,
        action=value.action,
        actor=value.actor,
        at_us=pack_time(value.at),
        state_json=_dumps(value.state).encode(),
    )


def unpack_change(message: pb.Change) -> Change:
    """From a message."""
    try:
        state = json.loads(message.state_json)
    except (ValueError, RecursionError) as exc:
        raise InvalidError(f"the state of {shown(message.object)} in change {message.rev} is not JSON") from exc
    return Change(
        rev=message.rev,
        idx=message.idx,
        namespace=message.namespace,
        object=message.object,
        kind=message.kind,
        action=message.action,
        actor=message.actor,
        at=unpack_time(message.at_us),
        state=state,
    )


def pack_feed_item(item: FeedItem) -> pb.WatchResponse:
    """As one message of a watch."""
    match item:
        case Revision():
            changes = [pack_change(change) for change in item.changes]
            return pb.WatchResponse(
                revision=pb.Revision(rev=item.rev, prev_rev=item.prev_rev, changes=changes, token=item.token)
            )
        case Bookmark():
            return pb.WatchResponse(
                bookmark=pb.Bookmark(rev=item.rev, head_rev=item.head_rev, token=item.token),
            )
        case Resync():
            return pb.WatchResponse(resync=pb.Resync(reason=item.reason, message=item.message))


def unpack_feed_item(message: pb.WatchResponse) -> FeedItem | None:
    """From one message of a watch; None for an item that this program does not know yet."""
    if (revision := message.revision) is not None:
        return Revision(
            rev=revision.rev,
            prev_rev=revision.prev_rev,
            changes=tuple(unpack_change(change) for change in revision.changes),
            token=revision.token,
        )
    if (bookmark := message.bookmark) is not None:
        return Bookmark(rev=bookmark.rev, head_rev=bookmark.head_rev, token=bookmark.token)
    if (resync := message.resync) is not None:
        return Resync(reason=_reason(resync.reason), message=resync.message)
    return None


def _reason(text: str) -> ResyncReason:
    # Whatever a newer server's reason is, listing again is the answer to it.
    return ResyncReason(text) if text in ResyncReason.__members__.values() else ResyncReason.DIVERGED


def pack_snapshot(value: Snapshot) -> pb.ListResponse:
    """As a message."""
    return pb.ListResponse(
        items=[pack_change(item) for item in value.items],
        next_page_token=value.next_token,
        token=value.token,
        rev=value.rev,
    )


def unpack_snapshot(message: pb.ListResponse) -> Snapshot:
    """From a message."""
    return Snapshot(
        items=tuple(unpack_change(item) for item in message.items),
        next_token=message.next_page_token,
        token=message.token,
        rev=message.rev,
    )


# --- errors ------------------------------------------------------------------------------------------------------

_BY_STATUS: Mapping[int, type[ModelBoxError]] = {
    1: Unavailable,  # CANCELLED by a server that goes down
    3: InvalidError,
    4: DeadlineExceeded,
    5: NotFoundError,
    7: AuthError,
    8: LimitError,
    10: ConflictError,
    12: ProtocolError,  # UNIMPLEMENTED
    13: StorageError,
    14: Unavailable,
    15: IntegrityError,
    16: AuthError,
}
"""What a status means that came without our trailer: from a proxy, a library, a load balancer."""


def pack_error(error: ModelBoxError) -> bytes:
    """The trailer `ERROR_KEY`; fields that are no JSON or do not fit stay behind."""
    for fields in (error.fields, {}):
        try:
            data = _dumps({"code": error.code, "message": _cut(error.message), "fields": fields}).encode()
        except (ValueError, TypeError, RecursionError):
            continue
        if len(data) <= MAX_ERROR_BYTES:
            return data
    return _dumps({"code": error.code, "message": ascii(error.message)[:500], "fields": {}}).encode()


def _cut(text: str, limit: int = 1000) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def unpack_error(status: int, message: str, trailer: bytes | None = None) -> ModelBoxError:
    """The error of a call.

    Args:
        status: The gRPC status's number, not 0.
        message: Its text.
        trailer: Value of the trailer `ERROR_KEY` where there is one.
    """
    if trailer:
        try:
            data = json.loads(trailer)
        except (ValueError, RecursionError):
            data = None
        if isinstance(data, Mapping):
            return error_from_dict(data)
    cls = _BY_STATUS.get(status, ModelBoxError)
    return cls(message or f"the server answered with gRPC status {status} and no text")

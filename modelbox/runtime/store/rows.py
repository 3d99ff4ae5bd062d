"""Rows to objects: the selects that gather all columns of an object, and what makes the object of a row."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select

from modelbox.manifest import Manifest
from modelbox.objects import Alias, AliasMove, Artifact, ArtifactFile, JsonValue, Model, ModelVersion, Namespace
from modelbox.refs import Digest
from modelbox.runtime.store.schema import aliases, artifacts, models, namespaces, versions

__all__ = (
    "ALIASES",
    "ARTIFACTS",
    "MODELS",
    "NAMESPACES",
    "VERSIONS",
    "alias_of",
    "artifact_of",
    "dump",
    "from_us",
    "model_of",
    "move_of",
    "namespace_of",
    "new_uid",
    "to_us",
    "version_of",
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

NAMESPACES = select(namespaces)
MODELS = select(models, namespaces.c.name.label("namespace")).join(namespaces, models.c.namespace_id == namespaces.c.id)
VERSIONS = (
    select(versions, models.c.name.label("model"), namespaces.c.name.label("namespace"))
    .join(models, versions.c.model_id == models.c.id)
    .join(namespaces, models.c.namespace_id == namespaces.c.id)
)
ALIASES = (
    select(
        aliases,
        versions.c.version,
        versions.c.digest,
        models.c.name.label("model"),
        namespaces.c.name.label("namespace"),
    )
    .join(versions, aliases.c.version_id == versions.c.id)
    .join(models, aliases.c.model_id == models.c.id)
    .join(namespaces, models.c.namespace_id == namespaces.c.id)
)
ARTIFACTS = select(artifacts, namespaces.c.name.label("namespace")).join(
    namespaces, artifacts.c.namespace_id == namespaces.c.id
)


def to_us(at: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def from_us(us: int) -> datetime:
    """The time of `to_us`."""
    return _EPOCH + timedelta(microseconds=us)


def new_uid(prefix: str) -> str:
    """An opaque id that is never given twice."""
    return f"{prefix}_{secrets.token_hex(12)}"


def dump(value: Mapping[str, JsonValue]) -> str:
    """JSON text for a column, equal for equal values."""
    return json.dumps(dict(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def namespace_of(row: Any) -> Namespace:
    """Of a row of `NAMESPACES`."""
    return Namespace(name=row.name, created_at=from_us(row.created_at_us), mod_rev=row.mod_rev)


def model_of(row: Any) -> Model:
    """Of a row of `MODELS`."""
    return Model(
        id=row.uid,
        namespace=row.namespace,
        name=row.name,
        owner=row.owner,
        task=row.task,
        description=row.description,
        labels=json.loads(row.labels),
        metadata=json.loads(row.metadata),
        latest_version=row.latest_version,
        created_at=from_us(row.created_at_us),
        mod_rev=row.mod_rev,
    )


def version_of(row: Any) -> ModelVersion:
    """Of a row of `VERSIONS`."""
    return ModelVersion(
        id=row.uid,
        namespace=row.namespace,
        model=row.model,
        version=row.version,
        digest=Digest(row.digest),
        manifest=Manifest.from_json(row.manifest),
        description=row.description,
        labels=json.loads(row.labels),
        metadata=json.loads(row.metadata),
        metrics=json.loads(row.metrics),
        created_at=from_us(row.created_at_us),
        created_by=row.created_by,
        mod_rev=row.mod_rev,
        bundle=row.bundle or "",
    )


def alias_of(row: Any) -> Alias:
    """Of a row of `ALIASES`."""
    return Alias(
        namespace=row.namespace,
        model=row.model,
        name=row.name,
        version=row.version,
        digest=Digest(row.digest),
        moved_at=from_us(row.moved_at_us),
        moved_by=row.moved_by,
        reason=row.reason,
        mod_rev=row.mod_rev,
    )


def move_of(row: Any, namespace: str, model: str) -> AliasMove:
    """Of a row of `alias_moves`."""
    return AliasMove(
        namespace=namespace,
        model=model,
        name=row.name,
        from_version=row.from_version,
        to_version=row.to_version,
        moved_at=from_us(row.moved_at_us),
        moved_by=row.moved_by,
        reason=row.reason,
        rev=row.rev,
    )


def artifact_of(row: Any) -> Artifact:
    """Of a row of `ARTIFACTS`."""
    return Artifact(
        id=row.uid,
        namespace=row.namespace,
        parent=row.parent,
        name=row.name,
        files=tuple(
            ArtifactFile(
                path=file["path"],
                size_bytes=file["size_bytes"],
                digest=Digest(file["digest"]),
                media_type=file["media_type"],
                uri=file["uri"],
            )
            for file in json.loads(row.files)
        ),
        labels=json.loads(row.labels),
        metadata=json.loads(row.metadata),
        created_at=from_us(row.created_at_us),
        created_by=row.created_by,
        mod_rev=row.mod_rev,
    )

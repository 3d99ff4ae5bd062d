"""What the server keeps: namespaces, models, versions, aliases, artifacts, instances, members.

Frozen data, the same on the server, on the wire and in user code. `to_json` and `from_json` are the one JSON form: the
state in the change feed, the REST bodies and ``modelbox --output json`` are all made by it.

Times are aware datetimes in UTC. ``mod_rev`` is the revision of the change feed that wrote the state: of two states of
one object the one with the greater ``mod_rev`` is newer.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NewType, TypeVar, cast

from modelbox.errors import InvalidError
from modelbox.manifest import Manifest
from modelbox.refs import Digest, ModelRef, shown

__all__ = (
    "Alias",
    "AliasMove",
    "Artifact",
    "ArtifactFile",
    "Created",
    "Download",
    "Instance",
    "InstanceReport",
    "InstanceState",
    "JsonValue",
    "Member",
    "Model",
    "ModelPatch",
    "ModelVersion",
    "Namespace",
    "NewArtifact",
    "NewModel",
    "NewVersion",
    "Page",
    "Resolved",
    "VersionPatch",
    "from_json",
    "to_json",
)

JsonValue = Any
"""None, bool, int, float, str, or lists and string-keyed mappings of them."""

T = TypeVar("T")
PageToken = NewType("PageToken", str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A place for models, made by the first object in it."""

    name: str
    created_at: datetime
    mod_rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model: a name under which versions are published.

    Attributes:
        id: Opaque and never reused; labels, metadata and artifacts of later kinds attach to it.
        task: What it is for, such as ``asr``.
        latest_version: The newest version's number, 0 before the first.
    """

    id: str
    namespace: str
    name: str
    owner: str = ""
    task: str = ""
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    latest_version: int = 0
    created_at: datetime
    mod_rev: int

    @property
    def path(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    def _repr_html_(self) -> str:
        import modelbox.display as display

        return display.card(
            f"Model {self.path}",
            {
                "id": self.id,
                "owner": self.owner,
                "task": self.task,
                "description": self.description,
                "labels": self.labels,
                "metadata": self.metadata,
                "latest version": self.latest_version or "none yet",
                "created": self.created_at,
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One published version; manifest and number never change, labels, metadata and metrics may.

    Attributes:
        bundle: The signature as a Sigstore bundle, JSON text; empty for a version that nobody signed. Whoever relies on
            it verifies it (`modelbox.signing.Trust`): a server stores it, and is not asked to be believed.
    """

    id: str
    namespace: str
    model: str
    version: int
    digest: Digest
    manifest: Manifest
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    created_at: datetime
    created_by: str = ""
    mod_rev: int
    bundle: str = ""

    @property
    def ref(self) -> ModelRef:
        """The reference that pins this version."""
        return ModelRef(namespace=self.namespace, model=self.model, version=self.version)

    def _repr_html_(self) -> str:
        import modelbox.display as display

        files = display.table(
            ("file", "bytes", "digest"),
            ((file.path, file.size_bytes, file.digest) for file in self.manifest.files),
            numbers=("bytes",),
        )
        signature = self.manifest.signature
        return display.card(
            f"Version {self.ref}",
            {
                "id": self.id,
                "digest": self.digest,
                "framework": self.manifest.framework,
                "inputs": ", ".join(str(spec) for spec in signature.inputs) if signature else "",
                "outputs": ", ".join(str(spec) for spec in signature.outputs) if signature else "",
                "description": self.description,
                "labels": self.labels,
                "metrics": self.metrics,
                "metadata": self.metadata,
                "published": self.created_at,
                "by": self.created_by,
            },
            files,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A movable pointer inside a model; ``mod_rev`` is what a compare-and-set compares."""

    namespace: str
    model: str
    name: str
    version: int
    digest: Digest
    moved_at: datetime
    moved_by: str = ""
    reason: str = ""
    mod_rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMove:
    """One entry of an alias's history, newest first in lists; ``to_version`` is None when the alias was deleted."""

    namespace: str
    model: str
    name: str
    from_version: int | None
    to_version: int | None
    moved_at: datetime
    moved_by: str = ""
    reason: str = ""
    rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFile:
    """A file of an artifact: stored here (``digest`` known, ``uri`` empty) or tracked where it lies (``uri`` set)."""

    path: str
    size_bytes: int
    digest: Digest
    media_type: str = "application/octet-stream"
    uri: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A named group of files that belongs to an object.

    Attributes:
        parent: What it belongs to: ``namespace``, ``namespace/model``, ``namespace/model@7``, or the id of anything
            else.
    """

    id: str
    namespace: str
    parent: str
    name: str
    files: tuple[ArtifactFile, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    created_at: datetime
    created_by: str = ""
    mod_rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """Somebody began to download a version; recorded once per download, however many files it has."""

    id: str
    namespace: str
    model: str
    version: int
    by: str = ""
    started_at: datetime
    mod_rev: int


class InstanceState(StrEnum):
    """What an instance says of one reference."""

    ACTIVE = "active"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceReport:
    """What a loader tells the server about one reference: an ACK (``active``) or a NACK (``failed``).

    Attributes:
        instance_id: One per process, stable over its life.
        ref: The reference as the application asked for it.
        version: What serves now (0 for nothing); on a NACK still the old one.
        target_version: What was to be served; equals ``version`` on an ACK.
        stage: Where a reload failed: ``fetch``, ``verify``, ``open``, ``warm`` ….
        reason: Why it failed; on an ACK, what is odd about the version that serves, such as that it is slow, and then
            ``stage`` says where that was found.
        stale: The instance serves from its cache without contact to the server.
    """

    instance_id: str
    host: str
    pid: int
    ref: str
    state: InstanceState
    version: int = 0
    digest: str = ""
    target_version: int = 0
    target_digest: str = ""
    mod_rev: int = 0
    stage: str = ""
    reason: str = ""
    stale: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A report as the server keeps it; ``alive`` is false when it has been silent for longer than its lease."""

    report: InstanceReport
    first_seen_at: datetime
    last_seen_at: datetime
    alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A server, one of those that share a database.

    Attributes:
        id: Another one with each start.
        name: As it was configured; by default the host and the port of gRPC.
        role: ``all``, ``control`` (no bytes) or ``blobs`` (only bytes).
        state: ``ready``, ``degraded`` or ``draining``, as it said last.
        grpc_address: Where clients reach it.
        http_address: The same for HTTP.
        version: ModelBox's release.
        started_at: By its own clock.
        last_seen_at: By the database's clock.
        alive: Whether it was seen within its lease.
        clock_ahead_s: By how much its clock is ahead of the database's, in seconds.
        rev: The newest revision of the change feed that it had seen.
        leases: Names of what it does alone.
    """

    id: str
    name: str
    role: str
    state: str
    grpc_address: str
    http_address: str
    version: str
    started_at: datetime
    last_seen_at: datetime
    alive: bool
    clock_ahead_s: float
    rev: int
    leases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a reference points to, read in one snapshot.

    Attributes:
        alias: The alias's state where the reference names one.
        token: Resume token of the snapshot: a watch from here misses nothing that happens to the reference.
        server_id: Which installation answered.
    """

    ref: ModelRef
    version: ModelVersion
    alias: Alias | None
    token: str
    server_id: str

    @property
    def mod_rev(self) -> int:
        """Orders two answers for one reference."""
        return self.alias.mod_rev if self.alias is not None else self.version.mod_rev


@dataclass(frozen=True, slots=True, kw_only=True)
class NewModel:
    """What a caller says of a model that it creates."""

    namespace: str
    name: str
    owner: str = ""
    task: str = ""
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPatch:
    """Edits of a model: None leaves a field; given keys are set, keys in the ``remove`` lists go."""

    owner: str | None = None
    task: str | None = None
    description: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    remove_labels: tuple[str, ...] = ()
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    remove_metadata: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """What a caller publishes; every file of the manifest was uploaded to the namespace before.

    Attributes:
        aliases: Moved to the new version in the same transaction, with ``reason``.
        run: Id of the run that made it, for lineage; empty for none.
        checkpoint: Id of the checkpoint that it was made from; empty for none. Its run need not be named.
        bundle: Its signature, see `ModelVersion.bundle`; it names the version, so `expected_version` comes with it.
        expected_version: The number that the version must get (or has, where it exists already); None for any.
    """

    namespace: str
    model: str
    manifest: Manifest
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    reason: str = ""
    run: str = ""
    checkpoint: str = ""
    bundle: str = ""
    expected_version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPatch:
    """Edits of a version's editable part; see `ModelPatch`.

    Attributes:
        bundle: Its signature, in place of the one before; empty to remove that.
    """

    description: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    remove_labels: tuple[str, ...] = ()
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    remove_metadata: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    remove_metrics: tuple[str, ...] = ()
    bundle: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewArtifact:
    """A group of files to attach to ``parent``; see `Artifact`."""

    parent: str
    name: str
    files: tuple[ArtifactFile, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Created(typing.Generic[T]):
    """The answer of an idempotent create: the object, and whether it was there before."""

    item: T
    existed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(typing.Generic[T]):
    """One page of a list; pass ``next_token`` back for the next page, empty at the end."""

    items: tuple[T, ...]
    next_token: str = ""


def to_json(value: object) -> JsonValue:
    """The plain JSON form: dataclasses as objects, times as ISO 8601 in UTC, mappings with sorted keys.

    JSON has no numbers that are not finite; they become the texts ``NaN``, ``Infinity`` and ``-Infinity``.
    """
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if isinstance(value, Manifest):
        return _manifest_json(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_json(getattr(value, name)) for name in _names(cast(Any, kind))}
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {str(k): to_json(value[k]) for k in sorted(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def from_json(cls: type[T], data: JsonValue) -> T:
    """Reads what `to_json` wrote into ``cls``; unknown keys are ignored, so that older code reads newer data.

    Raises:
        InvalidError: A field is missing or has another type.
    """
    return cast(T, _read(cls, data, cls.__name__))


def _manifest_json(manifest: Manifest) -> JsonValue:
    import json

    return json.loads(manifest.to_json())


@functools.cache
def _names(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))


@functools.cache
def _fields(cls: type) -> tuple[tuple[str, Any, bool], ...]:
    hints = typing.get_type_hints(cls)
    return tuple(
        (
            f.name,
            hints[f.name],
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
        )
        for f in dataclasses.fields(cls)
    )


def _read(hint: Any, data: Any, where: str) -> Any:
    if hint is Manifest:
        return Manifest.from_json(data)
    if isinstance(hint, NewType):
        hint = hint.__supertype__
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(data, Mapping):
            raise InvalidError(f"{where}: expected an object, got {type(data).__name__}")
        values = {}
        for name, inner, required in _fields(hint):
            if name in data:
                values[name] = _read(inner, data[name], f"{where}.{name}")
            elif required:
                raise InvalidError(f"{where}: the field {name!r} is missing")
        return hint(**values)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in typing.get_args(hint):
            return None
        return _read(next(a for a in typing.get_args(hint) if a is not type(None)), data, where)
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise InvalidError(f"{where}: expected a list, got {type(data).__name__}")
        inner = typing.get_args(hint)[0]
        return tuple(_read(inner, item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is Mapping or hint is Mapping:
        if not isinstance(data, Mapping):
            raise InvalidError(f"{where}: expected an object, got {type(data).__name__}")
        inner = typing.get_args(hint)[1] if typing.get_args(hint) else Any
        return {str(k): _read(inner, v, f"{where}.{k}") for k, v in data.items()}
    return _scalar(hint, data, where)


def _scalar(hint: Any, data: Any, where: str) -> Any:
    if hint is Any or isinstance(hint, TypeVar):
        return data
    try:
        if hint is datetime and isinstance(data, str):
            return datetime.fromisoformat(data).astimezone(UTC)
        if isinstance(hint, type) and issubclass(hint, StrEnum):
            return hint(data)
        if hint is float and isinstance(data, int | float) and not isinstance(data, bool):
            return float(data)
        if hint is float and data in ("NaN", "Infinity", "-Infinity"):
            return float(data)
        if isinstance(data, hint) and (hint is bool or not isinstance(data, bool)):
            return data
    except (ValueError, OverflowError) as exc:
        raise InvalidError(f"{where}: {shown(data)} is not a valid {hint.__name__}") from exc
    raise InvalidError(f"{where}: expected {hint.__name__}, got {shown(data)}")

"""What training code and people record: experiments, runs, checkpoints, datasets, and what attaches to any object.

Frozen data, the same on the server, on the wire and in user code; `modelbox.objects.to_json` gives the one JSON form.

Every object has an opaque id: a prefix that tells its kind and 24 hexadecimal digits (``run_5f0c…``). Ids are made by
whoever creates the object, so that a program can record while no server is in reach; creating an object twice with one
id makes it once. Parameters, tags, labels, metadata, metrics, events, artifacts, comments, a readme and lineage attach
to *any* object by its id. A namespace may also be named by its name, a model by ``namespace/model``, a version by
``namespace/model@7``.

Times are aware datetimes in UTC; ``mod_rev`` is the revision of the change feed that wrote the state.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from modelbox.errors import InvalidError
from modelbox.objects import JsonValue, to_json
from modelbox.refs import Digest, shown

__all__ = (
    "Attribute",
    "AttributeChange",
    "AttributeKind",
    "AttributesEdit",
    "Checkpoint",
    "Comment",
    "Dataset",
    "DatasetComponent",
    "DatasetVersion",
    "Delivered",
    "Event",
    "Experiment",
    "ExperimentPatch",
    "Found",
    "Lineage",
    "LineageEdge",
    "LineageNode",
    "MetricColumns",
    "MetricKind",
    "MetricSummary",
    "NewCheckpoint",
    "NewComment",
    "NewDataset",
    "NewDatasetVersion",
    "NewEdge",
    "NewEdges",
    "NewEvent",
    "NewExperiment",
    "NewRun",
    "ObjectKind",
    "Operation",
    "OperationPayload",
    "Readme",
    "ReadmeEdit",
    "Rejection",
    "Run",
    "RunEdit",
    "RunPatch",
    "RunStatus",
    "SampledSeries",
    "check_id",
    "digest_of_components",
    "kind_of_id",
    "new_id",
)


class ObjectKind(StrEnum):
    """What an object is; each kind has ids with a prefix of its own."""

    NAMESPACE = "namespace"
    MODEL = "model"
    VERSION = "version"
    EXPERIMENT = "experiment"
    RUN = "run"
    CHECKPOINT = "checkpoint"
    DATASET = "dataset"
    DATASET_VERSION = "dataset_version"
    ARTIFACT = "artifact"
    EVENT = "event"
    COMMENT = "comment"


_PREFIXES = {
    ObjectKind.NAMESPACE: "nsp",
    ObjectKind.MODEL: "mdl",
    ObjectKind.VERSION: "ver",
    ObjectKind.EXPERIMENT: "exp",
    ObjectKind.RUN: "run",
    ObjectKind.CHECKPOINT: "ckp",
    ObjectKind.DATASET: "dst",
    ObjectKind.DATASET_VERSION: "dsv",
    ObjectKind.ARTIFACT: "art",
    ObjectKind.EVENT: "evt",
    ObjectKind.COMMENT: "cmt",
}
_KINDS = {prefix: kind for kind, prefix in _PREFIXES.items()}
_ID = re.compile(r"([a-z]{3})_[0-9a-f]{24}")


def new_id(kind: ObjectKind) -> str:
    """An id that is never given twice."""
    return f"{_PREFIXES[kind]}_{secrets.token_hex(12)}"


def kind_of_id(text: str) -> ObjectKind | None:
    """The kind that an id tells; None where ``text`` is no id."""
    match = _ID.fullmatch(text)
    return _KINDS.get(match[1]) if match else None


def check_id(text: str, *kinds: ObjectKind) -> str:
    """Returns ``text`` if it is an id, of one of ``kinds`` where any are given.

    Raises:
        InvalidError: It is not.
    """
    kind = kind_of_id(text) if isinstance(text, str) else None
    if kind is None or (kinds and kind not in kinds):
        wanted = " or ".join(f"{_PREFIXES[one]}_…" for one in kinds) or "such as run_5f0c…"
        raise InvalidError(f"{shown(text)} is not an id: expected {wanted} with 24 hexadecimal digits", what="id")
    return text


# --- experiments, runs, checkpoints ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A question that runs answer; unique by namespace and name.

    Attributes:
        external_id: What another system calls it.
        deleted_at: When it was put into the bin; None while it is in use. The same in every object here.
    """

    id: str
    namespace: str
    name: str
    owner: str = ""
    framework: str = ""
    task: str = ""
    external_id: str = ""
    description: str = ""
    created_at: datetime
    created_by: str = ""
    deleted_at: datetime | None = None
    mod_rev: int

    @property
    def path(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    def _repr_html_(self) -> str:
        import modelbox.display as display

        return display.card(
            f"Experiment {self.path}",
            {
                "id": self.id,
                "owner": self.owner,
                "framework": self.framework,
                "task": self.task,
                "external id": self.external_id,
                "description": self.description,
                "created": self.created_at,
                "by": self.created_by,
                "deleted": self.deleted_at,
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewExperiment:
    """What a caller says of an experiment; ``id`` is used if it is new."""

    id: str = field(default_factory=lambda: new_id(ObjectKind.EXPERIMENT))
    namespace: str
    name: str
    owner: str = ""
    framework: str = ""
    task: str = ""
    external_id: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentPatch:
    """Edits of an experiment: None leaves a field as it is."""

    owner: str | None = None
    framework: str | None = None
    task: str | None = None
    external_id: str | None = None
    description: str | None = None


class RunStatus(StrEnum):
    """How far a run is."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    SCHEDULED = "scheduled"

    @property
    def ended(self) -> bool:
        """Whether nothing more is expected."""
        return self in (RunStatus.FINISHED, RunStatus.FAILED, RunStatus.INTERRUPTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One execution inside an experiment.

    Attributes:
        experiment_id: Id of its experiment.
        experiment: Name of its experiment.
        started_at: By the clock of the program that ran.
        ended_at: None until it ends.
        parent_id: The run that it is a part of, such as a search over hyperparameters; empty for none.
        cloned_from: The run that it repeats; empty for none.
        reason: Why it failed: one line, such as the exception.
    """

    id: str
    namespace: str
    experiment_id: str
    experiment: str
    name: str
    status: RunStatus
    started_at: datetime
    ended_at: datetime | None = None
    parent_id: str = ""
    cloned_from: str = ""
    reason: str = ""
    created_at: datetime
    created_by: str = ""
    deleted_at: datetime | None = None
    mod_rev: int

    def _repr_html_(self) -> str:
        import modelbox.display as display

        return display.card(
            f"Run {self.name}",
            {
                "id": self.id,
                "experiment": f"{self.namespace}/{self.experiment}",
                "status": f"{self.status}: {self.reason}" if self.reason else self.status,
                "started": self.started_at,
                "ended": self.ended_at,
                "duration": None if self.ended_at is None else self.ended_at - self.started_at,
                "by": self.created_by,
                "parent": self.parent_id,
                "cloned from": self.cloned_from,
                "deleted": self.deleted_at,
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """What a caller says of a run that it begins.

    Attributes:
        experiment: An experiment's id, or ``namespace/name``, which is made where it is new.
        name: Empty: the server takes the id's digits.
        params: Hyperparameters: JSON by key.
        tags: Text by key.
    """

    id: str = field(default_factory=lambda: new_id(ObjectKind.RUN))
    experiment: str
    name: str = ""
    status: RunStatus = RunStatus.RUNNING
    started_at: datetime
    parent_id: str = ""
    cloned_from: str = ""
    params: Mapping[str, JsonValue] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPatch:
    """Edits of a run: None leaves a field as it is.

    A run that ended may be resumed by setting ``status`` back to ``running``, which clears ``ended_at``.
    """

    name: str | None = None
    status: RunStatus | None = None
    ended_at: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state of training at one epoch; unique by parent and epoch. Its files are artifacts, its metrics metrics.

    Attributes:
        parent_id: The run or experiment that it belongs to.
        metrics: Metrics at this epoch, as they were given when it was made.
    """

    id: str
    namespace: str
    parent_id: str
    epoch: int
    step: int | None = None
    path: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    created_at: datetime
    created_by: str = ""
    deleted_at: datetime | None = None
    mod_rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCheckpoint:
    """What a caller says of a checkpoint; ``path`` is where its file lies if it is not uploaded."""

    id: str = field(default_factory=lambda: new_id(ObjectKind.CHECKPOINT))
    parent_id: str
    epoch: int
    step: int | None = None
    path: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


# --- what attaches to any object -------------------------------------------------------------------------------------


class AttributeKind(StrEnum):
    """The sorts of values by key that an object has.

    ``param`` is what a run was told (JSON; overwriting is explicit), ``tag`` is what people or programs call an object
    (text, may be empty), ``label`` is text that programs select by, ``metadata`` is any JSON.
    """

    PARAM = "param"
    TAG = "tag"
    LABEL = "label"
    METADATA = "metadata"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A value by key on an object."""

    object: str
    kind: AttributeKind
    key: str
    value: JsonValue
    updated_at: datetime
    updated_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeChange:
    """One entry of an attribute's history, newest first in lists.

    Attributes:
        value: What it was set to; None with ``deleted``.
    """

    object: str
    kind: AttributeKind
    key: str
    value: JsonValue
    deleted: bool = False
    at: datetime
    by: str = ""
    rev: int


class MetricKind(StrEnum):
    """What the points of a series hold."""

    NUMBER = "number"
    TEXT = "text"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricColumns:
    """Points of metrics of one object, as columns of raw little-endian bytes.

    A point is known by (object, key, step, time): repeated, it changes nothing, and the value that came first stays.

    Attributes:
        object: Id of the object.
        keys: The names that occur.
        key_index: uint32 per point: its place in ``keys``. Empty where there is one key.
        steps: int64 per point.
        times_us: int64 per point: microseconds since 1970 in UTC, by the caller's clock.
        values: float64 per point; NaN and infinities are kept. Of no meaning for points with a payload.
        kinds: uint8 per point: 0 number, 1 text, 2 bytes. Empty where all are numbers.
        payloads: Of the points that are no numbers, in order; text as UTF-8.
    """

    object: str
    keys: tuple[str, ...]
    key_index: bytes = b""
    steps: bytes
    times_us: bytes
    values: bytes
    kinds: bytes = b""
    payloads: tuple[bytes, ...] = ()

    def __len__(self) -> int:
        return len(self.steps) // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSummary:
    """What is known of a series without reading it.

    Attributes:
        count: Points.
        min: Least number; None where there is none. NaN does not count.
        max: Greatest number.
        latest: Value of the point with the greatest step, and of those the latest; None for text and bytes.
        latest_step: Its step.
        latest_at: Its time.
        first_step: The least step.
    """

    object: str
    key: str
    kind: MetricKind
    count: int
    min: float | None
    max: float | None
    latest: float | None
    latest_step: int
    latest_at: datetime
    first_step: int

    def _repr_html_(self) -> str:
        import modelbox.display as display

        return display.card(
            f"Metric {self.key}",
            {
                "object": self.object,
                "kind": self.kind,
                "latest": self.latest,
                "at step": self.latest_step,
                "min": self.min,
                "max": self.max,
                "points": self.count,
                "time": self.latest_at,
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledSeries:
    """A series in at most so many buckets of equal width over its steps; empty buckets are left out.

    Columns of raw little-endian bytes, one value per bucket: int64 ``first_steps``, ``last_steps`` and ``counts``;
    float64 ``mins``, ``maxs`` and ``means`` of the numbers (NaN where there is none) and ``lasts``, the value of the
    bucket's last point.
    """

    first_steps: bytes
    last_steps: bytes
    counts: bytes
    mins: bytes
    maxs: bytes
    means: bytes
    lasts: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that an outside system reports of an object.

    Attributes:
        object: Id of what it is about.
        name: What happened, such as ``gpu.lost``.
        source: Who says so, such as ``scheduler``.
        at: When it happened, by the reporter's clock.
        received_at: When it came here.
    """

    id: str
    namespace: str
    object: str
    name: str
    source: str = ""
    at: datetime
    received_at: datetime
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    created_by: str = ""
    mod_rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """What a caller reports."""

    id: str = field(default_factory=lambda: new_id(ObjectKind.EVENT))
    object: str
    name: str
    source: str = ""
    at: datetime
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment:
    """What somebody says about an object, in Markdown."""

    id: str
    namespace: str
    object: str
    text: str
    created_at: datetime
    created_by: str = ""
    edited_at: datetime | None = None
    deleted_at: datetime | None = None
    mod_rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Readme:
    """The page of an object, in Markdown."""

    object: str
    text: str
    updated_at: datetime
    updated_by: str = ""
    mod_rev: int


# --- datasets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A name under which versions of data are recorded; unique by namespace and name."""

    id: str
    namespace: str
    name: str
    owner: str = ""
    description: str = ""
    latest_version: int = 0
    created_at: datetime
    created_by: str = ""
    deleted_at: datetime | None = None
    mod_rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDataset:
    """What a caller says of a dataset."""

    id: str = field(default_factory=lambda: new_id(ObjectKind.DATASET))
    namespace: str
    name: str
    owner: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetComponent:
    """A part of a dataset version: where data lie, or how they were asked for.

    Attributes:
        type: ``path``, ``s3`` or ``query``.
        location: A path, an ``s3://`` address, or the text of a query.
        digest: Of the content (``sha256:…``), or what the store knows it by; empty if unknown.
        size_bytes: None if unknown.
        source: For a query: the database that it was put to, without secrets.
        rows: Number of records, None if unknown.
    """

    type: str
    location: str
    digest: str = ""
    size_bytes: int | None = None
    source: str = ""
    rows: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetVersion:
    """Data as they were at one time; immutable but for its attributes.

    Attributes:
        digest: ``sha256:…`` of the components: the same components are the same version.
    """

    id: str
    namespace: str
    dataset: str
    dataset_id: str
    version: int
    digest: str
    components: tuple[DatasetComponent, ...]
    description: str = ""
    created_at: datetime
    created_by: str = ""
    deleted_at: datetime | None = None
    mod_rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDatasetVersion:
    """What a caller says of data; the dataset is made where it is new."""

    id: str = field(default_factory=lambda: new_id(ObjectKind.DATASET_VERSION))
    namespace: str
    dataset: str
    components: tuple[DatasetComponent, ...]
    description: str = ""


def digest_of_components(components: Sequence[DatasetComponent]) -> Digest:
    """``sha256:…`` by which the same components are known again, whatever their order."""
    parts = sorted(json.dumps(to_json(part), sort_keys=True, ensure_ascii=False) for part in components)
    return Digest("sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest())


# --- lineage ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageEdge:
    """What came of what: ``target`` was made from ``source``.

    Attributes:
        type: Of the relation: ``used`` (a dataset version by a run), ``produced`` (a version, checkpoint or artifact by
            a run), ``derived`` (a version of a version, a dataset version of another), or a word of the caller's.
    """

    source: str
    target: str
    type: str
    created_at: datetime
    created_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEdge:
    """An edge to add; see `LineageEdge`."""

    source: str
    target: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageNode:
    """An object in a lineage graph.

    Attributes:
        title: How people know it, such as ``langtech/wav2vec@7``.
        depth: Least number of edges from where the question began.
    """

    id: str
    kind: ObjectKind
    title: str
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Ancestors or descendants of some objects: all nodes, the asked ones among them (depth 0), and edges between."""

    nodes: tuple[LineageNode, ...]
    edges: tuple[LineageEdge, ...]
    truncated: bool = False


# --- finding ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A page of what was found, as columns.

    Attributes:
        columns_json: ``{"id": [...], "name": [...], "metrics.loss": [...], ...}`` in UTF-8; null where an object has no
            value, the texts ``NaN``, ``Infinity`` and ``-Infinity`` for numbers that JSON has not.
        time_columns: The columns whose values are times, in microseconds since 1970.
        number_columns: The columns whose values are numbers, or those texts.
        count: Objects in this page.
        next_token: For the next page; empty at the end.
    """

    columns_json: bytes
    time_columns: tuple[str, ...] = ()
    number_columns: tuple[str, ...] = ()
    count: int
    next_token: str = ""


# --- delivery --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEdit:
    """A patch and the run that it is for."""

    id: str
    patch: RunPatch


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributesEdit:
    """Values of one kind to set and keys to remove on one object, in one transaction.

    Attributes:
        overwrite: Whether a parameter may take another value than it has.
    """

    object: str
    kind: AttributeKind
    values: Mapping[str, JsonValue] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NewComment:
    """What somebody says about an object."""

    id: str = field(default_factory=lambda: new_id(ObjectKind.COMMENT))
    object: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadmeEdit:
    """A new page for an object; an empty text removes it."""

    object: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEdges:
    """Edges to add, all or none."""

    edges: tuple[NewEdge, ...]


OperationPayload = (
    NewExperiment
    | NewRun
    | RunEdit
    | NewCheckpoint
    | AttributesEdit
    | NewEvent
    | MetricColumns
    | NewComment
    | NewEdges
    | NewDatasetVersion
    | ReadmeEdit
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One entry of a spool; ``seq`` grows inside it."""

    seq: int
    payload: OperationPayload


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What became of operations: everything up to ``seq`` is on disk, or refused for good."""

    seq: int
    rejections: tuple[Rejection, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An operation of a spool that the server refused for good; the others went through.

    Attributes:
        seq: Its number in the spool.
        code: The error's stable code.
    """

    seq: int
    code: str
    message: str

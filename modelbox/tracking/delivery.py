"""Edits, and the operations in which a program delivers what it recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modelbox.objects import JsonValue
from modelbox.tracking.attributes import AttributeKind
from modelbox.tracking.datasets import NewDatasetVersion
from modelbox.tracking.experiments import NewCheckpoint, NewExperiment, NewRun, RunPatch
from modelbox.tracking.ids import ObjectKind, new_id
from modelbox.tracking.lineage import NewEdge
from modelbox.tracking.metrics import MetricColumns
from modelbox.tracking.notes import NewEvent

__all__ = (
    "AttributesEdit",
    "Delivered",
    "NewComment",
    "NewEdges",
    "Operation",
    "OperationPayload",
    "ReadmeEdit",
    "Rejection",
    "RunEdit",
)


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

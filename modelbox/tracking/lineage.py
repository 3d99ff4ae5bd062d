"""What was made from what."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from modelbox.tracking.ids import ObjectKind

__all__ = (
    "Lineage",
    "LineageEdge",
    "LineageNode",
    "NewEdge",
)


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

"""Lineage as messages and back."""

from __future__ import annotations

from collections.abc import Sequence

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire.values import member, pack_time, unpack_time
from modelbox.tracking import Lineage, LineageEdge, LineageNode, NewEdge, NewEdges, ObjectKind


def pack_new_edges(value: NewEdges) -> pb.AddEdgesRequest:
    """As a request."""
    return pb.AddEdgesRequest(edges=[_pack_new_edge(edge) for edge in value.edges])


def unpack_new_edges(message: pb.AddEdgesRequest | pb.RemoveEdgesRequest) -> NewEdges:
    """From a request that adds edges, or one that removes some."""
    return NewEdges(
        edges=tuple(NewEdge(source=edge.source, target=edge.target, type=edge.type) for edge in message.edges)
    )


def pack_removed_edges(edges: Sequence[NewEdge]) -> pb.RemoveEdgesRequest:
    """As a request."""
    return pb.RemoveEdgesRequest(edges=[_pack_new_edge(edge) for edge in edges])


def _pack_new_edge(value: NewEdge) -> pb.LineageEdge:
    return pb.LineageEdge(source=value.source, target=value.target, type=value.type)


def pack_lineage(value: Lineage) -> pb.GetLineageResponse:
    """As an answer."""
    return pb.GetLineageResponse(
        nodes=[pb.LineageNode(id=one.id, kind=one.kind, title=one.title, depth=one.depth) for one in value.nodes],
        edges=[
            pb.LineageEdge(
                source=one.source,
                target=one.target,
                type=one.type,
                created_at_us=pack_time(one.created_at),
                created_by=one.created_by,
            )
            for one in value.edges
        ],
        truncated=value.truncated,
    )


def unpack_lineage(message: pb.GetLineageResponse) -> Lineage:
    """From an answer."""
    return Lineage(
        nodes=tuple(
            LineageNode(
                id=one.id,
                kind=member(ObjectKind, one.kind, "a kind of object"),
                title=one.title,
                depth=one.depth,
            )
            for one in message.nodes
        ),
        edges=tuple(
            LineageEdge(
                source=one.source,
                target=one.target,
                type=one.type,
                created_at=unpack_time(one.created_at_us),
                created_by=one.created_by,
            )
            for one in message.edges
        ),
        truncated=message.truncated,
    )

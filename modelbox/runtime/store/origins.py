"""Where a published version comes from: edges of lineage that are made with it."""

from __future__ import annotations

from itertools import pairwise

from sqlalchemy import Connection

from modelbox.errors import InvalidError
from modelbox.objects import NewVersion
from modelbox.runtime.store.lineage import Link
from modelbox.runtime.store.objects import ObjectRow, object_by_id, object_row
from modelbox.tracking import ObjectKind

__all__ = ("find_origins", "links_from")

_PRODUCED = "produced"


def find_origins(conn: Connection, new: NewVersion) -> list[ObjectRow]:
    """What led to the version, each from the one before: a run, a checkpoint, a run and its checkpoint, or nothing.

    Raises:
        NotFoundError: There is no such run or checkpoint.
        InvalidError: The checkpoint belongs to another run.
    """
    run = object_row(conn, new.run, deleted_ok=True) if new.run else None
    if not new.checkpoint:
        return [] if run is None else [run]
    checkpoint = object_row(conn, new.checkpoint, deleted_ok=True)
    assert checkpoint.parent_id is not None
    parent = object_by_id(conn, checkpoint.parent_id)
    if run is not None and run.id != parent.id:
        raise InvalidError(
            f"the checkpoint {checkpoint.uid} belongs to {parent.uid}, not to {run.uid}: name one of the two",
            what="checkpoint",
            expected=parent.uid,
        )
    return [parent, checkpoint] if parent.kind is ObjectKind.RUN else [checkpoint]


def links_from(origins: list[ObjectRow], version: ObjectRow) -> list[Link]:
    """The edges along `find_origins` to the version."""
    chain = [*origins, version]
    return [Link(source=source, target=target, type=_PRODUCED) for source, target in pairwise(chain)]

"""Taking over the operations of a client's spool, exactly once in effect.

``spools`` keeps how far each spool was taken over; it moves in the transaction that carries the operations out, so that
one that is sent again does nothing again. What was refused of the last delivery is kept beside it, since a client that
lost the answer has not heard of it. Every operation runs in a savepoint of its own: what can never succeed is undone by
itself and told, what may succeed later fails the whole delivery.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import DataError, SQLAlchemyError

from modelbox.access import ALL, Scope
from modelbox.errors import ConflictError, IntegrityError, InvalidError, LimitError, ModelBoxError, NotFoundError
from modelbox.runtime.absence import hide
from modelbox.runtime.store.datasets import create_dataset_version
from modelbox.runtime.store.edits import set_attributes
from modelbox.runtime.store.experiments import create_experiment
from modelbox.runtime.store.history import mark_group, return_to_mark
from modelbox.runtime.store.lineage import add_edges
from modelbox.runtime.store.notes import add_comment, log_event, set_readme
from modelbox.runtime.store.rows import to_us
from modelbox.runtime.store.runs import create_checkpoint, create_run, update_run
from modelbox.runtime.store.schema import spools
from modelbox.tracking import (
    AttributesEdit,
    NewCheckpoint,
    NewComment,
    NewDatasetVersion,
    NewEdges,
    NewEvent,
    NewExperiment,
    NewRun,
    Operation,
    ReadmeEdit,
    Rejection,
    RunEdit,
)

__all__ = ("deliver",)

_LOG = logging.getLogger(__name__)

_MAX_KEPT = 1000
_MAX_MESSAGE_CHARS = 500

_SEQ = select(spools.c.last_seq, spools.c.rejections).where(spools.c.uid == bindparam("the_spool")).with_for_update()


def _update_run(conn: Connection, edit: RunEdit, *, actor: str, at: datetime) -> Any:
    return update_run(conn, edit.id, edit.patch, actor=actor, at=at)


_APPLY: dict[type, Callable[..., Any]] = {
    NewExperiment: create_experiment,
    NewRun: create_run,
    RunEdit: _update_run,
    NewCheckpoint: create_checkpoint,
    AttributesEdit: set_attributes,
    NewEvent: log_event,
    NewComment: add_comment,
    NewEdges: add_edges,
    NewDatasetVersion: create_dataset_version,
    ReadmeEdit: set_readme,
}

_PERMANENT = (InvalidError, NotFoundError, ConflictError, LimitError, IntegrityError)


def deliver(
    conn: Connection,
    spool: str,
    first: int,
    upto: int,
    operations: Sequence[Operation],
    *,
    actor: str,
    at: datetime,
    scope: Scope = ALL,
) -> tuple[Rejection, ...]:
    """Carries out those operations that the spool has not had yet; it has ``upto`` afterwards.

    Args:
        conn: The transaction.
        spool: Its id.
        first: Number with which the delivery begins that these operations are a part of: what was refused before it
            is forgotten.
        upto: Number up to which the spool is taken over with this part.
        operations: In order.
        actor: Who.
        at: When.
        scope: What refusals may tell of.

    Returns:
        What was refused, now or when it came before.
    """
    row = conn.execute(_SEQ, {"the_spool": spool}).first()
    had = -1 if row is None else row.last_seq
    before = () if row is None or not row.rejections else _read(row.rejections)
    repeated = {operation.seq for operation in operations if operation.seq <= had}
    rejections = [one for one in before if one.seq in repeated]
    kept = [one for one in before if one.seq >= first]
    for operation in operations:
        if operation.seq in repeated:
            continue
        rejection = _carry_out(conn, operation, actor, at, scope)
        if rejection is not None:
            rejections.append(rejection)
            kept.append(rejection)
    state = {"last_seq": max(upto, had), "updated_at_us": to_us(at), "rejections": _written(kept)}
    if row is None:
        conn.execute(insert(spools).values(uid=spool, **state))
    elif upto > had:
        conn.execute(update(spools).where(spools.c.uid == spool).values(**state))
    return tuple(rejections)


def _read(text: str) -> tuple[Rejection, ...]:
    return tuple(Rejection(seq=seq, code=code, message=message) for seq, code, message in json.loads(text))


def _written(rejections: Sequence[Rejection]) -> str | None:
    if not rejections:
        return None
    return json.dumps([(one.seq, one.code, one.message[:_MAX_MESSAGE_CHARS]) for one in rejections[-_MAX_KEPT:]])


def _carry_out(conn: Connection, operation: Operation, actor: str, at: datetime, scope: Scope) -> Rejection | None:
    mark = mark_group(conn)
    _run(conn, "SAVEPOINT operation")
    try:
        more = {"scope": scope} if isinstance(operation.payload, NewEdges) else {}
        _APPLY[type(operation.payload)](conn, operation.payload, actor=actor, at=at, **more)
    except Exception as exc:
        error = _permanent(exc)
        if error is None:
            raise
        _run(conn, "ROLLBACK TO SAVEPOINT operation")
        return_to_mark(conn, mark)
        _run(conn, "RELEASE SAVEPOINT operation")
        error = hide(error, scope)
        return Rejection(seq=operation.seq, code=error.code, message=error.message)
    _run(conn, "RELEASE SAVEPOINT operation")
    return None


def _permanent(exc: Exception) -> ModelBoxError | None:
    """The error to tell if trying again can never help; None if it may."""
    if isinstance(exc, _PERMANENT):
        return exc
    if isinstance(exc, DataError | OverflowError | ValueError | TypeError | KeyError | AttributeError | IndexError):
        # A fault of ours. The operations behind this one must not wait for a release that mends it.
        _LOG.error("an operation of a spool could not be carried out", exc_info=exc)
        return ModelBoxError(f"the server could not carry this out: {type(exc).__name__}")
    if isinstance(exc, SQLAlchemyError | ModelBoxError):
        return None
    return None


def _run(conn: Connection, statement: str) -> None:
    cursor = conn.connection.cursor()
    try:
        cursor.execute(statement)
    finally:
        cursor.close()

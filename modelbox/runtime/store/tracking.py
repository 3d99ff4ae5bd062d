"""Experiments, runs, checkpoints, attributes, the bin and deliveries over a database.

The transaction functions are in the modules of what they are about; this one runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial

from sqlalchemy import Connection

from modelbox.access import ALL, Scope
from modelbox.errors import InvalidError, NotFoundError
from modelbox.objects import Created
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.store.attributes import list_history, read_attributes
from modelbox.runtime.store.bin import (
    Deletion,
    count_purgeable,
    delete_objects,
    hide,
    purge,
    restore_objects,
    unfinished,
    unhidden,
)
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.deliver import deliver
from modelbox.runtime.store.edits import set_attributes
from modelbox.runtime.store.experiments import (
    create_experiment,
    experiment_of,
    experiment_row,
    list_experiments,
    update_experiment,
)
from modelbox.runtime.store.objects import find_object, find_objects, object_row
from modelbox.runtime.store.runs import (
    checkpoint_of,
    checkpoint_row,
    clone_run,
    create_checkpoint,
    create_run,
    list_checkpoints,
    list_runs,
    run_of,
    run_row,
    update_run,
)
from modelbox.runtime.tracking_ports import Purged
from modelbox.tracking import (
    Attribute,
    AttributeChange,
    AttributeKind,
    AttributesEdit,
    Checkpoint,
    Experiment,
    ExperimentPatch,
    NewCheckpoint,
    NewExperiment,
    NewRun,
    Operation,
    Rejection,
    Run,
    RunPatch,
    kind_of_id,
)

__all__ = ("SqlTrackingStore",)

_IN_CHUNK = 500
_HIDE_AT_ONCE = 500


def _find_objects(conn: Connection, names: Sequence[str]) -> dict[str, str]:
    ids = list(dict.fromkeys(name for name in names if kind_of_id(name) is not None))
    found: dict[str, str] = {}
    for start in range(0, len(ids), _IN_CHUNK):
        found |= {uid: uid for uid in find_objects(conn, ids[start : start + _IN_CHUNK])}
    for name in dict.fromkeys(names):
        if kind_of_id(name) is None:
            try:
                row = find_object(conn, name)
            except InvalidError:
                continue
            if row is not None:
                found[name] = row.uid
    return found


def _get_attributes(conn: Connection, names: Sequence[str], kinds: Sequence[AttributeKind]) -> tuple[Attribute, ...]:
    if all(kind_of_id(name) is not None for name in names):
        known = find_objects(conn, list(dict.fromkeys(names)))
        missing = next((name for name in names if name not in known), None)
        if missing is not None:
            object_row(conn, missing)
            raise NotFoundError(f"no object {missing}", what="object", name=missing)
        rows = [known[name] for name in dict.fromkeys(names)]
    else:
        unique = {row.id: row for row in (object_row(conn, name, deleted_ok=True) for name in names)}
        rows = list(unique.values())
    return read_attributes(conn, rows, kinds)


class SqlTrackingStore:
    """`modelbox.runtime.tracking_ports.TrackingStore` over a database; see there for each method."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def find_objects(self, names: Sequence[str]) -> dict[str, str]:
        """See the port."""
        return await self._db.read(lambda conn: _find_objects(conn, names))

    async def create_experiment(self, new: NewExperiment, *, actor: str, at: datetime) -> Created[Experiment]:
        """See the port."""
        return await self._db.write(lambda conn: create_experiment(conn, new, actor=actor, at=at))

    async def get_experiment(self, text: str) -> Experiment:
        """See the port."""
        return await self._db.read(lambda conn: experiment_of(experiment_row(conn, text)))

    async def update_experiment(self, text: str, patch: ExperimentPatch, *, actor: str, at: datetime) -> Experiment:
        """See the port."""
        return await self._db.write(lambda conn: update_experiment(conn, text, patch, actor=actor, at=at))

    async def list_experiments(
        self, *, namespace: str, include_deleted: bool, limit: int, after: Key | None, scope: Scope = ALL
    ) -> Listed[Experiment]:
        """See the port."""
        return await self._db.scan(lambda conn: list_experiments(conn, namespace, include_deleted, limit, after, scope))

    async def create_run(self, new: NewRun, *, actor: str, at: datetime) -> Created[Run]:
        """See the port."""
        return await self._db.write(lambda conn: create_run(conn, new, actor=actor, at=at))

    async def get_run(self, uid: str) -> Run:
        """See the port."""
        return await self._db.read(lambda conn: run_of(run_row(conn, uid)))

    async def update_run(self, uid: str, patch: RunPatch, *, actor: str, at: datetime) -> Run:
        """See the port."""
        return await self._db.write(lambda conn: update_run(conn, uid, patch, actor=actor, at=at))

    async def list_runs(
        self, parent: str, *, include_deleted: bool, limit: int, after: Key | None, scope: Scope = ALL
    ) -> Listed[Run]:
        """See the port."""
        return await self._db.scan(lambda conn: list_runs(conn, parent, include_deleted, limit, after, scope))

    async def clone_run(self, source_id: str, uid: str, name: str, *, actor: str, at: datetime) -> Created[Run]:
        """See the port."""
        return await self._db.write(lambda conn: clone_run(conn, source_id, uid, name, actor=actor, at=at))

    async def create_checkpoint(self, new: NewCheckpoint, *, actor: str, at: datetime) -> Created[Checkpoint]:
        """See the port."""
        return await self._db.write(lambda conn: create_checkpoint(conn, new, actor=actor, at=at))

    async def get_checkpoint(self, uid: str) -> Checkpoint:
        """See the port."""
        return await self._db.read(lambda conn: checkpoint_of(checkpoint_row(conn, uid)))

    async def list_checkpoints(
        self, parent_id: str, *, include_deleted: bool, limit: int, after: Key | None, scope: Scope = ALL
    ) -> Listed[Checkpoint]:
        """See the port."""
        return await self._db.scan(lambda conn: list_checkpoints(conn, parent_id, include_deleted, limit, after, scope))

    async def delete_objects(self, uids: Sequence[str], *, actor: str, at: datetime) -> int:
        """See the port."""
        count, left = await self._db.write(lambda conn: delete_objects(conn, uids, actor=actor, at=at))
        return count + await self._finish(left)

    async def finish_deletions(self) -> int:
        """See the port."""
        return await self._finish(await self._db.scan(unfinished))

    async def _finish(self, deletions: Sequence[Deletion]) -> int:
        count = 0
        for deletion in deletions:
            # Looked for outside of the writer's time. What comes below it meanwhile is found by looking again.
            while ids := await self._db.scan(partial(unhidden, deletion=deletion)):
                for start in range(0, len(ids), _HIDE_AT_ONCE):
                    some = ids[start : start + _HIDE_AT_ONCE]
                    hidden = await self._db.write(partial(hide, deletion=deletion, ids=some))
                    if hidden is None:
                        break
                    count += hidden
                else:
                    continue
                break
        return count

    async def restore_objects(self, uids: Sequence[str], *, actor: str, at: datetime) -> int:
        """See the port."""
        return await self._db.write(lambda conn: restore_objects(conn, uids, actor=actor, at=at))

    async def count_purgeable(self, namespace: str, before: datetime) -> int:
        """See the port."""
        return await self._db.scan(lambda conn: count_purgeable(conn, namespace, before))

    async def purge(self, namespace: str, before: datetime, *, batch: int, actor: str, at: datetime) -> Purged:
        """See the port."""
        return await self._db.write(lambda conn: purge(conn, namespace, before, batch, actor=actor, at=at))

    async def set_attributes(self, edit: AttributesEdit, *, actor: str, at: datetime) -> int:
        """See the port."""
        return await self._db.write(lambda conn: set_attributes(conn, edit, actor=actor, at=at))

    async def get_attributes(self, names: Sequence[str], kinds: Sequence[AttributeKind]) -> tuple[Attribute, ...]:
        """See the port."""
        return await self._db.read(lambda conn: _get_attributes(conn, names, kinds))

    async def list_attribute_history(
        self, name: str, kind: AttributeKind, *, key: str, limit: int, after: Key | None
    ) -> Listed[AttributeChange]:
        """See the port."""
        return await self._db.scan(
            lambda conn: list_history(conn, object_row(conn, name, deleted_ok=True), kind, key, limit, after)
        )

    async def deliver(
        self,
        spool: str,
        first: int,
        upto: int,
        operations: Sequence[Operation],
        *,
        actor: str,
        at: datetime,
        scope: Scope = ALL,
    ) -> tuple[Rejection, ...]:
        """See the port."""
        return await self._db.write(
            lambda conn: deliver(conn, spool, first, upto, operations, actor=actor, at=at, scope=scope)
        )

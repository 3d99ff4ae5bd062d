"""Reports of loaders in SQL; not in the change feed."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from modelbox.access import ALL, Scope
from modelbox.errors import ServerBusy
from modelbox.objects import Instance, InstanceReport, InstanceState, from_json, to_json
from modelbox.refs import ModelRef
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.jobs import copy_of
from modelbox.runtime.store.prepared import Prepared
from modelbox.runtime.store.rows import from_us, to_us
from modelbox.runtime.store.schema import instances
from modelbox.runtime.store.visible import is_named_so

__all__ = ("SqlFleetStore",)

_RENEW = Prepared(
    update(instances)
    .where(instances.c.id == bindparam("row_id"))
    .values(state=bindparam("new_state"), report=bindparam("new_report"), last_seen_us=bindparam("now_us"))
)
_COLUMNS = ("instance_id", "ref", "namespace", "model", "state", "report", "first_seen_us", "last_seen_us")
_ADD = Prepared(insert(instances), _COLUMNS)
_MAX_GROUP = 2000
"""Reports of one transaction; a single call may have more."""
_IN_CHUNK = 500
_FORGET_EVERY = timedelta(minutes=1)


class _Waiting:
    """The reports of one call on their way into a transaction."""

    __slots__ = ("at_us", "done", "reports")

    def __init__(self, reports: Sequence[InstanceReport], at_us: int, done: asyncio.Future[None]) -> None:
        self.reports = reports
        self.at_us = at_us
        self.done = done


def _report(conn: Connection, group: Sequence[_Waiting]) -> None:
    """Keeps the newest report of each instance and reference: two statements, however many reports there are."""
    newest = {
        (report.instance_id, report.ref): (report, waiting.at_us) for waiting in group for report in waiting.reports
    }
    rows = _find(conn, sorted({instance_id for instance_id, _ in newest}))
    renewed: list[dict[str, Any]] = []
    added: list[dict[str, Any]] = []
    # In one order, so that two replicas take the rows' locks alike.
    for (instance_id, ref), (report, at_us) in sorted(newest.items()):
        text = json.dumps(to_json(report), ensure_ascii=False, separators=(",", ":"))
        row_id = rows.get((instance_id, ref))
        if row_id is not None:
            renewed.append(
                {"row_id": row_id, "new_state": report.state.value, "new_report": text, "now_us": at_us},
            )
            continue
        parsed = ModelRef.parse(ref)
        values = (instance_id, ref, parsed.namespace, parsed.model, report.state.value, text, at_us, at_us)
        added.append(dict(zip(_COLUMNS, values, strict=True)))
    _RENEW.run_many(conn, renewed)
    _ADD.run_many(conn, added)


def _find(conn: Connection, instance_ids: Sequence[str]) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for start in range(0, len(instance_ids), _IN_CHUNK):
        some = instance_ids[start : start + _IN_CHUNK]
        query = select(instances.c.instance_id, instances.c.ref, instances.c.id).where(
            instances.c.instance_id.in_(some)
        )
        found |= {(row.instance_id, row.ref): row.id for row in conn.execute(query)}
    return found


def _forget(conn: Connection, before_us: int) -> None:
    conn.execute(delete(instances).where(instances.c.last_seen_us < before_us))


def _list_instances(
    conn: Connection,
    namespace: str,
    model: str,
    seen_since: datetime | None,
    lease_s: float,
    at: datetime,
    limit: int,
    after: Key | None,
    scope: Scope,
) -> Listed[Instance]:
    query = select(instances).order_by(instances.c.id).limit(limit + 1)
    if not scope.everything:
        query = query.where(is_named_so(scope, instances.c.namespace, instances.c.model))
    if namespace:
        query = query.where(instances.c.namespace == namespace)
    if model:
        query = query.where(instances.c.model == model)
    if seen_since is not None:
        query = query.where(
            instances.c.last_seen_us >= to_us(seen_since), instances.c.state != InstanceState.GONE.value
        )
    if after is not None:
        query = query.where(instances.c.id > after[0])
    found = conn.execute(query).all()
    page = found[:limit]
    alive_since_us = to_us(at - timedelta(seconds=lease_s))
    return Listed(
        items=tuple(
            Instance(
                report=from_json(InstanceReport, json.loads(row.report)),
                first_seen_at=from_us(row.first_seen_us),
                last_seen_at=from_us(row.last_seen_us),
                alive=row.state != InstanceState.GONE.value and row.last_seen_us >= alive_since_us,
            )
            for row in page
        ),
        next_key=(page[-1].id,) if len(found) > limit else None,
    )


class SqlFleetStore:
    """`modelbox.runtime.ports.FleetStore` over a database; see there for each method.

    A fleet of thousands says every half minute that it is alive. So all reports that wait while others are written
    become one transaction, and where the database allows it, none of them holds up a change of the feed.

    Args:
        database: `MainDatabase.aside`.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._waiting: deque[_Waiting] = deque()
        self._task: asyncio.Task[None] | None = None
        self._forgot: datetime | None = None

    async def report(self, reports: Sequence[InstanceReport], *, at: datetime, forget_before: datetime) -> None:
        """See the port."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(reports, to_us(at), loop.create_future())
        self._waiting.append(waiting)
        if self._task is None:
            self._task = loop.create_task(self._write_waiting(), name="write reports")
        await waiting.done
        if self._forgot is None or forget_before - self._forgot >= _FORGET_EVERY:
            self._forgot = forget_before
            await self._db.write(lambda conn: _forget(conn, to_us(forget_before)))

    async def _write_waiting(self) -> None:
        try:
            while self._waiting:
                group = [self._waiting.popleft()]
                count = len(group[0].reports)
                while self._waiting and count + len(self._waiting[0].reports) <= _MAX_GROUP:
                    group.append(self._waiting.popleft())
                    count += len(group[-1].reports)
                await self._write(group)
        finally:
            self._task = None

    async def _write(self, group: Sequence[_Waiting]) -> None:
        try:
            await self._db.write(lambda conn: _report(conn, group))
        except BaseException as exc:
            error = exc if isinstance(exc, Exception) else ServerBusy("the server stops", retry_after_s=1.0)
            for waiting in group:
                if not waiting.done.done():
                    waiting.done.set_exception(copy_of(error))
            if not isinstance(exc, Exception):
                raise
            return
        for waiting in group:
            if not waiting.done.done():
                waiting.done.set_result(None)

    async def list_instances(
        self,
        *,
        namespace: str,
        model: str,
        seen_since: datetime | None,
        lease_s: float,
        at: datetime,
        limit: int,
        after: Key | None,
        scope: Scope = ALL,
    ) -> Listed[Instance]:
        """See the port."""
        return await self._db.scan(
            lambda conn: _list_instances(conn, namespace, model, seen_since, lease_s, at, limit, after, scope)
        )

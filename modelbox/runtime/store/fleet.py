"""Reports of loaders in SQL; not in the change feed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from modelbox.objects import Instance, InstanceReport, InstanceState, from_json, to_json
from modelbox.refs import ModelRef
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.rows import from_us, to_us
from modelbox.runtime.store.schema import instances

__all__ = ("SqlFleetStore",)

_FIND = select(instances.c.id).where(instances.c.instance_id == bindparam("who"), instances.c.ref == bindparam("what"))
_RENEW = (
    update(instances)
    .where(instances.c.id == bindparam("row_id"))
    .values(state=bindparam("new_state"), report=bindparam("new_report"), last_seen_us=bindparam("now_us"))
)


def _report(conn: Connection, reports: Sequence[InstanceReport], at_us: int, forget_before_us: int) -> None:
    conn.execute(delete(instances).where(instances.c.last_seen_us < forget_before_us))
    newest = {(report.instance_id, report.ref): report for report in reports}
    for (instance_id, ref), report in sorted(newest.items()):
        text = json.dumps(to_json(report), ensure_ascii=False, separators=(",", ":"))
        row_id = conn.execute(_FIND, {"who": instance_id, "what": ref}).scalar()
        if row_id is not None:
            values = {"row_id": row_id, "new_state": report.state.value, "new_report": text, "now_us": at_us}
            conn.execute(_RENEW, values)
            continue
        parsed = ModelRef.parse(ref)
        conn.execute(
            insert(instances).values(
                instance_id=instance_id,
                ref=ref,
                namespace=parsed.namespace,
                model=parsed.model,
                state=report.state.value,
                report=text,
                first_seen_us=at_us,
                last_seen_us=at_us,
            )
        )


def _list_instances(
    conn: Connection,
    namespace: str,
    model: str,
    seen_since: datetime | None,
    lease_s: float,
    at: datetime,
    limit: int,
    after: Key | None,
) -> Listed[Instance]:
    query = select(instances).order_by(instances.c.id).limit(limit + 1)
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
    """`modelbox.runtime.ports.FleetStore` over a database; see there for each method."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def report(self, reports: Sequence[InstanceReport], *, at: datetime, forget_before: datetime) -> None:
        """See the port."""
        await self._db.write(lambda conn: _report(conn, reports, to_us(at), to_us(forget_before)))

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
    ) -> Listed[Instance]:
        """See the port."""
        return await self._db.scan(
            lambda conn: _list_instances(conn, namespace, model, seen_since, lease_s, at, limit, after)
        )

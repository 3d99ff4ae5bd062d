"""The servers of a database, in SQL; not in the change feed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from modelbox.objects import Member
from modelbox.runtime.replica_ports import Beat
from modelbox.runtime.store.clock import database_now_us
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.rows import from_us, to_us
from modelbox.runtime.store.schema import leases, replicas

__all__ = ("SqlMemberStore",)

_NOW = select(database_now_us())
_LIST = select(replicas, database_now_us().label("now_us")).order_by(replicas.c.name, replicas.c.started_at_us)


def _renew(conn: Connection, beat: Beat, lease_us: int, forget_us: int) -> int:
    now_us: int = conn.execute(_NOW).scalar_one()
    conn.execute(delete(replicas).where(replicas.c.until_us < now_us - forget_us))
    values = asdict(beat)
    uid = values.pop("id")
    values["started_at_us"] = to_us(values.pop("started_at"))
    values["clock_ahead_us"] = round(values.pop("clock_ahead_s") * 1_000_000)
    values |= {"seen_at_us": now_us, "until_us": now_us + lease_us}
    if conn.execute(select(replicas.c.uid).where(replicas.c.uid == uid)).first() is None:
        conn.execute(insert(replicas).values(uid=uid, **values))
    else:
        conn.execute(update(replicas).where(replicas.c.uid == uid).values(values))
    return now_us


def _leave(conn: Connection, uid: str) -> None:
    conn.execute(delete(replicas).where(replicas.c.uid == uid))
    conn.execute(update(leases).where(leases.c.holder == uid).values(holder="", until_us=0))


def _clear(conn: Connection) -> None:
    conn.execute(delete(replicas))
    conn.execute(update(leases).values(holder="", until_us=0))


def _list_members(conn: Connection) -> list[Member]:
    rows = conn.execute(_LIST).all()
    held: dict[str, list[str]] = {}
    for row in conn.execute(select(leases, database_now_us().label("now_us")).order_by(leases.c.name)):
        if row.now_us < row.until_us:
            held.setdefault(row.holder, []).append(row.name)
    return [
        Member(
            id=row.uid,
            name=row.name,
            role=row.role,
            state=row.state,
            grpc_address=row.grpc_address,
            http_address=row.http_address,
            version=row.version,
            started_at=from_us(row.started_at_us),
            last_seen_at=from_us(row.seen_at_us),
            alive=row.now_us < row.until_us,
            clock_ahead_s=row.clock_ahead_us / 1_000_000,
            rev=row.rev,
            leases=tuple(held.get(row.uid, ())),
        )
        for row in rows
    ]


class SqlMemberStore:
    """`modelbox.runtime.replica_ports.MemberStore` over a database; see there for each method."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def renew(self, beat: Beat, *, lease_s: float, forget_s: float) -> datetime:
        """See the port."""
        lease_us, forget_us = int(lease_s * 1_000_000), int(forget_s * 1_000_000)
        return from_us(await self._database.write(lambda conn: _renew(conn, beat, lease_us, forget_us)))

    async def leave(self, member_id: str) -> None:
        """See the port."""
        await self._database.write(lambda conn: _leave(conn, member_id))

    async def clear(self) -> None:
        """See the port."""
        await self._database.write(_clear)

    async def list_members(self) -> Sequence[Member]:
        """See the port."""
        return await self._database.read(_list_members)

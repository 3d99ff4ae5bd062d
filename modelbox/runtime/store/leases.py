"""Leases: which replica does what only one of them may do at a time.

A lease has a name, a holder, and an end by the database's clock; whoever wants to keep it renews it before that. Each
new holder gets a larger token. A lease alone keeps nobody from going on who was stopped (SIGSTOP, a long pause) and
does not know that its lease has ended; so whoever changes something under a lease calls `check_lease` in the same
transaction, which refuses a token that is not the newest one.

All functions run in `Database.write`, one after the other over all replicas, and need no locks of their own.
"""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, insert, select, update

from modelbox.errors import ConflictError
from modelbox.runtime.replica_ports import Lease
from modelbox.runtime.store.clock import database_now_us
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.schema import leases

__all__ = ("SqlLeases", "acquire_lease", "check_lease", "release_lease", "renew_lease")


_FIND = select(leases, database_now_us().label("now_us")).where(leases.c.name == bindparam("of"))
_NOW = select(database_now_us())
_TAKE = (
    update(leases)
    .where(leases.c.name == bindparam("of"))
    .values(
        holder=bindparam("new_holder"),
        token=leases.c.token + 1,
        renewed_at_us=bindparam("now_us"),
        until_us=bindparam("end_us"),
    )
)
_MINE = (leases.c.name == bindparam("of"), leases.c.holder == bindparam("by"), leases.c.token == bindparam("number"))
_RENEW = update(leases).where(*_MINE).values(renewed_at_us=bindparam("now_us"), until_us=bindparam("end_us"))
_RELEASE = update(leases).where(*_MINE).values(holder="", until_us=0)


def acquire_lease(conn: Connection, name: str, holder: str, lease_us: int) -> Lease | None:
    """Takes a lease that nobody holds; None if another holder has it."""
    row = conn.execute(_FIND, {"of": name}).first()
    if row is None:
        now_us = conn.execute(_NOW).scalar_one()
        values = {"name": name, "holder": holder, "token": 1, "renewed_at_us": now_us, "until_us": now_us + lease_us}
        conn.execute(insert(leases).values(values))
        return Lease(name=name, holder=holder, token=1)
    length_us = row.until_us - row.renewed_at_us
    # A clock that was set back by more than a lease's length must not make it last for hours.
    held = row.renewed_at_us - length_us <= row.now_us < row.until_us
    if held and row.holder not in ("", holder):
        return None
    conn.execute(_TAKE, {"of": name, "new_holder": holder, "now_us": row.now_us, "end_us": row.now_us + lease_us})
    return Lease(name=name, holder=holder, token=row.token + 1)


def renew_lease(conn: Connection, lease: Lease, lease_us: int) -> bool:
    """Has a lease last for so long from now on; False if another holder has got it.

    One that ended, and that nobody took, is held again.
    """
    now_us = conn.execute(_NOW).scalar_one()
    return conn.execute(_RENEW, {**_key(lease), "now_us": now_us, "end_us": now_us + lease_us}).rowcount == 1


def release_lease(conn: Connection, lease: Lease) -> None:
    """Gives a lease back, if it is still held."""
    conn.execute(_RELEASE, _key(lease))


def check_lease(conn: Connection, lease: Lease) -> None:
    """Confirms that no other holder got the lease meanwhile.

    Raises:
        ConflictError: One did; what this transaction does is the work of another replica now.
    """
    token = conn.execute(select(leases.c.token).where(leases.c.name == lease.name)).scalar()
    if token != lease.token:
        raise ConflictError(f"another replica does {lease.name} now", what="lease", current=token)


def _key(lease: Lease) -> dict[str, object]:
    return {"of": lease.name, "by": lease.holder, "number": lease.token}


class SqlLeases:
    """`modelbox.runtime.replica_ports.LeaseStore` over a database; see there for each method."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def acquire(self, name: str, holder: str, *, lease_s: float) -> Lease | None:
        """See the port."""
        return await self._database.write(lambda conn: acquire_lease(conn, name, holder, _us(lease_s)))

    async def renew(self, lease: Lease, *, lease_s: float) -> bool:
        """See the port."""
        return await self._database.write(lambda conn: renew_lease(conn, lease, _us(lease_s)))

    async def release(self, lease: Lease) -> None:
        """See the port."""
        await self._database.write(lambda conn: release_lease(conn, lease))

    async def check(self, lease: Lease) -> None:
        """See the port."""
        await self._database.read(lambda conn: check_lease(conn, lease))


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000)

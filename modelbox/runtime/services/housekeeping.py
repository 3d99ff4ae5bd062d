"""Work that one of the replicas does for all: removing what nobody needs, forgetting old history.

Owns the rule who does it: whoever holds the lease of that name. It renews the lease while it works, and stops when it
could not renew it in time or lost it. Another replica then takes over by itself.

A lease is no lock: a replica that stands still (a stopped process, a machine that sleeps) wakes up in the middle of
work that another one has taken over, and does one more step before it notices. So each step is harmless when two do it,
or checks the lease in its own transaction.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

import anyio

from modelbox.errors import ModelBoxError
from modelbox.runtime.replica_ports import Lease, LeaseStore

__all__ = ("Housekeeping",)

_LOG = logging.getLogger(__name__)
_MARGIN = 0.8
"""Part of a lease after which its holder stops by its own clock; the rest is for clocks that run at other speeds."""


class Housekeeping:
    """Runs work on one replica at a time.

    Args:
        store: The leases.
        holder: The id of this replica.
        lease_s: How long the others wait for a replica that is gone.
    """

    def __init__(self, store: LeaseStore, holder: str, *, lease_s: float = 15.0) -> None:
        self._store = store
        self._holder = holder
        self._lease_s = lease_s

    async def run(self, name: str, work: Callable[[Lease], Awaitable[None]]) -> None:
        """Does ``work`` whenever this replica holds the lease; for ever.

        Args:
            name: Of the lease.
            work: Cancelled when the lease is lost; called again with the next lease. One that returns, or raises an
                error of ours, gives the lease back; then any replica may begin again.
        """
        while True:
            asked = anyio.current_time()
            try:
                lease = await self._store.acquire(name, self._holder, lease_s=self._lease_s)
            except ModelBoxError as exc:
                _LOG.debug("cannot ask for the lease %s: %s", name, exc)
                lease = None
            if lease is not None:
                await self._work(lease, work, until=asked + self._lease_s * _MARGIN)
            await anyio.sleep(self._lease_s / 3 * random.uniform(0.7, 1.3))

    async def _work(self, lease: Lease, work: Callable[[Lease], Awaitable[None]], *, until: float) -> None:
        _LOG.debug("this replica does %s now", lease.name)
        try:
            with anyio.CancelScope(deadline=until) as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._renew, lease, scope, name=f"lease {lease.name}")
                    try:
                        await work(lease)
                    except ModelBoxError as exc:
                        _LOG.warning("%s ended early, and begins again later: %s", lease.name, exc)
                    tasks.cancel_scope.cancel()
            if scope.cancelled_caught:
                _LOG.warning("the lease %s was not renewed in time: whoever gets it next goes on", lease.name)
        finally:
            with anyio.move_on_after(2.0, shield=True):
                try:
                    await self._store.release(lease)
                except ModelBoxError as exc:
                    _LOG.debug("cannot give back the lease %s, which ends by itself: %s", lease.name, exc)

    async def _renew(self, lease: Lease, scope: anyio.CancelScope) -> None:
        """Moves the deadline of ``scope`` as long as the lease is held."""
        while True:
            await anyio.sleep(self._lease_s / 3)
            asked = anyio.current_time()
            try:
                held = await self._store.renew(lease, lease_s=self._lease_s)
            except ModelBoxError as exc:
                _LOG.debug("cannot renew the lease %s: %s", lease.name, exc)
                continue
            if not held:
                scope.cancel()
                return
            scope.deadline = asked + self._lease_s * _MARGIN

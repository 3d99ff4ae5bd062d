"""What the services need of a database that several servers share: who they are, and leases between them.

Both are measured by the database's clock, so replicas whose own clocks disagree still agree on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from modelbox.objects import Member

__all__ = ("Beat", "Lease", "LeaseStore", "MemberStore")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """That a replica holds a lease.

    Attributes:
        name: What it is about.
        holder: Who has it.
        token: Grows with each new holder.
    """

    name: str
    holder: str
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a replica says of itself now and then; the fields are those of `modelbox.objects.Member`."""

    id: str
    name: str
    role: str
    state: str
    grpc_address: str
    http_address: str
    version: str
    started_at: datetime
    clock_ahead_s: float
    rev: int


class LeaseStore(Protocol):
    """Leases: which replica does what only one of them may do at a time.

    A lease keeps nobody from going on who was stopped and does not know that its lease has ended. What must not be done
    twice is checked in the transaction that does it (``modelbox.runtime.store.leases.check_lease``).
    """

    async def acquire(self, name: str, holder: str, *, lease_s: float) -> Lease | None:
        """Takes a lease that nobody else holds, for so many seconds; None if somebody does."""

    async def renew(self, lease: Lease, *, lease_s: float) -> bool:
        """Has a lease last for so long from now on; False if another holder has got it."""

    async def release(self, lease: Lease) -> None:
        """Gives a lease back, if it is still held."""

    async def check(self, lease: Lease) -> None:
        """Confirms that no other holder got the lease.

        Raises:
            ConflictError: One did.
        """


class MemberStore(Protocol):
    """The servers of a database."""

    async def renew(self, beat: Beat, *, lease_s: float, forget_s: float) -> datetime:
        """Keeps what a server says; it is a member for so many seconds. Forgets those that ended ``forget_s`` ago.

        Returns:
            The time by the database's clock.
        """

    async def leave(self, member_id: str) -> None:
        """Forgets a server, and gives back its leases."""

    async def clear(self) -> None:
        """Forgets all servers and gives back all leases: for a database that only this server can use."""

    async def list_members(self) -> Sequence[Member]:
        """All that are known, by name and start."""

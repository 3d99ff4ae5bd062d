"""What the audit log needs of a database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from modelbox.audit import AuditEntry, AuditFilter, Denial
from modelbox.runtime.caller import Origin

__all__ = ("AuditPlace", "AuditStore", "DeniedCalls", "FoundEntries")

AuditPlace = tuple[int, int]
"""Revision and index of an entry that was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundEntries:
    """What was found in one part of history.

    Attributes:
        items: Entries that fit, in the order asked for.
        next: Where to go on; None at the end of history. Nothing may have been found before that.
    """

    items: tuple[AuditEntry, ...]
    next: AuditPlace | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeniedCalls:
    """Denials of one caller, with whom and where they came from."""

    actor: str
    origin: Origin
    namespace: str
    denial: Denial


class AuditStore(Protocol):
    """The history, as the audit log reads it."""

    async def find(
        self,
        wanted: AuditFilter,
        *,
        namespaces: frozenset[str] | None,
        limit: int,
        after: AuditPlace | None,
        oldest_first: bool,
    ) -> FoundEntries:
        """Up to ``limit`` entries behind a place, out of a bounded part of history.

        Args:
            wanted: Which.
            namespaces: In these only; None for all of them, and for what is in none.
            limit: So many.
            after: Where the reader is.
            oldest_first: The order; else the newest come first.
        """

    async def add_denials(self, denials: Sequence[DeniedCalls], *, at: datetime) -> None:
        """Writes them into history, as one revision."""

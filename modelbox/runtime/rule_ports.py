"""What the service of rules needs of a database, as a protocol; the rules of `modelbox.runtime.ports` hold here too."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from modelbox.access import Caller
from modelbox.rules import AliasProtection, AliasRequest, Missing, Rule
from modelbox.runtime.ports import Key, Listed

__all__ = ("RuleStore",)


class RuleStore(Protocol):
    """Rules, protections and requests; `modelbox.runtime.services.rules` says what each method means."""

    async def set_rule(self, rule: Rule, *, actor: str, at: datetime) -> Rule:
        """Makes or replaces a rule; the same one again makes no revision."""

    async def list_rules(self, scope: str) -> Sequence[Rule]:
        """By scope and alias."""

    async def delete_rule(self, scope: str, alias: str, *, actor: str, at: datetime) -> None:
        """Removes a rule."""

    async def check_rules(
        self, namespace: str, model: str, version: int, alias: str, *, caller: Caller
    ) -> tuple[Missing, ...]:
        """What a version lacks for having an alias, or for being published where that is empty."""

    async def protect_alias(self, protection: AliasProtection, *, actor: str, at: datetime) -> AliasProtection:
        """Makes or replaces a protection; the same one again makes no revision."""

    async def list_protections(self, scope: str) -> Sequence[AliasProtection]:
        """By scope and alias; those of the server's settings first."""

    async def unprotect_alias(self, scope: str, alias: str, *, actor: str, at: datetime) -> None:
        """Removes a protection."""

    async def list_requests(
        self, namespace: str, model: str, *, alias: str, everything: bool, at: datetime, limit: int, after: Key | None
    ) -> Listed[AliasRequest]:
        """Newest first. Key: (internal number,)."""

    async def approve_request(
        self, namespace: str, model: str, request_id: str, *, comment: str, caller: Caller, actor: str, at: datetime
    ) -> AliasRequest:
        """Moves the alias, in the same transaction."""

    async def reject_request(
        self, namespace: str, model: str, request_id: str, *, comment: str, caller: Caller, actor: str, at: datetime
    ) -> AliasRequest:
        """Has nobody approve it any more."""

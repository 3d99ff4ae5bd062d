"""The audit log, as methods of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from modelbox.audit import AuditEntry, AuditFilter
from modelbox.client.connection import ClientConnection
from modelbox.feed import Kind

__all__ = ("AuditCalls",)

_PAGE = 500


class AuditCalls(ClientConnection):
    """The part of `Client` about who did what, for admins."""

    def iter_audit(
        self,
        *,
        actor: str = "",
        namespace: str = "",
        object: str = "",
        kinds: Sequence[str] = (),
        actions: Sequence[str] = (),
        denials: bool = False,
        token_id: str = "",
        address: str = "",
        request_id: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        oldest_first: bool = False,
    ) -> AsyncIterator[AuditEntry]:
        """Who did what to which object, from where, with before and after; the newest first.

        Admins see all of it, those of a namespace what happened there. Nothing that is left empty narrows it.

        Args:
            actor: Only by this account.
            namespace: Only there.
            object: Only to this path or id; a model's path takes in its versions and aliases.
            kinds: Only changes of these kinds of objects, as in the change feed.
            actions: Only these: created, updated, moved, deleted, restored, denied.
            denials: Only calls that were refused, instead of ``kinds``.
            token_id: Only with this token, by its public part.
            address: Only from there.
            request_id: Only by this call, as its error or the server's log names it.
            since: Not before; aware.
            until: Only before; aware.
            oldest_first: The oldest first.

        Raises:
            AuthError: You administer nothing.
            InvalidError: A kind, an action or a name is not valid.
        """
        wanted = AuditFilter(
            actor=actor,
            namespace=namespace,
            object=object,
            kinds=(Kind.DENIAL,) if denials else tuple(kinds),
            actions=tuple(actions),
            token_id=token_id,
            address=address,
            request_id=request_id,
            since=since,
            until=until,
        )
        return self._pages(
            lambda source, token: source.audit.list(
                wanted, oldest_first=oldest_first, page_size=_PAGE, page_token=token
            )
        )

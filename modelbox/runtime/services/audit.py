"""The audit log's use cases: page through it, and export it.

Only admins read it: all of it, or what is in the namespaces that they administer. Refuses to write: what changes
something does so itself, and `modelbox.runtime.services.denials` writes what was refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator

import anyio.lowlevel

from modelbox.access import ALL, Role, Scope
from modelbox.audit import AuditEntry, AuditFilter, check_audit_filter
from modelbox.errors import AuthError
from modelbox.objects import Page, to_json
from modelbox.runtime.audit_ports import AuditPlace, AuditStore
from modelbox.runtime.services.paging import decode_key, encode_key, page_size_of

__all__ = ("AuditService",)

_PARTS_AT_ONCE = 10
"""Parts of history that one page looks at before it is answered, empty or not."""
_EXPORTED_AT_ONCE = 500


class AuditService:
    """Reads the audit log.

    Args:
        store: The history.
    """

    def __init__(self, store: AuditStore) -> None:
        self._store = store

    async def list(
        self,
        wanted: AuditFilter,
        *,
        oldest_first: bool = False,
        page_size: int = 0,
        page_token: str = "",
        scope: Scope = ALL,
    ) -> Page[AuditEntry]:
        """One page; the newest entries come first if the oldest do not.

        A page may hold less than was asked for, or nothing: history is looked through in parts, and there are more
        pages as long as there is a token.

        Raises:
            InvalidError: The filter, page size or page token is not valid.
            AuthError: The caller administers nothing.
        """
        namespaces = _visible(check_audit_filter(wanted), scope)
        asked = json.dumps([to_json(wanted), oldest_first], sort_keys=True)
        name = f"audit:{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
        key = decode_key(name, page_token, int, int)
        after: AuditPlace | None = None if key is None else (int(key[0]), int(key[1]))
        size = page_size_of(page_size)
        items: list[AuditEntry] = []
        for _ in range(_PARTS_AT_ONCE):
            found = await self._store.find(
                wanted, namespaces=namespaces, limit=size - len(items), after=after, oldest_first=oldest_first
            )
            items += found.items
            after = found.next
            if after is None or len(items) >= size:
                break
        return Page(items=tuple(items), next_token=encode_key(name, after))

    async def export(self, wanted: AuditFilter, *, scope: Scope = ALL) -> AsyncGenerator[tuple[AuditEntry, ...], None]:
        """Everything that fits, the oldest entries first, in batches; up to what there is at the end.

        Raises:
            InvalidError: The filter is not valid.
            AuthError: The caller administers nothing.
        """
        namespaces = _visible(check_audit_filter(wanted), scope)
        after: AuditPlace | None = None
        while True:
            found = await self._store.find(
                wanted, namespaces=namespaces, limit=_EXPORTED_AT_ONCE, after=after, oldest_first=True
            )
            if found.items:
                yield found.items
            after = found.next
            if after is None:
                return
            await anyio.lowlevel.checkpoint()


def _visible(wanted: AuditFilter, scope: Scope) -> frozenset[str] | None:
    """The namespaces that the caller gets to see; None for everything."""
    if "" in scope.administers:
        return None
    of_all = not wanted.namespace
    if (of_all and not scope.administers) or (not of_all and _may_know_it_is_there(wanted.namespace, scope)):
        where = wanted.namespace or "a namespace"
        raise AuthError(f"the audit log is for admins: this needs the role admin of {where}", role=Role.ADMIN.value)
    return scope.administers


def _may_know_it_is_there(namespace: str, scope: Scope) -> bool:
    return scope.shows_namespace(namespace) and not scope.shows_access(namespace)

"""Accounts, their roles and their tokens in a database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from modelbox.access import Grant
from modelbox.accounts import Account, AccountGrant, AccountPatch, TokenInfo
from modelbox.objects import Created
from modelbox.runtime.access_ports import AccessState, StoredToken
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.store import access_changes as changes
from modelbox.runtime.store import access_rows as rows
from modelbox.runtime.store.database import MainDatabase

__all__ = ("SqlAccessStore",)


class SqlAccessStore:
    """`modelbox.runtime.access_ports.AccessStore` over a database; see there for each method."""

    def __init__(self, database: MainDatabase) -> None:
        self._db = database

    async def load(self, *, expired_since: datetime) -> AccessState:
        """See the port."""
        return await self._db.read(lambda conn: rows.load(conn, expired_since))

    async def create_account(
        self, name: str, *, description: str, certificate_names: Sequence[str], actor: str, at: datetime
    ) -> Created[Account]:
        """See the port."""
        return await self._db.write(
            lambda conn: changes.create_account(conn, name, description, certificate_names, actor, at)
        )

    async def update_account(self, name: str, patch: AccountPatch, *, actor: str, at: datetime) -> Account:
        """See the port."""
        return await self._db.write(lambda conn: changes.update_account(conn, name, patch, actor, at))

    async def delete_account(self, name: str, *, actor: str, at: datetime) -> None:
        """See the port."""
        await self._db.write(lambda conn: changes.delete_account(conn, name, actor, at))

    async def list_accounts(
        self, *, visible: Callable[[Account], bool], limit: int, after: Key | None
    ) -> Listed[Account]:
        """See the port."""
        return await self._db.scan(lambda conn: rows.list_accounts(conn, visible, limit, after))

    async def grant(self, account: str, grant: Grant, *, actor: str, at: datetime) -> AccountGrant:
        """See the port."""
        return await self._db.write(lambda conn: changes.grant_role(conn, account, grant, actor, at))

    async def revoke(self, account: str, namespace: str, model: str, *, actor: str, at: datetime) -> bool:
        """See the port."""
        return await self._db.write(lambda conn: changes.revoke_role(conn, account, namespace, model, actor, at))

    async def list_grants(
        self,
        *,
        account: str,
        namespace: str,
        visible: Callable[[AccountGrant], bool],
        limit: int,
        after: Key | None,
    ) -> Listed[AccountGrant]:
        """See the port."""
        return await self._db.scan(lambda conn: rows.list_grants(conn, account, namespace, visible, limit, after))

    async def create_token(
        self, token: StoredToken, *, new_account: Sequence[Grant], actor: str, at: datetime
    ) -> tuple[TokenInfo, bool]:
        """See the port."""
        return await self._db.write(lambda conn: changes.create_token(conn, token, new_account, actor, at))

    async def find_token(self, token_id: str) -> TokenInfo | None:
        """See the port."""
        return await self._db.read(lambda conn: rows.find_token(conn, token_id))

    async def revoke_token(self, token_id: str, *, actor: str, at: datetime) -> TokenInfo:
        """See the port."""
        return await self._db.write(lambda conn: changes.revoke_token(conn, token_id, actor, at))

    async def list_tokens(
        self,
        *,
        account: str,
        live_at: datetime | None,
        visible: Callable[[TokenInfo], bool],
        limit: int,
        after: Key | None,
    ) -> Listed[TokenInfo]:
        """See the port."""
        return await self._db.scan(lambda conn: rows.list_tokens(conn, account, live_at, visible, limit, after))

    async def note_uses(self, used: Sequence[tuple[str, datetime]], *, older_than_s: float) -> None:
        """See the port."""
        await self._db.aside.write(lambda conn: changes.note_uses(conn, used, int(older_than_s * 1_000_000)))

    async def bootstrap(self, token: StoredToken, *, actor: str, at: datetime) -> bool:
        """See the port."""
        return await self._db.write(lambda conn: changes.bootstrap(conn, token, actor, at))

    async def recover(self, token: StoredToken, *, actor: str, at: datetime) -> TokenInfo:
        """See the port."""
        return await self._db.write(lambda conn: changes.recover(conn, token, actor, at))

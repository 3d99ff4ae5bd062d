"""Accounts, their roles and their tokens as rows: reading them one by one, all at once, and in pages."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, Select, and_, or_, select

from modelbox.access import Role
from modelbox.accounts import Account, AccountGrant, TokenInfo
from modelbox.errors import NotFoundError
from modelbox.refs import shown
from modelbox.runtime.access_ports import AccessState, StoredToken
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.store.history import read_head
from modelbox.runtime.store.rows import from_us, to_us
from modelbox.runtime.store.schema import access_grants, access_tokens, accounts

__all__ = (
    "GRANTS",
    "TOKENS",
    "account_of",
    "account_row",
    "find_token",
    "grant_of",
    "grant_path",
    "list_accounts",
    "list_grants",
    "list_tokens",
    "load",
    "token_namespace",
    "token_of",
)

_SCANNED = 500
T = TypeVar("T")

GRANTS = select(access_grants, accounts.c.name.label("account")).join(
    accounts, access_grants.c.account_id == accounts.c.id
)
TOKENS = select(access_tokens, accounts.c.name.label("account")).join(
    accounts, access_tokens.c.account_id == accounts.c.id
)


def account_of(row: Any) -> Account:
    """A row of accounts."""
    return Account(
        name=row.name,
        description=row.description,
        certificate_names=tuple(json.loads(row.certificate_names)),
        disabled=bool(row.disabled),
        created_at=from_us(row.created_at_us),
        created_by=row.created_by,
        mod_rev=row.mod_rev,
    )


def grant_of(row: Any) -> AccountGrant:
    """A row of `GRANTS`."""
    return AccountGrant(
        account=row.account,
        namespace=row.namespace,
        model=row.model,
        role=Role(row.role),
        granted_at=from_us(row.granted_at_us),
        granted_by=row.granted_by,
        mod_rev=row.mod_rev,
    )


def token_of(row: Any) -> TokenInfo:
    """A row of `TOKENS`."""
    return TokenInfo(
        id=row.kid,
        account=row.account,
        description=row.description,
        role=Role(row.role) if row.role else None,
        namespaces=tuple(json.loads(row.namespaces)),
        created_at=from_us(row.created_at_us),
        created_by=row.created_by,
        expires_at=from_us(row.expires_at_us),
        revoked_at=None if row.revoked_at_us is None else from_us(row.revoked_at_us),
        revoked_by=row.revoked_by,
        used_at=None if row.used_at_us is None else from_us(row.used_at_us),
        mod_rev=row.mod_rev,
    )


def account_row(conn: Connection, name: str) -> Any:
    """The row of an account that must be there."""
    row = conn.execute(select(accounts).where(accounts.c.name == name)).first()
    if row is None:
        raise NotFoundError(f"there is no account {shown(name)}", what="account", name=name)
    return row


def grant_path(grant: AccountGrant) -> str:
    """What the feed calls a role."""
    return f"role:{grant.account}:{grant.namespace or '*'}{f'/{grant.model}' if grant.model else ''}"


def token_namespace(token: TokenInfo) -> str:
    """The namespace whose admins see the token: of one that holds in several, or everywhere, those of everything."""
    return token.namespaces[0] if len(token.namespaces) == 1 else ""


def load(conn: Connection, expired_since: datetime) -> AccessState:
    """`AccessStore.load`."""
    read_head(conn)
    live = access_tokens.c.revoked_at_us.is_(None) & (access_tokens.c.expires_at_us > to_us(expired_since))
    return AccessState(
        accounts=tuple(account_of(row) for row in conn.execute(select(accounts).order_by(accounts.c.name))),
        grants=tuple(grant_of(row) for row in conn.execute(GRANTS)),
        tokens=tuple(
            StoredToken(digest=bytes(row.secret_hash), info=token_of(row)) for row in conn.execute(TOKENS.where(live))
        ),
    )


def _page(
    conn: Connection,
    query: Callable[[Key | None], Select[Any]],
    read: Callable[[Any], T],
    key_of: Callable[[Any], Key],
    visible: Callable[[T], bool],
    limit: int,
    after: Key | None,
) -> Listed[T]:
    """A full page of what is visible, however many rows lie between."""
    items: list[T] = []
    keys: list[Key] = []
    while True:
        rows = conn.execute(query(after).limit(_SCANNED)).all()
        for row in rows:
            item = read(row)
            if visible(item):
                if len(items) == limit:
                    return Listed(items=tuple(items), next_key=keys[-1])
                items.append(item)
                keys.append(key_of(row))
        if len(rows) < _SCANNED:
            return Listed(items=tuple(items), next_key=None)
        after = key_of(rows[-1])


def list_accounts(
    conn: Connection, visible: Callable[[Account], bool], limit: int, after: Key | None
) -> Listed[Account]:
    """`AccessStore.list_accounts`."""

    def query(after: Key | None) -> Select[Any]:
        found = select(accounts).order_by(accounts.c.name)
        return found if after is None else found.where(accounts.c.name > after[0])

    return _page(conn, query, account_of, lambda row: (row.name,), visible, limit, after)


def list_grants(
    conn: Connection,
    account: str,
    namespace: str,
    visible: Callable[[AccountGrant], bool],
    limit: int,
    after: Key | None,
) -> Listed[AccountGrant]:
    """`AccessStore.list_grants`."""
    columns = (accounts.c.name, access_grants.c.namespace, access_grants.c.model)

    def query(after: Key | None) -> Select[Any]:
        found = GRANTS.order_by(*columns)
        if account:
            found = found.where(accounts.c.name == account)
        if namespace:
            found = found.where(access_grants.c.namespace == namespace)
        if after is not None:
            name, place, model = after
            found = found.where(
                or_(
                    columns[0] > name,
                    and_(columns[0] == name, columns[1] > place),
                    and_(columns[0] == name, columns[1] == place, columns[2] > model),
                )
            )
        return found

    return _page(conn, query, grant_of, lambda row: (row.account, row.namespace, row.model), visible, limit, after)


def list_tokens(
    conn: Connection,
    account: str,
    live_at: datetime | None,
    visible: Callable[[TokenInfo], bool],
    limit: int,
    after: Key | None,
) -> Listed[TokenInfo]:
    """`AccessStore.list_tokens`."""

    def query(after: Key | None) -> Select[Any]:
        found = TOKENS.order_by(access_tokens.c.id.desc())
        if account:
            found = found.where(accounts.c.name == account)
        if live_at is not None:
            found = found.where(access_tokens.c.revoked_at_us.is_(None), access_tokens.c.expires_at_us > to_us(live_at))
        return found if after is None else found.where(access_tokens.c.id < after[0])

    return _page(conn, query, token_of, lambda row: (row.id,), visible, limit, after)


def find_token(conn: Connection, token_id: str) -> TokenInfo | None:
    """`AccessStore.find_token`."""
    row = conn.execute(TOKENS.where(access_tokens.c.kid == token_id)).first()
    return None if row is None else token_of(row)

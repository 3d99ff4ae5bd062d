"""Changes of accounts, of their roles and of their tokens, as transaction functions.

Invariants: every change is a revision of the feed, without the hash of any secret; once there is an account that is
enabled and an admin everywhere, there always is one; a certificate's name is one account's only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, select, update

from modelbox.access import Grant, Role
from modelbox.accounts import Account, AccountGrant, AccountPatch, TokenInfo
from modelbox.errors import ConflictError, NotFoundError
from modelbox.feed import Action, Kind
from modelbox.objects import Created
from modelbox.refs import shown
from modelbox.runtime.access_ports import StoredToken
from modelbox.runtime.store.access_rows import (
    GRANTS,
    TOKENS,
    account_of,
    account_row,
    find_token,
    grant_of,
    grant_path,
    token_namespace,
    token_of,
)
from modelbox.runtime.store.rows import to_us
from modelbox.runtime.store.schema import access_grants, access_tokens, accounts
from modelbox.runtime.store.writing import Writing

__all__ = (
    "bootstrap",
    "create_account",
    "create_token",
    "delete_account",
    "grant_role",
    "note_uses",
    "recover",
    "revoke_role",
    "revoke_token",
    "update_account",
)

_ADMIN_EVERYWHERE = Grant(role=Role.ADMIN)


# -- accounts ----------------------------------------------------------------------------------------------------------


def _check_certificate_names(conn: Connection, name: str, certificate_names: Iterable[str]) -> None:
    wanted = set(certificate_names)
    if not wanted:
        return
    others = select(accounts.c.name, accounts.c.certificate_names).where(accounts.c.name != name)
    for other, names in conn.execute(others):
        if taken := sorted(wanted.intersection(json.loads(names))):
            raise ConflictError(
                f"certificates with the name {shown(taken[0])} are those of the account {other}: one account only can "
                "have it",
                current=other,
            )


def _check_some_admin(conn: Connection) -> None:
    """After a change that may take the last admin away; it is rolled back then."""
    query = (
        select(func.count())
        .select_from(access_grants)
        .join(accounts, access_grants.c.account_id == accounts.c.id)
        .where(
            access_grants.c.namespace == "",
            access_grants.c.model == "",
            access_grants.c.role == Role.ADMIN.value,
            accounts.c.disabled.is_(False),
        )
    )
    if not conn.execute(query).scalar_one():
        raise ConflictError(
            "nobody would be an admin everywhere any more: give another account that role first "
            "(modelbox roles grant NAME admin --everywhere)"
        )


def _is_admin(conn: Connection, account_id: int) -> bool:
    row = conn.execute(
        select(access_grants.c.role).where(
            access_grants.c.account_id == account_id, access_grants.c.namespace == "", access_grants.c.model == ""
        )
    ).first()
    return row is not None and row.role == Role.ADMIN.value


def _add_account(writing: Writing, name: str, description: str, certificate_names: Sequence[str]) -> int:
    state = Account(
        name=name,
        description=description,
        certificate_names=tuple(certificate_names),
        created_at=writing.at,
        created_by=writing.actor,
        mod_rev=writing.rev,
    )
    done = writing.conn.execute(
        insert(accounts).values(
            name=name,
            description=description,
            certificate_names=json.dumps(list(certificate_names), ensure_ascii=False),
            disabled=False,
            created_at_us=writing.at_us,
            created_by=writing.actor,
            mod_rev=writing.rev,
        )
    )
    writing.note("", f"account:{name}", Kind.ACCESS, Action.CREATED, state)
    assert done.inserted_primary_key is not None
    return int(done.inserted_primary_key[0])


def create_account(
    conn: Connection, name: str, description: str, certificate_names: Sequence[str], actor: str, at: datetime
) -> Created[Account]:
    """`AccessStore.create_account`."""
    found = conn.execute(select(accounts).where(accounts.c.name == name)).first()
    if found is not None:
        return Created(item=account_of(found), existed=True)
    _check_certificate_names(conn, name, certificate_names)
    writing = Writing(conn, actor=actor, at=at)
    _add_account(writing, name, description, certificate_names)
    writing.finish()
    return Created(item=account_of(account_row(conn, name)), existed=False)


def update_account(conn: Connection, name: str, patch: AccountPatch, actor: str, at: datetime) -> Account:
    """`AccessStore.update_account`."""
    row = account_row(conn, name)
    before = account_of(row)
    after = replace(
        before,
        description=before.description if patch.description is None else patch.description,
        certificate_names=before.certificate_names if patch.certificate_names is None else patch.certificate_names,
        disabled=before.disabled if patch.disabled is None else patch.disabled,
    )
    if after == before:
        return before
    _check_certificate_names(conn, name, after.certificate_names)
    writing = Writing(conn, actor=actor, at=at)
    _set_account(writing, row.id, after)
    if after.disabled and _is_admin(conn, row.id):
        _check_some_admin(conn)
    writing.finish()
    return replace(after, mod_rev=writing.rev)


def _set_account(writing: Writing, account_id: int, account: Account) -> None:
    state = replace(account, mod_rev=writing.rev)
    writing.conn.execute(
        update(accounts)
        .where(accounts.c.id == account_id)
        .values(
            description=state.description,
            certificate_names=json.dumps(list(state.certificate_names), ensure_ascii=False),
            disabled=state.disabled,
            mod_rev=writing.rev,
        )
    )
    writing.note("", f"account:{state.name}", Kind.ACCESS, Action.UPDATED, state)


def delete_account(conn: Connection, name: str, actor: str, at: datetime) -> None:
    """`AccessStore.delete_account`."""
    row = account_row(conn, name)
    was_admin = _is_admin(conn, row.id) and not row.disabled
    grants = [grant_of(one) for one in conn.execute(GRANTS.where(accounts.c.id == row.id))]
    tokens = [token_of(one) for one in conn.execute(TOKENS.where(accounts.c.id == row.id))]
    writing = Writing(conn, actor=actor, at=at)
    conn.execute(delete(access_tokens).where(access_tokens.c.account_id == row.id))
    conn.execute(delete(access_grants).where(access_grants.c.account_id == row.id))
    conn.execute(delete(accounts).where(accounts.c.id == row.id))
    for token in tokens:
        writing.note(token_namespace(token), f"token:{token.id}", Kind.ACCESS, Action.DELETED, token)
    for grant in grants:
        writing.note(grant.namespace, grant_path(grant), Kind.ACCESS, Action.DELETED, grant)
    writing.note("", f"account:{name}", Kind.ACCESS, Action.DELETED, account_of(row))
    if was_admin:
        _check_some_admin(conn)
    writing.finish()


# -- roles -------------------------------------------------------------------------------------------------------------


def _place(account_id: int, namespace: str, model: str) -> Any:
    return and_(
        access_grants.c.account_id == account_id,
        access_grants.c.namespace == namespace,
        access_grants.c.model == model,
    )


def _set_grant(writing: Writing, account_id: int, account: str, grant: Grant, *, existed: bool) -> AccountGrant:
    state = AccountGrant(
        account=account,
        namespace=grant.namespace,
        model=grant.model,
        role=grant.role,
        granted_at=writing.at,
        granted_by=writing.actor,
        mod_rev=writing.rev,
    )
    values = {
        "role": grant.role.value,
        "granted_at_us": writing.at_us,
        "granted_by": writing.actor,
        "mod_rev": writing.rev,
    }
    if existed:
        place = _place(account_id, grant.namespace, grant.model)
        writing.conn.execute(update(access_grants).where(place).values(values))
    else:
        writing.conn.execute(
            insert(access_grants).values(account_id=account_id, namespace=grant.namespace, model=grant.model, **values)
        )
    action = Action.UPDATED if existed else Action.CREATED
    writing.note(grant.namespace, grant_path(state), Kind.ACCESS, action, state)
    return state


def grant_role(conn: Connection, account: str, grant: Grant, actor: str, at: datetime) -> AccountGrant:
    """`AccessStore.grant`."""
    row = account_row(conn, account)
    found = conn.execute(GRANTS.where(_place(row.id, grant.namespace, grant.model))).first()
    if found is not None and found.role == grant.role.value:
        return grant_of(found)
    was_admin = _is_admin(conn, row.id)
    writing = Writing(conn, actor=actor, at=at)
    state = _set_grant(writing, row.id, account, grant, existed=found is not None)
    if was_admin and not grant.namespace and not row.disabled:
        _check_some_admin(conn)
    writing.finish()
    return state


def revoke_role(conn: Connection, account: str, namespace: str, model: str, actor: str, at: datetime) -> bool:
    """`AccessStore.revoke`."""
    row = account_row(conn, account)
    found = conn.execute(GRANTS.where(_place(row.id, namespace, model))).first()
    if found is None:
        return False
    was_admin = _is_admin(conn, row.id)
    state = grant_of(found)
    writing = Writing(conn, actor=actor, at=at)
    conn.execute(delete(access_grants).where(_place(row.id, namespace, model)))
    writing.note(namespace, grant_path(state), Kind.ACCESS, Action.DELETED, state)
    if was_admin and not namespace and not row.disabled:
        _check_some_admin(conn)
    writing.finish()
    return True


# -- tokens ------------------------------------------------------------------------------------------------------------


def _add_token(writing: Writing, account_id: int, token: StoredToken) -> TokenInfo:
    state = replace(token.info, created_at=writing.at, created_by=writing.actor, mod_rev=writing.rev)
    writing.conn.execute(
        insert(access_tokens).values(
            kid=state.id,
            secret_hash=token.digest,
            account_id=account_id,
            description=state.description,
            role="" if state.role is None else state.role.value,
            namespaces=json.dumps(list(state.namespaces)),
            created_at_us=writing.at_us,
            created_by=writing.actor,
            expires_at_us=to_us(state.expires_at),
            revoked_at_us=None,
            revoked_by="",
            used_at_us=None,
            mod_rev=writing.rev,
        )
    )
    writing.note(token_namespace(state), f"token:{state.id}", Kind.ACCESS, Action.CREATED, state)
    return state


def _check_new_token(conn: Connection, token: StoredToken) -> None:
    if find_token(conn, token.info.id) is not None:
        raise ConflictError(f"there is a token {token.info.id} already: make another one", current=token.info.id)


def create_token(
    conn: Connection, token: StoredToken, new_account: Sequence[Grant], actor: str, at: datetime
) -> tuple[TokenInfo, bool]:
    """`AccessStore.create_token`."""
    name = token.info.account
    found = conn.execute(select(accounts.c.id).where(accounts.c.name == name)).first()
    if found is None and not new_account:
        raise NotFoundError(f"there is no account {shown(name)}", what="account", name=name)
    _check_new_token(conn, token)
    writing = Writing(conn, actor=actor, at=at)
    if found is None:
        account_id = _add_account(writing, name, "", ())
        for grant in new_account:
            _set_grant(writing, account_id, name, grant, existed=False)
    else:
        account_id = found.id
    state = _add_token(writing, account_id, token)
    writing.finish()
    return state, found is None


def revoke_token(conn: Connection, token_id: str, actor: str, at: datetime) -> TokenInfo:
    """`AccessStore.revoke_token`."""
    before = find_token(conn, token_id)
    if before is None:
        raise NotFoundError(f"there is no token {shown(token_id)}", what="token", name=token_id)
    if before.revoked_at is not None:
        return before
    writing = Writing(conn, actor=actor, at=at)
    after = replace(before, revoked_at=at, revoked_by=actor, mod_rev=writing.rev)
    conn.execute(
        update(access_tokens)
        .where(access_tokens.c.kid == token_id)
        .values(revoked_at_us=writing.at_us, revoked_by=actor, mod_rev=writing.rev)
    )
    writing.note(token_namespace(after), f"token:{token_id}", Kind.ACCESS, Action.DELETED, after)
    writing.finish()
    return after


def note_uses(conn: Connection, used: Sequence[tuple[str, datetime]], older_than_us: int) -> None:
    """`AccessStore.note_uses`."""
    for token_id, at in used:
        at_us = to_us(at)
        stale = access_tokens.c.used_at_us.is_(None) | (access_tokens.c.used_at_us < at_us - older_than_us)
        conn.execute(update(access_tokens).where(access_tokens.c.kid == token_id, stale).values(used_at_us=at_us))


# -- beginning ---------------------------------------------------------------------------------------------------------


def bootstrap(conn: Connection, token: StoredToken, actor: str, at: datetime) -> bool:
    """`AccessStore.bootstrap`."""
    if conn.execute(select(accounts.c.id).limit(1)).first() is not None:
        return False
    create_token(conn, token, [_ADMIN_EVERYWHERE], actor, at)
    return True


def recover(conn: Connection, token: StoredToken, actor: str, at: datetime) -> TokenInfo:
    """`AccessStore.recover`."""
    name = token.info.account
    row = conn.execute(select(accounts).where(accounts.c.name == name)).first()
    if row is None:
        return create_token(conn, token, [_ADMIN_EVERYWHERE], actor, at)[0]
    _check_new_token(conn, token)
    writing = Writing(conn, actor=actor, at=at)
    if row.disabled:
        _set_account(writing, row.id, replace(account_of(row), disabled=False))
    if not _is_admin(conn, row.id):
        there = conn.execute(GRANTS.where(_place(row.id, "", ""))).first() is not None
        _set_grant(writing, row.id, name, _ADMIN_EVERYWHERE, existed=there)
    state = _add_token(writing, row.id, token)
    writing.finish()
    return state

"""Who may: accounts, their roles and their tokens.

Owns the rules of who may change them:

* An admin everywhere may do all of it.
* An admin of a namespace or model gives and takes roles there; one of namespaces makes and revokes tokens that hold
  there alone, whosever they are, and makes accounts along with them.
* Everybody makes and revokes tokens of their own account that are no wider than what they call with.
* Nobody takes the last admin away, and without access control nobody changes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from modelbox.access import Caller, Grant, Permission, Role, check_grant
from modelbox.accounts import Account, AccountGrant, AccountPatch, CreatedToken, NewToken, TokenInfo, WhoAmI
from modelbox.errors import AuthError, InvalidError, NotFoundError
from modelbox.objects import Created, Page
from modelbox.refs import check_name, shown
from modelbox.runtime.access_ports import StoredToken
from modelbox.runtime.limits import check_text
from modelbox.runtime.services.callers import SERVER_ACTOR, CallerService, Credentials
from modelbox.runtime.services.paging import decode_key, page_of, page_size_of
from modelbox.tokens import Token, check_kid

__all__ = ("DEFAULT_TOKEN_S", "MAX_TOKEN_S", "AccessService", "Credentials", "check_account")

DEFAULT_TOKEN_S = 90 * 86400.0
MAX_TOKEN_S = 365 * 86400.0
_MIN_TOKEN_S = 60.0
_MAX_NAMESPACES = 100
_MAX_CERTIFICATE_NAMES = 20
_RESERVED = frozenset(["retention", SERVER_ACTOR])
"""What history calls the server itself."""


def check_account(name: str) -> str:
    """Returns ``name`` if an account may have it: a name as of a model, and none that the server has for itself.

    Raises:
        InvalidError: It may not.
    """
    check_name(name, "account")
    if name in _RESERVED:
        raise InvalidError(
            f"{shown(name)} is what history calls the server itself: choose another name", what="account"
        )
    return name


class AccessService(CallerService):
    """Accounts, roles and tokens; an async context manager, with the arguments of `CallerService`."""

    # -- accounts --------------------------------------------------------------------------------------------------

    def whoami(self, caller: Caller) -> WhoAmI:
        """What is known of a caller."""
        info = self._book.infos.get(caller.token_id)
        return WhoAmI(
            access=self._on,
            name=caller.name,
            token_id=caller.token_id,
            address=caller.address,
            grants=caller.grants,
            expires_at=None if info is None else info.expires_at,
        )

    async def create_account(
        self, name: str, *, description: str = "", certificate_names: Sequence[str] = (), caller: Caller
    ) -> Created[Account]:
        """Makes an account without any role; idempotent by name.

        Raises:
            AuthError: The caller is not an admin everywhere.
            ConflictError: A certificate name is another account's.
        """
        check_account(name)
        check_text(description, "description", max_chars=1024)
        names = _check_certificate_names(certificate_names)
        self._check_admin(caller)
        made = await self._store.create_account(
            name, description=description, certificate_names=names, actor=caller.name, at=self._now()
        )
        await self._done()
        return made

    async def update_account(self, name: str, patch: AccountPatch, *, caller: Caller) -> Account:
        """Changes an account.

        Raises:
            AuthError: The caller is not an admin everywhere.
            NotFoundError: There is no such account.
            ConflictError: A certificate name is another account's, or it is the last admin and would be disabled.
        """
        check_name(name, "account")
        if patch.description is not None:
            check_text(patch.description, "description", max_chars=1024)
        if patch.certificate_names is not None:
            patch = replace(patch, certificate_names=_check_certificate_names(patch.certificate_names))
        self._check_admin(caller)
        account = await self._store.update_account(name, patch, actor=caller.name, at=self._now())
        await self._done()
        return account

    async def delete_account(self, name: str, *, caller: Caller) -> None:
        """Removes an account with its roles and tokens.

        Raises:
            AuthError: The caller is not an admin everywhere.
            NotFoundError: There is no such account.
            ConflictError: It is the last admin.
        """
        check_name(name, "account")
        self._check_admin(caller)
        await self._store.delete_account(name, actor=caller.name, at=self._now())
        await self._done()

    async def list_accounts(self, *, page_size: int = 0, page_token: str = "", caller: Caller) -> Page[Account]:
        """Accounts by name: all for an admin everywhere, others see those with a role where they are admins."""
        everything = caller.may(Permission.ADMIN)
        grants = self._book.grants

        def visible(account: Account) -> bool:
            return (
                everything
                or (self._on and account.name == caller.name)
                or any(self._sees(caller, one) for one in grants.get(account.name, ()))
            )

        listed = await self._store.list_accounts(
            visible=visible, limit=page_size_of(page_size), after=decode_key("accounts", page_token, str)
        )
        return page_of("accounts", listed)

    # -- roles -----------------------------------------------------------------------------------------------------

    async def grant_role(self, account: str, grant: Grant, *, caller: Caller) -> AccountGrant:
        """Gives an account a role, in the place of the one that it has there.

        Raises:
            AuthError: The caller is not an admin there.
            NotFoundError: There is no such account.
            ConflictError: It is the last admin, and would be less.
        """
        check_name(account, "account")
        check_grant(grant)
        self._check_admin(caller, grant.namespace, grant.model)
        given = await self._store.grant(account, grant, actor=caller.name, at=self._now())
        await self._done()
        return given

    async def revoke_role(self, account: str, namespace: str = "", model: str = "", *, caller: Caller) -> bool:
        """Takes an account's role in a place away; returns whether it had one.

        Raises:
            AuthError: The caller is not an admin there.
            NotFoundError: There is no such account.
            ConflictError: It is the last admin.
        """
        check_name(account, "account")
        check_grant(Grant(namespace=namespace, model=model, role=Role.READER))
        self._check_admin(caller, namespace, model)
        revoked = await self._store.revoke(account, namespace, model, actor=caller.name, at=self._now())
        await self._done()
        return revoked

    async def list_grants(
        self, *, account: str = "", namespace: str = "", page_size: int = 0, page_token: str = "", caller: Caller
    ) -> Page[AccountGrant]:
        """Roles by account and place: one's own, and those where one is an admin."""
        if account:
            check_name(account, "account")
        if namespace:
            check_name(namespace, "namespace")
        listing = f"grants:{account}:{namespace}"
        listed = await self._store.list_grants(
            account=account,
            namespace=namespace,
            visible=lambda one: (self._on and one.account == caller.name) or self._sees(caller, one.grant),
            limit=page_size_of(page_size),
            after=decode_key(listing, page_token, str, str, str),
        )
        return page_of(listing, listed)

    # -- tokens ----------------------------------------------------------------------------------------------------

    async def create_token(self, new: NewToken, *, caller: Caller) -> CreatedToken:
        """Makes a token; its text is in the answer and nowhere else.

        Raises:
            InvalidError: It would hold too long, or its account is to be made and it names no role.
            AuthError: The caller may not make it.
            NotFoundError: There is no such account, and it is not to be made.
        """
        self._check_on()
        name = new.account or caller.name
        check_name(name, "account")
        check_text(new.description, "description", max_chars=1024)
        namespaces = tuple(sorted({check_name(one, "namespace") for one in new.namespaces}))
        if len(namespaces) > _MAX_NAMESPACES:
            raise InvalidError(f"a token names at most {_MAX_NAMESPACES} namespaces", what="namespaces")
        lasts_s = _check_lasts(new.expires_in_s)
        now = self._now()
        info = TokenInfo(
            id=(token := Token.new()).kid,
            account=name,
            description=new.description,
            role=new.role,
            namespaces=namespaces,
            created_at=now,
            created_by=caller.name,
            expires_at=now + timedelta(seconds=lasts_s),
            mod_rev=0,
        )
        if not self._rules_token(caller, info):
            if name != caller.name:
                raise AuthError(
                    "to make a token of another account, be an admin of all namespaces that it holds in", role="admin"
                )
            raise AuthError(
                "a token cannot let do more than the one that it is made with: name its role and namespaces"
            )
        grants: list[Grant] = []
        if new.create_account:
            check_account(name)
            if new.role is None:
                raise InvalidError(f"to make the account {name}, its token needs a role", what="role")
            grants = [Grant(namespace=place, role=new.role) for place in namespaces or ("",)]
        kept, account_created = await self._store.create_token(
            StoredToken(digest=token.digest, info=info), new_account=grants, actor=caller.name, at=now
        )
        await self._done()
        return CreatedToken(token=token.reveal(), info=kept, account_created=account_created)

    async def list_tokens(
        self,
        *,
        account: str = "",
        include_ended: bool = False,
        page_size: int = 0,
        page_token: str = "",
        caller: Caller,
    ) -> Page[TokenInfo]:
        """Tokens, newest first: those of the caller's account, and those that they may revoke."""
        if account:
            check_name(account, "account")
        listing = f"tokens:{account}:{include_ended}"
        listed = await self._store.list_tokens(
            account=account,
            live_at=None if include_ended else self._now(),
            visible=lambda one: self._sees_token(caller, one),
            limit=page_size_of(page_size),
            after=decode_key(listing, page_token, int),
        )
        return page_of(listing, listed)

    async def revoke_token(self, token_id: str, *, caller: Caller) -> TokenInfo:
        """Ends a token, at once here and within a second on other replicas; one that was revoked stays as it is.

        Raises:
            NotFoundError: There is none that the caller may see.
            AuthError: It is of the caller's account, and wider than what they call with.
        """
        self._check_on()
        check_kid(token_id)
        info = await self._store.find_token(token_id)
        if info is None or not self._sees_token(caller, info):
            raise NotFoundError(f"there is no token {shown(token_id)}", what="token", name=token_id)
        if info.id != caller.token_id and not self._rules_token(caller, info):
            raise AuthError(f"the token {token_id} lets do more than the one that you call with: use a wider one")
        ended = await self._store.revoke_token(token_id, actor=caller.name, at=self._now())
        await self._done()
        return ended

    # -- rules -----------------------------------------------------------------------------------------------------

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _check_on(self) -> None:
        if not self._on:
            raise AuthError(
                "this server has no access control, so nobody can say who may change it: start it with access = on"
            )

    def _check_admin(self, caller: Caller, namespace: str = "", model: str = "") -> None:
        self._check_on()
        if not caller.may(Permission.ADMIN, namespace, model):
            place = f"{namespace}/{model}" if model else namespace
            raise AuthError(f"this needs the role admin {f'of {place}' if place else 'everywhere'}", role="admin")

    def _sees(self, caller: Caller, grant: Grant) -> bool:
        return caller.may(Permission.ADMIN, grant.namespace, grant.model)

    def _sees_token(self, caller: Caller, token: TokenInfo) -> bool:
        return (self._on and token.account == caller.name) or self._rules_token(caller, token)

    def _rules_token(self, caller: Caller, token: TokenInfo) -> bool:
        """Whether the caller may make or revoke a token like this."""
        if caller.may(Permission.ADMIN):
            return True
        if token.namespaces and all(caller.may(Permission.ADMIN, one) for one in token.namespaces):
            return True
        return token.account == caller.name and self._is_within(token, caller)

    def _is_within(self, token: TokenInfo, caller: Caller) -> bool:
        """Whether a token of the caller's account is no wider than what they call with."""
        if not caller.token_id:
            return True
        own = self._book.infos.get(caller.token_id)
        if own is None:
            return False
        if own.role is not None and (token.role is None or token.role.rank > own.role.rank):
            return False
        return not own.namespaces or (bool(token.namespaces) and set(token.namespaces) <= set(own.namespaces))


def _check_certificate_names(names: Sequence[str]) -> tuple[str, ...]:
    if len(names) > _MAX_CERTIFICATE_NAMES:
        raise InvalidError(
            f"an account has at most {_MAX_CERTIFICATE_NAMES} certificate names", what="certificate_names"
        )
    for name in names:
        check_text(name, "certificate name", max_chars=255)
        if not name or not name.isprintable():
            raise InvalidError(
                f"{shown(name)} is not the name of a certificate: expected one such as ci.example.org or "
                "spiffe://example.org/ci",
                what="certificate_names",
            )
    return tuple(dict.fromkeys(names))


def _check_lasts(asked_s: float | None) -> float:
    if asked_s is None:
        return DEFAULT_TOKEN_S
    if isinstance(asked_s, bool) or not isinstance(asked_s, int | float) or not _MIN_TOKEN_S <= asked_s <= MAX_TOKEN_S:
        raise InvalidError(
            f"a token cannot hold for {shown(asked_s)} seconds: expected {_MIN_TOKEN_S:.0f} (a minute) to "
            f"{MAX_TOKEN_S:.0f} (a year)",
            what="expires_in_s",
        )
    return float(asked_s)

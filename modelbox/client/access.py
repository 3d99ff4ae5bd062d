"""Who may do what: accounts, their roles and their tokens, as methods of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from modelbox.access import Grant, Role
from modelbox.accounts import Account, AccountGrant, AccountPatch, CreatedToken, NewToken, TokenInfo, WhoAmI
from modelbox.client.connection import ClientConnection
from modelbox.objects import Created

__all__ = ("AccessCalls",)


class AccessCalls(ClientConnection):
    """The part of `Client` about accounts, roles and tokens."""

    async def whoami(self) -> WhoAmI:
        """What the server knows of this client: its account, its token and what it may do."""
        return await self._call(lambda source: source.access.whoami())

    # --- accounts ------------------------------------------------------------------------------------------------

    async def create_account(
        self, name: str, *, description: str = "", certificate_names: Sequence[str] = ()
    ) -> Created[Account]:
        """Makes an account, of a person or a program, without any role; idempotent by name.

        Args:
            name: As of a model.
            description: For people.
            certificate_names: Names in client certificates that mean this account.

        Raises:
            AuthError: The caller is not an admin everywhere, or the server has no access control.
            ConflictError: A certificate name is another account's.
        """
        names = tuple(certificate_names)
        return await self._call(lambda source: source.access.create_account(name, description, names))

    def iter_accounts(self) -> AsyncIterator[Account]:
        """Accounts by name, as far as the caller may see them."""
        return self._pages(lambda source, token: source.access.list_accounts(page_token=token))

    async def update_account(
        self,
        name: str,
        *,
        description: str | None = None,
        certificate_names: Sequence[str] | None = None,
        disabled: bool | None = None,
    ) -> Account:
        """Changes an account; what is None stays.

        Args:
            name: Of the account.
            description: For people.
            certificate_names: Names in client certificates that mean this account, all of them.
            disabled: Whether nothing that it has is taken.

        Raises:
            AuthError: The caller is not an admin everywhere.
            NotFoundError: There is no such account.
            ConflictError: A certificate name is another account's, or it is the last admin and would be disabled.
        """
        patch = AccountPatch(
            description=description,
            certificate_names=None if certificate_names is None else tuple(certificate_names),
            disabled=disabled,
        )
        return await self._call(lambda source: source.access.update_account(name, patch))

    async def delete_account(self, name: str) -> None:
        """Removes an account with its roles and tokens.

        Raises:
            AuthError: The caller is not an admin everywhere.
            NotFoundError: There is no such account.
            ConflictError: It is the last admin.
        """
        await self._call(lambda source: source.access.delete_account(name))

    # --- roles ---------------------------------------------------------------------------------------------------

    async def grant_role(self, account: str, role: str, *, namespace: str = "", model: str = "") -> AccountGrant:
        """Gives an account a role, in the place of the one that it has there.

        Args:
            account: Of whom.
            role: ``reader``, ``writer``, ``promoter`` or ``admin``.
            namespace: Where; empty for everywhere.
            model: Of this model of the namespace only.

        Raises:
            AuthError: The caller is not an admin there.
            NotFoundError: There is no such account.
            ConflictError: It is the last admin, and would be less.
        """
        grant = Grant(namespace=namespace, model=model, role=Role.parse(role))
        return await self._call(lambda source: source.access.grant_role(account, grant))

    async def revoke_role(self, account: str, *, namespace: str = "", model: str = "") -> bool:
        """Takes an account's role in a place away; returns whether it had one.

        Raises:
            AuthError: The caller is not an admin there.
            NotFoundError: There is no such account.
            ConflictError: It is the last admin.
        """
        return await self._call(lambda source: source.access.revoke_role(account, namespace, model))

    def iter_grants(self, *, account: str = "", namespace: str = "") -> AsyncIterator[AccountGrant]:
        """Roles by account and place: the caller's own, and those where they are an admin."""
        return self._pages(lambda source, token: source.access.list_grants(account, namespace, page_token=token))

    # --- tokens --------------------------------------------------------------------------------------------------

    async def create_token(
        self,
        account: str = "",
        *,
        role: str = "",
        namespaces: Sequence[str] = (),
        expires_in_s: float | None = None,
        description: str = "",
        create_account: bool = False,
    ) -> CreatedToken:
        """Makes a token; its text is in the answer and nowhere else.

        Args:
            account: Whose; empty for the caller's own.
            role: The most that it lets do; empty for all that its account may.
            namespaces: Where alone it holds; empty for wherever its account has a role.
            expires_in_s: How long it holds, in seconds; None for 90 days, at most a year.
            description: For people.
            create_account: Make the account, with just this role in just these namespaces, if there is none.

        Raises:
            AuthError: The caller may not make it: it would be wider than what they call with, or hold elsewhere than
                where they are an admin.
            NotFoundError: There is no such account, and it is not to be made.
        """
        new = NewToken(
            account=account,
            description=description,
            role=Role.parse(role) if role else None,
            namespaces=tuple(namespaces),
            expires_in_s=expires_in_s,
            create_account=create_account,
        )
        return await self._call(lambda source: source.access.create_token(new))

    def iter_tokens(self, *, account: str = "", include_ended: bool = False) -> AsyncIterator[TokenInfo]:
        """Tokens, newest first: of the caller's account, and those that they may revoke.

        Args:
            account: Whose; empty for all.
            include_ended: Revoked and expired ones, too.
        """
        return self._pages(lambda source, token: source.access.list_tokens(account, include_ended, page_token=token))

    async def revoke_token(self, token_id: str) -> TokenInfo:
        """Ends a token, with the watches that it opened; one that was revoked stays as it is.

        Args:
            token_id: Its public part, as lists show it.

        Raises:
            NotFoundError: There is none that the caller may see.
            AuthError: It lets do more than the one that the caller has.
        """
        return await self._call(lambda source: source.access.revoke_token(token_id))

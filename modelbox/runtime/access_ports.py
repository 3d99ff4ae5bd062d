"""What the service of access needs of a database, as a protocol.

The rules of `modelbox.runtime.ports` hold here too: whatever changes something is one transaction, with its revisions
of the change feed in it, none of which holds a secret or its hash.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from modelbox.access import Grant
from modelbox.accounts import Account, AccountGrant, AccountPatch, TokenInfo
from modelbox.objects import Created
from modelbox.runtime.ports import Key, Listed

__all__ = ("AccessState", "AccessStore", "StoredToken")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredToken:
    """A token that is kept.

    Attributes:
        digest: SHA-256 of its secret.
    """

    digest: bytes = field(repr=False)
    info: TokenInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessState:
    """Everything that may be called with, as of one moment.

    Attributes:
        tokens: Those that were not revoked, and have not expired long ago.
    """

    accounts: tuple[Account, ...]
    grants: tuple[AccountGrant, ...]
    tokens: tuple[StoredToken, ...]


class AccessStore(Protocol):
    """Accounts, their roles and tokens.

    Lists take a ``visible`` that says which items the caller may see; pages are full however few these are.
    """

    async def load(self, *, expired_since: datetime) -> AccessState:
        """All accounts and roles, and the tokens that are not revoked and expire after a time."""

    # Accounts.

    async def create_account(
        self, name: str, *, description: str, certificate_names: Sequence[str], actor: str, at: datetime
    ) -> Created[Account]:
        """Makes an account; idempotent by name.

        Raises:
            ConflictError: A certificate name is another account's.
        """

    async def update_account(self, name: str, patch: AccountPatch, *, actor: str, at: datetime) -> Account:
        """Changes an account; what changes nothing makes no revision.

        Raises:
            NotFoundError: There is none.
            ConflictError: A certificate name is another account's, or nobody would be an admin everywhere any more.
        """

    async def delete_account(self, name: str, *, actor: str, at: datetime) -> None:
        """Removes an account with its roles and tokens.

        Raises:
            NotFoundError: There is none.
            ConflictError: Nobody would be an admin everywhere any more.
        """

    async def list_accounts(
        self, *, visible: Callable[[Account], bool], limit: int, after: Key | None
    ) -> Listed[Account]:
        """Accounts by name. Key: (name,)."""

    # Roles.

    async def grant(self, account: str, grant: Grant, *, actor: str, at: datetime) -> AccountGrant:
        """Gives a role, in the place of the one that the account has there; the same one makes no revision.

        Raises:
            NotFoundError: There is no such account.
            ConflictError: Nobody would be an admin everywhere any more.
        """

    async def revoke(self, account: str, namespace: str, model: str, *, actor: str, at: datetime) -> bool:
        """Takes the role in a place away; returns whether there was one.

        Raises:
            ConflictError: Nobody would be an admin everywhere any more.
        """

    async def list_grants(
        self,
        *,
        account: str,
        namespace: str,
        visible: Callable[[AccountGrant], bool],
        limit: int,
        after: Key | None,
    ) -> Listed[AccountGrant]:
        """Roles by account and place; an empty account or namespace lets all through. Key: (account, place...)."""

    # Tokens.

    async def create_token(
        self, token: StoredToken, *, new_account: Sequence[Grant], actor: str, at: datetime
    ) -> tuple[TokenInfo, bool]:
        """Keeps a token; its account is made with these roles if there is none, and there are any.

        Returns:
            The token, and whether its account was made.

        Raises:
            NotFoundError: There is no such account.
            ConflictError: There is a token with this id.
        """

    async def find_token(self, token_id: str) -> TokenInfo | None:
        """A token, ended or not."""

    async def revoke_token(self, token_id: str, *, actor: str, at: datetime) -> TokenInfo:
        """Ends a token; one that was revoked stays as it is.

        Raises:
            NotFoundError: There is none.
        """

    async def list_tokens(
        self,
        *,
        account: str,
        live_at: datetime | None,
        visible: Callable[[TokenInfo], bool],
        limit: int,
        after: Key | None,
    ) -> Listed[TokenInfo]:
        """Tokens, newest first, those that hold at a time or all; of all accounts for an empty one. Key: (number,)."""

    async def note_uses(self, used: Sequence[tuple[str, datetime]], *, older_than_s: float) -> None:
        """Remembers when tokens were used, beside the feed, if what is remembered is older than so many seconds."""

    # Beginning.

    async def bootstrap(self, token: StoredToken, *, actor: str, at: datetime) -> bool:
        """Makes the first account, an admin everywhere, with this token; returns False where there is any account."""

    async def recover(self, token: StoredToken, *, actor: str, at: datetime) -> TokenInfo:
        """Gives an account, made or enabled if need be, the role of an admin everywhere, and this token."""

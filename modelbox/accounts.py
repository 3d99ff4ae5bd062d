"""Accounts, their roles and their tokens, as the server keeps them and as callers see them. Frozen data and pure rules.

An account is a person or a program. It has roles; its tokens have these too, unless they are narrower. Nothing here
holds a secret but `CreatedToken`, which is an answer and is kept nowhere.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from modelbox.access import Grant, Role

__all__ = ("Account", "AccountGrant", "AccountPatch", "CreatedToken", "NewToken", "TokenInfo", "WhoAmI", "narrowed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A person or a program.

    Attributes:
        certificate_names: Names in client certificates (subject alternative names) that mean this account.
        disabled: Nothing that it has is taken, until it is enabled again.
    """

    name: str
    description: str = ""
    certificate_names: tuple[str, ...] = ()
    disabled: bool = False
    created_at: datetime
    created_by: str
    mod_rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountPatch:
    """What to change of an account; None leaves a field as it is."""

    description: str | None = None
    certificate_names: tuple[str, ...] | None = None
    disabled: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountGrant:
    """A role of an account: one for each place.

    Attributes:
        namespace: Where; empty for everywhere.
        model: Of this model only; empty for the whole namespace.
    """

    account: str
    namespace: str = ""
    model: str = ""
    role: Role
    granted_at: datetime
    granted_by: str
    mod_rev: int

    @property
    def grant(self) -> Grant:
        """The role by itself."""
        return Grant(namespace=self.namespace, model=self.model, role=self.role)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInfo:
    """A token as lists show it: nothing of it can be used.

    Attributes:
        id: Its public part.
        account: Whose it is.
        role: The most that it lets do; empty: all that its account may.
        namespaces: Where it holds alone; empty: wherever its account has a role.
        used_at: When it was last used, to the hour; None if it never was.
    """

    id: str
    account: str
    description: str = ""
    role: Role | None = None
    namespaces: tuple[str, ...] = ()
    created_at: datetime
    created_by: str
    expires_at: datetime
    revoked_at: datetime | None = None
    revoked_by: str = ""
    used_at: datetime | None = None
    mod_rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token to be made.

    Attributes:
        account: Whose; empty for the caller's own.
        role: The most that it lets do; None: all that its account may.
        namespaces: Where it holds alone; empty: wherever its account has a role.
        expires_in_s: How long it holds, in seconds; None for 90 days, at most a year.
        create_account: Makes the account, with just this role in just these namespaces, if there is none.
    """

    account: str = ""
    description: str = ""
    role: Role | None = None
    namespaces: tuple[str, ...] = ()
    expires_in_s: float | None = None
    create_account: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedToken:
    """A token that was made.

    Attributes:
        token: Its text, shown this once.
        account_created: Its account was made along with it.
    """

    token: str = field(repr=False)
    info: TokenInfo
    account_created: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WhoAmI:
    """What the server knows of a caller.

    Attributes:
        access: Whether access control is on; while it is off, the name is what the caller says.
        token_id: The public part of the token that the call came with; empty if it came with none.
        grants: What the caller may do.
        expires_at: When the token expires.
    """

    access: bool
    name: str
    token_id: str = ""
    address: str = ""
    grants: tuple[Grant, ...] = ()
    expires_at: datetime | None = None


def narrowed(grants: Sequence[Grant], role: Role | None, namespaces: Collection[str]) -> tuple[Grant, ...]:
    """What is left of roles in a token that lets do at most ``role``, and only in ``namespaces`` if there are any."""
    found: dict[tuple[str, str], Role] = {}
    for grant in grants:
        capped = grant.role if role is None or grant.role.rank <= role.rank else role
        if not namespaces:
            places = [grant.namespace]
        elif not grant.namespace:
            places = sorted(set(namespaces))
        else:
            places = [grant.namespace] if grant.namespace in namespaces else []
        for namespace in places:
            known = found.get((namespace, grant.model))
            if known is None or known.rank < capped.rank:
                found[namespace, grant.model] = capped
    return tuple(
        Grant(namespace=namespace, model=model, role=capped) for (namespace, model), capped in sorted(found.items())
    )

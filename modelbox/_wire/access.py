"""Accounts, roles and tokens as messages and back."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire.values import (
    member,
    pack_optional_time,
    pack_time,
    present,
    unpack_optional_time,
    unpack_time,
)
from modelbox.access import Grant, Role
from modelbox.accounts import Account, AccountGrant, AccountPatch, CreatedToken, NewToken, TokenInfo, WhoAmI
from modelbox.objects import Created


def unpack_role(text: str) -> Role | None:
    """A role, where one is named."""
    return member(Role, text, "a role") if text else None


def pack_account(value: Account) -> pb.Account:
    """As a message."""
    return pb.Account(
        name=value.name,
        description=value.description,
        certificate_names=list(value.certificate_names),
        disabled=value.disabled,
        created_at_us=pack_time(value.created_at),
        created_by=value.created_by,
        mod_rev=value.mod_rev,
    )


def unpack_account(message: pb.Account) -> Account:
    """From a message."""
    return Account(
        name=message.name,
        description=message.description,
        certificate_names=tuple(message.certificate_names),
        disabled=message.disabled,
        created_at=unpack_time(message.created_at_us),
        created_by=message.created_by,
        mod_rev=message.mod_rev,
    )


def unpack_created_account(message: pb.CreateAccountResponse) -> Created[Account]:
    """From a message."""
    return Created(item=unpack_account(present(message.account, "an account")), existed=message.existed)


def pack_account_patch(name: str, patch: AccountPatch) -> pb.UpdateAccountRequest:
    """As a message."""
    names = patch.certificate_names
    return pb.UpdateAccountRequest(
        name=name,
        description=patch.description,
        certificate_names=None if names is None else pb.CertificateNames(names=list(names)),
        disabled=patch.disabled,
    )


def unpack_account_patch(message: pb.UpdateAccountRequest) -> AccountPatch:
    """From a message."""
    names = message.certificate_names
    return AccountPatch(
        description=message.description,
        certificate_names=None if names is None else tuple(names.names),
        disabled=message.disabled,
    )


def pack_grant(value: AccountGrant) -> pb.AccountGrant:
    """As a message."""
    return pb.AccountGrant(
        account=value.account,
        namespace=value.namespace,
        model=value.model,
        role=value.role.value,
        granted_at_us=pack_time(value.granted_at),
        granted_by=value.granted_by,
        mod_rev=value.mod_rev,
    )


def unpack_grant(message: pb.AccountGrant) -> AccountGrant:
    """From a message."""
    return AccountGrant(
        account=message.account,
        namespace=message.namespace,
        model=message.model,
        role=member(Role, message.role, "a role"),
        granted_at=unpack_time(message.granted_at_us),
        granted_by=message.granted_by,
        mod_rev=message.mod_rev,
    )


def pack_token(value: TokenInfo) -> pb.AccessToken:
    """As a message."""
    return pb.AccessToken(
        id=value.id,
        account=value.account,
        description=value.description,
        role="" if value.role is None else value.role.value,
        namespaces=list(value.namespaces),
        created_at_us=pack_time(value.created_at),
        created_by=value.created_by,
        expires_at_us=pack_time(value.expires_at),
        revoked_at_us=pack_optional_time(value.revoked_at),
        revoked_by=value.revoked_by,
        used_at_us=pack_optional_time(value.used_at),
        mod_rev=value.mod_rev,
    )


def unpack_token(message: pb.AccessToken) -> TokenInfo:
    """From a message."""
    return TokenInfo(
        id=message.id,
        account=message.account,
        description=message.description,
        role=unpack_role(message.role),
        namespaces=tuple(message.namespaces),
        created_at=unpack_time(message.created_at_us),
        created_by=message.created_by,
        expires_at=unpack_time(message.expires_at_us),
        revoked_at=unpack_optional_time(message.revoked_at_us),
        revoked_by=message.revoked_by,
        used_at=unpack_optional_time(message.used_at_us),
        mod_rev=message.mod_rev,
    )


def pack_new_token(value: NewToken) -> pb.CreateTokenRequest:
    """As a message."""
    return pb.CreateTokenRequest(
        account=value.account,
        description=value.description,
        role="" if value.role is None else value.role.value,
        namespaces=list(value.namespaces),
        expires_in_s=None if value.expires_in_s is None else float(value.expires_in_s),
        create_account=value.create_account,
    )


def unpack_new_token(message: pb.CreateTokenRequest) -> NewToken:
    """From a message."""
    return NewToken(
        account=message.account,
        description=message.description,
        role=unpack_role(message.role),
        namespaces=tuple(message.namespaces),
        expires_in_s=message.expires_in_s,
        create_account=message.create_account,
    )


def pack_created_token(value: CreatedToken) -> pb.CreateTokenResponse:
    """As a message."""
    return pb.CreateTokenResponse(token=value.token, info=pack_token(value.info), account_created=value.account_created)


def unpack_created_token(message: pb.CreateTokenResponse) -> CreatedToken:
    """From a message."""
    info = unpack_token(present(message.info, "a token"))
    return CreatedToken(token=message.token, info=info, account_created=message.account_created)


def pack_whoami(value: WhoAmI) -> pb.WhoAmIResponse:
    """As a message."""
    return pb.WhoAmIResponse(
        access=value.access,
        name=value.name,
        token_id=value.token_id,
        address=value.address,
        grants=[pb.AccountGrant(namespace=one.namespace, model=one.model, role=one.role.value) for one in value.grants],
        expires_at_us=pack_optional_time(value.expires_at),
    )


def unpack_whoami(message: pb.WhoAmIResponse) -> WhoAmI:
    """From a message."""
    return WhoAmI(
        access=message.access,
        name=message.name,
        token_id=message.token_id,
        address=message.address,
        grants=tuple(
            Grant(namespace=one.namespace, model=one.model, role=member(Role, one.role, "a role"))
            for one in message.grants
        ),
        expires_at=unpack_optional_time(message.expires_at_us),
    )

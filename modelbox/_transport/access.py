"""Remote calls about accounts, roles and tokens, with our objects in and out.

Owns which of these calls may be repeated: all that set something to a value, and all that read. A token is made once
for each call, so that is not.
"""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._transport.grpc import Connection, page, rpc
from modelbox._wire import access as wire
from modelbox.access import Grant
from modelbox.accounts import Account, AccountGrant, AccountPatch, CreatedToken, NewToken, TokenInfo, WhoAmI
from modelbox.objects import Created, Page

__all__ = ("AccessCalls",)

_A = "AccessService"
_WHOAMI = rpc(_A, "WhoAmI", pb.WhoAmIRequest, pb.WhoAmIResponse, idempotent=True)
_CREATE_ACCOUNT = rpc(_A, "CreateAccount", pb.CreateAccountRequest, pb.CreateAccountResponse, idempotent=True)
_LIST_ACCOUNTS = rpc(_A, "ListAccounts", pb.ListAccountsRequest, pb.ListAccountsResponse, idempotent=True)
_UPDATE_ACCOUNT = rpc(_A, "UpdateAccount", pb.UpdateAccountRequest, pb.Account, idempotent=True)
_DELETE_ACCOUNT = rpc(_A, "DeleteAccount", pb.DeleteAccountRequest, pb.DeleteAccountResponse)
_GRANT = rpc(_A, "GrantRole", pb.GrantRoleRequest, pb.AccountGrant, idempotent=True)
_REVOKE = rpc(_A, "RevokeRole", pb.RevokeRoleRequest, pb.RevokeRoleResponse)
_LIST_GRANTS = rpc(_A, "ListGrants", pb.ListGrantsRequest, pb.ListGrantsResponse, idempotent=True)
_CREATE_TOKEN = rpc(_A, "CreateToken", pb.CreateTokenRequest, pb.CreateTokenResponse)
_LIST_TOKENS = rpc(_A, "ListTokens", pb.ListTokensRequest, pb.ListTokensResponse, idempotent=True)
_REVOKE_TOKEN = rpc(_A, "RevokeToken", pb.RevokeTokenRequest, pb.AccessToken, idempotent=True)


class AccessCalls:
    """The server's calls about accounts, roles and tokens, one method each.

    Concurrency: any number of tasks of one event loop.
    Errors: as those of `Connection`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def whoami(self) -> WhoAmI:
        """What the server knows of the caller."""
        return await self._connection.unary(_WHOAMI, pb.WhoAmIRequest(), wire.unpack_whoami)

    async def create_account(self, name: str, description: str, certificate_names: tuple[str, ...]) -> Created[Account]:
        """Makes an account."""
        request = pb.CreateAccountRequest(name=name, description=description, certificate_names=list(certificate_names))
        return await self._connection.unary(_CREATE_ACCOUNT, request, wire.unpack_created_account)

    async def list_accounts(self, *, page_size: int = 0, page_token: str = "") -> Page[Account]:
        """One page of accounts."""
        return await self._connection.unary(
            _LIST_ACCOUNTS,
            pb.ListAccountsRequest(page_size=page_size, page_token=page_token),
            lambda answer: page(answer.accounts, wire.unpack_account, answer.next_page_token),
        )

    async def update_account(self, name: str, patch: AccountPatch) -> Account:
        """Changes an account."""
        return await self._connection.unary(_UPDATE_ACCOUNT, wire.pack_account_patch(name, patch), wire.unpack_account)

    async def delete_account(self, name: str) -> None:
        """Removes an account."""
        await self._connection.unary(_DELETE_ACCOUNT, pb.DeleteAccountRequest(name=name), lambda answer: None)

    async def grant_role(self, account: str, grant: Grant) -> AccountGrant:
        """Gives a role."""
        request = pb.GrantRoleRequest(
            account=account, namespace=grant.namespace, model=grant.model, role=grant.role.value
        )
        return await self._connection.unary(_GRANT, request, wire.unpack_grant)

    async def revoke_role(self, account: str, namespace: str, model: str) -> bool:
        """Takes a role away; returns whether there was one."""
        request = pb.RevokeRoleRequest(account=account, namespace=namespace, model=model)
        return await self._connection.unary(_REVOKE, request, lambda answer: answer.revoked)

    async def list_grants(
        self, account: str, namespace: str, *, page_size: int = 0, page_token: str = ""
    ) -> Page[AccountGrant]:
        """One page of roles."""
        return await self._connection.unary(
            _LIST_GRANTS,
            pb.ListGrantsRequest(account=account, namespace=namespace, page_size=page_size, page_token=page_token),
            lambda answer: page(answer.grants, wire.unpack_grant, answer.next_page_token),
        )

    async def create_token(self, new: NewToken) -> CreatedToken:
        """Makes a token."""
        return await self._connection.unary(_CREATE_TOKEN, wire.pack_new_token(new), wire.unpack_created_token)

    async def list_tokens(
        self, account: str, include_ended: bool, *, page_size: int = 0, page_token: str = ""
    ) -> Page[TokenInfo]:
        """One page of tokens."""
        return await self._connection.unary(
            _LIST_TOKENS,
            pb.ListTokensRequest(
                account=account, include_ended=include_ended, page_size=page_size, page_token=page_token
            ),
            lambda answer: page(answer.tokens, wire.unpack_token, answer.next_page_token),
        )

    async def revoke_token(self, token_id: str) -> TokenInfo:
        """Ends a token."""
        return await self._connection.unary(_REVOKE_TOKEN, pb.RevokeTokenRequest(id=token_id), wire.unpack_token)

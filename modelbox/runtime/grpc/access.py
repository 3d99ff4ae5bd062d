"""AccessService over gRPC: decode, call the service, encode."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire import access as wire
from modelbox.access import Grant, Role
from modelbox.runtime.caller import current_caller
from modelbox.runtime.services.access import AccessService

__all__ = ("AccessAdapter",)


class AccessAdapter(pb.AccessServiceBase):
    """See ``protos/modelbox/v1/access.proto``."""

    def __init__(self, access: AccessService) -> None:
        self._access = access

    async def who_am_i(self, message: pb.WhoAmIRequest) -> pb.WhoAmIResponse:
        """See the proto."""
        return wire.pack_whoami(self._access.whoami(current_caller()))

    async def create_account(self, message: pb.CreateAccountRequest) -> pb.CreateAccountResponse:
        """See the proto."""
        made = await self._access.create_account(
            message.name,
            description=message.description,
            certificate_names=tuple(message.certificate_names),
            caller=current_caller(),
        )
        return pb.CreateAccountResponse(account=wire.pack_account(made.item), existed=made.existed)

    async def list_accounts(self, message: pb.ListAccountsRequest) -> pb.ListAccountsResponse:
        """See the proto."""
        page = await self._access.list_accounts(
            page_size=message.page_size, page_token=message.page_token, caller=current_caller()
        )
        return pb.ListAccountsResponse(
            accounts=[wire.pack_account(one) for one in page.items], next_page_token=page.next_token
        )

    async def update_account(self, message: pb.UpdateAccountRequest) -> pb.Account:
        """See the proto."""
        patch = wire.unpack_account_patch(message)
        return wire.pack_account(await self._access.update_account(message.name, patch, caller=current_caller()))

    async def delete_account(self, message: pb.DeleteAccountRequest) -> pb.DeleteAccountResponse:
        """See the proto."""
        await self._access.delete_account(message.name, caller=current_caller())
        return pb.DeleteAccountResponse()

    async def grant_role(self, message: pb.GrantRoleRequest) -> pb.AccountGrant:
        """See the proto."""
        grant = Grant(namespace=message.namespace, model=message.model, role=Role.parse(message.role))
        return wire.pack_grant(await self._access.grant_role(message.account, grant, caller=current_caller()))

    async def revoke_role(self, message: pb.RevokeRoleRequest) -> pb.RevokeRoleResponse:
        """See the proto."""
        revoked = await self._access.revoke_role(
            message.account, message.namespace, message.model, caller=current_caller()
        )
        return pb.RevokeRoleResponse(revoked=revoked)

    async def list_grants(self, message: pb.ListGrantsRequest) -> pb.ListGrantsResponse:
        """See the proto."""
        page = await self._access.list_grants(
            account=message.account,
            namespace=message.namespace,
            page_size=message.page_size,
            page_token=message.page_token,
            caller=current_caller(),
        )
        return pb.ListGrantsResponse(
            grants=[wire.pack_grant(one) for one in page.items], next_page_token=page.next_token
        )

    async def create_token(self, message: pb.CreateTokenRequest) -> pb.CreateTokenResponse:
        """See the proto."""
        new = wire.unpack_new_token(message)
        return wire.pack_created_token(await self._access.create_token(new, caller=current_caller()))

    async def list_tokens(self, message: pb.ListTokensRequest) -> pb.ListTokensResponse:
        """See the proto."""
        page = await self._access.list_tokens(
            account=message.account,
            include_ended=message.include_ended,
            page_size=message.page_size,
            page_token=message.page_token,
            caller=current_caller(),
        )
        return pb.ListTokensResponse(
            tokens=[wire.pack_token(one) for one in page.items], next_page_token=page.next_token
        )

    async def revoke_token(self, message: pb.RevokeTokenRequest) -> pb.AccessToken:
        """See the proto."""
        return wire.pack_token(await self._access.revoke_token(message.id, caller=current_caller()))

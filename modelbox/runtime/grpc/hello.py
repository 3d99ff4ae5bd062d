"""ServerService, which tells our clients what they need to know of the server, and which servers there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from modelbox import _wire as wire
from modelbox._proto.modelbox import v1 as pb
from modelbox.runtime.caller import current_scope
from modelbox.runtime.services.members import MemberService

__all__ = ("ServerAdapter",)


class ServerAdapter(pb.ServerServiceBase):
    """See ``protos/modelbox/v1/server.proto``."""

    def __init__(self, members: MemberService, info: Callable[[], Mapping[str, str]]) -> None:
        self._members = members
        self._info = info

    async def get_server_info(self, message: pb.GetServerInfoRequest) -> pb.ServerInfo:
        """See the proto."""
        return pb.ServerInfo(**self._info())

    async def list_members(self, message: pb.ListMembersRequest) -> pb.ListMembersResponse:
        """See the proto."""
        return pb.ListMembersResponse(
            members=[wire.pack_member(one) for one in await self._members.list_members(scope=current_scope())]
        )

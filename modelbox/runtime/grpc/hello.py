"""ServerService, which tells our clients what they need to know of the server."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb

__all__ = ("ServerAdapter",)


class ServerAdapter(pb.ServerServiceBase):
    """See ``protos/modelbox/v1/server.proto``."""

    def __init__(self, info: pb.ServerInfo) -> None:
        self._info = info

    async def get_server_info(self, message: pb.GetServerInfoRequest) -> pb.ServerInfo:
        """See the proto."""
        return self._info

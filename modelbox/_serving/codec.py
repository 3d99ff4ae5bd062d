"""How bytes become messages: in one place, so that malformed ones end there."""

from __future__ import annotations

from typing import Any

import betterproto2
from grpclib.encoding.proto import ProtoCodec

from modelbox._wire import decode_message
from modelbox.errors import InvalidError

__all__ = ("WireCodec",)


class WireCodec(ProtoCodec):
    """Our messages, and those of gRPC's own services (health, reflection), which are google's."""

    def decode(self, data: bytes, message_type: Any) -> Any:
        """Reads one message.

        Raises:
            InvalidError: The bytes are not one.
        """
        if issubclass(message_type, betterproto2.Message):
            return decode_message(message_type, data)
        from google.protobuf.message import DecodeError

        try:
            return message_type.FromString(data)
        except DecodeError as exc:
            raise InvalidError(f"these {len(data)} bytes are not a valid {message_type.__name__} message") from exc

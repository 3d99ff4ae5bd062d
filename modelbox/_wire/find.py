"""What was found as a message and back."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox.tracking import Found


def pack_found(value: Found) -> pb.FindResponse:
    """As an answer."""
    return pb.FindResponse(
        columns_json=value.columns_json,
        time_columns=list(value.time_columns),
        number_columns=list(value.number_columns),
        count=value.count,
        next_page_token=value.next_token,
    )


def unpack_found(message: pb.FindResponse) -> Found:
    """From an answer."""
    return Found(
        columns_json=message.columns_json,
        time_columns=tuple(message.time_columns),
        number_columns=tuple(message.number_columns),
        count=message.count,
        next_token=message.next_page_token,
    )

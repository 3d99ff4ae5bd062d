"""The wire form: our objects as protobuf messages and back, errors as trailers and back.

Shared by the server's gRPC adapter and the client's transport, so that both sides agree by construction. Owns every
conversion between `modelbox.objects`/`modelbox.feed` and the generated messages; generated types never travel past the
two adapters. Refuses to do I/O and to know a gRPC library: statuses are their numbers.

``pack_*`` makes messages and never fails on valid objects. ``unpack_*`` takes messages that were made by anybody:
whatever is wrong with one raises `InvalidError` (the server answers with it, the client calls it a `ProtocolError`).
"""

from modelbox._wire.artifacts import (
    pack_artifact,
    pack_artifact_file,
    pack_new_artifact,
    unpack_artifact,
    unpack_artifact_file,
    unpack_created_artifact,
    unpack_new_artifact,
)
from modelbox._wire.errors import ACTOR_KEY, DIRECT_HEADER, ERROR_KEY, MAX_ERROR_BYTES, pack_error, unpack_error
from modelbox._wire.feed import (
    pack_change,
    pack_feed_item,
    pack_filter,
    pack_snapshot,
    unpack_change,
    unpack_feed_item,
    unpack_filter,
    unpack_snapshot,
)
from modelbox._wire.fleet import pack_instance, pack_member, pack_report, unpack_instance, unpack_member, unpack_report
from modelbox._wire.registry import (
    pack_alias,
    pack_alias_move,
    pack_model,
    pack_model_patch,
    pack_namespace,
    pack_new_model,
    pack_new_version,
    pack_resolved,
    pack_version,
    pack_version_patch,
    unpack_alias,
    unpack_alias_move,
    unpack_created_model,
    unpack_created_version,
    unpack_model,
    unpack_model_patch,
    unpack_namespace,
    unpack_new_model,
    unpack_new_version,
    unpack_resolved,
    unpack_version,
    unpack_version_patch,
)
from modelbox._wire.values import decode_message, pack_time, unpack_time

__all__ = (
    "ACTOR_KEY",
    "DIRECT_HEADER",
    "ERROR_KEY",
    "MAX_ERROR_BYTES",
    "decode_message",
    "pack_alias",
    "pack_alias_move",
    "pack_artifact",
    "pack_artifact_file",
    "pack_change",
    "pack_error",
    "pack_feed_item",
    "pack_filter",
    "pack_instance",
    "pack_member",
    "pack_model",
    "pack_model_patch",
    "pack_namespace",
    "pack_new_artifact",
    "pack_new_model",
    "pack_new_version",
    "pack_report",
    "pack_resolved",
    "pack_snapshot",
    "pack_time",
    "pack_version",
    "pack_version_patch",
    "unpack_alias",
    "unpack_alias_move",
    "unpack_artifact",
    "unpack_artifact_file",
    "unpack_change",
    "unpack_created_artifact",
    "unpack_created_model",
    "unpack_created_version",
    "unpack_error",
    "unpack_feed_item",
    "unpack_filter",
    "unpack_instance",
    "unpack_member",
    "unpack_model",
    "unpack_model_patch",
    "unpack_namespace",
    "unpack_new_artifact",
    "unpack_new_model",
    "unpack_new_version",
    "unpack_report",
    "unpack_resolved",
    "unpack_snapshot",
    "unpack_time",
    "unpack_version",
    "unpack_version_patch",
)

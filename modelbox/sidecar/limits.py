"""What clients of the sidecar may do, whatever protocol they speak."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("ProtocolLimits",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolLimits:
    """Bounds of one request and one peer.

    Attributes:
        max_request_bytes: Of a body or message, decompressed.
        idle_timeout_s: How long a peer may leave a request unfinished or an answer unread.
        repository_control: Whether clients may load and unload models.
        shared_memory: Whether clients may register shared memory.
        loopback: The ports can be reached from this machine only.
    """

    max_request_bytes: int = 64 << 20
    idle_timeout_s: float = 30.0
    repository_control: bool = True
    shared_memory: bool = True
    loopback: bool = True

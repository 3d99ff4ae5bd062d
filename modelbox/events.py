"""What happens to a loaded model, as typed events.

`modelbox.Model.events` yields them, and the telemetry layer counts them. Pure data; nobody here delivers anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from modelbox.refs import Digest

__all__ = (
    "DownloadProgress",
    "ModelEvent",
    "Observer",
    "ReloadFailed",
    "ReloadStarted",
    "ReloadSucceeded",
    "SessionFreed",
    "StaleChanged",
    "StateConfirmed",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEvent:
    """Base of all events; ``ref`` is the reference as it was asked for."""

    ref: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadStarted(ModelEvent):
    """The reference points to something new and work on it has begun."""

    version: int
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadProgress(ModelEvent):
    """Bytes of the version that are here and verified, of all its bytes."""

    version: int
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadSucceeded(ModelEvent):
    """The new version answers from now on.

    Attributes:
        previous_version: What answered before; None at the first load.
        slowdown: How many times as long one of its runs takes as one of the version before; None where that was not
            measured.
        stage_s: Seconds by stage: ``fetch``, ``verify``, ``probe``, ``open``, ``signature``, ``warm``.
    """

    version: int
    digest: Digest
    previous_version: int | None
    stage_s: dict[str, float]
    slowdown: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadFailed(ModelEvent):
    """The new version was refused; the old one goes on.

    Attributes:
        stage: Where it ended: ``resolve``, ``fetch``, ``verify``, ``probe``, ``open``, ``warm`` or ``signature``.
        code: The error's stable code.
        quarantined: Not tried again until the alias moves; otherwise it is retried with growing pauses.
    """

    version: int
    digest: str
    stage: str
    code: str
    reason: str
    quarantined: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFreed(ModelEvent):
    """The old version's last call ended and its memory is free; ``forced`` if its runs had to be terminated."""

    version: int
    digest: Digest
    forced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleChanged(ModelEvent):
    """Contact to the server was lost (``stale``) or is back."""

    stale: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StateConfirmed(ModelEvent):
    """The server was asked what the reference points to, and said so; being in contact alone does not count."""


class Observer(Protocol):
    """Whoever wants to hear of events: telemetry, the handle's own queue. Must return at once and never raise."""

    def __call__(self, event: ModelEvent, /) -> None:
        """Takes one event."""

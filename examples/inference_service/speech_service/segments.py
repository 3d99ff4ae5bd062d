"""From speech probabilities per window to segments of speech.

Pure: knows neither the model nor the web. The rule is the usual one of two thresholds: speech starts where the
probability reaches ``enter`` and ends where it has stayed below ``leave`` for ``min_silence_s``, so that a short pause
inside a word does not cut it in two and a noise shorter than ``min_speech_s`` is not speech.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ("Segment", "SegmentRules", "find_segments")


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRules:
    """When speech begins and ends.

    Attributes:
        enter: Probability from which on a window starts speech, in (0, 1].
        leave: Probability below which a window may end it; at most ``enter``.
        min_speech_s: Shorter findings are dropped; seconds.
        min_silence_s: Shorter gaps belong to the speech around them; seconds.
    """

    enter: float = 0.5
    leave: float = 0.35
    min_speech_s: float = 0.1
    min_silence_s: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.leave <= self.enter <= 1:
            raise ValueError(f"Expected 0 < leave <= enter <= 1, got leave={self.leave}, enter={self.enter}.")
        if self.min_speech_s < 0 or self.min_silence_s < 0:
            raise ValueError("Expected min_speech_s and min_silence_s >= 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One stretch of speech, in seconds from the beginning of the audio."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """How long it lasts, in seconds."""
        return self.end_s - self.start_s


def find_segments(
    probabilities: Sequence[float], *, window_s: float, duration_s: float, rules: SegmentRules | None = None
) -> list[Segment]:
    """Joins windows of speech to segments.

    Args:
        probabilities: Probability of speech in each window, in order; the first window starts at zero.
        window_s: Length of each window in seconds.
        duration_s: Length of the audio in seconds; no segment ends after it.
        rules: When speech begins and ends; the defaults suit close microphones.

    Returns:
        Segments in order, apart by at least ``min_silence_s``.
    """
    rules = rules or SegmentRules()
    found: list[Segment] = []
    start: int | None = None
    quiet_from: int | None = None

    def close(end: int) -> None:
        if start is not None:
            segment = Segment(start_s=start * window_s, end_s=min(end * window_s, duration_s))
            if segment.duration_s >= rules.min_speech_s:
                found.append(segment)

    for index, probability in enumerate(probabilities):
        if probability >= rules.enter:
            start = index if start is None else start
            quiet_from = None
        elif start is not None and probability < rules.leave:
            quiet_from = index if quiet_from is None else quiet_from
            if (index + 1 - quiet_from) * window_s >= rules.min_silence_s:
                close(quiet_from)
                start = quiet_from = None
    close(len(probabilities) if quiet_from is None else quiet_from)
    return found

"""Joining windows to segments: thresholds, gaps, edges."""

from __future__ import annotations

import pytest

from speech_service.segments import SegmentRules, find_segments

RULES = SegmentRules(enter=0.5, leave=0.3, min_speech_s=0.2, min_silence_s=0.3)


def found(probabilities: list[float], *, duration_s: float | None = None) -> list[tuple[float, float]]:
    """Segments of windows that last 0.1 s each."""
    end_s = 0.1 * len(probabilities) if duration_s is None else duration_s
    segments = find_segments(probabilities, window_s=0.1, duration_s=end_s, rules=RULES)
    return [(round(s.start_s, 6), round(s.end_s, 6)) for s in segments]


@pytest.mark.parametrize(
    ("probabilities", "segments"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([0.0] * 10, [], id="silence"),
        pytest.param([1.0] * 10, [(0.0, 1.0)], id="speech-from-edge-to-edge"),
        pytest.param([0, 0, 1, 1, 1, 0, 0, 0, 0], [(0.2, 0.5)], id="one"),
        pytest.param([0, 1, 1, 0, 0, 1, 1, 0, 0, 0], [(0.1, 0.7)], id="a-short-gap-is-part-of-it"),
        pytest.param([1, 1, 0, 0, 0, 1, 1], [(0.0, 0.2), (0.5, 0.7)], id="a-long-gap-parts"),
        pytest.param([0, 1, 0, 0, 0, 0], [], id="too-short"),
        pytest.param([0, 1, 1, 0.4, 0.4, 0.4, 0.4, 0, 0, 0], [(0.1, 0.7)], id="between-the-thresholds-goes-on"),
        pytest.param([0.4] * 5, [], id="between-the-thresholds-does-not-begin"),
        pytest.param([0, 1, 1, 1, 0], [(0.1, 0.4)], id="ends-in-a-short-silence"),
        pytest.param([0.5, 0.5, 0.3, 0.3, 0.3], [(0.0, 0.5)], id="exactly-at-the-thresholds"),
    ],
)
def test_segments(probabilities: list[float], segments: list[tuple[float, float]]) -> None:
    assert found(probabilities) == segments


def test_no_segment_ends_after_the_audio() -> None:
    assert found([0, 0, 1, 1, 1], duration_s=0.42) == [(0.2, 0.42)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"enter": 0.3, "leave": 0.5},
        {"leave": 0.0},
        {"enter": 1.5},
        {"min_speech_s": -1.0},
        {"min_silence_s": -0.1},
    ],
)
def test_rules_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        SegmentRules(**wrong)

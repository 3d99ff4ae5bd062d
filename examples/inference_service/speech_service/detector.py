"""Silero VAD's streaming protocol: one window after the other, with the state and the samples that came before.

The model (version 5, 16 kHz) takes ``input`` (1, 64 + 512) float32, which is the last 64 samples of the window before
and the 512 of this one, ``state`` (2, 1, 128) float32 and ``sr`` () int64, and gives ``output`` (1, 1) float32, the
probability of speech, and ``stateN``, the state for the next window.

The state belongs to the model that made it. Whoever calls `speech_probabilities` must therefore hand in a ``predict``
that runs on **one** version from the first window to the last: a lease of a ModelBox model, or a bare session.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .audio import SAMPLE_RATE_HZ

__all__ = ("CONTEXT_SAMPLES", "WINDOW_S", "WINDOW_SAMPLES", "Predict", "speech_probabilities")

Predict = Callable[[Mapping[str, NDArray[Any]]], Awaitable[Mapping[str, NDArray[Any]]]]

WINDOW_SAMPLES = 512
CONTEXT_SAMPLES = 64
WINDOW_S = WINDOW_SAMPLES / SAMPLE_RATE_HZ


async def speech_probabilities(predict: Predict, samples: NDArray[np.float32]) -> list[float]:
    """Probability of speech in each window of 32 ms; the last window is filled up with silence.

    Args:
        predict: Runs one version of the model; awaited once per window.
        samples: ``(samples,)`` float32 in [-1, 1], 16 kHz.

    Cancellation: stops after the window at work; nothing is kept.
    """
    # One buffer for all: each input is a view of 576 samples, so that context costs no copy.
    windows = -(-len(samples) // WINDOW_SAMPLES)
    padded = np.zeros(CONTEXT_SAMPLES + windows * WINDOW_SAMPLES, dtype=np.float32)
    padded[CONTEXT_SAMPLES : CONTEXT_SAMPLES + len(samples)] = samples

    rate = np.array(SAMPLE_RATE_HZ, dtype=np.int64)
    state: NDArray[Any] = np.zeros((2, 1, 128), dtype=np.float32)
    probabilities: list[float] = []
    for start in range(0, windows * WINDOW_SAMPLES, WINDOW_SAMPLES):
        window = padded[np.newaxis, start : start + CONTEXT_SAMPLES + WINDOW_SAMPLES]
        outputs = await predict({"input": window, "state": state, "sr": rate})
        probabilities.append(float(outputs["output"][0, 0]))
        state = outputs["stateN"]
    return probabilities

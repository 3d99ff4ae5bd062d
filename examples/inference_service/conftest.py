"""What the tests of the service share: the audio of the repository, and where its speech is.

It lies beside `speech_service`, so that pytest finds that package from wherever it is started.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tests report to nobody; onnxruntime looks at this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

SPEECH_WAV = Path(__file__).parent / "audio" / "speech.wav"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """FastAPI runs on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def speech_wav() -> bytes:
    """Two sentences between silences, see audio/README.md."""
    return SPEECH_WAV.read_bytes()


@pytest.fixture(scope="session")
def spoken() -> list[tuple[float, float]]:
    """From and to of each sentence in `speech_wav`, in seconds, known from how it was made."""
    return [(0.600, 2.007), (2.807, 4.306)]

"""From the bytes of a WAV file to samples.

Owns the check that what was sent is audio that the model understands. Refuses to guess: audio of another rate or
width is an error that says what was expected, since a silently resampled file would only give worse answers.
"""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ("SAMPLE_RATE_HZ", "AudioError", "Waveform", "decode_wav")

SAMPLE_RATE_HZ = 16_000
_SAMPLE_WIDTH_BYTES = 2
_FULL_SCALE = 32_768.0


class AudioError(ValueError):
    """The bytes are not audio that this service takes; the text says what it got and what it expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waveform:
    """Mono audio.

    Attributes:
        samples: ``(samples,)`` float32 in [-1, 1], at `SAMPLE_RATE_HZ`.
    """

    samples: NDArray[np.float32]

    @property
    def duration_s(self) -> float:
        """How long it lasts, in seconds."""
        return len(self.samples) / SAMPLE_RATE_HZ


def decode_wav(data: bytes) -> Waveform:
    """Decodes a 16-bit PCM WAV file of 16 kHz; several channels are averaged into one.

    Raises:
        AudioError: Not a WAV file, cut short, empty, compressed, or of another rate or width.
    """
    if not data:
        raise AudioError("The request has no body; expected a WAV file.")
    try:
        with wave.open(io.BytesIO(data), "rb") as reader:
            channels, width, rate = reader.getnchannels(), reader.getsampwidth(), reader.getframerate()
            declared = reader.getnframes()
            frames = reader.readframes(declared)
    except (wave.Error, EOFError, RuntimeError) as exc:
        # `wave` raises EOFError for a header that ends too early, RuntimeError for chunks that overlap their parent.
        raise AudioError(f"Not a PCM WAV file: {str(exc) or 'it ends inside its header'}.") from exc

    if width != _SAMPLE_WIDTH_BYTES:
        raise AudioError(f"Expected 16-bit samples, got {8 * width}-bit; convert with: ffmpeg -i IN -c:a pcm_s16le OUT")
    if rate != SAMPLE_RATE_HZ:
        raise AudioError(f"Expected {SAMPLE_RATE_HZ} Hz, got {rate} Hz; convert with: ffmpeg -i IN -ar 16000 OUT")
    if len(frames) != declared * channels * width:
        raise AudioError(f"Cut short: the header announces {declared * channels * width} bytes, got {len(frames)}.")
    if not frames:
        raise AudioError("The WAV file holds no samples.")

    interleaved = np.frombuffer(frames, dtype="<i2").reshape(-1, channels)
    return Waveform(samples=(interleaved.mean(axis=1, dtype=np.float32) / np.float32(_FULL_SCALE)))

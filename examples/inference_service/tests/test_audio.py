"""Decoding WAV files, and refusing what is none."""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest

from speech_service.audio import AudioError, decode_wav


def wav(frames: bytes = b"\x00\x00" * 160, *, channels: int = 1, width_bytes: int = 2, rate_hz: int = 16_000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width_bytes)
        writer.setframerate(rate_hz)
        writer.writeframes(frames)
    return out.getvalue()


def test_the_audio_of_the_repository(speech_wav: bytes) -> None:
    waveform = decode_wav(speech_wav)
    assert waveform.duration_s == pytest.approx(4.906, abs=0.001)
    assert waveform.samples.dtype == np.float32
    assert 0.4 < np.abs(waveform.samples).max() < 0.6


def test_full_scale_is_one() -> None:
    waveform = decode_wav(wav(np.array([-32768, 0, 16384, 32767], dtype="<i2").tobytes()))
    assert waveform.samples.tolist() == [-1.0, 0.0, 0.5, 32767 / 32768]


def test_channels_are_averaged() -> None:
    waveform = decode_wav(wav(np.array([[32767, -32767], [8192, 16384]], dtype="<i2").tobytes(), channels=2))
    assert waveform.samples.tolist() == [0.0, 0.375]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param(b"", "no body", id="nothing"),
        pytest.param(b"hello, world", "Not a PCM WAV file", id="text"),
        pytest.param(b"RIFF", "Not a PCM WAV file", id="four-bytes"),
        pytest.param(b"\x00" * 4096, "Not a PCM WAV file", id="zeros"),
        pytest.param(b"ID3\x04" + b"\x00" * 100, "Not a PCM WAV file", id="mp3"),
        pytest.param(wav()[:30], "Not a PCM WAV file", id="half-a-header"),
        pytest.param(wav(rate_hz=44_100), "Expected 16000 Hz, got 44100 Hz", id="rate"),
        pytest.param(wav(b"\x00" * 160, width_bytes=1), "Expected 16-bit samples, got 8-bit", id="8-bit"),
        pytest.param(wav(b"\x00" * 480, width_bytes=3), "Expected 16-bit samples, got 24-bit", id="24-bit"),
        pytest.param(wav(b""), "holds no samples", id="empty"),
        pytest.param(wav()[:-100], "Cut short: the header announces 320 bytes, got 220", id="cut-short"),
    ],
)
def test_what_is_refused_and_what_it_is_told(data: bytes, says: str) -> None:
    with pytest.raises(AudioError, match=says):
        decode_wav(data)


def test_floats_in_a_wav_file_are_refused() -> None:
    ieee_float = 3
    fmt = struct.pack("<HHIIHH", ieee_float, 1, 16_000, 64_000, 4, 32)
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", 4) + b"\x00" * 4
    with pytest.raises(AudioError, match="Not a PCM WAV file: unknown format: 3"):
        decode_wav(b"RIFF" + struct.pack("<I", len(body)) + body)


def test_every_cut_of_a_file_is_refused_and_never_crashes(speech_wav: bytes) -> None:
    whole = speech_wav[:1044]
    for end in range(len(whole)):
        with pytest.raises(AudioError):
            decode_wav(whole[:end])

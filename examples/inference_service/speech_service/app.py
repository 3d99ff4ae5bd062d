"""The service: POST a WAV file, get the segments of speech in it.

Everything that ModelBox asks of an application is in this file: `modelbox.load` at the start, a lease for each request
because the model carries state from window to window, one counter of its own, and the metrics route. Which version of
the model runs is decided by whoever moves `@prod`; nothing here reloads, polls or restarts.

Settings come from the environment: ``SPEECH_MODEL`` (default ``langtech/silero-vad@prod``), ``MODELBOX_URL`` and
``MODELBOX_CACHE_DIR`` for ModelBox, ``OTEL_EXPORTER_OTLP_ENDPOINT`` to send metrics away as well.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, cast

import anyio
import anyio.to_thread
import modelbox
import modelbox.otel
from fastapi import Depends, FastAPI, HTTPException, Request, Response, status
from fastapi.responses import JSONResponse
from modelbox.errors import ModelBoxError
from pydantic import BaseModel
from starlette.datastructures import UploadFile

from .audio import AudioError, decode_wav
from .detector import WINDOW_S, speech_probabilities
from .segments import find_segments
from .telemetry import PROMETHEUS_CONTENT_TYPE, configure_telemetry

__all__ = ("app",)

_log = logging.getLogger(__name__)

DEFAULT_MODEL = "langtech/silero-vad@prod"
MAX_BODY_BYTES = 16 * 1024 * 1024  # 8.7 minutes of audio


class SegmentBody(BaseModel):
    """One stretch of speech, in seconds from the beginning."""

    start_s: float
    end_s: float


class SpeechBody(BaseModel):
    """The answer, and which version of the model gave it."""

    segments: list[SegmentBody]
    speech_s: float
    duration_s: float
    model_version: int
    model_digest: str


class Service:
    """What requests share: the model and the counter that the business looks at."""

    def __init__(self, model: modelbox.LiveModel) -> None:
        self.model = model
        self.speech_seconds = model.meter.counter("speech.seconds", unit="s", description="Speech found in audio.")

    async def find_speech(self, wav: bytes) -> SpeechBody:
        """Finds the speech in one WAV file, with one version of the model from its first window to its last.

        Raises:
            AudioError: Not the audio that the model takes.
        """
        waveform = decode_wav(wav)
        async with self.model.lease() as lease:
            probabilities = await speech_probabilities(lease.predict, waveform.samples)
            version = lease.version
        segments = find_segments(probabilities, window_s=WINDOW_S, duration_s=waveform.duration_s)
        speech_s = sum(segment.duration_s for segment in segments)
        self.speech_seconds.add(speech_s)
        return SpeechBody(
            segments=[SegmentBody(start_s=round(s.start_s, 3), end_s=round(s.end_s, 3)) for s in segments],
            speech_s=round(speech_s, 3),
            duration_s=round(waveform.duration_s, 3),
            model_version=version.version,
            model_digest=version.digest,
        )


async def _log_changes(model: modelbox.LiveModel) -> None:
    """Writes what happens to the model to the log: reloads, refusals, contact lost and found."""
    async for event in model.events():
        _log.info("%s", event)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model before the first request, and lets go of it after the last."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    configure_telemetry(os.environ)
    try:
        model = await modelbox.load(os.environ.get("SPEECH_MODEL", DEFAULT_MODEL))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_log_changes, model, name="log model changes")
            app.state.service = Service(model)
            yield
            tasks.cancel_scope.cancel()
        # Uvicorn ends itself by the signal that it got, so nothing is sent at exit.
        await anyio.to_thread.run_sync(modelbox.otel.flush)
    finally:
        await modelbox.aclose()


app = FastAPI(title="Speech segments", lifespan=lifespan)


def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


ServiceDep = Annotated[Service, Depends(_service)]


async def _wav_of(request: Request) -> bytes:
    """The WAV file of a request: its body, or the field ``file`` of a form.

    Raises:
        HTTPException: 411 without a length, 413 too long, 400 for a form without the file.
    """
    length = request.headers.get("content-length")
    if length is None:
        raise HTTPException(status.HTTP_411_LENGTH_REQUIRED, "Send the body with a Content-Length.")
    if int(length) > MAX_BODY_BYTES:
        raise HTTPException(
            status.HTTP_413_CONTENT_TOO_LARGE, f"Expected at most {MAX_BODY_BYTES} bytes, got {length}."
        )
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await request.body()
    async with request.form(max_files=1, max_fields=8) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            got = ", ".join(sorted(form)) or "no fields"
            raise HTTPException(
                status.HTTP_400_BAD_REQUEST, f"Expected a WAV file in the form field 'file', got {got}."
            )
        return await file.read()


_BODIES = {
    "requestBody": {
        "required": True,
        "description": "A WAV file: 16 kHz, 16-bit PCM.",
        "content": {
            "audio/wav": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
            },
        },
    }
}


@app.post("/v1/speech", openapi_extra=_BODIES)
async def post_speech(request: Request, service: ServiceDep) -> SpeechBody:
    """Finds the segments of speech in a WAV file."""
    return await service.find_speech(await _wav_of(request))


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the process answers; says nothing of the model."""
    return {"status": "ok"}


@app.get("/readyz")
async def readyz(service: ServiceDep) -> dict[str, object]:
    """What answers now; ``stale`` is true while the central server is out of reach and may know better."""
    model = service.model
    return {"ref": str(model.ref), "version": model.version, "digest": model.digest, "stale": model.stale}


@app.get("/metrics")
async def metrics() -> Response:
    """Metrics for Prometheus; rendered in a thread, because it can take milliseconds."""
    text = await anyio.to_thread.run_sync(modelbox.otel.render_prometheus)
    return Response(text, media_type=PROMETHEUS_CONTENT_TYPE)


@app.exception_handler(AudioError)
async def refuse_audio(request: Request, exc: Exception) -> JSONResponse:
    """Audio that the model does not take is the sender's mistake."""
    return JSONResponse({"detail": str(exc)}, status_code=status.HTTP_400_BAD_REQUEST)


@app.exception_handler(ModelBoxError)
async def report_model(request: Request, exc: Exception) -> JSONResponse:
    """The model could not answer; worth another attempt where the error says so."""
    error = cast(ModelBoxError, exc)
    _log.error("prediction failed: %s", error, exc_info=error)
    code = status.HTTP_503_SERVICE_UNAVAILABLE if error.retryable else status.HTTP_500_INTERNAL_SERVER_ERROR
    return JSONResponse({"detail": "The model did not answer.", "code": error.code}, status_code=code)

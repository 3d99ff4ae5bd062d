"""The programs of the demo as the steps see them: the central server, the command line, the speech service."""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anyio

from .processes import DemoError, Processes, Program, python

__all__ = ("EXAMPLE", "CentralServer", "CommandLine", "SpeechService", "start_server", "start_service")

EXAMPLE = Path(__file__).resolve().parent.parent / "inference_service"

_START_WITHIN_S = 30.0
_COMMAND_WITHIN_S = 30.0
_POLL_S = 0.05
_READY = r"modelbox ready grpc=\S+:(?P<grpc>\d+) http=(?P<url>\S+:(?P<http>\d+)) metrics=\S+:(?P<metrics>\d+)"
_SERVING = r"Uvicorn running on (?P<url>http://\S+:\d+)"


@dataclass(frozen=True, slots=True, kw_only=True)
class CentralServer:
    """A running central server; `ports` are its gRPC, HTTP and metrics ports, to start it there again."""

    program: Program
    url: str
    ports: tuple[int, int, int]
    started_in_s: float


async def start_server(
    processes: Processes, data_dir: Path, *, name: str, ports: tuple[int, int, int] = (0, 0, 0)
) -> CentralServer:
    """Starts ``python -m modelbox.runtime``; port 0 takes any free one.

    Raises:
        DemoError: It ended, or was not ready in time.
    """
    began = time.monotonic()
    grpc, http, metrics = (str(port) for port in ports)
    command = python("-m", "modelbox.runtime", "--data-dir", str(data_dir))
    command += ["--grpc-port", grpc, "--http-port", http, "--metrics-port", metrics]
    program = await processes.start(name, command)
    ready = await program.wait_for_line(_READY, within_s=_START_WITHIN_S)
    return CentralServer(
        program=program,
        url=f"http://{ready['url']}",
        ports=(int(ready["grpc"]), int(ready["http"]), int(ready["metrics"])),
        started_in_s=time.monotonic() - began,
    )


class CommandLine:
    """``modelbox …`` as people type it; every call is a process of its own.

    Args:
        url: Of the central server.
    """

    def __init__(self, processes: Processes, url: str) -> None:
        self._processes = processes
        self._url = url
        beside = Path(sys.executable).parent
        program = shutil.which("modelbox", path=str(beside)) or shutil.which("modelbox")
        if program is None:
            raise DemoError(f"There is no `modelbox` command in {beside}; install the project with its extra [cli].")
        self._program = program

    async def __call__(self, *arguments: str) -> str:
        """Runs one command; returns what it printed.

        Raises:
            DemoError: It failed; carries what it said.
        """
        text, _ = await self._processes.run(
            [self._program, *arguments], within_s=_COMMAND_WITHIN_S, environment={"MODELBOX_URL": self._url}
        )
        return text

    async def json(self, *arguments: str) -> Any:
        """Runs one command with ``--output json``; returns what it answered."""
        text = await self(*arguments, "--output", "json")
        try:
            return json.loads(text)
        except ValueError:
            raise DemoError(f"`modelbox {' '.join(arguments)}` did not answer with JSON: {text[:500]!r}") from None


class SpeechService:
    """A running copy of `examples/inference_service`."""

    def __init__(self, program: Program, url: str, session: aiohttp.ClientSession, started_in_s: float) -> None:
        self.program = program
        self.url = url
        self.started_in_s = started_in_s
        self._session = session

    @property
    def speech_url(self) -> str:
        """Where audio is posted."""
        return f"{self.url}/v1/speech"

    async def find_speech(self, wav: bytes) -> dict[str, Any]:
        """Posts one file; returns the answer."""
        body = io.BytesIO(wav)  # aiohttp warns of large bodies in one piece
        async with self._session.post(self.speech_url, data=body, headers={"Content-Type": "audio/wav"}) as response:
            return await self._json(response)

    async def ready(self) -> dict[str, Any]:
        """What it says that it serves."""
        async with self._session.get(f"{self.url}/readyz") as response:
            return await self._json(response)

    async def metrics(self) -> str:
        """Its metrics in Prometheus' text format."""
        async with self._session.get(f"{self.url}/metrics") as response:
            response.raise_for_status()
            return await response.text()

    async def wait_for(self, expected: Mapping[str, object], *, within_s: float) -> float:
        """Waits until `ready` says all of ``expected``; returns the seconds that it took.

        Raises:
            DemoError: Not in time; carries what it said last.
        """
        began = time.monotonic()
        seen: dict[str, Any] = {}
        with anyio.move_on_after(within_s):
            while True:
                seen = await self.ready()
                if all(seen.get(key) == value for key, value in expected.items()):
                    return time.monotonic() - began
                await anyio.sleep(_POLL_S)
        raise DemoError(
            f"{self.program.name} did not come to {dict(expected)} within {within_s:g} s; "
            f"the last it said was {seen}:\n{self.program.tail()}"
        )

    async def _json(self, response: aiohttp.ClientResponse) -> dict[str, Any]:
        if response.status != 200:
            raise DemoError(f"{self.program.name} answered {response.status}: {(await response.text())[:500]}")
        answer: dict[str, Any] = await response.json()
        return answer


async def start_service(
    processes: Processes,
    session: aiohttp.ClientSession,
    *,
    name: str,
    environment: Mapping[str, str],
    arguments: Sequence[str] = (),
) -> SpeechService:
    """Starts the example service on a free port, as its README says; it listens once its model is loaded.

    Raises:
        DemoError: It ended, or was not ready in time.
    """
    began = time.monotonic()
    command = python("-m", "uvicorn", "speech_service.app:app", "--app-dir", str(EXAMPLE))
    command += ["--port", "0", "--no-access-log", *arguments]
    program = await processes.start(name, command, environment=environment)
    serving = await program.wait_for_line(_SERVING, within_s=_START_WITHIN_S)
    return SpeechService(program, serving["url"], session, time.monotonic() - began)

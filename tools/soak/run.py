"""One run: traffic over every protocol, faults at random, and what came of both.

Owns the processes, the order of faults (from one seed) and the verdict. A violation is a call that failed although
nothing that it needs was away, an answer that is not what its version gives, a bad request that was not refused, a
process that ended by itself, or a version that did not come to answer everywhere in time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.to_thread

import modelbox
from modelbox.errors import TransportError
from tests.onnx_models import add_constant, unknown_operator
from tests.server import ProgramProcess, ServerProcess
from tests.sidecar import SidecarProcess
from tests.sidecar_traffic import Traffic, added
from tools.soak.bad_requests import BAD_REQUESTS, LostError
from tools.soak.outcome import Outcome, telling

__all__ = ("soak",)

_MODEL = "soak/model"
_CONSTANTS = {1: 10.0, 2: 20.0, 3: 30.0}
_BROKEN = 4
_PATIENCE_S = 60.0
_BAD_PAUSE_S = 0.02


async def soak(directory: Path, *, seconds: float, seed: int, say: Callable[[str], None]) -> Outcome:
    """Runs for that long, and a little longer until everything answers again.

    Args:
        directory: For everything that is written; should be empty.
        seconds: How long faults are made.
        seed: Of the faults and the bad requests.
        say: Tells of progress.
    """
    with ServerProcess(directory / "server", log_level="warning") as server:
        async with modelbox.Client(server.url, cache_dir=directory / "promoting", request_timeout_s=30) as client:
            file = directory / "model.onnx"
            for model in (*map(add_constant, _CONSTANTS.values()), unknown_operator()):
                file.write_bytes(model)
                await client.publish(_MODEL, file)
            await client.promote(f"{_MODEL}@prod", 1)
            with SidecarProcess(directory, server.url, f"{_MODEL}@prod", log_level="error") as sidecar:
                run = _Run(server, sidecar, client, random.Random(seed), say)
                return await run.run(seconds)


class _Run:
    def __init__(
        self,
        server: ServerProcess,
        sidecar: SidecarProcess,
        client: modelbox.Client,
        rng: random.Random,
        say: Callable[[str], None],
    ) -> None:
        self._server = server
        self._sidecar = sidecar
        self._client = client
        self._rng = rng
        self._say = say
        self._outcome = Outcome()
        self._version = 1
        self._away = 0
        self._stop = False
        self._traffic = Traffic(sidecar, _MODEL, "prod", added(_CONSTANTS), pause_s=0.002)
        self._faults: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "promotion": (10, self._promote),
            "promotion of a broken version": (2, self._promote_broken),
            "sidecar killed": (2, self._kill_sidecar),
            "sidecar stopped": (1, self._stop_sidecar),
            "server killed": (2, self._kill_server),
            "server killed, then the sidecar": (1, self._kill_both),
        }

    async def run(self, seconds: float) -> Outcome:
        outcome, traffic = self._outcome, self._traffic
        began = time.monotonic()
        async with traffic:
            await self._settled()
            start = self._memory()
            most = dict(start)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._ask_badly, random.Random(self._rng.random()))
                told = time.monotonic()
                while time.monotonic() - began < seconds and not self._broken():
                    names = list(self._faults)
                    [name] = self._rng.choices(names, weights=[self._faults[name][0] for name in names])
                    try:
                        await self._faults[name][1]()
                    except Exception as exc:
                        outcome.violations.append(f"{name}: {exc!r}"[:1000])
                        break
                    outcome.faults[name] += 1
                    now = self._memory()
                    most = {key: max(most[key], size) for key, size in now.items()}
                    if time.monotonic() - told > 60:
                        told = time.monotonic()
                        self._say(
                            f"{told - began:.0f} s: {traffic.total} answers, {outcome.faults.total()} faults, "
                            f"sidecar {now['sidecar'] >> 20} MiB"
                        )
                    await anyio.sleep(self._rng.uniform(0, 0.5))
                if not self._broken():
                    await self._settled()
                end = self._memory()
                self._stop = True
        outcome.seconds = time.monotonic() - began
        outcome.violations += traffic.problems
        outcome.violations += [
            f"{name} printed a traceback" for name, one in self._processes().items() if "Traceback" in one.output
        ]
        if outcome.violations:
            outcome.output = {name: telling(one.output) for name, one in self._processes().items()}
        outcome.answered.update({name: sum(seen.values()) for name, seen in traffic.calls.items()})
        outcome.failed.update(traffic.failed)
        outcome.memory = {key: (start[key], end[key], max(most[key], end[key])) for key in start}
        return outcome

    def _processes(self) -> dict[str, ProgramProcess]:
        return {"server": self._server, "sidecar": self._sidecar}

    def _memory(self) -> dict[str, int]:
        return {name: one.rss_bytes() if one.running else 0 for name, one in self._processes().items()}

    def _broken(self) -> bool:
        if self._traffic.problems or self._outcome.violations:
            return True
        for name, one in self._processes().items():
            if not one.running:
                self._outcome.violations.append(f"{name} ended by itself with {one.returncode}")
        return bool(self._outcome.violations)

    async def _settled(self) -> None:
        """Every protocol gives the version that is to answer now."""
        await self._traffic.answered(version=self._version, timeout=_PATIENCE_S)

    async def _ask_badly(self, rng: random.Random) -> None:
        while not self._stop:
            request = rng.choice(BAD_REQUESTS)
            away = self._away
            try:
                wrong = await anyio.to_thread.run_sync(request, self._sidecar, _MODEL, rng)
            except LostError as exc:
                wrong = None if away or self._away else f"{request.__name__}: {exc}"
            if wrong is not None:
                # 503 is right while the sidecar starts or stops.
                if not away and not self._away:
                    self._outcome.violations.append(wrong)
            else:
                self._outcome.refused[request.__name__] += 1
            await anyio.sleep(_BAD_PAUSE_S)

    # -- what happens

    async def _promote(self) -> None:
        version = self._rng.choice([number for number in _CONSTANTS if number != self._version])
        await self._client.promote(f"{_MODEL}@prod", version)
        self._version = version
        await self._settled()

    async def _promote_broken(self) -> None:
        await self._client.promote(f"{_MODEL}@prod", _BROKEN)
        # It is refused, and the version before answers on.
        for _ in range(3):
            await self._settled()
        await self._client.promote(f"{_MODEL}@prod", self._version)

    async def _kill_sidecar(self) -> None:
        await self._without_sidecar(self._sidecar.kill)

    async def _stop_sidecar(self) -> None:
        def stop() -> None:
            if code := self._sidecar.terminate():
                self._outcome.violations.append(f"the sidecar ended with {code} after SIGTERM")

        await self._without_sidecar(stop)

    async def _without_sidecar(self, end: Callable[[], object]) -> None:
        self._away += 1
        with self._traffic.outage():
            await anyio.to_thread.run_sync(end)
            await anyio.sleep(self._rng.uniform(0, 1))
            await anyio.to_thread.run_sync(self._sidecar.restart)
            await anyio.sleep(0.1)
        self._away -= 1
        await self._settled()

    async def _kill_server(self) -> None:
        self._server.kill()
        await anyio.sleep(self._rng.uniform(0, 2))
        await self._settled()
        await self._restart_server()

    async def _kill_both(self) -> None:
        self._server.kill()
        await self._kill_sidecar()
        await self._restart_server()

    async def _restart_server(self) -> None:
        await anyio.to_thread.run_sync(self._server.restart)
        with anyio.fail_after(_PATIENCE_S):
            while True:
                try:
                    await self._client.resolve(f"{_MODEL}@prod")
                    return
                except TransportError:
                    await anyio.sleep(0.05)

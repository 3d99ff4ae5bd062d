"""The six steps of the demo, in order, and what each of them claims.

Nothing here sleeps to let something happen: every wait is for a condition (a printed line, an answer of the load, what
a service says of itself) and has a bound, after which it says what it waited for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import aiohttp

from .actors import EXAMPLE, CentralServer, CommandLine, SpeechService, start_server, start_service
from .latency import figures, percentile
from .load import Answer, Load
from .metrics import Page, read_page
from .models import TOLERANCE, largest_difference, silero_vad, write_optimised
from .processes import Processes
from .report import Report

__all__ = ("DemoSettings", "play")

MODEL = "langtech/silero-vad"
PROD = f"{MODEL}@prod"
AUDIO = EXAMPLE / "audio" / "speech.wav"

# Where the sentences lie in the audio, in seconds; known from how it was made (audio/README.md).
SPOKEN = ((0.600, 2.007), (2.807, 4.306))
EDGE_TOLERANCE_S = 0.15

_LOAD_WITHIN_S = 60.0
# A loader that found the server dead many times over pauses up to 30 s between attempts.
_FOLLOW_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """How much load, for how long.

    Attributes:
        clients: How many call at once.
        calls: Answers to wait for in each phase.
        period_s: Seconds from one call of a client to its next.
        swap_within_s: How soon every client has to follow a move.
    """

    clients: int = 8
    calls: int = 100
    period_s: float = 0.4
    swap_within_s: float = 5.0


async def play(report: Report, directory: Path, settings: DemoSettings) -> None:
    """Plays all steps; leaves no process behind.

    Args:
        report: Hears progress and claims.
        directory: Empty; takes data, cache and logs.

    Raises:
        DemoError: It could not go on; possibly inside exception groups.

    Cancellation: every program is ended before it returns.
    """
    timeout = aiohttp.ClientTimeout(total=15)
    connector = aiohttp.TCPConnector(force_close=True)  # services come and go
    async with (
        Processes(directory, _environment(directory)) as processes,
        aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
    ):
        try:
            await _Play(report, directory, settings, processes, session).all_steps()
        except Exception:
            report.show(processes.tails())  # while they still run: their ends would only bury it
            raise
        if not report.held:
            report.show(processes.tails())


def _environment(directory: Path) -> dict[str, str]:
    """That of the demo, without any settings of ModelBox or OpenTelemetry, the caller's or their files'."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MODELBOX_", "OTEL_"))}
    return {**inherited, "XDG_CONFIG_HOME": str(directory / "config"), "PYTHONUNBUFFERED": "1"}


class _Play:
    def __init__(
        self,
        report: Report,
        directory: Path,
        settings: DemoSettings,
        processes: Processes,
        session: aiohttp.ClientSession,
    ) -> None:
        self.report = report
        self.directory = directory
        self.settings = settings
        self.processes = processes
        self.session = session
        self.audio = AUDIO.read_bytes()
        self.digests: dict[int, str] = {}

    async def all_steps(self) -> None:
        server = await self.start_server()
        cli = CommandLine(self.processes, server.url)
        first = await self.publish_first(cli)
        service = await self.start_service(server)
        second = self.make_second(first)
        load = Load(
            service.speech_url,
            self.audio,
            check=self.judge,
            clients=self.settings.clients,
            period_s=self.settings.period_s,
        )
        async with load:
            await self.swap_under_load(cli, second, load)
            second_service = await self.lose_the_server(cli, server, service, load)
            await load.stop()
        self.judge_whole_run(load)
        await self.show_metrics(service, second_service, load)

    # -- 1

    async def start_server(self) -> CentralServer:
        self.report.step("1. The central server: python -m modelbox.runtime, on SQLite and a directory")
        server = await start_server(self.processes, self.directory / "server", name="server")
        async with self.session.get(f"{server.url}/readyz") as response:
            self.report.claim(
                "the server runs on its embedded default",
                response.status == 200,
                f"ready in {server.started_in_s:.2f} s at {server.url}, process {server.program.pid}, "
                f"/readyz says {response.status}",
            )
        return server

    # -- 2

    async def publish_first(self, cli: CommandLine) -> Path:
        self.report.step(f"2. Publish silero_vad.onnx as version 1 of {MODEL}, and point prod at it")
        path = silero_vad(self.directory)
        self.report.say(f"$ modelbox models publish {MODEL} {path.name} --alias prod")
        await cli.json("models", "publish", MODEL, str(path), "--alias", "prod")
        prod = await cli.json("models", "show", PROD)
        self.digests[1] = prod["digest"]
        self.report.claim(
            "version 1 is published and prod points to it",
            prod["version"] == 1,
            f"{PROD} is version {prod['version']}, {prod['digest'][:19]}…, {path.stat().st_size} bytes",
        )
        return path

    # -- 3

    async def start_service(self, server: CentralServer) -> SpeechService:
        self.report.step("3. The inference service: examples/inference_service under uvicorn, and real audio")
        service = await start_service(
            self.processes, self.session, name="service", environment=self.service_environment(server)
        )
        self.report.say(f"loaded {PROD} and listens at {service.url} after {service.started_in_s:.2f} s")
        answer = await service.find_speech(self.audio)
        wrong = self.judge(answer)
        self.report.claim(
            "the service finds the speech in real audio",
            wrong is None,
            wrong or f"{_shown(answer)} where the sentences are at {_spoken()}, by version {answer['model_version']}",
        )
        return service

    def service_environment(self, server: CentralServer) -> dict[str, str]:
        return {"MODELBOX_URL": server.url, "MODELBOX_CACHE_DIR": str(self.directory / "cache")}

    # -- 4

    def make_second(self, first: Path) -> Path:
        """Blocks for some 100 ms; there is no load yet."""
        settings, report = self.settings, self.report
        report.step(
            f"4. Under load from {settings.clients} clients ({settings.clients / settings.period_s:.0f} calls/s): "
            "publish version 2, move prod"
        )
        second = self.directory / "silero_vad.optimised.onnx"
        write_optimised(first, second)
        difference = largest_difference(first, second, AUDIO)
        report.claim(
            "version 2 is another file with the same answers",
            first.read_bytes() != second.read_bytes() and difference <= TOLERANCE,
            f"{second.stat().st_size} bytes after onnxruntime's optimiser, version 1 has {first.stat().st_size}; "
            f"largest difference in probability {difference:.1e}, allowed {TOLERANCE:.0e}",
        )
        return second

    async def swap_under_load(self, cli: CommandLine, second: Path, load: Load) -> None:
        settings, report = self.settings, self.report
        await load.until(_answered(settings.clients), within_s=_LOAD_WITHIN_S, what="one answer for each client")
        before_s = time.monotonic()
        await self.wait_for_calls(load, "before the swap")

        during_s = time.monotonic()
        report.say(f"$ modelbox models publish {MODEL} {second.name}")
        await cli.json("models", "publish", MODEL, str(second))
        version = await cli.json("models", "show", f"{MODEL}@2")
        self.digests[2] = version["digest"]
        report.say(f"$ modelbox models promote {PROD} 2")
        asked_s = time.monotonic()
        await cli("models", "promote", PROD, "2", "--reason", "demo: optimised graph")
        moved_s = time.monotonic()
        await self.wait_for_version(load, 2, since_s=asked_s)
        after_s = time.monotonic()
        await self.wait_for_calls(load, "after the swap")
        end_s = time.monotonic()

        phases = {"before": (before_s, during_s), "during": (during_s, after_s), "after": (after_s, end_s)}
        for phase, (from_s, to_s) in phases.items():
            report.figures.append(figures(phase, _due(load.answers, from_s, to_s)))
        first_s = min(answer.done_s for answer in load.answers if answer.version == 2)
        report.claim(
            f"prod moves under load and every client follows within {settings.swap_within_s:g} s",
            after_s - moved_s <= settings.swap_within_s and self.digests[2] != self.digests[1],
            f"first answer by version 2 {_after(first_s, moved_s)} the promote command ended, "
            f"all {settings.clients} clients {_after(after_s, moved_s)}",
        )
        swap = [answer for answer in load.answers if answer.due_s >= before_s]
        failed = [answer.error for answer in swap if answer.error]
        report.claim(
            "0 failed calls across the swap",
            not failed,
            f"{len(failed)} of {len(swap)} calls failed{_last(failed)}; p99 before/during/after "
            + "/".join(f"{row.p99_ms:.0f}" for row in report.figures[-3:])
            + " ms",
        )

    # -- 5

    async def lose_the_server(
        self, cli: CommandLine, server: CentralServer, service: SpeechService, load: Load
    ) -> SpeechService:
        report = self.report
        report.step("5. Kill the central server under load; start a service without it; bring it back; move prod back")
        killed_s = time.monotonic()
        code = await server.program.kill()
        report.say(f"the server got SIGKILL and ended with code {code}")
        await self.wait_for_calls(load, "without the server")
        answered = [answer for answer in load.answers if answer.due_s >= killed_s]
        failed = [answer.error for answer in answered if answer.error]
        took_s = time.monotonic() - killed_s
        report.claim(
            "answers go on while the server is dead",
            code == -9 and not failed and {answer.version for answer in answered} == {2},
            f"{len(answered)} answers in the {took_s:.1f} s after SIGKILL, {len(failed)} failed{_last(failed)}",
        )

        cold = await start_service(
            self.processes, self.session, name="second service", environment=self.service_environment(server)
        )
        says = await cold.ready()
        answer = await cold.find_speech(self.audio)
        wrong = self.judge(answer)
        report.claim(
            "a service starts while the server is dead, from its cache",
            wrong is None and says["stale"] is True and answer["model_version"] == 2,
            wrong
            or f"serves after {cold.started_in_s:.2f} s: version {answer['model_version']}, stale: {says['stale']}",
        )

        restarted_s = time.monotonic()
        again = await start_server(
            self.processes, self.directory / "server", name="server, second start", ports=server.ports
        )
        report.say(f"the server is back after {again.started_in_s:.2f} s, on the same ports and data")
        report.say(f"$ modelbox models rollback {PROD}")
        await cli("models", "rollback", PROD, "--reason", "demo: and back")
        moved_s = time.monotonic()
        expected = {"version": 1, "digest": self.digests[1], "stale": False}
        await cold.wait_for(expected, within_s=_FOLLOW_WITHIN_S)
        await service.wait_for(expected, within_s=_FOLLOW_WITHIN_S)
        both_s = time.monotonic()
        await self.wait_for_version(load, 1, since_s=both_s)
        answer = await cold.find_speech(self.audio)
        report.claim(
            "the services follow when the server is back and prod moves back",
            self.judge(answer) is None and answer["model_version"] == 1,
            f"both serve version 1 {_after(both_s, moved_s)} the rollback command ended, and are not stale",
        )
        report.figures.append(figures("server dead", _due(load.answers, killed_s, restarted_s)))
        await self.wait_for_calls(load, "after moving back")
        report.figures.append(figures("and back", _due(load.answers, restarted_s, time.monotonic())))
        self.report.say("$ modelbox fleet")
        report.show(await cli("fleet"))
        return cold

    # -- the run as a whole

    def judge_whole_run(self, load: Load) -> None:
        answers = load.answers
        failed = [answer.error for answer in answers if answer.error]
        self.report.claim(
            "0 failed calls in the whole run",
            not failed,
            f"{len(failed)} of {len(answers)} calls failed{_last(failed)}; {load.skipped} came due while the client "
            "still waited and were not sent",
        )
        orders = {_order_of_versions(answers, client) for client in range(self.settings.clients)}
        self.report.claim(
            "every answer is one version's, and no client goes back and forth",
            orders == {(1, 2, 1)} and all(answer.digest == self.digests.get(answer.version) for answer in answers),
            f"{len(answers)} answers carry the digest of their version; each client saw versions "
            + " or ".join(" → ".join(map(str, order)) for order in sorted(orders)),
        )

    # -- 6

    async def show_metrics(self, service: SpeechService, second: SpeechService, load: Load) -> None:
        report = self.report
        report.step("6. What the service counted itself: GET /metrics")
        page = read_page(await service.metrics())
        report.show(_summary(page))

        windows = _windows(self.audio)
        expected = dict.fromkeys(self.digests, 0)
        for answer in load.answers:
            expected[answer.version] = expected.get(answer.version, 0) + windows
        expected[1] += windows  # step 3
        counted = page.by_version("modelbox_calls_total", outcome="ok")
        report.claim(
            "calls per version are what the clients saw",
            counted == expected,
            f"modelbox_calls_total {_numbers(counted)}; the clients' answers make {_numbers(expected)}, "
            f"with {windows} windows of audio each",
        )
        speech_s = sum(page.by_version("speech_seconds_total").values())
        found_s = sum(answer.speech_s for answer in load.answers) + load.answers[0].speech_s
        report.claim(
            "the business metric counts the speech that was found",
            abs(speech_s - found_s) <= 0.001 * found_s,
            f"speech_seconds_total {speech_s:.1f} s; the answers add up to {found_s:.1f} s",
        )
        other = read_page(await second.metrics()).by_version("modelbox_calls_total", outcome="ok")
        report.say(f"the second service counted {_numbers(other)}")

    # -- what steps share

    async def wait_for_calls(self, load: Load, when: str) -> None:
        """Waits until each phase has enough calls for its percentiles."""
        count = len(load.answers) + self.settings.calls
        await load.until(_answered(count), within_s=_LOAD_WITHIN_S, what=f"{self.settings.calls} calls {when}")
        last = load.answers[-self.settings.calls :]
        p50_ms = 1000 * percentile([answer.latency_s for answer in last], 0.5)
        self.report.say(f"{len(last)} calls {when}: version {last[-1].version}, p50 {p50_ms:.1f} ms")

    async def wait_for_version(self, load: Load, version: int, *, since_s: float) -> None:
        """Waits until every client got an answer by ``version`` to a call that was due after ``since_s``."""

        def reached(answers: Sequence[Answer]) -> bool:
            there = {answer.client for answer in answers if answer.due_s >= since_s and answer.version == version}
            return len(there) == self.settings.clients

        await load.until(reached, within_s=_FOLLOW_WITHIN_S, what=f"an answer by version {version} for every client")

    def judge(self, answer: Mapping[str, Any]) -> str | None:
        """What is wrong with an answer: its segments, or a version with another version's digest."""
        found = [(segment["start_s"], segment["end_s"]) for segment in answer["segments"]]
        near = len(found) == len(SPOKEN) and all(
            abs(got - placed) <= EDGE_TOLERANCE_S
            for segment, sentence in zip(found, SPOKEN, strict=True)
            for got, placed in zip(segment, sentence, strict=True)
        )
        if not near:
            return f"found speech at {_shown(answer)}, but the sentences are at {_spoken()}"
        version, digest = answer["model_version"], answer["model_digest"]
        # A version's first answers may come before the command that published it has told us its digest.
        if digest != self.digests.get(version, digest):
            return f"version {version} answered with the digest {digest} of another one"
        return None


def _answered(count: int) -> Callable[[Sequence[Answer]], bool]:
    return lambda answers: len(answers) >= count


def _due(answers: Sequence[Answer], from_s: float, to_s: float) -> list[Answer]:
    return [answer for answer in answers if from_s <= answer.due_s < to_s]


def _order_of_versions(answers: Sequence[Answer], client: int) -> tuple[int, ...]:
    return tuple(version for version, _ in groupby(a.version for a in answers if a.client == client))


def _after(then_s: float, mark_s: float) -> str:
    """``120 ms after``; a service may well be faster than the command that tells it."""
    ms = 1000 * (then_s - mark_s)
    return f"{ms:.0f} ms after" if ms >= 0 else f"{-ms:.0f} ms before"


def _last(errors: Sequence[str | None]) -> str:
    return f", the last with: {errors[-1]}" if errors else ""


def _shown(answer: Mapping[str, Any]) -> str:
    return ", ".join(f"{s['start_s']:.2f}–{s['end_s']:.2f} s" for s in answer["segments"]) or "none"


def _spoken() -> str:
    return ", ".join(f"{start:.2f}–{end:.2f} s" for start, end in SPOKEN)


def _numbers(by_version: Mapping[int, float]) -> str:
    return ", ".join(f"v{version}: {count:.0f}" for version, count in by_version.items()) or "nothing"


def _windows(wav: bytes) -> int:
    """Predictions that one file needs: 16-bit samples behind a header of 44 bytes, in windows of 512."""
    return -(-((len(wav) - 44) // 2) // 512)


def _summary(page: Page) -> str:
    """The figures that somebody on call would look at, per version."""
    durations = page.histograms_by_version("modelbox_call_duration_seconds")
    lines = [f"{'metric':<34}{'version':>8}{'value':>12}"]
    for version, count in page.by_version("modelbox_calls_total").items():
        lines.append(f"{'modelbox_calls_total':<34}{version:>8}{count:>12.0f}")
    for version, histogram in durations.items():
        for share in (0.5, 0.99):
            name = f"modelbox_call_duration, p{share * 100:.0f}"
            lines.append(f"{name:<34}{version:>8}{1e6 * histogram.quantile(share):>9.0f} µs")
    for version, seconds in page.by_version("speech_seconds_total").items():
        lines.append(f"{'speech_seconds_total':<34}{version:>8}{seconds:>10.1f} s")
    return "\n".join(lines)

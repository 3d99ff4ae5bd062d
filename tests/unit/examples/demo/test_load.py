"""Steady load against a real HTTP server that is slow, wrong or gone when told so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from aiohttp import web

from examples.demo.load import Answer, Load
from examples.demo.processes import DemoError

GOOD = {"model_version": 1, "model_digest": "sha256:ab", "speech_s": 2.5}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """aiohttp runs on asyncio."""
    return "asyncio"


class Service:
    """Answers with `answer`, after as many seconds as `delays_s` has for that call."""

    def __init__(self) -> None:
        self.answer: Callable[[], web.Response] = lambda: web.json_response(GOOD)
        self.delays_s: list[float] = []
        self.bodies: list[bytes] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        if self.delays_s:
            await anyio.sleep(self.delays_s.pop(0))
        return self.answer()


@asynccontextmanager
async def running_service() -> AsyncIterator[Service]:
    service = Service()
    app = web.Application()
    app.router.add_post("/v1/speech", service.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        service.url = f"http://{host}:{port}/v1/speech"
        yield service
    finally:
        await runner.cleanup()


def no_complaint(answer: Mapping[str, Any]) -> str | None:
    return None


def load_on(
    service: Service, *, clients: int = 2, period_s: float = 0.02, check: Callable[..., str | None] = no_complaint
) -> Load:
    return Load(service.url, b"audio", check=check, clients=clients, period_s=period_s)


def at_least(count: int) -> Callable[..., bool]:
    return lambda answers: len(answers) >= count


async def test_every_client_calls_and_every_answer_is_kept() -> None:
    async with running_service() as service, load_on(service, clients=3) as load:
        await load.until(at_least(12), within_s=60, what="12 answers")
        await load.stop()
        count = len(load.answers)
        assert count == len(service.bodies)
        assert set(service.bodies) == {b"audio"}
        assert {answer.client for answer in load.answers} == {0, 1, 2}
        assert all(answer.error is None and answer.version == 1 for answer in load.answers)
        assert sum(answer.speech_s for answer in load.answers) == 2.5 * count


async def test_nothing_is_sent_after_stop() -> None:
    async with running_service() as service:
        async with load_on(service) as load:
            await load.until(at_least(4), within_s=60, what="4 answers")
            await load.stop()
            sent = len(service.bodies)
            await anyio.wait_all_tasks_blocked()
        assert len(service.bodies) == sent == len(load.answers)


async def test_latency_counts_from_when_a_call_was_due() -> None:
    async with running_service() as service:
        service.delays_s = [0.30]
        async with load_on(service, clients=1, period_s=0.2) as load:
            await load.until(at_least(2), within_s=60, what="2 answers")
        first, second = load.answers[:2]
        assert first.latency_s >= 0.30
        periods = round((second.due_s - first.due_s) / 0.2)
        assert 1 <= periods <= 1 + load.skipped
        assert second.due_s == pytest.approx(first.due_s + 0.2 * periods)
        assert second.due_s + second.latency_s >= first.due_s + first.latency_s, "it was not sent before that"


async def test_calls_that_fall_a_whole_period_behind_are_counted_and_not_sent() -> None:
    async with running_service() as service:
        service.delays_s = [0.35]
        async with load_on(service, clients=1, period_s=0.1) as load:
            await load.until(at_least(2), within_s=60, what="2 answers")
        assert load.skipped >= 2
        # Further calls may have been skipped behind the second.
        periods = round((load.answers[1].due_s - load.answers[0].due_s) / 0.1)
        assert 3 <= periods <= 1 + load.skipped
        assert load.answers[1].due_s == pytest.approx(load.answers[0].due_s + 0.1 * periods)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        pytest.param(lambda: web.Response(status=503, text="no model"), "HTTP 503: no model", id="status"),
        pytest.param(lambda: web.Response(text="hello"), "ContentTypeError", id="no-json"),
        pytest.param(lambda: web.json_response({"model_version": 1}), "without 'model_digest'", id="half-an-answer"),
        pytest.param(lambda: web.json_response([1]), "an answer without", id="a-list"),
    ],
)
async def test_a_bad_answer_is_a_failed_call(answer: Callable[[], web.Response], says: str) -> None:
    async with running_service() as service:
        service.answer = answer
        async with load_on(service) as load:
            await load.until(at_least(2), within_s=60, what="2 answers")
        assert all(answer.error is not None and says in answer.error for answer in load.answers)


async def test_what_the_check_complains_of_is_a_failed_call() -> None:
    async with running_service() as service:
        async with load_on(service, check=lambda answer: f"found {answer['speech_s']} s") as load:
            await load.until(at_least(2), within_s=60, what="2 answers")
        assert {answer.error for answer in load.answers} == {"found 2.5 s"}


async def test_nobody_there_is_a_failed_call_and_the_load_goes_on() -> None:
    async with running_service() as service:
        gone = load_on(service)
    async with gone as load:
        await load.until(at_least(4), within_s=60, what="4 answers")
    assert all(answer.error is not None and "ClientConnectorError" in answer.error for answer in load.answers)


async def test_a_wait_that_is_not_fulfilled_says_what_it_waited_for() -> None:
    def never(answers: Sequence[Answer]) -> bool:
        return False

    async with running_service() as service:
        service.answer = lambda: web.Response(status=500, text="broken")
        with pytest.raises(ExceptionGroup) as caught:
            async with load_on(service) as load:
                await load.until(never, within_s=0.3, what="an answer by version 2")
        assert caught.group_contains(DemoError, match=r"not an answer by version 2 .* last with: HTTP 500: broken")

"""When a call is repeated, when it is not, and for how long."""

from __future__ import annotations

import pytest

from modelbox._transport.faults import Call, Retries, backoff_s
from modelbox.errors import ConflictError, DeadlineExceeded, ModelBoxError, ServerBusy, Unavailable
from tests.faults.registry import fault


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class Flaky:
    """Fails as it is told, then succeeds."""

    def __init__(self, *errors: ModelBoxError, sent: bool = True) -> None:
        self.errors = list(errors)
        self.sent = sent
        self.calls = 0

    async def __call__(self, call: Call) -> int:
        self.calls += 1
        call.sent = self.sent
        if self.errors:
            raise self.errors.pop(0)
        return self.calls


async def run(attempt: Flaky, *, idempotent: bool = True, timeout_s: float = 10, retries: Retries | None = None) -> int:
    return await (retries or Retries()).run(attempt, timeout_s=timeout_s, idempotent=idempotent, what="the server")


async def test_an_idempotent_call_is_repeated() -> None:
    assert await run(Flaky(Unavailable("broke"), Unavailable("broke"))) == 3


async def test_a_call_that_may_have_arrived_is_not_repeated() -> None:
    attempt = Flaky(Unavailable("broke"))
    with pytest.raises(Unavailable):
        await run(attempt, idempotent=False)
    assert attempt.calls == 1


async def test_a_call_that_never_left_is_repeated() -> None:
    assert await run(Flaky(Unavailable("refused"), sent=False), idempotent=False) == 2


async def test_a_busy_server_did_nothing_so_the_call_is_repeated() -> None:
    assert await run(Flaky(ServerBusy("draining")), idempotent=False) == 2


async def test_an_answer_is_an_answer() -> None:
    attempt = Flaky(ConflictError("moved"))
    with pytest.raises(ConflictError):
        await run(attempt)
    assert attempt.calls == 1


async def test_attempts_are_bounded() -> None:
    attempt = Flaky(*[Unavailable("broke")] * 50)
    with pytest.raises(Unavailable):
        await run(attempt)
    assert attempt.calls == 4


async def test_no_pause_goes_past_the_deadline() -> None:
    attempt = Flaky(ServerBusy("draining", retry_after_s=5))
    with pytest.raises(ServerBusy):
        await run(attempt, timeout_s=1)
    assert attempt.calls == 1


async def test_a_deadline_that_has_passed_is_said_in_seconds() -> None:
    async def never(_: Call) -> None:
        import anyio

        await anyio.sleep_forever()

    with pytest.raises(DeadlineExceeded, match=r"the server did not answer within 0\.05 s"):
        await Retries().run(never, timeout_s=0.05, idempotent=True, what="the server")


async def test_a_deadline_names_what_the_server_said_before() -> None:
    answers = iter([ServerBusy("PostgreSQL does not answer")])

    async def busy_then_still(_: Call) -> None:
        import anyio

        for answer in answers:
            raise answer
        await anyio.sleep_forever()

    with pytest.raises(DeadlineExceeded, match=r"within 1 s; before that: PostgreSQL does not answer"):
        await Retries().run(busy_then_still, timeout_s=1, idempotent=True, what="the server")


@fault(8)
async def test_a_server_in_trouble_is_not_met_with_more_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelbox._transport.faults.backoff_s", lambda _: 0.0)
    retries, calls = Retries(), 0
    for _ in range(200):
        attempt = Flaky(*[Unavailable("down")] * 50)
        with pytest.raises(Unavailable):
            await run(attempt, retries=retries)
        calls += attempt.calls
    assert calls <= 200 * 1.1


def test_pauses_are_spread_below_a_doubling_limit() -> None:
    for attempt, limit_s in ((1, 0.1), (2, 0.2), (3, 0.4), (100, 2.0)):
        pauses = [backoff_s(attempt) for _ in range(300)]
        assert max(pauses) <= limit_s
        assert min(pauses) < limit_s / 4
        assert max(pauses) > limit_s / 2

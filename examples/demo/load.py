"""Steady load: some clients that each send the same audio at a fixed rate, and remember every answer.

Each call has a time at which it is due, whether or not the call before it was slow, and its latency counts from there:
a stall of the service shows up in every call that it delays. A client has one call under way at a time; calls that
come due while the one before is still unanswered for more than a whole period are left out and counted in `skipped`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import anyio
from anyio import AsyncContextManagerMixin, create_task_group, move_on_after

from .processes import DemoError

__all__ = ("Answer", "Load")

CALL_TIMEOUT_S = 10.0

Check = Callable[[Mapping[str, Any]], str | None]
"""Looks at the JSON of an answer; says what is wrong with it, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One call and what came of it; times in seconds on the monotonic clock.

    Attributes:
        due_s: When it should have been sent; latency counts from here.
        version: Of the model that answered; 0 if nothing did.
        error: What went wrong, or None.
    """

    client: int
    due_s: float
    done_s: float
    version: int = 0
    digest: str = ""
    speech_s: float = 0.0
    error: str | None = None

    @property
    def latency_s(self) -> float:
        """Seconds from when it was due until it was answered."""
        return self.done_s - self.due_s


class Load(AsyncContextManagerMixin):
    """The clients; they call from entering until `stop`, or until it is left.

    Args:
        url: Where to POST.
        body: What to POST.
        check: Says what is wrong with an answer of status 200.
        clients: How many call at once.
        period_s: Seconds from one call of a client to its next.
    """

    def __init__(self, url: str, body: bytes, *, check: Check, clients: int, period_s: float) -> None:
        self.answers: list[Answer] = []
        self.skipped = 0
        self._url = url
        self._body = body
        self._check = check
        self._clients = clients
        self._period_s = period_s
        self._stopping = anyio.Event()
        self._stopped = anyio.Event()
        self._changed = anyio.Event()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Load]:
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        # Uvicorn closes a connection that was idle for 5 s; letting go of it earlier spares the race.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
            create_task_group() as tasks,
        ):
            tasks.start_soon(self._run, session, name="load")
            yield self
            tasks.cancel_scope.cancel()

    async def stop(self) -> None:
        """Sends nothing more, and waits for the answers that are still due."""
        self._stopping.set()
        await self._stopped.wait()

    async def until(self, reached: Callable[[Sequence[Answer]], bool], *, within_s: float, what: str) -> None:
        """Waits until the answers so far fulfil a condition; looks again after every answer.

        Raises:
            DemoError: Not within ``within_s``; says what was waited for.
        """
        with move_on_after(within_s):
            while True:
                changed = self._changed
                if reached(self.answers):
                    return
                await changed.wait()
        failed = [answer.error for answer in self.answers if answer.error]
        hint = f"; {len(failed)} failed, the last with: {failed[-1]}" if failed else ""
        raise DemoError(
            f"After {within_s:g} s of load there was still not {what} ({len(self.answers)} calls answered{hint})."
        )

    async def _run(self, session: aiohttp.ClientSession) -> None:
        async with create_task_group() as tasks:
            for client in range(self._clients):
                tasks.start_soon(self._client, session, client, name=f"client {client}")
        self._stopped.set()

    async def _client(self, session: aiohttp.ClientSession, client: int) -> None:
        # Spread over one period, so that the load is even.
        due_s = time.monotonic() + self._period_s * client / self._clients
        while True:
            with move_on_after(max(0.0, due_s - time.monotonic())):
                await self._stopping.wait()
            if self._stopping.is_set():
                return
            self.answers.append(await self._call(session, client, due_s))
            self._changed.set()
            self._changed = anyio.Event()
            due_s += self._period_s
            late = int((time.monotonic() - due_s) / self._period_s)
            if late > 0:
                self.skipped += late
                due_s += late * self._period_s

    async def _call(self, session: aiohttp.ClientSession, client: int, due_s: float) -> Answer:
        try:
            async with session.post(self._url, data=self._body, headers={"Content-Type": "audio/wav"}) as response:
                if response.status != 200:
                    text = (await response.text())[:200]
                    return self._failure(client, due_s, f"HTTP {response.status}: {text}")
                answer: dict[str, Any] = await response.json()
        except TimeoutError:
            return self._failure(client, due_s, f"no answer within {CALL_TIMEOUT_S:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            return self._failure(client, due_s, f"{type(exc).__name__}: {exc}")
        try:
            return Answer(
                client=client,
                due_s=due_s,
                done_s=time.monotonic(),
                version=answer["model_version"],
                digest=answer["model_digest"],
                speech_s=answer["speech_s"],
                error=self._check(answer),
            )
        except (KeyError, TypeError) as exc:
            return self._failure(client, due_s, f"an answer without {exc}")

    def _failure(self, client: int, due_s: float, error: str) -> Answer:
        return Answer(client=client, due_s=due_s, done_s=time.monotonic(), error=error)

"""Functions on their way to a database thread, and results on their way back to the loops that wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection

from modelbox.errors import ModelBoxError
from modelbox.runtime.caller import current_origin

__all__ = ("Job", "Outcome", "copy_of", "deliver")

T = TypeVar("T")


class Job(Generic[T]):
    """A function on its way to a thread, whose call it comes from, and where its result goes."""

    __slots__ = ("fn", "future", "loop", "origin")

    def __init__(self, fn: Callable[[Connection], T], loop: asyncio.AbstractEventLoop) -> None:
        self.fn = fn
        self.loop = loop
        self.origin = current_origin()
        self.future: asyncio.Future[T] = loop.create_future()


Outcome = tuple[Job[Any], Any, BaseException | None]
"""A job with its result, or with what it raised."""


def deliver(outcomes: Sequence[Outcome], callbacks: Sequence[Callable[[], None]]) -> None:
    """Hands results to their loops, all of one loop in one wake-up."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome[0].loop, []).append(outcome)
    for loop, some in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, some, tuple(callbacks))
        except RuntimeError:
            # The loop was closed with its callers still waiting; there is nobody to tell.
            continue


def _resolve(outcomes: Sequence[Outcome], callbacks: Sequence[Callable[[], None]]) -> None:
    for job, result, error in outcomes:
        if job.future.done():
            continue
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)
    for callback in callbacks:
        callback()


def copy_of(error: BaseException) -> BaseException:
    """An error of the caller's own: one that several tasks raise would gather all their tracebacks."""
    if not isinstance(error, ModelBoxError):
        return error
    copied = type(error)(error.message, **error.fields)
    copied.__cause__ = error.__cause__
    return copied

"""Suites over a plain `Connection`, for databases whose drivers are asynchronous.

There a connection works only below `AsyncConnection.run_sync`; so each test as a whole is run there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ("run_by",)

S = TypeVar("S", bound=type)


def run_by(make: Callable[[Connection], object], *, argument: str) -> Callable[[S], S]:
    """A decorator for subclasses of suites whose tests take ``argument``, which ``make`` makes of a connection.

    The subclass gives a fixture ``async_connection``.
    """

    def decorate(suite: S) -> S:
        for name, test in inspect.getmembers(suite, inspect.isfunction):
            if name.startswith("test_") and argument in inspect.signature(test).parameters:
                setattr(suite, name, _wrapped(test, make, argument))
        return suite

    return decorate


def _wrapped(test: Callable[..., None], make: Callable[[Connection], object], argument: str) -> Callable[..., Any]:
    @wraps(test)
    async def run(self: object, *, async_connection: AsyncConnection, **given: Any) -> None:
        await async_connection.run_sync(lambda conn: test(self, **{argument: make(conn)}, **given))

    parameters = inspect.signature(test).parameters
    wanted = [one for name, one in parameters.items() if name != argument]
    wanted.append(inspect.Parameter("async_connection", inspect.Parameter.KEYWORD_ONLY))
    run.__signature__ = inspect.Signature(wanted)  # type: ignore[attr-defined]
    return run

"""From a command to the library: runs one coroutine with a client, and reads arguments with a form of their own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from modelbox.errors import InvalidError
from modelbox.objects import JsonValue
from modelbox.refs import shown

if TYPE_CHECKING:
    from modelbox.client import Client

__all__ = ("json_pairs", "number_pairs", "seconds_of", "text_pairs", "time_of", "with_client")

_AGO = re.compile(r"(?:now-)?(\d{1,9})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

T = TypeVar("T")


def with_client(url: str | None, fn: Callable[[Client], Awaitable[T]]) -> T:
    """Runs ``fn`` with a client that is closed afterwards."""
    import anyio

    from modelbox.client import Client

    async def run() -> T:
        async with Client(url) as client:
            return await fn(client)

    return anyio.run(run)


def text_pairs(values: Sequence[str], option: str) -> dict[str, str]:
    """``KEY=VALUE`` arguments as a mapping.

    Raises:
        InvalidError: One is not of this form, or a key comes twice.
    """
    pairs: dict[str, str] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise InvalidError(f"{option} is {shown(value)}: expected KEY=VALUE")
        if key in pairs:
            raise InvalidError(f"{option} names {shown(key)} twice")
        pairs[key] = text
    return pairs


def json_pairs(values: Sequence[str], option: str) -> dict[str, JsonValue]:
    """``KEY=JSON`` arguments; what is no JSON is taken as text."""
    return {key: _json(text) for key, text in text_pairs(values, option).items()}


def _json(text: str) -> JsonValue:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def number_pairs(values: Sequence[str], option: str) -> dict[str, float]:
    """``KEY=NUMBER`` arguments.

    Raises:
        InvalidError: A value is no finite number.
    """
    numbers: dict[str, float] = {}
    for key, text in text_pairs(values, option).items():
        try:
            numbers[key] = float(text)
        except ValueError as exc:
            raise InvalidError(f"{option} is {shown(f'{key}={text}')}: expected KEY=NUMBER") from exc
        if not math.isfinite(numbers[key]):
            raise InvalidError(f"{option} is {shown(f'{key}={text}')}: expected a finite number")
    return numbers


def seconds_of(text: str, option: str) -> float:
    """A duration as people write it: ``30d``, ``12h``, ``90s``.

    Raises:
        InvalidError: It is none.
    """
    match = _AGO.fullmatch(text)
    if match is None or text.startswith("now-"):
        raise InvalidError(f"{option} is {shown(text)}: expected a duration such as 30d, 12h or 90s")
    try:
        return timedelta(**{_UNITS[match[2]]: int(match[1])}).total_seconds()
    except OverflowError as exc:
        raise InvalidError(f"{option} is {shown(text)}, longer than there are dates") from exc


def time_of(text: str, option: str) -> datetime:
    """A time as people write it: ``2026-05-03``, ``2026-05-03T10:00``, with or without an offset, or ``7d`` for ago.

    Without an offset it is local time.

    Raises:
        InvalidError: It is neither.
    """
    if match := _AGO.fullmatch(text):
        try:
            return datetime.now().astimezone() - timedelta(**{_UNITS[match[2]]: int(match[1])})
        except OverflowError as exc:
            raise InvalidError(f"{option} is {shown(text)}, longer ago than there are dates") from exc
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as exc:
        raise InvalidError(
            f"{option} is {shown(text)}: expected a time such as 2026-05-03T10:00:00+02:00, or how long ago, such as 7d"
        ) from exc

"""What requests say and answers hold: JSON bodies as our objects, query parameters, pages.

Owns the one way in which every route of tracking reads and writes; refuses bodies that are no JSON, nested without end,
or that lack a field, with an error that names it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from aiohttp import web

from modelbox._wire.values import loads
from modelbox.errors import InvalidError
from modelbox.objects import Created, JsonValue, Page, from_json, to_json
from modelbox.refs import shown
from modelbox.runtime.rest.boundary import json_response

__all__ = (
    "body_of",
    "created",
    "flag_of",
    "int_of",
    "item_of",
    "page_of",
    "paging_of",
    "read_body",
    "read_exactly",
    "text_of",
    "texts_of",
    "time_of",
)

T = TypeVar("T")


async def body_of(request: web.Request) -> dict[str, JsonValue]:
    """The body: one JSON object.

    Raises:
        InvalidError: It is none.
    """
    body = loads(await request.read(), "the body")
    if not isinstance(body, dict):
        raise InvalidError("the body must be one JSON object")
    return body


async def read_body(request: web.Request, cls: type[T], **given: JsonValue) -> T:
    """The body as one of our objects; ``given`` stands in for what it leaves out."""
    return from_json(cls, {**given, **await body_of(request)})


async def read_exactly(request: web.Request, cls: type[T]) -> T:
    """The body as a question of ours, in which a word that is not known would change the answer unseen.

    Raises:
        InvalidError: It has a field that there is none of.
    """
    body = await body_of(request)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]  # every class of ours is one
    unknown = sorted(set(body).difference(known))
    if unknown:
        raise InvalidError(f"the body has the unknown field {shown(unknown[0])}: expected {', '.join(known)}")
    return from_json(cls, body)


def text_of(request: web.Request, name: str, default: str | None = "") -> str:
    """A query parameter; ``default`` None means that it must be there."""
    value = request.query.get(name, default)
    if value is None:
        raise InvalidError(f"the query parameter {name} is missing", what=name)
    return value


def texts_of(request: web.Request, name: str, *, required: bool = False) -> list[str]:
    """A query parameter that may come several times."""
    values = request.query.getall(name, [])
    if required and not values:
        raise InvalidError(f"the query parameter {name} is missing", what=name)
    return values


def int_of(request: web.Request, name: str, default: T) -> int | T:
    """A query parameter that is an integer."""
    text = request.query.get(name)
    if text is None or text == "":
        return default
    try:
        # int() takes underscores, other digits, and thousands of them.
        if len(text) > 20 or not text.lstrip("+-").isascii() or not text.lstrip("+-").isdigit():
            raise ValueError
        return int(text)
    except ValueError as exc:
        raise InvalidError(f"the query parameter {name} is {shown(text)}: expected an integer", what=name) from exc


def flag_of(request: web.Request, name: str) -> bool:
    """A query parameter that is true or false."""
    text = request.query.get(name, "false").lower()
    if text not in ("true", "false", "1", "0", ""):
        raise InvalidError(f"the query parameter {name} is {shown(text)}: expected true or false", what=name)
    return text in ("true", "1")


def time_of(request: web.Request, name: str) -> datetime | None:
    """A query parameter that is a time in ISO 8601."""
    text = request.query.get(name)
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise InvalidError(
            f"the query parameter {name} is {shown(text)}: expected a time such as 2026-05-03T10:00:00Z", what=name
        ) from exc


def paging_of(request: web.Request) -> tuple[int, str]:
    """``page_size`` and ``page_token``."""
    return int_of(request, "page_size", 0), text_of(request, "page_token")


def page_of(page: Page[T]) -> web.Response:
    """One page of a list as an answer."""
    return json_response({"items": [to_json(item) for item in page.items], "next_page_token": page.next_token})


def item_of(value: object) -> web.Response:
    """One of our objects, or several, as an answer."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return json_response({"items": [to_json(item) for item in value]})
    return json_response(to_json(value) if not isinstance(value, Mapping) else dict(value))


def created(made: Created[T]) -> web.Response:
    """The answer of an idempotent create: 201 for what is new."""
    return json_response({"item": to_json(made.item), "existed": made.existed}, status=200 if made.existed else 201)

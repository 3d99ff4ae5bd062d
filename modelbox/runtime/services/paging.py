"""Page sizes and page tokens.

A token is opaque to callers: the list it belongs to, and the key behind which the next page begins. It holds nothing
secret, and one that was made up can only point to another place of the same list.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TypeVar

from modelbox.errors import InvalidError
from modelbox.objects import Page
from modelbox.refs import shown
from modelbox.runtime.ports import Key, Listed

__all__ = ("DEFAULT_PAGE_SIZE", "MAX_PAGE_SIZE", "decode_key", "encode_key", "page_of", "page_size_of")

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

T = TypeVar("T")


def page_size_of(asked: int) -> int:
    """The number of items to read: 1 to 1000, 0 stands for 100.

    Raises:
        InvalidError: It is out of range.
    """
    if isinstance(asked, bool) or not isinstance(asked, int) or not 0 <= asked <= MAX_PAGE_SIZE:
        raise InvalidError(f"the page size {shown(asked)} is not valid: expected 1 to {MAX_PAGE_SIZE}, or 0")
    return asked or DEFAULT_PAGE_SIZE


def encode_key(scope: str, key: Key | None) -> str:
    """The token of a place in the list ``scope``; empty at its end."""
    if key is None:
        return ""
    raw = json.dumps([scope, *key], separators=(",", ":"))
    return base64.urlsafe_b64encode(raw.encode()).decode().rstrip("=")


def decode_key(scope: str, token: str, *kinds: type) -> Key | None:
    """Reads a token of the list ``scope``; None for the empty one.

    Args:
        scope: The list and what it was filtered by.
        token: What the caller passed.
        *kinds: The type of each part of the key.

    Raises:
        InvalidError: It was not made for this list.
    """
    if not token:
        return None
    try:
        found, *key = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if found != scope or [type(part) for part in key] != list(kinds):
            raise ValueError("made for another list")
        if any(isinstance(part, int) and not 0 <= part < 2**63 for part in key):
            raise ValueError("out of range")
    except (ValueError, TypeError, binascii.Error, UnicodeError, RecursionError) as exc:
        raise InvalidError(
            f"{shown(token)} is not a page token of this list: pass the one of the page before, with the same filter"
        ) from exc
    return tuple(key)


def page_of(scope: str, listed: Listed[T]) -> Page[T]:
    """The page as callers see it."""
    return Page(items=listed.items, next_token=encode_key(scope, listed.next_key))

"""The use case of finding: parses what callers write, and hands out pages.

A page token holds where its page ended, what ``now`` meant on the first page, and a digest of the query: it continues
that query only, and ``started_at > now-7d`` means the same on every page.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from modelbox.access import ALL, Scope
from modelbox.errors import InvalidError
from modelbox.find import parse_columns, parse_order, parse_where
from modelbox.refs import shown
from modelbox.runtime.find_ports import FindKey, FindQuery, FindStore
from modelbox.runtime.limits import check_text
from modelbox.runtime.services.paging import page_size_of
from modelbox.tracking import Found

__all__ = ("FindService",)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_MAX_TOKEN_CHARS = 16_384


def _now() -> datetime:
    return datetime.now(UTC)


class FindService:
    """Finds objects in any collection.

    Args:
        store: Where they are.
        clock: Gives the time that ``now`` means.

    Concurrency: may be called by many tasks at once.
    """

    def __init__(self, store: FindStore, *, clock: Callable[[], datetime] = _now) -> None:
        self._store = store
        self._clock = clock

    async def find(
        self,
        collection: str,
        *,
        where: str = "",
        order_by: Sequence[str] = (),
        within: str = "",
        columns: Sequence[str] = (),
        include_deleted: bool = False,
        page_size: int = 0,
        page_token: str = "",
        scope: Scope = ALL,
    ) -> Found:
        """One page of the objects that ``where`` lets through; see ``docs/find.md``.

        Args:
            collection: A key of `modelbox.find.COLLECTIONS`.
            where: The query; empty for everything.
            order_by: Fields, each with ``asc`` or ``desc``; then oldest first. Newest first without any.
            within: Only what belongs to this: a namespace, or an object's id or path.
            columns: Groups (``metrics``) or fields (``metrics.loss``); empty for all.
            include_deleted: Also what is in the bin.
            page_size: 1 to 1000, 0 for 100.
            page_token: Where the page before ended.
            scope: What the caller may see.

        Raises:
            FindError: The query does not parse.
            NotFoundError: There is no object ``within``.
            InvalidError: The page token is not of this query.
            LimitError: It took too long and was ended, or the page has more values than an answer takes.
            ServerBusy: Others' queries kept it waiting.

        Cancellation: ends the query.
        """
        check_text(within, "object to look within", max_chars=255)
        limit = page_size_of(page_size)
        listing = _listing(collection, where, order_by, within, include_deleted)
        now_us, after = _read_token(listing, page_token) if page_token else ((self._clock() - _EPOCH) // _US, None)
        page = await self._store.find(
            FindQuery(
                collection=collection,
                where=parse_where(collection, where, now=_EPOCH + now_us * _US),
                order=parse_order(collection, order_by),
                within=within,
                columns=parse_columns(collection, columns),
                include_deleted=include_deleted,
                visible=scope,
            ),
            limit=limit,
            after=after,
        )
        return Found(
            columns_json=page.columns_json,
            time_columns=page.time_columns,
            number_columns=page.number_columns,
            count=page.count,
            next_token="" if page.next_key is None else _token(listing, now_us, page.next_key),
        )


def _listing(collection: str, where: str, order_by: Sequence[str], within: str, include_deleted: bool) -> str:
    text = json.dumps([collection, where, list(order_by), within, include_deleted])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _token(listing: str, now_us: int, key: FindKey) -> str:
    raw = json.dumps([listing, now_us, *key], separators=(",", ":"))
    return base64.urlsafe_b64encode(raw.encode()).decode().rstrip("=")


def _read_token(listing: str, token: str) -> tuple[int, FindKey]:
    try:
        if len(token) > _MAX_TOKEN_CHARS:
            raise ValueError("too long")
        found, now_us, *key = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if found != listing or type(now_us) is not int or not 0 <= now_us < 2**57 or not key:
            raise ValueError("made for another query")
        for part in key:
            if type(part) is int and not -(2**63) <= part < 2**63:
                raise ValueError("out of range")
            if type(part) is float and not math.isfinite(part):
                raise ValueError("not finite")
            if type(part) is str:
                check_text(part, "key", max_chars=_MAX_TOKEN_CHARS)
            elif part is not None and type(part) not in (int, float):
                raise ValueError("not a key")
        return now_us, tuple(key)
    except (ValueError, TypeError, binascii.Error, UnicodeError, RecursionError) as exc:
        raise InvalidError(
            f"{shown(token)} is not a page token of this query: pass the one of the page before, with the same query"
        ) from exc

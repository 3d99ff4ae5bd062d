"""Finding objects, as a method of the client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelbox.client.connection import ClientConnection
from modelbox.errors import InvalidError
from modelbox.frames import FindPage
from modelbox.refs import shown

if TYPE_CHECKING:
    from modelbox._transport.source import RemoteSource
    from modelbox.tracking import Found

__all__ = ("FindCalls",)

_PAGE = 1000


class FindCalls(ClientConnection):
    """The part of `Client` about finding."""

    async def find(
        self,
        collection: str,
        where: str = "",
        *,
        order_by: str | Sequence[str] = (),
        within: str = "",
        columns: Sequence[str] = (),
        limit: int | None = 100,
        include_deleted: bool = False,
        page_token: str = "",
    ) -> FindPage:
        """The objects of a collection that a query lets through, as columns; ``docs/find.md`` has the language.

        ::

            best = await client.find(
                "runs", "metrics.accuracy > 0.9 and params.lr <= 1e-3", order_by="metrics.accuracy desc", limit=10
            )
            best.to_pandas()

        Args:
            collection: ``experiments``, ``runs``, ``checkpoints``, ``models``, ``versions``, ``datasets``,
                ``dataset_versions``, ``artifacts`` or ``events``.
            where: The query; empty for everything.
            order_by: ``"metrics.loss"``, ``"metrics.loss desc"``, or several of them; then by id. What an object does
                not have comes last.
            within: Only of this namespace, or below the object with this id, such as an experiment.
            columns: ``attributes``, ``metrics``, ``params``, ``tags``, ``labels``, ``metadata``, or single ones such as
                ``metrics.loss``; empty for all. ``["id"]`` for ids only.
            limit: How many at most; None for all there are, fetched by thousands.
            include_deleted: Also what is in the bin.
            page_token: Goes on behind a page: its ``next_token``, with the same query.

        Raises:
            FindError: The query is wrong; shows where, and what was expected there.
            InvalidError: The collection, an order or a column is none.
        """
        if limit is not None and limit < 0:
            raise InvalidError(f"limit is {shown(limit)}: expected 0 or more, or None for all", what="limit")
        orders = (order_by,) if isinstance(order_by, str) else tuple(order_by)
        left = limit
        pages = []
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)

            async def next_page(source: RemoteSource, size: int = size, token: str = page_token) -> Found:
                return await source.tracking.find(
                    collection,
                    where=where,
                    order_by=orders,
                    within=within,
                    columns=columns,
                    include_deleted=include_deleted,
                    page_size=size,
                    page_token=token,
                )

            page = await self._call(next_page)
            pages.append(page)
            page_token = page.next_token
            left = None if left is None else left - page.count
            if not page_token:
                break
        return FindPage.from_found(*pages)

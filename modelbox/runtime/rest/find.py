"""Finding over HTTP: a page as JSON columns, or as CSV."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import anyio.to_thread
from aiohttp import web

from modelbox.errors import InvalidError
from modelbox.objects import JsonValue
from modelbox.refs import shown
from modelbox.runtime.caller import current_scope
from modelbox.runtime.rest.bodies import flag_of, int_of, read_exactly, text_of, texts_of
from modelbox.runtime.services.find import FindService
from modelbox.tracking import Found

__all__ = ("FindRoutes",)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEXT_PAGE = "Modelbox-Next-Page-Token"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Query:
    collection: str
    where: str = ""
    order_by: tuple[str, ...] = ()
    within: str = ""
    columns: tuple[str, ...] = ()
    include_deleted: bool = False
    page_size: int = 0
    page_token: str = ""
    format: str = "json"


class FindRoutes:
    """Handlers: decode, call the service, encode."""

    def __init__(self, find: FindService) -> None:
        self._find = find

    def routes(self) -> list[web.RouteDef]:
        """Which path leads where."""
        return [web.get("/api/v1/find", self.get), web.post("/api/v1/find", self.post)]

    async def get(self, request: web.Request) -> web.StreamResponse:
        """GET ?collection=&where=&order_by=&within=&columns=&include_deleted=&format=json|csv.

        ``order_by`` and ``columns`` may be repeated.
        """
        query = _Query(
            collection=text_of(request, "collection", None),
            where=text_of(request, "where"),
            order_by=tuple(texts_of(request, "order_by")),
            within=text_of(request, "within"),
            columns=tuple(texts_of(request, "columns")),
            include_deleted=flag_of(request, "include_deleted"),
            page_size=int_of(request, "page_size", 0),
            page_token=text_of(request, "page_token"),
            format=text_of(request, "format") or "json",
        )
        return await self._answer(query)

    async def post(self, request: web.Request) -> web.StreamResponse:
        """POST the same as one JSON object, for long queries; unknown fields are refused."""
        query = await read_exactly(request, _Query)
        return await self._answer(replace(query, format=text_of(request, "format") or query.format))

    async def _answer(self, query: _Query) -> web.StreamResponse:
        if query.format not in ("json", "csv"):
            raise InvalidError(f"the format {shown(query.format)} is not known: expected json or csv", what="format")
        found = await self._find.find(
            query.collection,
            where=query.where,
            order_by=query.order_by,
            within=query.within,
            columns=query.columns,
            include_deleted=query.include_deleted,
            page_size=query.page_size,
            page_token=query.page_token,
            scope=current_scope(),
        )
        if query.format == "csv":
            body = await anyio.to_thread.run_sync(_csv, found)
            headers = {"Content-Disposition": f'attachment; filename="{query.collection}.csv"'}
            if found.next_token:
                headers[_NEXT_PAGE] = found.next_token
            return web.Response(body=body, content_type="text/csv", charset="utf-8", headers=headers)
        rest = {
            "count": found.count,
            "time_columns": found.time_columns,
            "number_columns": found.number_columns,
            "next_page_token": found.next_token,
        }
        body = b'{"columns":' + found.columns_json + b"," + json.dumps(rest).encode()[1:]
        return web.Response(body=body, content_type="application/json", charset="utf-8")


def _csv(found: Found) -> bytes:
    columns = json.loads(found.columns_json)
    for name in found.time_columns:
        if name in columns:
            columns[name] = [None if us is None else _iso(us) for us in columns[name]]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows(zip(*([_cell(value) for value in column] for column in columns.values()), strict=True))
    return out.getvalue().encode()


def _cell(value: JsonValue) -> object:
    if value is None:
        return ""
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else _json(value)


def _json(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False)


def _iso(us: int) -> str:
    return (_EPOCH + timedelta(microseconds=us)).isoformat().replace("+00:00", "Z")

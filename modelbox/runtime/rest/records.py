"""Events, comments, readmes, datasets and lineage over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime

from aiohttp import web

from modelbox.errors import InvalidError
from modelbox.runtime.caller import current_actor, current_scope
from modelbox.runtime.rest.bodies import (
    body_of,
    created,
    flag_of,
    int_of,
    item_of,
    page_of,
    paging_of,
    read_body,
    text_of,
    texts_of,
    time_of,
)
from modelbox.runtime.services.datasets import DatasetService
from modelbox.runtime.services.lineage import LineageService
from modelbox.runtime.services.notes import NoteService
from modelbox.tracking import NewComment, NewDataset, NewDatasetVersion, NewEdges, NewEvent, ReadmeEdit

__all__ = ("RecordRoutes",)


class RecordRoutes:
    """Handlers: decode, call a service, encode."""

    def __init__(self, notes: NoteService, datasets: DatasetService, lineage: LineageService) -> None:
        self._notes = notes
        self._datasets = datasets
        self._lineage = lineage

    def routes(self) -> list[web.RouteDef]:
        """Which path leads where."""
        return [
            web.get("/api/v1/events", self.list_events),
            web.post("/api/v1/events", self.log_event),
            web.get("/api/v1/comments", self.list_comments),
            web.post("/api/v1/comments", self.add_comment),
            web.patch("/api/v1/comments/{comment}", self.edit_comment),
            web.get("/api/v1/readme", self.get_readme),
            web.put("/api/v1/readme", self.set_readme),
            web.get("/api/v1/datasets", self.list_datasets),
            web.post("/api/v1/datasets", self.create_dataset),
            web.get("/api/v1/datasets/{dataset:.+}", self.get_dataset),
            web.get("/api/v1/dataset-versions", self.list_dataset_versions),
            web.post("/api/v1/dataset-versions", self.create_dataset_version),
            web.get("/api/v1/dataset-versions/{version:.+}", self.get_dataset_version),
            web.get("/api/v1/lineage", self.get_lineage),
            web.post("/api/v1/lineage", self.add_edges),
            web.post("/api/v1/lineage/remove", self.remove_edges),
        ]

    # -- events, comments, readmes ---------------------------------------------------------------------------------

    async def list_events(self, request: web.Request) -> web.StreamResponse:
        """GET ?object=&since=&until=&name=&source=."""
        size, token = paging_of(request)
        return page_of(
            await self._notes.list_events(
                text_of(request, "object", None),
                since=time_of(request, "since"),
                until=time_of(request, "until"),
                name=text_of(request, "name"),
                source=text_of(request, "source"),
                page_size=size,
                page_token=token,
                scope=current_scope(),
            )
        )

    async def log_event(self, request: web.Request) -> web.StreamResponse:
        """POST a `NewEvent`; ``id`` may be left out, and ``at`` for now."""
        new = await read_body(request, NewEvent, at=datetime.now(UTC).isoformat())
        return created(await self._notes.log_event(new, actor=current_actor()))

    async def list_comments(self, request: web.Request) -> web.StreamResponse:
        """GET ?object=&include_deleted=."""
        size, token = paging_of(request)
        return page_of(
            await self._notes.list_comments(
                text_of(request, "object", None),
                include_deleted=flag_of(request, "include_deleted"),
                page_size=size,
                page_token=token,
                scope=current_scope(),
            )
        )

    async def add_comment(self, request: web.Request) -> web.StreamResponse:
        """POST a `NewComment`; ``id`` may be left out."""
        new = await read_body(request, NewComment)
        return item_of(await self._notes.add_comment(new, actor=current_actor()))

    async def edit_comment(self, request: web.Request) -> web.StreamResponse:
        """PATCH with ``{"text"}``."""
        text = (await body_of(request)).get("text")
        if not isinstance(text, str):
            raise InvalidError("the body lacks a text", what="text")
        comment = await self._notes.edit_comment(request.match_info["comment"], text, actor=current_actor())
        return item_of(comment)

    async def get_readme(self, request: web.Request) -> web.StreamResponse:
        """GET ?object=."""
        return item_of(await self._notes.get_readme(text_of(request, "object", None)))

    async def set_readme(self, request: web.Request) -> web.StreamResponse:
        """PUT a `ReadmeEdit`; an empty text removes it."""
        edit = await read_body(request, ReadmeEdit)
        return item_of(await self._notes.set_readme(edit, actor=current_actor()))

    # -- datasets --------------------------------------------------------------------------------------------------

    async def list_datasets(self, request: web.Request) -> web.StreamResponse:
        """GET ?namespace=&include_deleted=."""
        size, token = paging_of(request)
        return page_of(
            await self._datasets.list_datasets(
                namespace=text_of(request, "namespace"),
                include_deleted=flag_of(request, "include_deleted"),
                page_size=size,
                page_token=token,
                scope=current_scope(),
            )
        )

    async def create_dataset(self, request: web.Request) -> web.StreamResponse:
        """POST a `NewDataset`; ``id`` may be left out."""
        new = await read_body(request, NewDataset)
        return created(await self._datasets.create_dataset(new, actor=current_actor()))

    async def get_dataset(self, request: web.Request) -> web.StreamResponse:
        """GET by id or ``namespace/name``."""
        return item_of(await self._datasets.get_dataset(request.match_info["dataset"]))

    async def list_dataset_versions(self, request: web.Request) -> web.StreamResponse:
        """GET ?dataset=&include_deleted=."""
        size, token = paging_of(request)
        return page_of(
            await self._datasets.list_versions(
                text_of(request, "dataset", None),
                include_deleted=flag_of(request, "include_deleted"),
                page_size=size,
                page_token=token,
                scope=current_scope(),
            )
        )

    async def create_dataset_version(self, request: web.Request) -> web.StreamResponse:
        """POST a `NewDatasetVersion`; ``id`` may be left out."""
        new = await read_body(request, NewDatasetVersion)
        return created(await self._datasets.create_version(new, actor=current_actor()))

    async def get_dataset_version(self, request: web.Request) -> web.StreamResponse:
        """GET by id, ``namespace/name@3``, or ``namespace/name`` for the newest."""
        return item_of(await self._datasets.get_version(request.match_info["version"]))

    # -- lineage ---------------------------------------------------------------------------------------------------

    async def get_lineage(self, request: web.Request) -> web.StreamResponse:
        """GET ?object=&direction=&max_depth=; ``object`` may be repeated."""
        return item_of(
            await self._lineage.get_lineage(
                texts_of(request, "object", required=True),
                direction=text_of(request, "direction") or "both",
                max_depth=int_of(request, "max_depth", 0),
                scope=current_scope(),
            )
        )

    async def add_edges(self, request: web.Request) -> web.StreamResponse:
        """POST ``{"edges": [{"source", "target", "type"}, ...]}``."""
        new = await read_body(request, NewEdges)
        return item_of({"added": await self._lineage.add_edges(new, actor=current_actor(), scope=current_scope())})

    async def remove_edges(self, request: web.Request) -> web.StreamResponse:
        """POST as to add them."""
        edges = (await read_body(request, NewEdges)).edges
        return item_of({"removed": await self._lineage.remove_edges(edges, actor=current_actor())})

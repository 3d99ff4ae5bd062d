"""Experiments, runs, checkpoints, attributes and the bin over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime

from aiohttp import web

from modelbox._wire.tracking import attribute_kind
from modelbox.objects import from_json
from modelbox.runtime.caller import current_actor, current_scope
from modelbox.runtime.rest.bodies import (
    body_of,
    created,
    flag_of,
    item_of,
    page_of,
    paging_of,
    read_body,
    text_of,
    texts_of,
)
from modelbox.runtime.services.tracking import TrackingService
from modelbox.tracking import (
    AttributesEdit,
    ExperimentPatch,
    NewCheckpoint,
    NewExperiment,
    NewRun,
    ObjectKind,
    RunPatch,
    new_id,
)

__all__ = ("TrackingRoutes",)


class TrackingRoutes:
    """Handlers: decode, call the service, encode."""

    def __init__(self, tracking: TrackingService) -> None:
        self._tracking = tracking

    def routes(self) -> list[web.RouteDef]:
        """Which path leads where."""
        return [
            web.get("/api/v1/experiments", self.list_experiments),
            web.post("/api/v1/experiments", self.create_experiment),
            web.get("/api/v1/experiments/{experiment:.+}", self.get_experiment),
            web.patch("/api/v1/experiments/{experiment:.+}", self.update_experiment),
            web.get("/api/v1/runs", self.list_runs),
            web.post("/api/v1/runs", self.create_run),
            web.get("/api/v1/runs/{run}", self.get_run),
            web.patch("/api/v1/runs/{run}", self.update_run),
            web.post("/api/v1/runs/{run}/clone", self.clone_run),
            web.get("/api/v1/checkpoints", self.list_checkpoints),
            web.post("/api/v1/checkpoints", self.create_checkpoint),
            web.get("/api/v1/checkpoints/{checkpoint}", self.get_checkpoint),
            web.post("/api/v1/objects/delete", self.delete_objects),
            web.post("/api/v1/objects/restore", self.restore_objects),
            web.get("/api/v1/attributes", self.get_attributes),
            web.post("/api/v1/attributes", self.set_attributes),
            web.get("/api/v1/attributes/history", self.list_attribute_history),
        ]

    # -- experiments -----------------------------------------------------------------------------------------------

    async def list_experiments(self, request: web.Request) -> web.StreamResponse:
        """GET ?namespace=&include_deleted=."""
        size, token = paging_of(request)
        return page_of(
            await self._tracking.list_experiments(
                namespace=text_of(request, "namespace"),
                include_deleted=flag_of(request, "include_deleted"),
                page_size=size,
                page_token=token,
                scope=current_scope(),
            )
        )

    async def create_experiment(self, request: web.Request) -> web.StreamResponse:
        """POST a `NewExperiment`; ``id`` may be left out."""
        new = await read_body(request, NewExperiment)
        return created(await self._tracking.create_experiment(new, actor=current_actor()))

    async def get_experiment(self, request: web.Request) -> web.StreamResponse:
        """GET by id or ``namespace/name``."""
        return item_of(await self._tracking.get_experiment(request.match_info["experiment"]))

    async def update_experiment(self, request: web.Request) -> web.StreamResponse:
        """PATCH with an `ExperimentPatch`."""
        patch = await read_body(request, ExperimentPatch)
        return item_of(
            await self._tracking.update_experiment(request.match_info["experiment"], patch, actor=current_actor())
        )

    # -- runs ------------------------------------------------------------------------------------------------------

    async def list_runs(self, request: web.Request) -> web.StreamResponse:
        """GET ?parent=&include_deleted=."""
        size, token = paging_of(request)
        return page_of(
            await self._tracking.list_runs(
                text_of(request, "parent"),
                include_deleted=flag_of(request, "include_deleted"),
                page_size=size,
                page_token=token,
                scope=current_scope(),
            )
        )

    async def create_run(self, request: web.Request) -> web.StreamResponse:
        """POST a `NewRun`; ``id`` may be left out, and ``started_at`` for now."""
        new = await read_body(request, NewRun, started_at=datetime.now(UTC).isoformat())
        return created(await self._tracking.create_run(new, actor=current_actor()))

    async def get_run(self, request: web.Request) -> web.StreamResponse:
        """GET by id."""
        return item_of(await self._tracking.get_run(request.match_info["run"]))

    async def update_run(self, request: web.Request) -> web.StreamResponse:
        """PATCH with a `RunPatch`."""
        patch = await read_body(request, RunPatch)
        return item_of(await self._tracking.update_run(request.match_info["run"], patch, actor=current_actor()))

    async def clone_run(self, request: web.Request) -> web.StreamResponse:
        """POST ``{"id", "name"}``, both may be left out."""
        body = await body_of(request) if request.can_read_body else {}
        cloned = await self._tracking.clone_run(
            request.match_info["run"],
            id=from_json(str, body.get("id") or new_id(ObjectKind.RUN)),
            name=from_json(str, body.get("name", "")),
            actor=current_actor(),
        )
        return created(cloned)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    async def list_checkpoints(self, request: web.Request) -> web.StreamResponse:
        """GET ?parent=&include_deleted=."""
        size, token = paging_of(request)
        return page_of(
            await self._tracking.list_checkpoints(
                text_of(request, "parent", None),
                include_deleted=flag_of(request, "include_deleted"),
                page_size=size,
                page_token=token,
                scope=current_scope(),
            )
        )

    async def create_checkpoint(self, request: web.Request) -> web.StreamResponse:
        """POST a `NewCheckpoint`; ``id`` may be left out."""
        new = await read_body(request, NewCheckpoint)
        return created(await self._tracking.create_checkpoint(new, actor=current_actor()))

    async def get_checkpoint(self, request: web.Request) -> web.StreamResponse:
        """GET by id."""
        return item_of(await self._tracking.get_checkpoint(request.match_info["checkpoint"]))

    # -- the bin ---------------------------------------------------------------------------------------------------

    async def delete_objects(self, request: web.Request) -> web.StreamResponse:
        """POST ``{"ids": [...]}``."""
        ids = from_json(tuple[str, ...], (await body_of(request)).get("ids"))
        return item_of({"count": await self._tracking.delete_objects(ids, actor=current_actor())})

    async def restore_objects(self, request: web.Request) -> web.StreamResponse:
        """POST ``{"ids": [...]}``."""
        ids = from_json(tuple[str, ...], (await body_of(request)).get("ids"))
        return item_of({"count": await self._tracking.restore_objects(ids, actor=current_actor())})

    # -- attributes ------------------------------------------------------------------------------------------------

    async def get_attributes(self, request: web.Request) -> web.StreamResponse:
        """GET ?object=&kind=, both may be repeated."""
        kinds = [attribute_kind(kind) for kind in texts_of(request, "kind")]
        return item_of(await self._tracking.get_attributes(texts_of(request, "object", required=True), kinds))

    async def set_attributes(self, request: web.Request) -> web.StreamResponse:
        """POST an `AttributesEdit`."""
        edit = await read_body(request, AttributesEdit)
        rev = await self._tracking.set_attributes(
            edit.object, edit.kind, edit.values, edit.remove, overwrite=edit.overwrite, actor=current_actor()
        )
        return item_of({"rev": rev})

    async def list_attribute_history(self, request: web.Request) -> web.StreamResponse:
        """GET ?object=&kind=&key=."""
        size, token = paging_of(request)
        return page_of(
            await self._tracking.list_attribute_history(
                text_of(request, "object", None),
                attribute_kind(text_of(request, "kind", None)),
                text_of(request, "key"),
                page_size=size,
                page_token=token,
            )
        )

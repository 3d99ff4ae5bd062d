"""The use cases of tracking: experiments, runs, checkpoints, attributes, the bin, deliveries of spools.

Owns the checks of everything that callers send. Rules that need stored state are the store's, inside its transaction.

Every method may be called by many tasks at once. A cancelled change was either not begun or is carried out unseen;
creates are idempotent by id, so the caller may simply repeat it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from modelbox.access import ALL, Scope
from modelbox.errors import ConflictError, IntegrityError, InvalidError, LimitError, ModelBoxError, NotFoundError
from modelbox.objects import Created, JsonValue, Page
from modelbox.refs import check_name, shown
from modelbox.runtime.limits import (
    check_attributes,
    check_checkpoint_metrics,
    check_epoch,
    check_key,
    check_step,
    check_text,
)
from modelbox.runtime.services.datasets import check_dataset_components
from modelbox.runtime.services.lineage import check_edges
from modelbox.runtime.services.naming import check_actor, check_object, check_time
from modelbox.runtime.services.notes import check_comment, check_event, check_readme
from modelbox.runtime.services.paging import decode_key, page_of, page_size_of
from modelbox.runtime.tracking_ports import MetricSink, TrackingStore
from modelbox.tracking import (
    Attribute,
    AttributeChange,
    AttributeKind,
    AttributesEdit,
    Checkpoint,
    Delivered,
    Experiment,
    ExperimentPatch,
    MetricColumns,
    NewCheckpoint,
    NewComment,
    NewDatasetVersion,
    NewEdges,
    NewEvent,
    NewExperiment,
    NewRun,
    ObjectKind,
    Operation,
    OperationPayload,
    ReadmeEdit,
    Rejection,
    Run,
    RunEdit,
    RunPatch,
    RunStatus,
    check_id,
    kind_of_id,
)

__all__ = ("MAX_IDS", "MAX_OPERATIONS", "TrackingService")

MAX_IDS = 100
"""Of objects in one call."""
MAX_OPERATIONS = 10_000
"""Of a spool in one delivery."""
_DELIVER_BATCH = 100
_PURGE_BATCH = 200
_SPOOL = re.compile(r"[0-9a-f]{32}")
_PERMANENT = (InvalidError, NotFoundError, ConflictError, LimitError, IntegrityError)


def _now() -> datetime:
    return datetime.now(UTC)


class TrackingService:
    """Experiments, runs, checkpoints, and what is attached by key.

    Args:
        store: Where they are kept.
        metrics: Where points of metrics go.
        clock: Gives the time of a change, aware and in UTC.

    Every method raises `InvalidError` for names and values that can never be right, `LimitError` for what is too large
    or when the disk is full, `NotFoundError` for objects that are not there, `ServerBusy` and `StorageError` when the
    database cannot answer.
    """

    def __init__(self, store: TrackingStore, metrics: MetricSink, *, clock: Callable[[], datetime] = _now) -> None:
        self._store = store
        self._metrics = metrics
        self._clock = clock

    # -- experiments -----------------------------------------------------------------------------------------------

    async def create_experiment(self, new: NewExperiment, *, actor: str) -> Created[Experiment]:
        """Makes an experiment, and its namespace if need be.

        An existing one (by id, or by namespace and name) is returned unchanged with ``existed``; one that is in the bin
        has ``deleted_at`` and can be restored.
        """
        _check_experiment(new)
        return await self._store.create_experiment(new, actor=check_actor(actor), at=self._clock())

    async def get_experiment(self, text: str) -> Experiment:
        """An experiment by id or ``namespace/name``, in the bin or not."""
        return await self._store.get_experiment(_check_experiment_name(text))

    async def update_experiment(self, text: str, patch: ExperimentPatch, *, actor: str) -> Experiment:
        """Edits an experiment. A patch that changes nothing makes no change in the feed."""
        _check_texts(patch)
        return await self._store.update_experiment(
            _check_experiment_name(text), patch, actor=check_actor(actor), at=self._clock()
        )

    async def list_experiments(
        self,
        *,
        namespace: str = "",
        include_deleted: bool = False,
        page_size: int = 0,
        page_token: str = "",
        scope: Scope = ALL,
    ) -> Page[Experiment]:
        """Experiments by namespace and name; of all namespaces for an empty one."""
        if namespace:
            check_name(namespace, "namespace")
        listing = f"experiments:{namespace}:{include_deleted:d}"
        listed = await self._store.list_experiments(
            namespace=namespace,
            include_deleted=include_deleted,
            limit=page_size_of(page_size),
            after=decode_key(listing, page_token, str, str),
            scope=scope,
        )
        return page_of(listing, listed)

    # -- runs ------------------------------------------------------------------------------------------------------

    async def create_run(self, new: NewRun, *, actor: str) -> Created[Run]:
        """Makes a run with its first params, tags and metadata, all in one revision.

        An experiment that is named by path and new is made, too. A run below something in the bin is in the bin.
        """
        _check_run(new)
        return await self._store.create_run(new, actor=check_actor(actor), at=self._clock())

    async def get_run(self, run_id: str) -> Run:
        """A run, in the bin or not."""
        return await self._store.get_run(check_id(run_id, ObjectKind.RUN))

    async def update_run(self, run_id: str, patch: RunPatch, *, actor: str) -> Run:
        """Edits a run. A patch that changes nothing makes no change in the feed.

        A run that ends without a time ends now; one that is set back to running has no end and no reason.
        """
        _check_run_edit(RunEdit(id=run_id, patch=patch))
        return await self._store.update_run(run_id, patch, actor=check_actor(actor), at=self._clock())

    async def list_runs(
        self,
        parent: str = "",
        *,
        include_deleted: bool = False,
        page_size: int = 0,
        page_token: str = "",
        scope: Scope = ALL,
    ) -> Page[Run]:
        """Runs, newest first: of an experiment (id or ``namespace/name``), of a namespace, below a run, or all."""
        kind = kind_of_id(check_text(parent, "parent", max_chars=255))
        if kind is not None:
            check_id(parent, ObjectKind.EXPERIMENT, ObjectKind.RUN)
        elif "/" in parent:
            _check_experiment_name(parent)
        elif parent:
            check_name(parent, "namespace")
        listing = f"runs:{parent}:{include_deleted:d}"
        listed = await self._store.list_runs(
            parent,
            include_deleted=include_deleted,
            limit=page_size_of(page_size),
            after=decode_key(listing, page_token, int),
            scope=scope,
        )
        return page_of(listing, listed)

    async def clone_run(self, source_id: str, *, id: str, name: str = "", actor: str) -> Created[Run]:
        """Makes a scheduled run in the same experiment, with the params, tags, labels and metadata of another one."""
        check_id(source_id, ObjectKind.RUN)
        check_id(id, ObjectKind.RUN)
        _check_run_name(name)
        return await self._store.clone_run(source_id, id, name, actor=check_actor(actor), at=self._clock())

    # -- checkpoints -----------------------------------------------------------------------------------------------

    async def create_checkpoint(self, new: NewCheckpoint, *, actor: str) -> Created[Checkpoint]:
        """Makes a checkpoint. The one of the same parent and epoch is returned unchanged with ``existed``."""
        _check_checkpoint(new)
        return await self._store.create_checkpoint(new, actor=check_actor(actor), at=self._clock())

    async def get_checkpoint(self, checkpoint_id: str) -> Checkpoint:
        """A checkpoint, in the bin or not."""
        return await self._store.get_checkpoint(check_id(checkpoint_id, ObjectKind.CHECKPOINT))

    async def list_checkpoints(
        self,
        parent_id: str,
        *,
        include_deleted: bool = False,
        page_size: int = 0,
        page_token: str = "",
        scope: Scope = ALL,
    ) -> Page[Checkpoint]:
        """Checkpoints of a run or an experiment by epoch."""
        check_id(parent_id, ObjectKind.RUN, ObjectKind.EXPERIMENT)
        listing = f"checkpoints:{parent_id}:{include_deleted:d}"
        listed = await self._store.list_checkpoints(
            parent_id,
            include_deleted=include_deleted,
            limit=page_size_of(page_size),
            after=decode_key(listing, page_token, int),
            scope=scope,
        )
        return page_of(listing, listed)

    # -- the bin ---------------------------------------------------------------------------------------------------

    async def delete_objects(self, ids: Sequence[str], *, actor: str) -> int:
        """Puts experiments, runs, checkpoints, datasets or dataset versions into the bin, with everything below them.

        Comments can be put there, too. All or none. Returns how many objects are in the bin now that were not before.
        What is below them goes in parts where it is much, within moments.

        Cancellation: what was asked for is in the bin or not; what is below may follow within the hour.
        """
        return await self._store.delete_objects(_check_ids(ids), actor=check_actor(actor), at=self._clock())

    async def finish_deletions(self) -> int:
        """Goes on with deletions of many objects that a kill or a cancelled call broke off; returns how many went."""
        return await self._store.finish_deletions()

    async def restore_objects(self, ids: Sequence[str], *, actor: str) -> int:
        """Takes objects out of the bin, with everything that went there with them; returns how many. All or none.

        Raises:
            ConflictError: What one of them belongs to is in the bin; ``held_by`` says what to restore.
        """
        return await self._store.restore_objects(_check_ids(ids), actor=check_actor(actor), at=self._clock())

    async def purge(self, namespace: str, before: datetime, *, dry_run: bool = False, actor: str) -> int:
        """Removes for good what was put into the bin before a time: with attributes, artifacts, edges and metrics.

        Works in batches, each a transaction; what a cancelled purge has removed stays removed. Metrics go after the
        objects that they belong to: nobody can read them any more even if the server stops in between.

        Returns:
            How many objects were removed; with ``dry_run``, how many would be (what attached to them later is not
            among them).
        """
        if namespace:
            check_name(namespace, "namespace")
        check_time(before, "time")
        check_actor(actor)
        if dry_run:
            return await self._store.count_purgeable(namespace, before)
        count, more = 0, True
        while more:
            purged = await self._store.purge(namespace, before, batch=_PURGE_BATCH, actor=actor, at=self._clock())
            if purged.ids:
                await self._metrics.delete_series(purged.ids)
            count, more = count + len(purged.ids), purged.more
        return count

    # -- attributes ------------------------------------------------------------------------------------------------

    async def set_attributes(
        self,
        object: str,
        kind: AttributeKind,
        values: Mapping[str, JsonValue],
        remove: Sequence[str] = (),
        *,
        overwrite: bool = False,
        actor: str,
    ) -> int:
        """Sets values and removes keys of one kind on one object; a key that is both is set.

        Returns:
            The revision of the change, 0 if nothing changed.

        Raises:
            ConflictError: A parameter has another value and ``overwrite`` is not given; ``key``, ``current`` and
                ``given`` tell, and nothing was changed.
            LimitError: The object would have too many keys, or too much in them.
        """
        edit = AttributesEdit(object=object, kind=kind, values=values, remove=tuple(remove), overwrite=overwrite)
        return await self._store.set_attributes(_check_edit(edit), actor=check_actor(actor), at=self._clock())

    async def get_attributes(
        self, objects: Sequence[str], kinds: Sequence[AttributeKind] = ()
    ) -> tuple[Attribute, ...]:
        """All values of these kinds (all four, if none is named) of at most 100 objects, in their order."""
        if len(objects) > MAX_IDS:
            raise LimitError(f"{len(objects)} objects in one call, more than the {MAX_IDS} allowed", what="objects")
        for name in objects:
            check_object(name)
        return await self._store.get_attributes(objects, kinds)

    async def list_attribute_history(
        self,
        object: str,
        kind: AttributeKind,
        key: str = "",
        *,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[AttributeChange]:
        """Every set and removal of a key (of all keys, for an empty one), newest first."""
        check_object(object)
        if key:
            check_key(key, kind.value)
        scope = f"history:{object}:{kind.value}:{key}"
        listed = await self._store.list_attribute_history(
            object, kind, key=key, limit=page_size_of(page_size), after=decode_key(scope, page_token, int)
        )
        return page_of(scope, listed)

    # -- delivery --------------------------------------------------------------------------------------------------

    async def deliver(
        self, spool: str, operations: Sequence[Operation], *, actor: str, scope: Scope = ALL
    ) -> Delivered:
        """Takes over the operations of a client's spool, in order; what the spool has had already is skipped.

        First everything but metrics, in transactions that each move the mark up to which the spool was taken over; then
        the metrics, which are known by what they are and so may come again. When it returns, all of it is on disk, but
        for what is named in ``rejections``: these can never succeed, and hold up nothing. What may succeed later (a
        full disk, a busy server) is raised, and the client sends everything again.

        Args:
            spool: 32 hexadecimal digits that name the spool for ever.
            operations: With growing ``seq``, 1 to 10,000.
            actor: Who.
            scope: What refusals may tell of.
        """
        if not isinstance(spool, str) or not _SPOOL.fullmatch(spool):
            raise InvalidError(f"{shown(spool)} is not a spool: expected 32 hexadecimal digits", what="spool")
        if len(operations) > MAX_OPERATIONS:
            raise LimitError(
                f"{len(operations)} operations in one delivery, more than the {MAX_OPERATIONS} allowed",
                what="operations",
            )
        check_actor(actor)
        last = 0
        for operation in operations:
            if not last < check_step(operation.seq, "seq"):
                raise InvalidError(
                    f"the operation {operation.seq} comes after {last}: expected growing ones", what="seq"
                )
            last = operation.seq
        if not operations:
            raise InvalidError("a delivery needs at least one operation", what="operations")
        rejections: list[Rejection] = []
        control: list[Operation] = []
        points: list[Operation] = []
        for operation in operations:
            if isinstance(operation.payload, MetricColumns):
                points.append(operation)
                continue
            try:
                _check_payload(operation.payload)
            except _PERMANENT as exc:
                rejections.append(_rejection(operation.seq, exc))
            else:
                control.append(operation)
        # In parts, so that nobody else waits long; what was carried out is not carried out again.
        for start in range(0, len(control), _DELIVER_BATCH):
            some = control[start : start + _DELIVER_BATCH]
            upto = last if start + _DELIVER_BATCH >= len(control) else some[-1].seq
            rejections.extend(
                await self._store.deliver(
                    spool, operations[0].seq, upto, some, actor=actor, at=self._clock(), scope=scope
                )
            )
        rejections.extend(await self._log(points))
        return Delivered(seq=last, rejections=tuple(sorted(rejections, key=lambda one: one.seq)))

    async def _log(self, points: Sequence[Operation]) -> list[Rejection]:
        """Keeps points; each operation by itself, so that one at fault takes no other along."""
        columns = [operation.payload for operation in points if isinstance(operation.payload, MetricColumns)]
        if not columns:
            return []
        outcomes = await self._metrics.log_each(columns)
        return [
            _rejection(operation.seq, outcome)
            for operation, outcome in zip(points, outcomes, strict=True)
            if isinstance(outcome, ModelBoxError)
        ]


def _rejection(seq: int, error: ModelBoxError) -> Rejection:
    return Rejection(seq=seq, code=error.code, message=error.message)


# -- checks --------------------------------------------------------------------------------------------------------


def _check_texts(said: NewExperiment | ExperimentPatch) -> None:
    for text, what, max_chars in (
        (said.owner, "owner", 256),
        (said.framework, "framework", 128),
        (said.task, "task", 128),
        (said.external_id, "external id", 256),
        (said.description, "description", 16_384),
    ):
        if text is not None:
            check_text(text, what, max_chars=max_chars)


def _check_experiment(new: NewExperiment) -> None:
    check_id(new.id, ObjectKind.EXPERIMENT)
    check_name(new.namespace, "namespace")
    check_name(new.name, "experiment")
    _check_texts(new)


def _check_experiment_name(text: str) -> str:
    if kind_of_id(check_text(text, "experiment", max_chars=255)) is not None:
        return check_id(text, ObjectKind.EXPERIMENT)
    namespace, slash, name = text.partition("/")
    if not slash:
        raise InvalidError(f"{shown(text)} names no experiment: expected an id or namespace/name", what="experiment")
    check_name(namespace, "namespace")
    check_name(name, "experiment")
    return text


def _check_run_name(name: str) -> None:
    if check_text(name, "name", max_chars=255) and not name.isprintable():
        raise InvalidError(f"{shown(name)} is not a run's name: expected printable text", what="name")


def _check_run(new: NewRun) -> None:
    check_id(new.id, ObjectKind.RUN)
    _check_experiment_name(new.experiment)
    _check_run_name(new.name)
    _check_status(new.status)
    check_time(new.started_at, "start")
    if new.parent_id and check_id(new.parent_id, ObjectKind.RUN) == new.id:
        raise InvalidError("a run cannot be a part of itself", what="parent_id")
    if new.cloned_from:
        check_id(new.cloned_from, ObjectKind.RUN)
    if new.params:
        check_attributes(AttributeKind.PARAM, new.params)
    if new.tags:
        check_attributes(AttributeKind.TAG, new.tags)
    if new.metadata:
        check_attributes(AttributeKind.METADATA, new.metadata)


def _check_status(status: RunStatus) -> None:
    if not isinstance(status, RunStatus):
        raise InvalidError(f"{shown(status)} is not a status: expected one of {', '.join(RunStatus)}", what="status")


def _check_run_edit(edit: RunEdit) -> None:
    check_id(edit.id, ObjectKind.RUN)
    if edit.patch.name is not None:
        _check_run_name(edit.patch.name)
    if edit.patch.status is not None:
        _check_status(edit.patch.status)
    if edit.patch.ended_at is not None:
        check_time(edit.patch.ended_at, "end")
    if edit.patch.reason is not None:
        check_text(edit.patch.reason, "reason", max_chars=4096)


def _check_checkpoint(new: NewCheckpoint) -> None:
    check_id(new.id, ObjectKind.CHECKPOINT)
    check_id(new.parent_id, ObjectKind.RUN, ObjectKind.EXPERIMENT)
    check_epoch(new.epoch)
    if new.step is not None:
        check_step(new.step)
    check_text(new.path, "path", max_chars=4096)
    check_checkpoint_metrics(new.metrics)


def _check_edit(edit: AttributesEdit) -> AttributesEdit:
    check_object(edit.object)
    if not isinstance(edit.kind, AttributeKind):
        raise InvalidError(
            f"{shown(edit.kind)} is not a kind of attribute: expected one of {', '.join(AttributeKind)}", what="kind"
        )
    check_attributes(edit.kind, edit.values)
    for key in edit.remove:
        check_key(key, edit.kind.value)
    return edit


def _check_ids(ids: Sequence[str]) -> Sequence[str]:
    if not ids:
        raise InvalidError("no ids are given", what="ids")
    if len(ids) > MAX_IDS:
        raise LimitError(f"{len(ids)} ids in one call, more than the {MAX_IDS} allowed", what="ids")
    for one in ids:
        check_id(one)
    return ids


_CHECKS: dict[type, Callable[..., object]] = {
    NewExperiment: _check_experiment,
    NewRun: _check_run,
    RunEdit: _check_run_edit,
    NewCheckpoint: _check_checkpoint,
    AttributesEdit: _check_edit,
    NewEvent: check_event,
    NewComment: check_comment,
    NewEdges: lambda new: check_edges(new.edges),
    NewDatasetVersion: check_dataset_components,
    ReadmeEdit: check_readme,
}


def _check_payload(payload: OperationPayload) -> None:
    _CHECKS[type(payload)](payload)

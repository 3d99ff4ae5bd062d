"""Where each collection's objects and attributes are: tables, joins, and an expression for each attribute.

Joins are made only where a query needs them. Walking a collection's own table by number is walking it in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Double, FromClause, Table, case, cast, func, select

from modelbox.runtime.store.schema import (
    artifacts,
    checkpoints,
    dataset_versions,
    datasets,
    events,
    experiments,
    models,
    namespaces,
    objects,
    runs,
    versions,
)
from modelbox.tracking import ObjectKind

__all__ = ("SOURCES", "Expr", "Source")

Expr = ColumnElement[Any]


@dataclass(frozen=True, slots=True)
class _Join:
    table: FromClause
    on: Expr
    needs: str = ""
    outer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A collection in the database.

    Attributes:
        kind: Of its objects; None for events, which are no objects.
        base: The table of its own; its ``id`` orders the collection.
        object_join: How ``objects`` is joined to it: an event has the object that it is about.
        uid: The id outside.
        namespace_id: Number of its namespace.
        parent_id: Number of the object that it belongs to.
        model_id: Number of the model's own row, of what is of a model or may be; None for what never is.
        attributes: By name: an expression, and the join that it needs.
        projects_metrics: Metrics are kept as attributes too.
        same_id: An object has the same number in ``base`` and ``objects``.
    """

    kind: ObjectKind | None
    base: Table
    object_join: Expr
    uid: Expr
    namespace_id: Expr
    parent_id: Expr
    attributes: Mapping[str, tuple[Expr, str]]
    joins: Mapping[str, _Join]
    projects_metrics: bool = False
    same_id: bool = False
    model_id: Expr | None = None

    def tables(self, needs: Iterable[str], *, begin: FromClause | None = None) -> FromClause:
        """The own table, ``objects``, and the joins that ``needs`` names.

        Args:
            needs: Names of joins.
            begin: Tables with ``objects`` among them that the own table is joined to; else it is the first.
        """
        done: set[str] = set()
        first, second = (self.base, objects) if begin is None else (begin, self.base)
        tables: FromClause = first.join(second, self.object_join)
        for need in sorted(needs):
            tables = self._join(tables, need, done)
        return tables

    def _join(self, tables: FromClause, name: str, done: set[str]) -> FromClause:
        if not name or name in done:
            return tables
        join = self.joins[name]
        tables = self._join(tables, join.needs, done)
        done.add(name)
        return tables.outerjoin(join.table, join.on) if join.outer else tables.join(join.table, join.on)


_parents = objects.alias("find_parents")
_experiment_objects = objects.alias("find_experiments")
_dataset_objects = objects.alias("find_datasets")
_version_objects = objects.alias("find_versions")

_newest = (
    select(func.max(dataset_versions.c.version))
    .join(_version_objects, _version_objects.c.id == dataset_versions.c.id)
    .where(dataset_versions.c.dataset_id == datasets.c.id, _version_objects.c.deleted_at_us.is_(None))
    .correlate(datasets)
    .scalar_subquery()
)


def _own(column: Expr) -> tuple[Expr, str]:
    """A column that every query has at hand."""
    return column, ""


def _optional(column: Expr) -> tuple[Expr, str]:
    """Text that was not given is empty; to find, it is missing."""
    return func.nullif(column, ""), ""


def _source(
    kind: ObjectKind,
    base: Table,
    attributes: Mapping[str, tuple[Expr, str]],
    joins: Mapping[str, _Join] | None = None,
    *,
    projects_metrics: bool = False,
    model_id: Expr | None = None,
) -> Source:
    same_id = "uid" not in base.c
    return Source(
        kind=kind,
        base=base,
        object_join=objects.c.id == base.c.id if same_id else objects.c.uid == base.c.uid,
        uid=objects.c.uid,
        namespace_id=objects.c.namespace_id,
        parent_id=objects.c.parent_id,
        attributes={
            "id": _own(objects.c.uid),
            **attributes,
            "namespace": (namespaces.c.name, "n"),
            "created_at": _own(objects.c.created_at_us),
            "created_by": _optional(objects.c.created_by),
            "deleted_at": _own(objects.c.deleted_at_us),
        },
        joins={"n": _Join(namespaces, namespaces.c.id == objects.c.namespace_id), **(joins or {})},
        projects_metrics=projects_metrics,
        same_id=same_id,
        model_id=model_id,
    )


_EVENTS = Source(
    kind=None,
    base=events,
    object_join=objects.c.id == events.c.object_id,
    uid=events.c.uid,
    namespace_id=events.c.namespace_id,
    parent_id=events.c.object_id,
    attributes={
        "id": _own(events.c.uid),
        "name": _own(events.c.name),
        "source": _optional(events.c.source),
        "object": _own(objects.c.uid),
        "at": _own(events.c.at_us),
        "received_at": _own(events.c.received_at_us),
        "namespace": (namespaces.c.name, "n"),
        "created_by": _optional(events.c.created_by),
    },
    joins={"n": _Join(namespaces, namespaces.c.id == events.c.namespace_id)},
)

_duration = case(
    (runs.c.ended_at_us.is_not(None), cast(runs.c.ended_at_us - runs.c.started_at_us, Double) / 1e6), else_=None
)

SOURCES: Mapping[str, Source] = {
    "experiments": _source(
        ObjectKind.EXPERIMENT,
        experiments,
        {
            "name": _own(experiments.c.name),
            "owner": _optional(experiments.c.owner),
            "framework": _optional(experiments.c.framework),
            "task": _optional(experiments.c.task),
            "external_id": _optional(experiments.c.external_id),
            "description": _optional(experiments.c.description),
        },
    ),
    "runs": _source(
        ObjectKind.RUN,
        runs,
        {
            "name": _own(runs.c.name),
            "experiment": (experiments.c.name, "e"),
            "experiment_id": (_experiment_objects.c.uid, "eo"),
            "status": _own(runs.c.status),
            "parent_id": (_parents.c.uid, "p"),
            "cloned_from": _optional(runs.c.cloned_from),
            "reason": _optional(runs.c.reason),
            "duration": (_duration, ""),
            "started_at": _own(runs.c.started_at_us),
            "ended_at": _own(runs.c.ended_at_us),
        },
        {
            "e": _Join(experiments, experiments.c.id == runs.c.experiment_id),
            "eo": _Join(_experiment_objects, _experiment_objects.c.id == runs.c.experiment_id),
            "p": _Join(_parents, _parents.c.id == runs.c.parent_run_id, outer=True),
        },
    ),
    "checkpoints": _source(
        ObjectKind.CHECKPOINT,
        checkpoints,
        {
            "parent_id": (_parents.c.uid, "p"),
            "path": _optional(checkpoints.c.path),
            "epoch": _own(checkpoints.c.epoch),
            "step": _own(checkpoints.c.step),
        },
        {"p": _Join(_parents, _parents.c.id == checkpoints.c.parent_id)},
        projects_metrics=True,
    ),
    "models": _source(
        ObjectKind.MODEL,
        models,
        {
            "name": _own(models.c.name),
            "owner": _optional(models.c.owner),
            "task": _optional(models.c.task),
            "description": _optional(models.c.description),
            "latest_version": (cast(func.nullif(models.c.latest_version, 0), BigInteger), ""),
        },
        model_id=models.c.id,
    ),
    "versions": _source(
        ObjectKind.VERSION,
        versions,
        {
            "model": (models.c.name, "m"),
            "digest": _own(versions.c.digest),
            "description": _optional(versions.c.description),
            "version": _own(versions.c.version),
        },
        {"m": _Join(models, models.c.id == versions.c.model_id)},
        projects_metrics=True,
        model_id=versions.c.model_id,
    ),
    "datasets": _source(
        ObjectKind.DATASET,
        datasets,
        {
            "name": _own(datasets.c.name),
            "owner": _optional(datasets.c.owner),
            "description": _optional(datasets.c.description),
            "latest_version": (_newest, ""),
        },
    ),
    "dataset_versions": _source(
        ObjectKind.DATASET_VERSION,
        dataset_versions,
        {
            "dataset": (datasets.c.name, "d"),
            "dataset_id": (_dataset_objects.c.uid, "do"),
            "digest": _own(dataset_versions.c.digest),
            "description": _optional(dataset_versions.c.description),
            "version": _own(dataset_versions.c.version),
        },
        {
            "d": _Join(datasets, datasets.c.id == dataset_versions.c.dataset_id),
            "do": _Join(_dataset_objects, _dataset_objects.c.id == dataset_versions.c.dataset_id),
        },
    ),
    "artifacts": _source(
        ObjectKind.ARTIFACT,
        artifacts,
        {"name": _own(artifacts.c.name), "parent": _own(artifacts.c.parent)},
        model_id=artifacts.c.model_id,
    ),
    "events": _EVENTS,
}

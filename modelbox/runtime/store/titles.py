"""What people call objects: ``langtech/wav2vec@7`` and the like, read for many ids at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, bindparam, select

from modelbox.runtime.store.schema import (
    artifacts,
    checkpoints,
    dataset_versions,
    datasets,
    experiments,
    models,
    namespaces,
    objects,
    runs,
    versions,
)
from modelbox.tracking import ObjectKind

__all__ = ("titles_of",)

_IN_CHUNK = 500


def _of(kind: ObjectKind, *columns: Any) -> Select[Any]:
    """Titles are made of two or three columns behind the object's number."""
    return (
        select(objects.c.id, *columns)
        .where(objects.c.kind == kind.value, objects.c.id.in_(bindparam("ids", expanding=True)))
        .select_from(objects)
        .join(namespaces, objects.c.namespace_id == namespaces.c.id)
    )


_ns = namespaces.c.name.label("ns")
_QUERIES: dict[ObjectKind, tuple[Select[Any], str]] = {
    ObjectKind.NAMESPACE: (_of(ObjectKind.NAMESPACE, _ns), "{0}"),
    ObjectKind.MODEL: (
        _of(ObjectKind.MODEL, _ns, models.c.name).join(models, models.c.uid == objects.c.uid),
        "{0}/{1}",
    ),
    ObjectKind.VERSION: (
        _of(ObjectKind.VERSION, _ns, models.c.name, versions.c.version)
        .join(versions, versions.c.uid == objects.c.uid)
        .join(models, versions.c.model_id == models.c.id),
        "{0}/{1}@{2}",
    ),
    ObjectKind.ARTIFACT: (
        _of(ObjectKind.ARTIFACT, _ns, artifacts.c.name).join(artifacts, artifacts.c.uid == objects.c.uid),
        "{0}: {1}",
    ),
    ObjectKind.EXPERIMENT: (
        _of(ObjectKind.EXPERIMENT, _ns, experiments.c.name).join(experiments, experiments.c.id == objects.c.id),
        "{0}/{1}",
    ),
    ObjectKind.RUN: (
        _of(ObjectKind.RUN, _ns, experiments.c.name, runs.c.name)
        .join(runs, runs.c.id == objects.c.id)
        .join(experiments, runs.c.experiment_id == experiments.c.id),
        "{0}/{1}: {2}",
    ),
    ObjectKind.CHECKPOINT: (
        _of(ObjectKind.CHECKPOINT, checkpoints.c.parent_id, checkpoints.c.epoch).join(
            checkpoints, checkpoints.c.id == objects.c.id
        ),
        "{0}, epoch {1}",
    ),
    ObjectKind.DATASET: (
        _of(ObjectKind.DATASET, _ns, datasets.c.name).join(datasets, datasets.c.id == objects.c.id),
        "{0}/{1}",
    ),
    ObjectKind.DATASET_VERSION: (
        _of(ObjectKind.DATASET_VERSION, _ns, datasets.c.name, dataset_versions.c.version)
        .join(dataset_versions, dataset_versions.c.id == objects.c.id)
        .join(datasets, dataset_versions.c.dataset_id == datasets.c.id),
        "{0}/{1}@{2}",
    ),
}


def titles_of(conn: Connection, kinds: Mapping[int, ObjectKind]) -> dict[int, str]:
    """Titles by the numbers of objects, whose kinds are given; a checkpoint's begins with that of its parent."""
    titles: dict[int, str] = {}
    parents: dict[int, tuple[int, int]] = {}
    for kind, (query, form) in _QUERIES.items():
        for row in _rows(conn, query, [number for number, other in kinds.items() if other is kind]):
            if kind is ObjectKind.CHECKPOINT:
                parents[row[0]] = (row[1], row[2])
            else:
                titles[row[0]] = form.format(*row[1:])
    unknown = {parent for parent, _ in parents.values()} - titles.keys()
    above: dict[int, str] = {}
    for kind in (ObjectKind.RUN, ObjectKind.EXPERIMENT):
        query, form = _QUERIES[kind]
        above |= {row[0]: form.format(*row[1:]) for row in _rows(conn, query, sorted(unknown))}
    for number, (parent, epoch) in parents.items():
        title = titles.get(parent) or above.get(parent, "")
        titles[number] = _QUERIES[ObjectKind.CHECKPOINT][1].format(title, epoch)
    return titles


def _rows(conn: Connection, query: Select[Any], ids: Sequence[int]) -> list[Any]:
    rows: list[Any] = []
    for start in range(0, len(ids), _IN_CHUNK):
        rows += conn.execute(query, {"ids": ids[start : start + _IN_CHUNK]}).all()
    return rows

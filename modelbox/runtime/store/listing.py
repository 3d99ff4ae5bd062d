"""The current state of everything, kind by kind, as a reader of the feed lists it before it watches.

What is in the bin is left out. Attributes come once for each object and kind, with all their values; labels and
metadata of models, versions and artifacts are part of these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Select, and_, func, or_, select
from sqlalchemy.sql import ColumnElement

from modelbox.feed import Action, Change, Filter, Kind
from modelbox.objects import to_json
from modelbox.runtime.ports import FeedListing, Key
from modelbox.runtime.store.attributes import METRIC
from modelbox.runtime.store.datasets import DATASET_VERSIONS, DATASETS, dataset_of, dataset_version_of
from modelbox.runtime.store.experiments import EXPERIMENTS, experiment_of
from modelbox.runtime.store.history import read_head
from modelbox.runtime.store.notes import READMES, readme_of
from modelbox.runtime.store.rows import (
    ALIASES,
    ARTIFACTS,
    MODELS,
    NAMESPACES,
    VERSIONS,
    alias_of,
    artifact_of,
    from_us,
    model_of,
    namespace_of,
    version_of,
)
from modelbox.runtime.store.runs import CHECKPOINTS, RUNS, checkpoint_of, run_of
from modelbox.runtime.store.schema import (
    aliases,
    artifacts,
    attribute_history,
    attributes,
    checkpoints,
    dataset_versions,
    datasets,
    experiments,
    models,
    namespaces,
    objects,
    readmes,
    runs,
    versions,
)
from modelbox.tracking import AttributeKind, ObjectKind, kind_of_id

__all__ = ("list_states",)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A filter's objects, sorted by what they can name.

    Attributes:
        plain: Namespaces and ids.
        ids: The ids, also those that stand before a slash: ``run_…/param``.
        models: Namespace and name of the models.
    """

    filter: Filter
    plain: Sequence[str]
    ids: Sequence[str]
    models: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, wanted: Filter) -> _Wanted:
        plain = [path for path in wanted.objects if "/" not in path]
        pairs = []
        ids = [path for path in plain if kind_of_id(path) is not None]
        for path in wanted.objects:
            first, slash, rest = path.partition("/")
            if slash and kind_of_id(first) is not None:
                ids.append(first)
            elif slash:
                pairs.append((first, rest.partition("@")[0]))
        return cls(filter=wanted, plain=plain, ids=list(dict.fromkeys(ids)), models=list(dict.fromkeys(pairs)))


def _of_models(wanted: _Wanted) -> ColumnElement[bool] | None:
    pairs = [and_(namespaces.c.name == namespace, models.c.name == model) for namespace, model in wanted.models]
    return or_(*pairs) if pairs else None


def _of_namespaces(wanted: _Wanted) -> ColumnElement[bool] | None:
    return namespaces.c.name.in_(wanted.plain) if wanted.plain else None


def _of_artifacts(wanted: _Wanted) -> ColumnElement[bool] | None:
    return artifacts.c.uid.in_(wanted.ids) if wanted.ids else None


def _of_ids(wanted: _Wanted) -> ColumnElement[bool] | None:
    return objects.c.uid.in_(wanted.ids) if wanted.ids else None


_Row = tuple[int, Change]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """How the current states of one kind are read.

    Attributes:
        key: The number that orders the rows.
        objects: What the filter's objects mean for this kind; None if none of them can be of it.
        make: The object of a row, its path in the feed and the time that it tells.
        binned: Rows may be in the bin.
    """

    kind: Kind
    base: Select[Any]
    key: Column[int]
    objects: Callable[[_Wanted], ColumnElement[bool] | None]
    make: Callable[[Any], tuple[str, str, Any, int]]
    binned: bool = False

    def read(self, conn: Connection, wanted: _Wanted, after: int, limit: int) -> list[_Row]:
        """The next rows that the filter may let through."""
        query = self.base.where(self.key > after).order_by(self.key).limit(limit)
        if wanted.filter.namespace:
            query = query.where(namespaces.c.name == wanted.filter.namespace)
        if self.binned:
            query = query.where(objects.c.deleted_at_us.is_(None))
        if wanted.filter.objects:
            some = self.objects(wanted)
            if some is None:
                return []
            query = query.where(some)
        rows = []
        for row in conn.execute(query):
            namespace, path, state, at_us = self.make(row)
            number = getattr(row, self.key.name)
            rows.append((number, _change(self.kind, namespace, path, to_json(state), row.mod_rev, at_us)))
        return rows


def _change(kind: Kind, namespace: str, path: str, state: Any, rev: int, at_us: int) -> Change:
    return Change(
        rev=rev,
        idx=0,
        namespace=namespace,
        object=path,
        kind=kind.value,
        action=Action.UPDATED.value,
        actor="",
        at=from_us(at_us),
        state=state,
    )


def _namespace(row: Any) -> tuple[str, str, Any, int]:
    return row.name, row.name, namespace_of(row), row.created_at_us


def _model(row: Any) -> tuple[str, str, Any, int]:
    item = model_of(row)
    return item.namespace, item.path, item, row.created_at_us


def _version(row: Any) -> tuple[str, str, Any, int]:
    item = version_of(row)
    return item.namespace, str(item.ref), item, row.created_at_us


def _alias(row: Any) -> tuple[str, str, Any, int]:
    item = alias_of(row)
    return item.namespace, f"{item.namespace}/{item.model}@{item.name}", item, row.moved_at_us


def _readme(row: Any) -> tuple[str, str, Any, int]:
    return row.namespace, f"{row.object}/readme", readme_of(row), row.updated_at_us


def _by_id(make: Callable[[Any], Any]) -> Callable[[Any], tuple[str, str, Any, int]]:
    return lambda row: (row.namespace, row.uid, make(row), row.created_at_us)


# -- attributes ----------------------------------------------------------------------------------------------------

# In the order of the primary key, so that a page is read from where the one before ended.
_KINDS = tuple(sorted(kind.value for kind in AttributeKind))
_OWN = (ObjectKind.MODEL.value, ObjectKind.VERSION.value, ObjectKind.ARTIFACT.value)


class _AttributeListing:
    """The attributes of an object, one change for each kind."""

    kind = Kind.ATTRIBUTES

    def read(self, conn: Connection, wanted: _Wanted, after: int, limit: int) -> list[_Row]:
        """The next rows that the filter may let through."""
        object_id, kind = divmod(after, len(_KINDS))
        query = (
            select(attributes.c.object_id, attributes.c.kind, objects.c.uid, namespaces.c.name)
            .distinct()
            .join(objects, attributes.c.object_id == objects.c.id)
            .join(namespaces, objects.c.namespace_id == namespaces.c.id)
            .where(
                attributes.c.object_id >= object_id,
                or_(attributes.c.object_id > object_id, attributes.c.kind > _KINDS[kind]),
                attributes.c.kind != METRIC,
                objects.c.deleted_at_us.is_(None),
                # These are part of the object's own state.
                or_(objects.c.kind.not_in(_OWN), attributes.c.kind.in_((AttributeKind.PARAM, AttributeKind.TAG))),
            )
            .order_by(attributes.c.object_id, attributes.c.kind)
            .limit(limit)
        )
        if wanted.filter.namespace:
            query = query.where(namespaces.c.name == wanted.filter.namespace)
        if wanted.filter.objects:
            if not wanted.ids:
                return []
            query = query.where(objects.c.uid.in_(wanted.ids))
        found = conn.execute(query).all()
        ids = list(dict.fromkeys(row.object_id for row in found))
        values: dict[tuple[int, str], dict[str, Any]] = {}
        for start in range(0, len(ids), 500):
            some = attributes.c.object_id.in_(ids[start : start + 500])
            for row in conn.execute(select(attributes).where(some).order_by(attributes.c.key)):
                values.setdefault((row.object_id, row.kind), {})[row.key] = json.loads(row.value)
        last: dict[tuple[int, str], tuple[int, int]] = {}
        for start in range(0, len(ids), 500):
            some = attribute_history.c.object_id.in_(ids[start : start + 500])
            newest = (
                select(
                    attribute_history.c.object_id,
                    attribute_history.c.kind,
                    func.max(attribute_history.c.rev).label("rev"),
                    func.max(attribute_history.c.at_us).label("at_us"),
                )
                .where(some)
                .group_by(attribute_history.c.object_id, attribute_history.c.kind)
            )
            for row in conn.execute(newest):
                last[row.object_id, row.kind] = (row.rev, row.at_us)
        rows = []
        for row in found:
            rev, at_us = last.get((row.object_id, row.kind), (0, 0))
            state = {"object": row.uid, "kind": row.kind, "values": values[row.object_id, row.kind]}
            place = row.object_id * len(_KINDS) + _KINDS.index(row.kind)
            rows.append((place, _change(Kind.ATTRIBUTES, row.name, f"{row.uid}/{row.kind}", state, rev, at_us)))
        return rows


_LISTINGS: tuple[_Listing | _AttributeListing, ...] = (
    _Listing(kind=Kind.NAMESPACE, base=NAMESPACES, key=namespaces.c.id, objects=_of_namespaces, make=_namespace),
    _Listing(kind=Kind.MODEL, base=MODELS, key=models.c.id, objects=_of_models, make=_model),
    _Listing(kind=Kind.VERSION, base=VERSIONS, key=versions.c.id, objects=_of_models, make=_version),
    _Listing(kind=Kind.ALIAS, base=ALIASES, key=aliases.c.id, objects=_of_models, make=_alias),
    _Listing(kind=Kind.ARTIFACT, base=ARTIFACTS, key=artifacts.c.id, objects=_of_artifacts, make=_by_id(artifact_of)),
    _Listing(
        kind=Kind.EXPERIMENT,
        base=EXPERIMENTS,
        key=experiments.c.id,
        objects=_of_ids,
        make=_by_id(experiment_of),
        binned=True,
    ),
    _Listing(kind=Kind.RUN, base=RUNS, key=runs.c.id, objects=_of_ids, make=_by_id(run_of), binned=True),
    _Listing(
        kind=Kind.CHECKPOINT,
        base=CHECKPOINTS,
        key=checkpoints.c.id,
        objects=_of_ids,
        make=_by_id(checkpoint_of),
        binned=True,
    ),
    _Listing(
        kind=Kind.DATASET, base=DATASETS, key=datasets.c.id, objects=_of_ids, make=_by_id(dataset_of), binned=True
    ),
    _Listing(
        kind=Kind.DATASET_VERSION,
        base=DATASET_VERSIONS,
        key=dataset_versions.c.id,
        objects=_of_ids,
        make=_by_id(dataset_version_of),
        binned=True,
    ),
    _AttributeListing(),
    _Listing(kind=Kind.README, base=READMES, key=readmes.c.object_id, objects=_of_ids, make=_readme, binned=True),
)


def list_states(conn: Connection, filter_: Filter, limit: int, after: Key | None) -> FeedListing:
    """One page of the states that a filter lets through. Key: (kind's place, number in it)."""
    head = read_head(conn)
    place, last = (int(after[0]), int(after[1])) if after is not None else (0, 0)
    wanted = _Wanted.of(filter_)
    items: list[Change] = []
    while place < len(_LISTINGS):
        listing = _LISTINGS[place]
        asked = not filter_.kinds or listing.kind.value in filter_.kinds
        rows = listing.read(conn, wanted, last, limit) if asked else []
        for number, change in rows:
            if filter_.matches(change):
                if len(items) == limit:
                    return FeedListing(head=head, items=tuple(items), next_key=(place, last))
                items.append(change)
            last = number
        if len(rows) < limit:
            place, last = place + 1, 0
    return FeedListing(head=head, items=tuple(items), next_key=None)

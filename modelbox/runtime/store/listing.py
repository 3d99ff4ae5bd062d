"""The current state of everything, kind by kind, as a reader of the feed lists it before it watches.

What is in the bin is left out. Attributes come once for each object and kind, with all their values; labels and
metadata of models, versions and artifacts are part of these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Select, and_, bindparam, func, or_, select
from sqlalchemy.sql import ColumnElement

from modelbox.access import ALL, Scope
from modelbox.feed import Action, Change, Filter, Kind
from modelbox.objects import to_json
from modelbox.runtime.ports import FeedListing, Key
from modelbox.runtime.store.artifacts import not_binned
from modelbox.runtime.store.attributes import METRIC
from modelbox.runtime.store.datasets import DATASET_VERSIONS, DATASETS, dataset_of, dataset_version_of
from modelbox.runtime.store.experiments import EXPERIMENTS, experiment_of
from modelbox.runtime.store.history import read_head
from modelbox.runtime.store.notes import READMES, readme_of
from modelbox.runtime.store.objects import OBJECTS
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
from modelbox.runtime.store.visible import Visible, find_visible
from modelbox.tracking import AttributeKind, ObjectKind, kind_of_id

__all__ = ("list_states",)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A filter's objects, sorted by what they can name, and what the reader may see.

    Attributes:
        plain: Namespaces and ids.
        ids: The ids, also those that stand before a slash: ``run_…/param``.
        models: Namespace and name of the models.
        visible: None for everything.
    """

    filter: Filter
    plain: Sequence[str]
    ids: Sequence[str]
    models: Sequence[tuple[str, str]]
    visible: Visible | None

    @classmethod
    def of(cls, wanted: Filter, visible: Visible | None) -> _Wanted:
        plain = [path for path in wanted.objects if "/" not in path]
        pairs = []
        ids = [path for path in plain if kind_of_id(path) is not None]
        for path in wanted.objects:
            first, slash, rest = path.partition("/")
            if slash and kind_of_id(first) is not None:
                ids.append(first)
            elif slash:
                pairs.append((first, rest.partition("@")[0]))
        return cls(
            filter=wanted,
            plain=plain,
            ids=list(dict.fromkeys(ids)),
            models=list(dict.fromkeys(pairs)),
            visible=visible,
        )


def _of_models(wanted: _Wanted) -> ColumnElement[bool] | None:
    pairs = [and_(namespaces.c.name == namespace, models.c.name == model) for namespace, model in wanted.models]
    return or_(*pairs) if pairs else None


def _of_namespaces(wanted: _Wanted) -> ColumnElement[bool] | None:
    return namespaces.c.name.in_(wanted.plain) if wanted.plain else None


def _of_artifacts(wanted: _Wanted) -> ColumnElement[bool] | None:
    return artifacts.c.uid.in_(wanted.ids) if wanted.ids else None


def _of_ids(wanted: _Wanted) -> ColumnElement[bool] | None:
    return objects.c.uid.in_(wanted.ids) if wanted.ids else None


def _named(visible: Visible) -> ColumnElement[bool]:
    return visible.named(namespaces.c.id)


def _of_visible_models(visible: Visible) -> ColumnElement[bool]:
    return visible.of_model(models.c.namespace_id, models.c.id)


def _of_visible_artifacts(visible: Visible) -> ColumnElement[bool]:
    return visible.of_model(artifacts.c.namespace_id, artifacts.c.model_id)


def _of_visible_namespaces(visible: Visible) -> ColumnElement[bool]:
    return visible.of_namespace(objects.c.namespace_id)


def _of_visible_objects(visible: Visible) -> ColumnElement[bool]:
    return visible.of_object(objects.c.namespace_id, objects.c.uid)


_Row = tuple[int, Change]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """How the current states of one kind are read.

    Attributes:
        key: The number that orders the rows.
        objects: What the filter's objects mean for this kind; None if none of them can be of it.
        make: The object of a row, its path in the feed and the time that it tells.
        seen: Which rows may be seen.
        binned: Rows may be in the bin.
    """

    kind: Kind
    base: Select[Any]
    key: Column[int]
    objects: Callable[[_Wanted], ColumnElement[bool] | None]
    make: Callable[[Any], tuple[str, str, Any, int]]
    seen: Callable[[Visible], ColumnElement[bool]] = _of_visible_namespaces
    binned: bool = False

    def read(self, conn: Connection, wanted: _Wanted, after: int, limit: int) -> list[_Row]:
        """The next rows that the filter may let through."""
        query = self.base.where(self.key > after).order_by(self.key).limit(limit)
        if wanted.filter.namespace:
            query = query.where(namespaces.c.name == wanted.filter.namespace)
        if wanted.visible is not None:
            query = query.where(self.seen(wanted.visible))
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

_KINDS = tuple(kind.value for kind in AttributeKind)
# Labels and metadata of these are part of their own state.
_OWNERS = (ObjectKind.MODEL.value, ObjectKind.VERSION.value, ObjectKind.ARTIFACT.value)
_OWN = (AttributeKind.LABEL.value, AttributeKind.METADATA.value)
_OBJECTS_AT_ONCE = 500


class _AttributeListing:
    """The attributes of an object, one change for each kind; ordered by four times the object's number and the kind."""

    kind = Kind.ATTRIBUTES

    def read(self, conn: Connection, wanted: _Wanted, after: int, limit: int) -> list[_Row]:
        """The next rows that the filter may let through."""
        if wanted.filter.objects and not wanted.ids:
            return []
        query = OBJECTS.where(objects.c.deleted_at_us.is_(None)).order_by(objects.c.id).limit(_OBJECTS_AT_ONCE)
        if wanted.filter.namespace:
            query = query.where(namespaces.c.name == wanted.filter.namespace)
        if wanted.visible is not None:
            query = query.where(_of_visible_objects(wanted.visible))
        if wanted.filter.objects:
            query = query.where(objects.c.uid.in_(wanted.ids))
        first = after // len(_KINDS)
        rows: list[_Row] = []
        while len(rows) < limit:
            found = conn.execute(query.where(objects.c.id >= first)).all()
            if not found:
                break
            rows.extend(row for row in self._states(conn, found) if row[0] > after)
            first = found[-1].id + 1
        return rows[:limit]

    def _states(self, conn: Connection, found: Sequence[Any]) -> Iterator[_Row]:
        """The states of some objects (`OBJECTS`)."""
        ids = [row.id for row in found]
        values: dict[tuple[int, str], dict[str, Any]] = {}
        for row in conn.execute(_VALUES, {"ids": ids}):
            values.setdefault((row.object_id, row.kind), {})[row.key] = json.loads(row.value)
        if not values:
            return
        with_some = list({object_id for object_id, _ in values})
        newest = {(row.object_id, row.kind): row for row in conn.execute(_NEWEST, {"ids": with_some})}
        for row in found:
            for number, kind in enumerate(_KINDS):
                some = values.get((row.id, kind))
                if some is None or (kind in _OWN and row.kind in _OWNERS):
                    continue
                last = newest[row.id, kind]
                state = {"object": row.uid, "kind": kind, "values": some}
                path = f"{row.uid}/{kind}"
                change = _change(Kind.ATTRIBUTES, row.namespace, path, state, last.rev, last.at_us)
                yield row.id * len(_KINDS) + number, change


_VALUES = (
    select(attributes.c.object_id, attributes.c.kind, attributes.c.key, attributes.c.value)
    .where(attributes.c.object_id.in_(bindparam("ids", expanding=True)), attributes.c.kind != METRIC)
    .order_by(attributes.c.object_id, attributes.c.kind, attributes.c.key)
)
_NEWEST = (
    select(
        attribute_history.c.object_id,
        attribute_history.c.kind,
        func.max(attribute_history.c.rev).label("rev"),
        func.max(attribute_history.c.at_us).label("at_us"),
    )
    .where(attribute_history.c.object_id.in_(bindparam("ids", expanding=True)))
    .group_by(attribute_history.c.object_id, attribute_history.c.kind)
)


_LISTINGS: tuple[_Listing | _AttributeListing, ...] = (
    _Listing(
        kind=Kind.NAMESPACE,
        base=NAMESPACES,
        key=namespaces.c.id,
        objects=_of_namespaces,
        make=_namespace,
        seen=_named,
    ),
    _Listing(
        kind=Kind.MODEL,
        base=MODELS,
        key=models.c.id,
        objects=_of_models,
        make=_model,
        seen=_of_visible_models,
    ),
    _Listing(
        kind=Kind.VERSION,
        base=VERSIONS,
        key=versions.c.id,
        objects=_of_models,
        make=_version,
        seen=_of_visible_models,
    ),
    _Listing(
        kind=Kind.ALIAS,
        base=ALIASES,
        key=aliases.c.id,
        objects=_of_models,
        make=_alias,
        seen=_of_visible_models,
    ),
    _Listing(
        kind=Kind.ARTIFACT,
        base=ARTIFACTS.where(not_binned()),
        key=artifacts.c.id,
        objects=_of_artifacts,
        make=_by_id(artifact_of),
        seen=_of_visible_artifacts,
    ),
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
    _Listing(
        kind=Kind.README,
        base=READMES,
        key=readmes.c.object_id,
        objects=_of_ids,
        make=_readme,
        seen=_of_visible_objects,
        binned=True,
    ),
)


def list_states(conn: Connection, filter_: Filter, limit: int, after: Key | None, scope: Scope = ALL) -> FeedListing:
    """One page of the states that a filter lets through and that may be seen. Key: (kind's place, number in it)."""
    head = read_head(conn)
    place, last = (int(after[0]), int(after[1])) if after is not None else (0, 0)
    wanted = _Wanted.of(filter_, find_visible(conn, scope))
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

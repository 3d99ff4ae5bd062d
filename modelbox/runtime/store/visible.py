"""What of the database a caller may see: a scope as conditions of SQL.

A condition, and not a filter afterwards: pages are full, limits hold, and the best ten are the best ten of what the
caller may see. Nothing is asked and nothing is added for a caller who may see everything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, false, or_, select

from modelbox.access import Scope
from modelbox.runtime.store.schema import artifacts, models, namespaces, objects, versions

__all__ = ("Visible", "find_visible", "is_named_so")

Predicate = ColumnElement[bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Visible:
    """The part of a scope that there is, by the numbers of rows.

    Attributes:
        namespace_ids: Namespaces that are seen as a whole.
        named_ids: Those, and the ones that have a model that is seen.
        model_ids: Models that are seen alone.
    """

    namespace_ids: tuple[int, ...]
    named_ids: tuple[int, ...]
    model_ids: tuple[int, ...]

    def named(self, namespace_id: ColumnElement[Any]) -> Predicate:
        """Whether a namespace's name may be seen."""
        return _among(namespace_id, self.named_ids)

    def of_namespace(self, namespace_id: ColumnElement[Any]) -> Predicate:
        """Whether something that is of no model may be seen."""
        return _among(namespace_id, self.namespace_ids)

    def of_model(self, namespace_id: ColumnElement[Any], model_id: ColumnElement[Any]) -> Predicate:
        """Whether a model, or something of it, may be seen; ``model_id`` is NULL for what is of none."""
        whole = self.of_namespace(namespace_id)
        return or_(whole, model_id.in_(self.model_ids)) if self.model_ids else whole

    def of_object(self, namespace_id: ColumnElement[Any], uid: ColumnElement[Any]) -> Predicate:
        """Whether an object of any kind may be seen, or what is attached to it."""
        whole = self.of_namespace(namespace_id)
        return or_(whole, *(uid.in_(uids) for uids in self._uids())) if self.model_ids else whole

    def _uids(self) -> Iterable[Select[Any]]:
        yield select(models.c.uid).where(models.c.id.in_(self.model_ids))
        yield select(versions.c.uid).where(versions.c.model_id.in_(self.model_ids))
        yield select(artifacts.c.uid).where(artifacts.c.model_id.in_(self.model_ids))

    def shows_model(self, namespace_id: int, model_id: int) -> bool:
        """Whether the model with the number of a row, in a namespace, may be seen."""
        return namespace_id in self.namespace_ids or model_id in self.model_ids

    def shows_object(self, conn: Connection, row_id: int) -> bool:
        """Whether the object with the number of a row may be seen."""
        query = select(objects.c.id).where(
            objects.c.id == row_id, self.of_object(objects.c.namespace_id, objects.c.uid)
        )
        return conn.execute(query).first() is not None


def find_visible(conn: Connection, scope: Scope) -> Visible | None:
    """What of a scope there is; None where all may be seen."""
    if scope.everything:
        return None
    names = sorted({*scope.namespaces, *(namespace for namespace, _ in scope.models)})
    found: dict[str, int] = {}
    if names:
        rows = conn.execute(select(namespaces.c.name, namespaces.c.id).where(namespaces.c.name.in_(names)))
        found = {row.name: row.id for row in rows}
    model_ids: tuple[int, ...] = ()
    if scope.models:
        query = select(models.c.id).join(namespaces, models.c.namespace_id == namespaces.c.id)
        alone = is_named_so(Scope(models=scope.models), namespaces.c.name, models.c.name)
        model_ids = tuple(conn.execute(query.where(alone).order_by(models.c.id)).scalars())
    whole = tuple(sorted(found[name] for name in scope.namespaces if name in found))
    named = {*whole, *(found[namespace] for namespace, _ in scope.models if namespace in found)}
    return Visible(namespace_ids=whole, named_ids=tuple(sorted(named)), model_ids=model_ids)


def is_named_so(scope: Scope, namespace: ColumnElement[Any], model: ColumnElement[Any] | None = None) -> Predicate:
    """Whether what has these names, of a namespace and of a model, may be seen; for a scope that is not everything.

    For tables that know names, and not the rows that have them.
    """
    ways = [_among(namespace, sorted(scope.namespaces))]
    if model is not None:
        by_namespace: dict[str, list[str]] = {}
        for one, name in sorted(scope.models):
            by_namespace.setdefault(one, []).append(name)
        ways += [and_(namespace == one, model.in_(some)) for one, some in by_namespace.items()]
    return or_(*ways)


def _among(column: ColumnElement[Any], values: Collection[Any]) -> Predicate:
    return column.in_(values) if values else false()

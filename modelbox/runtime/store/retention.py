"""Policies of retention in SQL: what they are, the facts that they go by, and following them.

The rule itself is `modelbox.retention.decide`; here is what it looks at. A dry run and the deletion read the same facts
by the same functions, and the deletion reads them in its own transaction: what is held a moment before stays.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, delete, func, insert, select, update

from modelbox.access import ALL, Scope
from modelbox.manifest import Manifest
from modelbox.objects import InstanceState, from_json, to_json
from modelbox.retention import Best, Candidate, Decision, Planned, Retained, RetentionPolicy, VersionLock, decide
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.space_ports import Applied, Group
from modelbox.runtime.store.bin import delete_objects
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.holdings import database_time_us
from modelbox.runtime.store.locks import list_locks, lock_version, unlock_version
from modelbox.runtime.store.registry import delete_version
from modelbox.runtime.store.rows import from_us
from modelbox.runtime.store.schema import (
    aliases,
    checkpoints,
    instances,
    lineage_edges,
    models,
    namespaces,
    objects,
    retention_policies,
    runs,
    version_locks,
    versions,
)
from modelbox.runtime.store.visible import Visible, find_visible
from modelbox.tracking import ObjectKind, RunStatus

__all__ = ("SqlRetentionStore",)

_IN_CHUNK = 500
_SERVING_US = 24 * 3600 * 1_000_000
"""A version that an instance said to serve within this time is held."""

_Policies = Mapping[tuple[str, Retained], RetentionPolicy]


# -- policies --------------------------------------------------------------------------------------------------------


def _policy_of(row: Any) -> RetentionPolicy:
    return RetentionPolicy(
        scope=row.scope,
        kind=Retained(row.kind),
        keep_all=bool(row.keep_all),
        keep_last=row.keep_last,
        keep_younger_s=row.keep_younger_s,
        keep_best=tuple(from_json(Best, one) for one in json.loads(row.keep_best)),
        updated_at=from_us(row.updated_at_us),
        updated_by=row.updated_by,
    )


def _of_policy(scope: str, kind: Retained) -> Any:
    return (retention_policies.c.scope == scope) & (retention_policies.c.kind == kind.value)


def _find_policy(conn: Connection, scope: str, kind: Retained) -> RetentionPolicy | None:
    row = conn.execute(select(retention_policies).where(_of_policy(scope, kind))).first()
    return None if row is None else _policy_of(row)


def _set_policy(conn: Connection, policy: RetentionPolicy, actor: str) -> RetentionPolicy:
    values = {
        "keep_all": policy.keep_all,
        "keep_last": policy.keep_last,
        "keep_younger_s": policy.keep_younger_s,
        "keep_best": json.dumps(to_json(policy.keep_best)),
        "updated_at_us": database_time_us(conn),
        "updated_by": actor,
    }
    if _find_policy(conn, policy.scope, policy.kind) is None:
        conn.execute(insert(retention_policies).values(scope=policy.scope, kind=policy.kind.value, **values))
    else:
        conn.execute(update(retention_policies).where(_of_policy(policy.scope, policy.kind)).values(**values))
    found = _find_policy(conn, policy.scope, policy.kind)
    assert found is not None
    return found


def _list_policies(conn: Connection, namespace: str, visible: Scope = ALL) -> tuple[RetentionPolicy, ...]:
    query = select(retention_policies).order_by(retention_policies.c.scope, retention_policies.c.kind)
    found = (_policy_of(row) for row in conn.execute(query))
    return tuple(
        one for one in found if namespace in ("", one.scope.partition("/")[0]) and _shows_policy(visible, one.scope)
    )


def _shows_policy(visible: Scope, scope: str) -> bool:
    """Whether the policy of a namespace or model may be seen."""
    namespace, _, model = scope.partition("/")
    return visible.shows(namespace, model)


def _policies(conn: Connection, override: RetentionPolicy | None) -> _Policies:
    found = {(one.scope, one.kind): one for one in _list_policies(conn, "")}
    if override is not None:
        found[override.scope, override.kind] = override
    return found


# -- groups and their candidates -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A group, and what policy there is for it.

    Attributes:
        name: Of a model; an id of everything else.
    """

    kind: Retained
    row_id: int
    namespace: str
    name: str
    policy: RetentionPolicy | None


def _groups(kind: Retained) -> Select[Any]:
    """Columns id, name and namespace of everything that candidates belong to."""
    if kind is Retained.VERSIONS:
        return select(models.c.id, models.c.name, namespaces.c.name.label("namespace")).join(
            namespaces, models.c.namespace_id == namespaces.c.id
        )
    query = (
        select(objects.c.id, objects.c.uid.label("name"), namespaces.c.name.label("namespace"))
        .join(namespaces, objects.c.namespace_id == namespaces.c.id)
        .where(objects.c.deleted_at_us.is_(None))
    )
    if kind is Retained.RUNS:
        return query.where(objects.c.kind == ObjectKind.EXPERIMENT.value)
    has_some = select(checkpoints.c.id).where(checkpoints.c.parent_id == objects.c.id).exists()
    return query.where(objects.c.kind == ObjectKind.RUN.value, has_some)


def _find_groups(
    conn: Connection,
    scope: str,
    kind: Retained,
    policies: _Policies,
    limit: int,
    after: int | None,
    *,
    governed: bool,
    visible: Visible | None = None,
) -> list[_Found]:
    """Groups in a scope by their rows' numbers; only those with a policy if they must be ``governed``."""
    id_column = models.c.id if kind is Retained.VERSIONS else objects.c.id
    query = _groups(kind).order_by(id_column).limit(limit)
    if visible is not None and kind is Retained.VERSIONS:
        query = query.where(visible.of_model(models.c.namespace_id, models.c.id))
    elif visible is not None:
        query = query.where(visible.of_namespace(objects.c.namespace_id))
    namespace, _, model = scope.partition("/")
    if namespace:
        query = query.where(namespaces.c.name == namespace)
    if model:
        query = query.where(models.c.name == model)
    if governed:
        query = query.where(namespaces.c.name.in_({one.partition("/")[0] for one, of in policies if of is kind}))
    if after is not None:
        query = query.where(id_column > after)
    return [_found(kind, row, policies) for row in conn.execute(query)]


def _found(kind: Retained, row: Any, policies: _Policies) -> _Found:
    policy = policies.get((row.namespace, kind))
    if kind is Retained.VERSIONS:
        policy = policies.get((f"{row.namespace}/{row.name}", kind), policy)
    return _Found(kind=kind, row_id=row.id, namespace=row.namespace, name=row.name, policy=policy)


def _decide(conn: Connection, group: _Found) -> tuple[Decision, ...]:
    read = {Retained.VERSIONS: _versions, Retained.CHECKPOINTS: _checkpoints, Retained.RUNS: _runs}[group.kind]
    return decide(group.policy, read(conn, group), now=from_us(database_time_us(conn)))


def _shown(conn: Connection, group: _Found, decision: Decision) -> tuple[str, int]:
    """A candidate's name and size."""
    if group.kind is not Retained.VERSIONS:
        return decision.id, 0
    manifest = conn.execute(select(versions.c.manifest).where(versions.c.uid == decision.id)).scalar_one()
    return f"{group.namespace}/{group.name}@{decision.order}", Manifest.from_json(manifest).size_bytes


def _chunks(ids: Sequence[int]) -> Iterable[Sequence[int]]:
    return (ids[start : start + _IN_CHUNK] for start in range(0, len(ids), _IN_CHUNK))


def _made_of(conn: Connection, ids: Sequence[int]) -> Counter[int]:
    """How many objects were made of each of some, by the numbers of their rows."""
    count: Counter[int] = Counter()
    for some in _chunks(ids):
        query = (
            select(lineage_edges.c.source_id, func.count().label("made"))
            .where(lineage_edges.c.source_id.in_(some))
            .group_by(lineage_edges.c.source_id)
        )
        count.update({row.source_id: row.made for row in conn.execute(query)})
    return count


def _lineage_hold(made: int) -> tuple[str, ...]:
    return (f"lineage: {made} object{'s' if made > 1 else ''} made from it",) if made else ()


def _versions(conn: Connection, group: _Found) -> list[Candidate]:
    rows = conn.execute(
        select(
            versions.c.id,
            versions.c.uid,
            versions.c.version,
            versions.c.metrics,
            versions.c.created_at_us,
            objects.c.id.label("object_id"),
        )
        .join(objects, objects.c.uid == versions.c.uid)
        .where(versions.c.model_id == group.row_id)
    ).all()
    holds: dict[int, list[str]] = {row.id: [] for row in rows}
    of_aliases = select(aliases.c.version_id, aliases.c.name).where(aliases.c.model_id == group.row_id)
    for version_id, name in conn.execute(of_aliases.order_by(aliases.c.name)):
        holds[version_id].append(f"alias {name}")
    of_locks = (
        select(version_locks)
        .join(versions, version_locks.c.version_id == versions.c.id)
        .where(versions.c.model_id == group.row_id)
    )
    for lock in conn.execute(of_locks):
        by = f" by {lock.locked_by}" if lock.locked_by else ""
        holds[lock.version_id].append(f"locked{by}{f': {lock.reason}' if lock.reason else ''}")
    made = _made_of(conn, [row.object_id for row in rows])
    serving = _serving(conn, group)
    return [
        Candidate(
            id=row.uid,
            order=row.version,
            created_at=from_us(row.created_at_us),
            metrics={key: float(value) for key, value in json.loads(row.metrics).items()},
            holds=(*holds[row.id], *_lineage_hold(made[row.object_id]), *serving.get(row.version, ())),
        )
        for row in rows
    ]


def _serving(conn: Connection, group: _Found) -> dict[int, tuple[str, ...]]:
    query = select(instances.c.report).where(
        instances.c.namespace == group.namespace,
        instances.c.model == group.name,
        instances.c.state != InstanceState.GONE.value,
        instances.c.last_seen_us >= database_time_us(conn) - _SERVING_US,
    )
    count: Counter[int] = Counter()
    for report in conn.execute(query).scalars():
        seen = json.loads(report)
        count.update({seen.get("version", 0), seen.get("target_version", 0)})
    return {
        version: (f"served by {many} instance{'s' if many > 1 else ''}",) for version, many in count.items() if version
    }


def _checkpoints(conn: Connection, group: _Found) -> list[Candidate]:
    rows = conn.execute(
        select(objects.c.id, objects.c.uid, objects.c.created_at_us, checkpoints.c.epoch, checkpoints.c.metrics)
        .join(checkpoints, checkpoints.c.id == objects.c.id)
        .where(checkpoints.c.parent_id == group.row_id, objects.c.deleted_at_us.is_(None))
    ).all()
    made = _made_of(conn, [row.id for row in rows])
    status = conn.execute(select(runs.c.status).where(runs.c.id == group.row_id)).scalar_one()
    goes_on = () if RunStatus(status).ended else ("its run goes on",)
    return [
        Candidate(
            id=row.uid,
            order=row.epoch,
            created_at=from_us(row.created_at_us),
            metrics={key: float(value) for key, value in json.loads(row.metrics).items()},
            holds=(*goes_on, *_lineage_hold(made[row.id])),
        )
        for row in rows
    ]


def _runs(conn: Connection, group: _Found) -> list[Candidate]:
    rows = conn.execute(
        select(objects.c.id, objects.c.uid, runs.c.status, runs.c.started_at_us, runs.c.ended_at_us)
        .join(runs, runs.c.id == objects.c.id)
        .where(runs.c.experiment_id == group.row_id, objects.c.deleted_at_us.is_(None))
    ).all()
    ids = [row.id for row in rows]
    made = _made_of(conn, ids)
    kept_below, children = _live_below(conn, ids)
    candidates = []
    for row in rows:
        holds = list(_lineage_hold(made[row.id]))
        if not RunStatus(row.status).ended:
            holds.append("it goes on")
        if kept_below[row.id]:
            holds.append(f"lineage: {kept_below[row.id]} objects made from its checkpoints")
        if children[row.id]:
            holds.append(f"it has {children[row.id]} child run{'s' if children[row.id] > 1 else ''}")
        candidates.append(
            Candidate(
                id=row.uid,
                order=row.id,
                created_at=from_us(row.started_at_us if row.ended_at_us is None else row.ended_at_us),
                holds=tuple(holds),
            )
        )
    return candidates


def _live_below(conn: Connection, ids: Sequence[int]) -> tuple[Counter[int], Counter[int]]:
    """By run: objects made from its checkpoints, and child runs that are not in the bin."""
    made: Counter[int] = Counter()
    children: Counter[int] = Counter()
    for some in _chunks(ids):
        of_checkpoints = (
            select(checkpoints.c.parent_id, func.count().label("made"))
            .join(lineage_edges, lineage_edges.c.source_id == checkpoints.c.id)
            .where(checkpoints.c.parent_id.in_(some))
            .group_by(checkpoints.c.parent_id)
        )
        made.update({row.parent_id: row.made for row in conn.execute(of_checkpoints)})
        of_children = (
            select(runs.c.parent_run_id, func.count().label("many"))
            .join(objects, objects.c.id == runs.c.id)
            .where(runs.c.parent_run_id.in_(some), objects.c.deleted_at_us.is_(None))
            .group_by(runs.c.parent_run_id)
        )
        children.update({row.parent_run_id: row.many for row in conn.execute(of_children)})
    return made, children


# -- planning and following ------------------------------------------------------------------------------------------


def _plan(
    conn: Connection,
    scope: str,
    kind: Retained,
    override: RetentionPolicy | None,
    limit: int,
    after: Key | None,
    visible: Visible | None,
) -> Listed[Planned]:
    policies = _policies(conn, override)
    lines: list[tuple[_Found, Decision]] = []
    group_after, order_after = (int(after[0]), int(after[1])) if after is not None else (None, None)
    # The group that the last page ended in comes again.
    position = None if group_after is None else group_after - 1
    while len(lines) <= limit:
        groups = _find_groups(conn, scope, kind, policies, 50, position, governed=False, visible=visible)
        if not groups:
            break
        for group in groups:
            position = group.row_id
            for one in _decide(conn, group):
                if group.row_id == group_after and order_after is not None and one.order >= order_after:
                    continue
                lines.append((group, one))
            if len(lines) > limit:
                break
    page = lines[:limit]
    items = []
    for group, one in page:
        name, size_bytes = _shown(conn, group, one)
        items.append(
            Planned(
                kind=kind,
                policy="" if group.policy is None else group.policy.scope,
                id=one.id,
                name=name,
                keep=one.keep,
                reasons=one.reasons,
                size_bytes=size_bytes,
            )
        )
    last = (page[-1][0].row_id, page[-1][1].order) if len(lines) > limit else None
    return Listed(items=tuple(items), next_key=last)


def _governed(conn: Connection, scope: str, kind: Retained, limit: int, after: Key | None) -> Listed[Group]:
    policies = _policies(conn, None)
    found = _find_groups(
        conn, scope, kind, policies, limit + 1, None if after is None else int(after[0]), governed=True
    )
    page = found[:limit]
    items = tuple(
        Group(
            kind=kind,
            row_id=group.row_id,
            to_go=sum(not one.keep for one in _decide(conn, group)),
        )
        for group in page
        if group.policy is not None and not group.policy.keep_all
    )
    return Listed(items=items, next_key=(page[-1].row_id,) if len(found) > limit else None)


def _apply(conn: Connection, group: Group, limit: int, actor: str, at: datetime) -> Applied:
    id_column = models.c.id if group.kind is Retained.VERSIONS else objects.c.id
    row = conn.execute(_groups(group.kind).where(id_column == group.row_id)).first()
    if row is None:
        return Applied()
    found = _found(group.kind, row, _policies(conn, None))
    to_go = [one for one in _decide(conn, found) if not one.keep]
    # The oldest first.
    some = to_go[::-1][:limit]
    more = len(to_go) > len(some)
    if not some:
        return Applied()
    if group.kind is Retained.VERSIONS:
        removed: list[str] = []
        for one in some:
            removed += delete_version(conn, found.namespace, found.name, one.order, actor, at)
        return Applied(removed=tuple(removed), versions=len(some), more=more)
    binned, _ = delete_objects(conn, [one.id for one in some], actor=actor, at=at)
    return Applied(binned=binned, more=more)


class SqlRetentionStore:
    """`modelbox.runtime.space_ports.RetentionStore` over a database; see there for each method."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def set_policy(self, policy: RetentionPolicy, *, actor: str) -> RetentionPolicy:
        """See the port."""
        return await self._db.write(lambda conn: _set_policy(conn, policy, actor))

    async def find_policy(self, scope: str, kind: Retained) -> RetentionPolicy | None:
        """See the port."""
        return await self._db.read(lambda conn: _find_policy(conn, scope, kind))

    async def delete_policy(self, scope: str, kind: Retained) -> bool:
        """See the port."""
        gone = await self._db.write(
            lambda conn: conn.execute(delete(retention_policies).where(_of_policy(scope, kind))).rowcount
        )
        return gone == 1

    async def list_policies(self, namespace: str, *, visible: Scope = ALL) -> Sequence[RetentionPolicy]:
        """See the port."""
        return await self._db.scan(lambda conn: _list_policies(conn, namespace, visible))

    async def plan(
        self,
        scope: str,
        kind: Retained,
        override: RetentionPolicy | None,
        *,
        limit: int,
        after: Key | None,
        visible: Scope = ALL,
    ) -> Listed[Planned]:
        """See the port."""
        return await self._db.scan(
            lambda conn: _plan(conn, scope, kind, override, limit, after, find_visible(conn, visible))
        )

    async def find_groups(self, scope: str, kind: Retained, *, limit: int, after: Key | None) -> Listed[Group]:
        """See the port."""
        return await self._db.scan(lambda conn: _governed(conn, scope, kind, limit, after))

    async def apply(self, group: Group, *, limit: int, actor: str, at: datetime) -> Applied:
        """See the port."""
        return await self._db.write(lambda conn: _apply(conn, group, limit, actor, at))

    async def lock_version(self, namespace: str, model: str, version: int, *, reason: str, actor: str) -> VersionLock:
        """See the port."""
        return await self._db.write(lambda conn: lock_version(conn, namespace, model, version, reason, actor))

    async def unlock_version(self, namespace: str, model: str, version: int) -> bool:
        """See the port."""
        return await self._db.write(lambda conn: unlock_version(conn, namespace, model, version))

    async def list_locks(
        self, namespace: str, model: str, *, limit: int, visible: Scope = ALL
    ) -> Sequence[VersionLock]:
        """See the port."""
        return await self._db.scan(lambda conn: list_locks(conn, namespace, model, limit, visible))

"""One transaction's revision: takes it, gathers the changes, and writes them at the end.

The order of every transaction that changes something: lock the business rows, read and check, make a `Writing` (which
locks the feed's head, the last lock), write rows with its ``rev`` as ``mod_rev``, `Writing.finish`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert

from modelbox.feed import Action, Kind
from modelbox.objects import Namespace
from modelbox.runtime.store.history import NewChange, append, next_rev
from modelbox.runtime.store.lookups import find_namespace_id
from modelbox.runtime.store.objects import add_object
from modelbox.runtime.store.rows import to_us
from modelbox.runtime.store.schema import namespaces
from modelbox.tracking import ObjectKind, new_id

__all__ = ("Writing",)


class Writing:
    """A revision in the making.

    Args:
        conn: The transaction; no lock may be taken in it from here on.
        actor: Who changes something.
        at: When.
    """

    def __init__(self, conn: Connection, *, actor: str, at: datetime) -> None:
        self.conn = conn
        self.actor = actor
        self.at = at
        self.at_us = to_us(at)
        self._place = next_rev(conn)
        self.rev = self._place.rev
        self._changes: list[NewChange] = []

    def note(self, namespace: str, path: str, kind: Kind, action: Action, state: Any) -> None:
        """Adds a change; ``state`` is a dataclass of `modelbox.objects`."""
        self._changes.append(NewChange(namespace=namespace, object=path, kind=kind, action=action, state=state))

    def finish(self) -> None:
        """Writes the changes into the feed."""
        append(self.conn, self._place, self._changes, actor=self.actor, at=self.at)

    def namespace_id(self, name: str) -> int:
        """The row id of the namespace, made if need be."""
        found = find_namespace_id(self.conn, name)
        if found is None:
            self.conn.execute(insert(namespaces).values(name=name, created_at_us=self.at_us, mod_rev=self.rev))
            state = Namespace(name=name, created_at=self.at, mod_rev=self.rev)
            self.note(name, name, Kind.NAMESPACE, Action.CREATED, state)
            found = find_namespace_id(self.conn, name)
            assert found is not None
            self.add_object(new_id(ObjectKind.NAMESPACE), ObjectKind.NAMESPACE, namespace_id=found)
        return found

    def add_object(self, uid: str, kind: ObjectKind, *, namespace_id: int, parent_id: int | None = None) -> int:
        """Makes the row in ``objects`` of something new, and returns its number."""
        return add_object(
            self.conn,
            uid=uid,
            kind=kind,
            namespace_id=namespace_id,
            parent_id=parent_id,
            at_us=self.at_us,
            actor=self.actor,
            rev=self.rev,
        )

"""Setting and removing attributes of any object, in one transaction.

There is one truth for every value: labels and metadata of a model, version or artifact are in its own row, so an edit
goes there, and from there into ``attributes``. Everything else is kept in ``attributes`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Connection, update

from modelbox.errors import ConflictError
from modelbox.feed import Action, Kind
from modelbox.objects import JsonValue, ModelPatch, VersionPatch
from modelbox.refs import shown
from modelbox.runtime.limits import check_attributes, check_labels, check_metadata
from modelbox.runtime.store.attributes import AttributeWrites, read_values, same
from modelbox.runtime.store.objects import ObjectRow, object_row
from modelbox.runtime.store.registry import update_model, update_version
from modelbox.runtime.store.rows import ARTIFACTS, MODELS, VERSIONS, artifact_of, dump
from modelbox.runtime.store.schema import artifacts, models, versions
from modelbox.runtime.store.writing import Writing
from modelbox.tracking import AttributeKind, AttributesEdit, ObjectKind

__all__ = ("set_attributes",)

_OWN = (AttributeKind.LABEL, AttributeKind.METADATA)


def set_attributes(conn: Connection, edit: AttributesEdit, *, actor: str, at: datetime) -> int:
    """Makes an edit; returns its revision, 0 if it changes nothing. A key that is set and removed is set.

    Raises:
        NotFoundError: There is no such object.
        ConflictError: A parameter has another value, and the edit does not say ``overwrite``; nothing was changed.
        LimitError: The object would have too many keys, or too much of them.
    """
    found = object_row(conn, edit.object, lock=True, deleted_ok=True)
    if edit.kind in _OWN and found.kind is ObjectKind.MODEL:
        return _edit_model(conn, found, edit, actor, at)
    if edit.kind in _OWN and found.kind is ObjectKind.VERSION:
        return _edit_version(conn, found, edit, actor, at)
    old = read_values(conn, found.id, edit.kind)
    changed = {key: value for key, value in edit.values.items() if key not in old or not same(old[key], value)}
    gone = [key for key in dict.fromkeys(edit.remove) if key in old and key not in edit.values]
    if not changed and not gone:
        return 0
    if edit.kind is AttributeKind.PARAM and not edit.overwrite:
        _refuse_overwriting(found, old, changed)
    values = {key: value for key, value in {**old, **changed}.items() if key not in gone}
    check_attributes(edit.kind, values)
    own = edit.kind in _OWN and found.kind is ObjectKind.ARTIFACT
    if own:
        (check_labels if edit.kind is AttributeKind.LABEL else check_metadata)(values)
    writing = Writing(conn, actor=actor, at=at)
    writes = AttributeWrites(at_us=writing.at_us, actor=actor, rev=writing.rev)
    for key in gone:
        writes.drop(found.id, edit.kind, key)
    for key, value in changed.items():
        (writes.set if key in old else writes.add)(found.id, edit.kind, key, value)
    writes.write(conn)
    if own:
        _note_artifact(writing, found, edit.kind, values)
    else:
        state = {"object": found.uid, "kind": edit.kind.value, "values": values}
        action = Action.UPDATED if old else Action.CREATED
        writing.note(found.namespace, f"{found.uid}/{edit.kind.value}", Kind.ATTRIBUTES, action, state)
    writing.finish()
    return writing.rev


def _refuse_overwriting(found: ObjectRow, old: Mapping[str, JsonValue], changed: Mapping[str, JsonValue]) -> None:
    for key, value in changed.items():
        if key in old:
            raise ConflictError(
                f"the parameter {shown(key)} of {found.uid} is {shown(old[key])}, not {shown(value)}: "
                "overwrite=True (--overwrite) gives it another value",
                object=found.uid,
                key=key,
                current=old[key],
                given=value,
            )


def _edit_model(conn: Connection, found: ObjectRow, edit: AttributesEdit, actor: str, at: datetime) -> int:
    row = conn.execute(MODELS.where(models.c.uid == found.uid)).one()
    if edit.kind is AttributeKind.LABEL:
        patch = ModelPatch(labels=edit.values, remove_labels=edit.remove)
    else:
        patch = ModelPatch(metadata=edit.values, remove_metadata=edit.remove)
    changed = update_model(conn, row.namespace, row.name, patch, actor, at)
    return changed.mod_rev if changed.mod_rev != row.mod_rev else 0


def _edit_version(conn: Connection, found: ObjectRow, edit: AttributesEdit, actor: str, at: datetime) -> int:
    row = conn.execute(VERSIONS.where(versions.c.uid == found.uid)).one()
    if edit.kind is AttributeKind.LABEL:
        patch = VersionPatch(labels=edit.values, remove_labels=edit.remove)
    else:
        patch = VersionPatch(metadata=edit.values, remove_metadata=edit.remove)
    changed = update_version(conn, row.namespace, row.model, row.version, patch, actor, at)
    return changed.mod_rev if changed.mod_rev != row.mod_rev else 0


def _note_artifact(writing: Writing, found: ObjectRow, kind: AttributeKind, values: Mapping[str, JsonValue]) -> None:
    column = "labels" if kind is AttributeKind.LABEL else "metadata"
    writing.conn.execute(
        update(artifacts).where(artifacts.c.uid == found.uid).values({column: dump(values), "mod_rev": writing.rev})
    )
    artifact = artifact_of(writing.conn.execute(ARTIFACTS.where(artifacts.c.uid == found.uid)).one())
    writing.note(artifact.namespace, artifact.id, Kind.ARTIFACT, Action.UPDATED, artifact)

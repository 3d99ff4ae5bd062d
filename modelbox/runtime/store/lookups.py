"""Finding models, versions and aliases, and saying what exists instead of what was asked for.

Shared by the transaction functions of the registry and the artifacts.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, bindparam, select

from modelbox.errors import NotFoundError
from modelbox.refs import ModelRef
from modelbox.runtime.absence import missing
from modelbox.runtime.store.rows import ALIASES, MODELS, VERSIONS
from modelbox.runtime.store.schema import aliases, models, namespaces, versions
from modelbox.runtime.store.visible import Visible

__all__ = (
    "alias_row",
    "find_alias_row",
    "find_model_row",
    "find_namespace_id",
    "model_row",
    "no_model",
    "ref_row",
    "version_row",
)

_SHOWN = 10

_NAMESPACE_ID = select(namespaces.c.id).where(namespaces.c.name == bindparam("ns"))
_MODEL = MODELS.where(namespaces.c.name == bindparam("ns"), models.c.name == bindparam("name"))
_MODEL_LOCKED = _MODEL.with_for_update(of=models)
_VERSION = VERSIONS.where(versions.c.model_id == bindparam("model_id"), versions.c.version == bindparam("number"))
_ALIAS = ALIASES.where(aliases.c.model_id == bindparam("model_id"), aliases.c.name == bindparam("alias"))

# A reference in one statement: the hot path of every `resolve`.
_REF_BY_VERSION = VERSIONS.where(
    namespaces.c.name == bindparam("ns"), models.c.name == bindparam("name"), versions.c.version == bindparam("number")
)
_REF_BY_DIGEST = (
    VERSIONS.where(
        namespaces.c.name == bindparam("ns"),
        models.c.name == bindparam("name"),
        versions.c.digest == bindparam("content"),
    )
    .order_by(versions.c.version.desc())
    .limit(1)
)
_REF_BY_ALIAS = (
    VERSIONS.add_columns(
        aliases.c.name.label("alias_name"),
        aliases.c.moved_at_us.label("alias_moved_at_us"),
        aliases.c.moved_by.label("alias_moved_by"),
        aliases.c.reason.label("alias_reason"),
        aliases.c.mod_rev.label("alias_mod_rev"),
    )
    .join(aliases, aliases.c.version_id == versions.c.id)
    .where(
        namespaces.c.name == bindparam("ns"), models.c.name == bindparam("name"), aliases.c.name == bindparam("alias")
    )
)


def find_namespace_id(conn: Connection, namespace: str) -> int | None:
    """The namespace's row id."""
    return conn.execute(_NAMESPACE_ID, {"ns": namespace}).scalar()


def find_model_row(conn: Connection, namespace: str, name: str, *, lock: bool = False) -> Any | None:
    """The model's row (`MODELS`), locked for the rest of the transaction if asked for."""
    return conn.execute(_MODEL_LOCKED if lock else _MODEL, {"ns": namespace, "name": name}).first()


def model_row(conn: Connection, namespace: str, name: str, *, lock: bool = False) -> Any:
    """As `find_model_row`.

    Raises:
        NotFoundError: There is no such model; ``exists`` lists models of the namespace, or namespaces.
    """
    row = find_model_row(conn, namespace, name, lock=lock)
    if row is None:
        raise no_model(conn, namespace, name)
    return row


def no_model(conn: Connection, namespace: str, name: str, visible: Visible | None = None) -> NotFoundError:
    """What a model that is not there is answered with, or one that the caller may not see."""
    namespace_id = find_namespace_id(conn, namespace)
    if namespace_id is None or (visible is not None and namespace_id not in visible.named_ids):
        some = select(namespaces.c.name).order_by(namespaces.c.name).limit(_SHOWN)
        if visible is not None:
            some = some.where(visible.named(namespaces.c.id))
        return missing("namespace", namespace, "namespaces", list(conn.execute(some).scalars()))
    some = select(models.c.name).where(models.c.namespace_id == namespace_id).order_by(models.c.name).limit(_SHOWN)
    if visible is not None:
        some = some.where(visible.of_model(models.c.namespace_id, models.c.id))
    found = [f"{namespace}/{other}" for other in conn.execute(some).scalars()]
    return missing("model", f"{namespace}/{name}", "models", found)


def version_row(conn: Connection, model: Any, version: int) -> Any:
    """The row (`VERSIONS`) of a version of a model's row.

    Raises:
        NotFoundError: There is no such version; ``exists`` lists the newest ones.
    """
    row = conn.execute(_VERSION, {"model_id": model.id, "number": version}).first()
    if row is None:
        raise _no_version(conn, model, f"{model.namespace}/{model.name}@{version}")
    return row


def find_alias_row(conn: Connection, model: Any, alias: str) -> Any | None:
    """The row (`ALIASES`) of an alias of a model's row."""
    return conn.execute(_ALIAS, {"model_id": model.id, "alias": alias}).first()


def alias_row(conn: Connection, model: Any, alias: str) -> Any:
    """As `find_alias_row`.

    Raises:
        NotFoundError: There is no such alias; ``exists`` lists those of the model.
    """
    row = find_alias_row(conn, model, alias)
    if row is None:
        some = select(aliases.c.name).where(aliases.c.model_id == model.id).order_by(aliases.c.name).limit(_SHOWN)
        found = [f"{model.namespace}/{model.name}@{name}" for name in conn.execute(some).scalars()]
        raise missing("alias", f"{model.namespace}/{model.name}@{alias}", "aliases", found)
    return row


def ref_row(conn: Connection, ref: ModelRef) -> Any:
    """The version's row (`VERSIONS`) that a reference names; an alias's own columns come as ``alias_…``.

    Raises:
        NotFoundError: No such model, alias or version.
    """
    values: dict[str, object] = {"ns": ref.namespace, "name": ref.model}
    if ref.alias is not None:
        row = conn.execute(_REF_BY_ALIAS, {**values, "alias": ref.alias}).first()
    elif ref.version is not None:
        row = conn.execute(_REF_BY_VERSION, {**values, "number": ref.version}).first()
    else:
        row = conn.execute(_REF_BY_DIGEST, {**values, "content": ref.digest}).first()
    if row is not None:
        return row
    model = model_row(conn, ref.namespace, ref.model)
    if ref.alias is not None:
        alias_row(conn, model, ref.alias)
    raise _no_version(conn, model, str(ref))


def _no_version(conn: Connection, model: Any, asked: str) -> NotFoundError:
    some = (
        select(versions.c.version)
        .where(versions.c.model_id == model.id)
        .order_by(versions.c.version.desc())
        .limit(_SHOWN)
    )
    found = [f"{model.namespace}/{model.name}@{number}" for number in conn.execute(some).scalars()]
    return missing("version", asked, "versions", found)

"""The use cases of datasets and their versions.

Owns the checks of what callers send. The data themselves are never read: components say where they lie.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime

from modelbox.access import ALL, Scope
from modelbox.errors import InvalidError, LimitError
from modelbox.objects import Created, Page, to_json
from modelbox.refs import check_name, shown
from modelbox.runtime.limits import check_text
from modelbox.runtime.record_ports import DatasetStore
from modelbox.runtime.services.naming import check_actor, check_dataset, check_dataset_version
from modelbox.runtime.services.paging import decode_key, page_of, page_size_of
from modelbox.tracking import (
    Dataset,
    DatasetComponent,
    DatasetVersion,
    NewDataset,
    NewDatasetVersion,
    ObjectKind,
    check_id,
)

__all__ = ("MAX_COMPONENTS", "DatasetService", "check_dataset_components")

MAX_COMPONENTS = 1000
_MAX_COMPONENTS_BYTES = 1 << 20
_MAX_LOCATION_CHARS = {"path": 4096, "s3": 2048, "query": 65_536}
_MAX_DESCRIPTION_CHARS = 16_384
_PASSWORD = re.compile(r"://[^/@\s:]*:[^/@\s]+@")


def _now() -> datetime:
    return datetime.now(UTC)


def check_dataset_components(new: NewDatasetVersion) -> NewDatasetVersion:
    """Returns ``new`` if it can be kept.

    Raises:
        InvalidError: A name or a component is not valid; a password in an address is not.
        LimitError: There is too much of something.
    """
    check_id(new.id, ObjectKind.DATASET_VERSION)
    check_name(new.namespace, "namespace")
    check_name(new.dataset, "dataset")
    check_text(new.description, "description", max_chars=_MAX_DESCRIPTION_CHARS)
    if not new.components:
        raise InvalidError("a dataset version needs at least one component: a path, an S3 address or a query")
    if len(new.components) > MAX_COMPONENTS:
        raise LimitError(f"{len(new.components)} components, more than the {MAX_COMPONENTS} allowed")
    seen = set()
    for part in new.components:
        _check_component(part)
        known_by = (part.type, part.location, part.source)
        if known_by in seen:
            raise InvalidError(f"the component {part.type} {shown(part.location)} is given twice", what="components")
        seen.add(known_by)
    size = len(json.dumps(to_json(new.components), ensure_ascii=False).encode())
    if size > _MAX_COMPONENTS_BYTES:
        raise LimitError(
            f"the components have {size} bytes as JSON, more than the {_MAX_COMPONENTS_BYTES} allowed: name their "
            "common directory or prefix",
        )
    return new


def _check_component(part: DatasetComponent) -> None:
    if part.type not in _MAX_LOCATION_CHARS:
        raise InvalidError(f"{shown(part.type)} is not a type of component: expected path, s3 or query", what="type")
    check_text(part.location, "location", max_chars=_MAX_LOCATION_CHARS[part.type])
    if not part.location.strip():
        raise InvalidError(f"a component of type {part.type} needs a location", what="location")
    if part.type == "s3" and not re.match(r"s3://[^/\s]", part.location):
        raise InvalidError(f"{shown(part.location)} is not an S3 address: expected s3://bucket/key", what="location")
    check_text(part.digest, "digest", max_chars=255)
    check_text(part.source, "source", max_chars=1024)
    for text, what in ((part.source, "source"), ("" if part.type == "query" else part.location, "location")):
        if _PASSWORD.search(text):
            raise InvalidError(f"the {what} of a component holds a password: leave it out of the address", what=what)
    for number, what in ((part.size_bytes, "size"), (part.rows, "number of rows")):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**63):
            raise InvalidError(f"{shown(number)} is not a {what}: expected 0 or more", what=what)


class DatasetService:
    """Datasets and their versions.

    Args:
        store: Where they are kept.
        clock: Gives the time of a change, aware and in UTC.
    """

    def __init__(self, store: DatasetStore, *, clock: Callable[[], datetime] = _now) -> None:
        self._store = store
        self._clock = clock

    async def create_dataset(self, new: NewDataset, *, actor: str) -> Created[Dataset]:
        """Makes a dataset, and its namespace if need be. An existing one is returned unchanged with ``existed``.

        One in the bin stays there, and says so by ``deleted_at``.

        Raises:
            ConflictError: The id belongs to something else.
        """
        check_id(new.id, ObjectKind.DATASET)
        check_name(new.namespace, "namespace")
        check_name(new.name, "dataset")
        check_text(new.owner, "owner", max_chars=256)
        check_text(new.description, "description", max_chars=_MAX_DESCRIPTION_CHARS)
        return await self._store.create_dataset(new, actor=check_actor(actor), at=self._clock())

    async def get_dataset(self, text: str) -> Dataset:
        """A dataset by id or ``namespace/name``; one in the bin says so by ``deleted_at``.

        Raises:
            NotFoundError: There is none; ``exists`` lists those of the namespace.
        """
        return await self._store.get_dataset(check_dataset(text))

    async def list_datasets(
        self,
        *,
        namespace: str = "",
        include_deleted: bool = False,
        page_size: int = 0,
        page_token: str = "",
        scope: Scope = ALL,
    ) -> Page[Dataset]:
        """Datasets by namespace and name; of all namespaces for an empty one."""
        if namespace:
            check_name(namespace, "namespace")
        listing = f"datasets:{namespace}:{include_deleted}"
        return page_of(
            listing,
            await self._store.list_datasets(
                namespace=namespace,
                include_deleted=include_deleted,
                limit=page_size_of(page_size),
                after=decode_key(listing, page_token, str, str),
                scope=scope,
            ),
        )

    async def create_version(self, new: NewDatasetVersion, *, actor: str) -> Created[DatasetVersion]:
        """Makes the next version of a dataset, and the dataset if need be.

        The components of the newest version again, in any order, return that one with ``existed``.

        Raises:
            ConflictError: The id belongs to another version.
        """
        return await self._store.create_version(
            check_dataset_components(new), actor=check_actor(actor), at=self._clock()
        )

    async def get_version(self, text: str) -> DatasetVersion:
        """A version by id or ``namespace/name@3``; ``namespace/name`` is the newest that is not in the bin.

        Raises:
            NotFoundError: There is none; ``exists`` lists the newest ones.
        """
        return await self._store.get_version(check_dataset_version(text))

    async def list_versions(
        self,
        dataset: str,
        *,
        include_deleted: bool = False,
        page_size: int = 0,
        page_token: str = "",
        scope: Scope = ALL,
    ) -> Page[DatasetVersion]:
        """Versions of a dataset (its id, or ``namespace/name``), newest first.

        Raises:
            NotFoundError: There is no such dataset.
        """
        check_dataset(dataset)
        listing = f"dataset versions:{dataset}:{include_deleted}"
        return page_of(
            listing,
            await self._store.list_versions(
                dataset,
                include_deleted=include_deleted,
                limit=page_size_of(page_size),
                after=decode_key(listing, page_token, int),
                scope=scope,
            ),
        )

"""Datasets and their versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from modelbox.objects import to_json
from modelbox.refs import Digest
from modelbox.tracking.ids import ObjectKind, new_id

__all__ = (
    "Dataset",
    "DatasetComponent",
    "DatasetVersion",
    "NewDataset",
    "NewDatasetVersion",
    "digest_of_components",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A name under which versions of data are recorded; unique by namespace and name."""

    id: str
    namespace: str
    name: str
    owner: str = ""
    description: str = ""
    latest_version: int = 0
    created_at: datetime
    created_by: str = ""
    deleted_at: datetime | None = None
    mod_rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDataset:
    """What a caller says of a dataset."""

    id: str = field(default_factory=lambda: new_id(ObjectKind.DATASET))
    namespace: str
    name: str
    owner: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetComponent:
    """A part of a dataset version: where data lie, or how they were asked for.

    Attributes:
        type: ``path``, ``s3`` or ``query``.
        location: A path, an ``s3://`` address, or the text of a query.
        digest: Of the content (``sha256:…``), or what the store knows it by; empty if unknown.
        size_bytes: None if unknown.
        source: For a query: the database that it was put to, without secrets.
        rows: Number of records, None if unknown.
    """

    type: str
    location: str
    digest: str = ""
    size_bytes: int | None = None
    source: str = ""
    rows: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetVersion:
    """Data as they were at one time; immutable but for its attributes.

    Attributes:
        digest: ``sha256:…`` of the components: the same components are the same version.
    """

    id: str
    namespace: str
    dataset: str
    dataset_id: str
    version: int
    digest: str
    components: tuple[DatasetComponent, ...]
    description: str = ""
    created_at: datetime
    created_by: str = ""
    deleted_at: datetime | None = None
    mod_rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDatasetVersion:
    """What a caller says of data; the dataset is made where it is new."""

    id: str = field(default_factory=lambda: new_id(ObjectKind.DATASET_VERSION))
    namespace: str
    dataset: str
    components: tuple[DatasetComponent, ...]
    description: str = ""


def digest_of_components(components: Sequence[DatasetComponent]) -> Digest:
    """``sha256:…`` by which the same components are known again, whatever their order."""
    parts = sorted(json.dumps(to_json(part), sort_keys=True, ensure_ascii=False) for part in components)
    return Digest("sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest())

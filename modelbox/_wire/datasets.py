"""Datasets and their versions as messages and back."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire.values import (
    given,
    pack_optional_int64,
    pack_optional_time,
    pack_time,
    present,
    unpack_optional_time,
    unpack_time,
)
from modelbox.objects import Created
from modelbox.tracking import (
    Dataset,
    DatasetComponent,
    DatasetVersion,
    NewDataset,
    NewDatasetVersion,
    ObjectKind,
    new_id,
)


def pack_dataset(value: Dataset) -> pb.Dataset:
    """As a message."""
    return pb.Dataset(
        id=value.id,
        namespace=value.namespace,
        name=value.name,
        owner=value.owner,
        description=value.description,
        latest_version=value.latest_version,
        created_at_us=pack_time(value.created_at),
        created_by=value.created_by,
        deleted_at_us=pack_optional_time(value.deleted_at),
        mod_rev=value.mod_rev,
    )


def unpack_dataset(message: pb.Dataset) -> Dataset:
    """From a message."""
    return Dataset(
        id=message.id,
        namespace=message.namespace,
        name=message.name,
        owner=message.owner,
        description=message.description,
        latest_version=message.latest_version,
        created_at=unpack_time(message.created_at_us),
        created_by=message.created_by,
        deleted_at=unpack_optional_time(message.deleted_at_us),
        mod_rev=message.mod_rev,
    )


def pack_new_dataset(value: NewDataset) -> pb.CreateDatasetRequest:
    """As a request."""
    return pb.CreateDatasetRequest(
        id=value.id,
        namespace=value.namespace,
        name=value.name,
        owner=value.owner,
        description=value.description,
    )


def unpack_new_dataset(message: pb.CreateDatasetRequest) -> NewDataset:
    """From a request; makes an id where it has none."""
    return NewDataset(
        id=message.id or new_id(ObjectKind.DATASET),
        namespace=message.namespace,
        name=message.name,
        owner=message.owner,
        description=message.description,
    )


def unpack_created_dataset(message: pb.CreateDatasetResponse) -> Created[Dataset]:
    """From an answer."""
    return Created(item=unpack_dataset(present(message.dataset, "the dataset")), existed=message.existed)


def pack_component(value: DatasetComponent) -> pb.DatasetComponent:
    """As a message."""
    return pb.DatasetComponent(
        type=value.type,
        location=value.location,
        digest=value.digest,
        size_bytes=pack_optional_int64(value.size_bytes, "size"),
        source=value.source,
        rows=pack_optional_int64(value.rows, "number of rows"),
    )


def unpack_component(message: pb.DatasetComponent) -> DatasetComponent:
    """From a message; what the fields may be is the service's to say."""
    return DatasetComponent(
        type=message.type,
        location=message.location,
        digest=message.digest,
        size_bytes=given(message, "size_bytes"),
        source=message.source,
        rows=given(message, "rows"),
    )


def pack_dataset_version(value: DatasetVersion) -> pb.DatasetVersion:
    """As a message."""
    return pb.DatasetVersion(
        id=value.id,
        namespace=value.namespace,
        dataset=value.dataset,
        dataset_id=value.dataset_id,
        version=value.version,
        digest=value.digest,
        components=[pack_component(one) for one in value.components],
        description=value.description,
        created_at_us=pack_time(value.created_at),
        created_by=value.created_by,
        deleted_at_us=pack_optional_time(value.deleted_at),
        mod_rev=value.mod_rev,
    )


def unpack_dataset_version(message: pb.DatasetVersion) -> DatasetVersion:
    """From a message."""
    return DatasetVersion(
        id=message.id,
        namespace=message.namespace,
        dataset=message.dataset,
        dataset_id=message.dataset_id,
        version=message.version,
        digest=message.digest,
        components=tuple(unpack_component(one) for one in message.components),
        description=message.description,
        created_at=unpack_time(message.created_at_us),
        created_by=message.created_by,
        deleted_at=unpack_optional_time(message.deleted_at_us),
        mod_rev=message.mod_rev,
    )


def pack_new_dataset_version(value: NewDatasetVersion) -> pb.CreateDatasetVersionRequest:
    """As a request."""
    return pb.CreateDatasetVersionRequest(
        id=value.id,
        namespace=value.namespace,
        dataset=value.dataset,
        components=[pack_component(one) for one in value.components],
        description=value.description,
    )


def unpack_new_dataset_version(message: pb.CreateDatasetVersionRequest) -> NewDatasetVersion:
    """From a request; makes an id where it has none."""
    return NewDatasetVersion(
        id=message.id or new_id(ObjectKind.DATASET_VERSION),
        namespace=message.namespace,
        dataset=message.dataset,
        components=tuple(unpack_component(one) for one in message.components),
        description=message.description,
    )


def unpack_created_dataset_version(message: pb.CreateDatasetVersionResponse) -> Created[DatasetVersion]:
    """From an answer."""
    return Created(item=unpack_dataset_version(present(message.version, "the version")), existed=message.existed)

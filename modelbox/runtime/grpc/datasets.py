"""DatasetService over gRPC: decode, call the service, encode."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire import datasets as wire
from modelbox.runtime.caller import current_actor, current_scope
from modelbox.runtime.services.datasets import DatasetService

__all__ = ("DatasetAdapter",)


class DatasetAdapter(pb.DatasetServiceBase):
    """See ``protos/modelbox/v1/datasets.proto``."""

    def __init__(self, datasets: DatasetService) -> None:
        self._datasets = datasets

    async def create_dataset(self, message: pb.CreateDatasetRequest) -> pb.CreateDatasetResponse:
        """See the proto."""
        created = await self._datasets.create_dataset(wire.unpack_new_dataset(message), actor=current_actor())
        return pb.CreateDatasetResponse(dataset=wire.pack_dataset(created.item), existed=created.existed)

    async def get_dataset(self, message: pb.GetDatasetRequest) -> pb.Dataset:
        """See the proto."""
        return wire.pack_dataset(await self._datasets.get_dataset(message.dataset))

    async def list_datasets(self, message: pb.ListDatasetsRequest) -> pb.ListDatasetsResponse:
        """See the proto."""
        page = await self._datasets.list_datasets(
            namespace=message.namespace,
            include_deleted=message.include_deleted,
            page_size=message.page_size,
            page_token=message.page_token,
            scope=current_scope(),
        )
        return pb.ListDatasetsResponse(
            datasets=[wire.pack_dataset(item) for item in page.items], next_page_token=page.next_token
        )

    async def create_dataset_version(self, message: pb.CreateDatasetVersionRequest) -> pb.CreateDatasetVersionResponse:
        """See the proto."""
        created = await self._datasets.create_version(wire.unpack_new_dataset_version(message), actor=current_actor())
        return pb.CreateDatasetVersionResponse(version=wire.pack_dataset_version(created.item), existed=created.existed)

    async def get_dataset_version(self, message: pb.GetDatasetVersionRequest) -> pb.DatasetVersion:
        """See the proto."""
        return wire.pack_dataset_version(await self._datasets.get_version(message.version))

    async def list_dataset_versions(self, message: pb.ListDatasetVersionsRequest) -> pb.ListDatasetVersionsResponse:
        """See the proto."""
        page = await self._datasets.list_versions(
            message.dataset,
            include_deleted=message.include_deleted,
            page_size=message.page_size,
            page_token=message.page_token,
            scope=current_scope(),
        )
        return pb.ListDatasetVersionsResponse(
            versions=[wire.pack_dataset_version(item) for item in page.items], next_page_token=page.next_token
        )

"""TrackingService over gRPC: decode, call the service, encode."""

from __future__ import annotations

from typing import Any

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire import tracking as wire
from modelbox._wire.values import unpack_time
from modelbox.errors import InvalidError
from modelbox.runtime.caller import current_actor, current_scope
from modelbox.runtime.permissions.deliveries import refused_operations
from modelbox.runtime.services.tracking import TrackingService
from modelbox.tracking import Delivered, Operation, Rejection

__all__ = ("TrackingAdapter",)


class TrackingAdapter(pb.TrackingServiceBase):
    """See ``protos/modelbox/v1/tracking.proto``.

    Args:
        tracking: The service.
        messages: The classes that frequent calls are answered with; for `Boundary.direct_google` those of its codec.
    """

    def __init__(self, tracking: TrackingService, messages: Any = pb) -> None:
        self._tracking = tracking
        self._messages = messages

    async def create_experiment(self, message: pb.CreateExperimentRequest) -> pb.CreateExperimentResponse:
        """See the proto."""
        created = await self._tracking.create_experiment(wire.unpack_new_experiment(message), actor=current_actor())
        return pb.CreateExperimentResponse(experiment=wire.pack_experiment(created.item), existed=created.existed)

    async def get_experiment(self, message: pb.GetExperimentRequest) -> pb.Experiment:
        """See the proto."""
        return wire.pack_experiment(await self._tracking.get_experiment(message.experiment))

    async def update_experiment(self, message: pb.UpdateExperimentRequest) -> pb.Experiment:
        """See the proto."""
        patch = wire.unpack_experiment_patch(message)
        return wire.pack_experiment(
            await self._tracking.update_experiment(message.experiment, patch, actor=current_actor())
        )

    async def list_experiments(self, message: pb.ListExperimentsRequest) -> pb.ListExperimentsResponse:
        """See the proto."""
        page = await self._tracking.list_experiments(
            namespace=message.namespace,
            include_deleted=message.include_deleted,
            page_size=message.page_size,
            page_token=message.page_token,
            scope=current_scope(),
        )
        return pb.ListExperimentsResponse(
            experiments=[wire.pack_experiment(item) for item in page.items], next_page_token=page.next_token
        )

    async def create_run(self, message: pb.CreateRunRequest) -> pb.CreateRunResponse:
        """See the proto."""
        created = await self._tracking.create_run(wire.unpack_new_run(message), actor=current_actor())
        messages = self._messages
        answer: pb.CreateRunResponse = messages.CreateRunResponse(
            run=wire.pack_run(created.item, messages.Run), existed=created.existed
        )
        return answer

    async def get_run(self, message: pb.GetRunRequest) -> pb.Run:
        """See the proto."""
        return wire.pack_run(await self._tracking.get_run(message.id))

    async def update_run(self, message: pb.UpdateRunRequest) -> pb.Run:
        """See the proto."""
        run = await self._tracking.update_run(message.id, wire.unpack_run_patch(message), actor=current_actor())
        return wire.pack_run(run, self._messages.Run)

    async def list_runs(self, message: pb.ListRunsRequest) -> pb.ListRunsResponse:
        """See the proto."""
        page = await self._tracking.list_runs(
            message.parent,
            include_deleted=message.include_deleted,
            page_size=message.page_size,
            page_token=message.page_token,
            scope=current_scope(),
        )
        return pb.ListRunsResponse(runs=[wire.pack_run(item) for item in page.items], next_page_token=page.next_token)

    async def clone_run(self, message: pb.CloneRunRequest) -> pb.CreateRunResponse:
        """See the proto."""
        created = await self._tracking.clone_run(
            message.source_id, id=wire.run_id_of(message), name=message.name, actor=current_actor()
        )
        return pb.CreateRunResponse(run=wire.pack_run(created.item), existed=created.existed)

    async def create_checkpoint(self, message: pb.CreateCheckpointRequest) -> pb.CreateCheckpointResponse:
        """See the proto."""
        created = await self._tracking.create_checkpoint(wire.unpack_new_checkpoint(message), actor=current_actor())
        messages = self._messages
        answer: pb.CreateCheckpointResponse = messages.CreateCheckpointResponse(
            checkpoint=wire.pack_checkpoint(created.item, messages.Checkpoint), existed=created.existed
        )
        return answer

    async def get_checkpoint(self, message: pb.GetCheckpointRequest) -> pb.Checkpoint:
        """See the proto."""
        return wire.pack_checkpoint(await self._tracking.get_checkpoint(message.id))

    async def list_checkpoints(self, message: pb.ListCheckpointsRequest) -> pb.ListCheckpointsResponse:
        """See the proto."""
        page = await self._tracking.list_checkpoints(
            message.parent_id,
            include_deleted=message.include_deleted,
            page_size=message.page_size,
            page_token=message.page_token,
            scope=current_scope(),
        )
        return pb.ListCheckpointsResponse(
            checkpoints=[wire.pack_checkpoint(item) for item in page.items], next_page_token=page.next_token
        )

    async def delete_objects(self, message: pb.DeleteObjectsRequest) -> pb.DeleteObjectsResponse:
        """See the proto."""
        return pb.DeleteObjectsResponse(count=await self._tracking.delete_objects(message.ids, actor=current_actor()))

    async def restore_objects(self, message: pb.RestoreObjectsRequest) -> pb.RestoreObjectsResponse:
        """See the proto."""
        return pb.RestoreObjectsResponse(count=await self._tracking.restore_objects(message.ids, actor=current_actor()))

    async def purge(self, message: pb.PurgeRequest) -> pb.PurgeResponse:
        """See the proto."""
        count = await self._tracking.purge(
            message.namespace,
            unpack_time(message.deleted_before_us),
            dry_run=message.dry_run,
            actor=current_actor(),
        )
        return pb.PurgeResponse(count=count)

    async def set_attributes(self, message: pb.SetAttributesRequest) -> pb.SetAttributesResponse:
        """See the proto."""
        edit = wire.unpack_attributes_edit(message)
        rev = await self._tracking.set_attributes(
            edit.object, edit.kind, edit.values, edit.remove, overwrite=edit.overwrite, actor=current_actor()
        )
        answer: pb.SetAttributesResponse = self._messages.SetAttributesResponse(rev=rev)
        return answer

    async def get_attributes(self, message: pb.GetAttributesRequest) -> pb.GetAttributesResponse:
        """See the proto."""
        kinds = [wire.attribute_kind(kind) for kind in message.kinds]
        return wire.pack_attributes(await self._tracking.get_attributes(message.objects, kinds))

    async def list_attribute_history(self, message: pb.ListAttributeHistoryRequest) -> pb.ListAttributeHistoryResponse:
        """See the proto."""
        page = await self._tracking.list_attribute_history(
            message.object,
            wire.attribute_kind(message.kind),
            message.key,
            page_size=message.page_size,
            page_token=message.page_token,
        )
        return wire.pack_attribute_changes(page.items, page.next_token)

    async def deliver(self, message: pb.DeliverRequest) -> pb.DeliverResponse:
        """See the proto. An operation that cannot be read is refused for good, like one that cannot be carried out."""
        operations: list[Operation] = []
        unread: list[Rejection] = [*refused_operations()]
        for one in message.operations:
            try:
                operations.append(wire.unpack_operation(one))
            except InvalidError as exc:
                unread.append(Rejection(seq=one.seq, code=exc.code, message=exc.message))
        delivered = Delivered(seq=0)
        if operations or not unread:
            delivered = await self._tracking.deliver(
                message.spool, operations, actor=current_actor(), scope=current_scope()
            )
        if unread:
            rejections = sorted([*delivered.rejections, *unread], key=lambda one: one.seq)
            delivered = Delivered(seq=max(delivered.seq, *(one.seq for one in unread)), rejections=tuple(rejections))
        return wire.pack_delivered(delivered, self._messages)

"""RegistryService over gRPC: decode, call the service, encode."""

from __future__ import annotations

from modelbox import _wire as wire
from modelbox._proto.modelbox import v1 as pb
from modelbox.refs import ModelRef
from modelbox.runtime.caller import current_actor, current_scope
from modelbox.runtime.services.registry import RegistryService

__all__ = ("RegistryAdapter",)


class RegistryAdapter(pb.RegistryServiceBase):
    """See ``protos/modelbox/v1/registry.proto``."""

    def __init__(self, registry: RegistryService) -> None:
        self._registry = registry

    async def create_model(self, message: pb.CreateModelRequest) -> pb.CreateModelResponse:
        """See the proto."""
        created = await self._registry.create_model(wire.unpack_new_model(message), actor=current_actor())
        return pb.CreateModelResponse(model=wire.pack_model(created.item), existed=created.existed)

    async def get_model(self, message: pb.GetModelRequest) -> pb.Model:
        """See the proto."""
        return wire.pack_model(await self._registry.get_model(message.namespace, message.name))

    async def update_model(self, message: pb.UpdateModelRequest) -> pb.Model:
        """See the proto."""
        patch = wire.unpack_model_patch(message)
        return wire.pack_model(
            await self._registry.update_model(message.namespace, message.name, patch, actor=current_actor())
        )

    async def delete_model(self, message: pb.DeleteModelRequest) -> pb.DeleteModelResponse:
        """See the proto."""
        await self._registry.delete_model(message.namespace, message.name, actor=current_actor())
        return pb.DeleteModelResponse()

    async def list_models(self, message: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """See the proto."""
        page = await self._registry.list_models(
            namespace=message.namespace,
            page_size=message.page_size,
            page_token=message.page_token,
            scope=current_scope(),
        )
        return pb.ListModelsResponse(
            models=[wire.pack_model(item) for item in page.items], next_page_token=page.next_token
        )

    async def list_namespaces(self, message: pb.ListNamespacesRequest) -> pb.ListNamespacesResponse:
        """See the proto."""
        page = await self._registry.list_namespaces(
            page_size=message.page_size, page_token=message.page_token, scope=current_scope()
        )
        return pb.ListNamespacesResponse(
            namespaces=[wire.pack_namespace(item) for item in page.items], next_page_token=page.next_token
        )

    async def publish_version(self, message: pb.PublishVersionRequest) -> pb.PublishVersionResponse:
        """See the proto."""
        created = await self._registry.publish_version(wire.unpack_new_version(message), actor=current_actor())
        return pb.PublishVersionResponse(version=wire.pack_version(created.item), existed=created.existed)

    async def get_version(self, message: pb.GetVersionRequest) -> pb.ModelVersion:
        """See the proto."""
        return wire.pack_version(await self._registry.get_version(ModelRef.parse(message.ref)))

    async def update_version(self, message: pb.UpdateVersionRequest) -> pb.ModelVersion:
        """See the proto."""
        patch = wire.unpack_version_patch(message)
        return wire.pack_version(
            await self._registry.update_version(
                message.namespace, message.model, message.version, patch, actor=current_actor()
            )
        )

    async def delete_version(self, message: pb.DeleteVersionRequest) -> pb.DeleteVersionResponse:
        """See the proto."""
        await self._registry.delete_version(message.namespace, message.model, message.version, actor=current_actor())
        return pb.DeleteVersionResponse()

    async def list_versions(self, message: pb.ListVersionsRequest) -> pb.ListVersionsResponse:
        """See the proto."""
        page = await self._registry.list_versions(
            message.namespace, message.model, page_size=message.page_size, page_token=message.page_token
        )
        return pb.ListVersionsResponse(
            versions=[wire.pack_version(item) for item in page.items], next_page_token=page.next_token
        )

    async def resolve(self, message: pb.ResolveRequest) -> pb.ResolveResponse:
        """See the proto."""
        return wire.pack_resolved(await self._registry.resolve(ModelRef.parse(message.ref), scope=current_scope()))

    async def move_alias(self, message: pb.MoveAliasRequest) -> pb.Alias:
        """See the proto."""
        return wire.pack_alias(
            await self._registry.move_alias(
                message.namespace,
                message.model,
                message.alias,
                message.version,
                expected_mod_rev=message.expected_mod_rev,
                reason=message.reason,
                actor=current_actor(),
            )
        )

    async def rollback_alias(self, message: pb.RollbackAliasRequest) -> pb.Alias:
        """See the proto."""
        return wire.pack_alias(
            await self._registry.rollback_alias(
                message.namespace,
                message.model,
                message.alias,
                expected_mod_rev=message.expected_mod_rev,
                reason=message.reason,
                actor=current_actor(),
            )
        )

    async def delete_alias(self, message: pb.DeleteAliasRequest) -> pb.DeleteAliasResponse:
        """See the proto."""
        await self._registry.delete_alias(
            message.namespace,
            message.model,
            message.alias,
            expected_mod_rev=message.expected_mod_rev,
            reason=message.reason,
            actor=current_actor(),
        )
        return pb.DeleteAliasResponse()

    async def list_aliases(self, message: pb.ListAliasesRequest) -> pb.ListAliasesResponse:
        """See the proto."""
        aliases = await self._registry.list_aliases(message.namespace, message.model)
        return pb.ListAliasesResponse(aliases=[wire.pack_alias(alias) for alias in aliases])

    async def list_alias_moves(self, message: pb.ListAliasMovesRequest) -> pb.ListAliasMovesResponse:
        """See the proto."""
        page = await self._registry.list_alias_moves(
            message.namespace,
            message.model,
            alias=message.alias,
            at=wire.unpack_time(message.at_us) if message.at_us else None,
            page_size=message.page_size,
            page_token=message.page_token,
        )
        return pb.ListAliasMovesResponse(
            moves=[wire.pack_alias_move(move) for move in page.items], next_page_token=page.next_token
        )

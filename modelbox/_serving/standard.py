"""What gRPC tools expect of every server: health and reflection."""

from __future__ import annotations

from importlib.resources import files
from typing import cast

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from grpclib.health.check import ServiceStatus
from grpclib.health.service import OVERALL
from grpclib.health.service import Health as HealthService
from grpclib.reflection.service import ServerReflection

from modelbox._serving.grpc import Servable
from modelbox._serving.health import Health

__all__ = ("health_service", "reflection_services")


def health_service(health: Health, services: list[Servable]) -> Servable:
    """``grpc.health.v1.Health`` for the whole server and for each of ``services``."""
    status = ServiceStatus()
    health.on_change(status.set)
    return HealthService({OVERALL: [status], **{service: [status] for service in services}})


def reflection_services(services: list[Servable]) -> list[Servable]:
    """``grpc.reflection`` in both versions that tools use, for ``services``.

    The descriptors are those that ``make proto`` keeps beside the generated code, in a pool of their own: the generated
    classes have none.
    """
    pool = DescriptorPool()
    raw = files("modelbox._proto").joinpath("descriptors.binpb").read_bytes()
    for file in FileDescriptorSet.FromString(raw).file:
        pool.Add(file)
    return cast("list[Servable]", ServerReflection.extend(services, pool=pool)[len(services) :])

"""All services of one server, as its adapters get them."""

from __future__ import annotations

from dataclasses import dataclass

from modelbox.runtime.services.access import AccessService
from modelbox.runtime.services.artifacts import ArtifactService
from modelbox.runtime.services.audit import AuditService
from modelbox.runtime.services.datasets import DatasetService
from modelbox.runtime.services.feed import FeedService
from modelbox.runtime.services.find import FindService
from modelbox.runtime.services.fleet import FleetService
from modelbox.runtime.services.lineage import LineageService
from modelbox.runtime.services.members import MemberService
from modelbox.runtime.services.metrics import MetricService
from modelbox.runtime.services.notes import NoteService
from modelbox.runtime.services.registry import RegistryService
from modelbox.runtime.services.retention import RetentionService
from modelbox.runtime.services.rules import RuleService
from modelbox.runtime.services.space import SpaceService
from modelbox.runtime.services.tracking import TrackingService

__all__ = ("Services",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What adapters call."""

    registry: RegistryService
    access: AccessService
    artifacts: ArtifactService
    feed: FeedService
    fleet: FleetService
    tracking: TrackingService
    metrics: MetricService
    notes: NoteService
    datasets: DatasetService
    lineage: LineageService
    find: FindService
    retention: RetentionService
    rules: RuleService
    space: SpaceService
    audit: AuditService
    members: MemberService

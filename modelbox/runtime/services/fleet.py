"""The fleet: which process serves which version now.

Reports are leases: one that is not renewed within three heartbeats counts as lost, and is forgotten after a week. They
are not in the change feed: heartbeats would put a busy writer behind every promote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from modelbox.access import ALL, Scope
from modelbox.errors import InvalidError, LimitError
from modelbox.objects import Instance, InstanceReport, Page
from modelbox.refs import ModelRef, check_name, shown
from modelbox.runtime.limits import check_text
from modelbox.runtime.ports import FleetStore
from modelbox.runtime.services.paging import decode_key, page_of, page_size_of

__all__ = ("HEARTBEAT_S", "LEASE_S", "FleetService")

HEARTBEAT_S = 30.0
LEASE_S = 3 * HEARTBEAT_S
_MAX_REPORTS = 1000
_FORGET_AFTER = timedelta(days=7)


def _now() -> datetime:
    return datetime.now(UTC)


class FleetService:
    """Takes and lists what loaders report.

    Args:
        store: Where reports are kept.
        clock: Gives the time, aware and in UTC.
    """

    def __init__(self, store: FleetStore, *, clock: Callable[[], datetime] = _now) -> None:
        self._store = store
        self._clock = clock

    async def report(self, reports: Sequence[InstanceReport]) -> float:
        """Keeps reports; the newest one of an instance and reference counts.

        Returns:
            Seconds within which to report again.

        Raises:
            InvalidError: A reference, number or text is not valid; nothing is kept.
            LimitError: More than 1000 reports, or a text is too long.
        """
        if len(reports) > _MAX_REPORTS:
            raise LimitError(f"{len(reports)} reports at once, more than the {_MAX_REPORTS} allowed")
        for report in reports:
            _check(report)
        if reports:
            at = self._clock()
            await self._store.report(reports, at=at, forget_before=at - _FORGET_AFTER)
        return HEARTBEAT_S

    async def list_instances(
        self,
        *,
        path: str = "",
        include_lost: bool = False,
        page_size: int = 0,
        page_token: str = "",
        scope: Scope = ALL,
    ) -> Page[Instance]:
        """Instances of all models, of a namespace, or of a model (``namespace/model``).

        Args:
            path: Empty, a namespace, or a model's path.
            include_lost: Also those that said good-bye or are silent for longer than their lease.
            page_size: 1 to 1000; 0 means 100.
            page_token: From the page before.
            scope: What the caller may see.
        """
        namespace, slash, model = path.partition("/")
        if namespace or slash:
            check_name(namespace, "namespace")
        if slash:
            check_name(model, "model")
        listing = f"instances:{path}:{int(include_lost)}"
        at = self._clock()
        return page_of(
            listing,
            await self._store.list_instances(
                namespace=namespace,
                model=model,
                seen_since=None if include_lost else at - timedelta(seconds=LEASE_S),
                lease_s=LEASE_S,
                at=at,
                limit=page_size_of(page_size),
                after=decode_key(listing, page_token, int),
                scope=scope,
            ),
        )


def _check(report: InstanceReport) -> None:
    ModelRef.parse(report.ref)
    if not report.instance_id:
        raise InvalidError("a report without instance_id: expected text that is unique to the process")
    for text, what, max_chars in (
        (report.instance_id, "instance_id", 128),
        (report.host, "host", 255),
        (report.digest, "digest", 71),
        (report.target_digest, "target_digest", 71),
        (report.stage, "stage", 64),
        (report.reason, "reason", 4096),
    ):
        check_text(text, what, max_chars=max_chars)
    for number, what in (
        (report.pid, "pid"),
        (report.version, "version"),
        (report.target_version, "target_version"),
        (report.mod_rev, "mod_rev"),
    ):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**63:
            raise InvalidError(f"a report with the {what} {shown(number)}: expected 0 or more")

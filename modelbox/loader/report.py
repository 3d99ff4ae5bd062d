"""Tells the server what this process serves: ACK, NACK and heartbeat.

Owns the newest report of each reference. Nothing waits for a report, and serving never depends on one: what could not
be delivered is replaced by the next state or sent again with the next heartbeat.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import anyio

from modelbox.errors import ModelBoxError
from modelbox.objects import InstanceReport
from modelbox.ports import ModelSource

__all__ = ("Identity", "Reporter")

_log = logging.getLogger(__name__)
_FAREWELL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this process is in the fleet's list.

    Attributes:
        instance_id: One per process, stable over its life.
    """

    instance_id: str
    host: str
    pid: int


class Reporter:
    """Sends reports: at once when one changed, all of them every ``heartbeat_s``.

    Concurrency: belongs to the engine's loop.
    """

    def __init__(self, source: ModelSource, *, heartbeat_s: float) -> None:
        self._source = source
        self._heartbeat_s = heartbeat_s
        self._reports: dict[str, InstanceReport] = {}
        self._unsent: set[str] = set()
        self._wake = anyio.Event()

    def update(self, report: InstanceReport) -> None:
        """Replaces what is said of ``report.ref`` and sends it soon; the state ``gone`` is sent once, as a farewell."""
        self._reports[report.ref] = report
        self._unsent.add(report.ref)
        self._wake.set()

    async def run(self) -> None:
        """Sends for ever.

        Cancellation: makes one short attempt to deliver what is still unsent.
        """
        try:
            while True:
                with anyio.move_on_after(self._heartbeat_s) as scope:
                    await self._wake.wait()
                self._wake = anyio.Event()
                await self._send(set(self._reports) if scope.cancelled_caught else set(self._unsent))
        finally:
            if self._unsent:
                with anyio.move_on_after(_FAREWELL_S, shield=True):
                    await self._send(set(self._unsent))

    async def _send(self, refs: set[str]) -> None:
        reports = [self._reports[ref] for ref in sorted(refs)]
        if not reports:
            return
        try:
            await self._source.report(reports)
        except ModelBoxError as exc:
            _log.debug("could not report to the server: %s", exc)
            return
        for report in reports:
            if self._reports.get(report.ref) is report:
                self._unsent.discard(report.ref)
                if report.state == "gone":
                    del self._reports[report.ref]

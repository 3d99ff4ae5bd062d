"""What one record costs: the aggregate of the call path, against the instruments of OpenTelemetry in its place."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter

import anyio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from bench.figure import Figure, Unit
from bench.measure import Series, interleave, ratio
from bench.run import SEED, Run
from modelbox.loader.stats import CallStats

_TOOK_NS = 12_345
_LABELS = {"model": "bench/tiny", "version": "1", "alias": "prod"}


def measure(run: Run) -> list[Figure]:
    """The figures."""
    taken = anyio.run(_measure, run)
    instruments = taken["instruments"]
    return [
        Figure(
            name="telemetry.call",
            what="one call in the aggregate of its version",
            unit=Unit.SECONDS,
            measured=taken["aggregate"],
            floor=instruments,
            floor_what="a counter and a histogram of OpenTelemetry's SDK",
            ratio=ratio(taken["aggregate"], instruments),
        ),
        Figure(
            name="telemetry.batch",
            what="32 calls of one batch in the aggregate, per batch",
            unit=Unit.SECONDS,
            measured=taken["batch"],
        ),
        Figure(
            name="telemetry.log",
            what="one log record below the level that is on",
            unit=Unit.SECONDS,
            measured=taken["log"],
        ),
    ]


async def _measure(run: Run) -> dict[str, Series]:
    stats = CallStats()
    provider = MeterProvider(metric_readers=[InMemoryMetricReader()], shutdown_on_exit=False)
    meter = provider.get_meter("bench")
    counter, histogram = meter.create_counter("calls"), meter.create_histogram("duration", unit="s")
    log = logging.getLogger("modelbox.bench")
    log.setLevel(logging.INFO)
    batch = [_TOOK_NS] * 32

    def instruments() -> None:
        counter.add(1, _LABELS)
        histogram.record(_TOOK_NS * 1e-9, _LABELS)

    subjects: dict[str, Callable[[], object]] = {
        "aggregate": lambda: stats.record_ok(_TOOK_NS),
        "instruments": instruments,
        "batch": lambda: stats.record_batch(batch, batch),
        "log": lambda: log.debug("version %s answered", 1),
    }
    repeats = run.choose(20_000, 500)
    taken = await interleave(
        {name: _turn(subject, repeats) for name, subject in subjects.items()}, rounds=run.choose(20, 3), seed=SEED
    )
    provider.shutdown()
    return taken


def _turn(subject: Callable[[], object], repeats: int) -> Callable[[], Awaitable[Sequence[float]]]:
    """The mean of many: single ones are shorter than looking at the clock."""

    async def turn() -> Sequence[float]:
        began = perf_counter()
        for _ in range(repeats):
            subject()
        return [(perf_counter() - began) / repeats]

    return turn

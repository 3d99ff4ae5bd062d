"""Reading a service's metrics page: counters and histograms per version of the model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

__all__ = ("Histogram", "Page", "read_page")

LabelSet = frozenset[tuple[str, str]]


@dataclass(slots=True, kw_only=True)
class Histogram:
    """Counts by upper bound, cumulative, as Prometheus gives them."""

    counts: dict[float, float] = field(default_factory=dict)

    @property
    def count(self) -> float:
        """How many values there were."""
        return self.counts.get(math.inf, 0.0)

    def quantile(self, share: float) -> float:
        """The value below which ``share`` of all lie, linear within a bucket; NaN of none."""
        rank, below, lower = share * self.count, 0.0, 0.0
        if rank == 0:
            return math.nan
        for bound, count in sorted(self.counts.items()):
            if count >= rank:
                return lower if math.isinf(bound) else lower + (bound - lower) * (rank - below) / (count - below)
            below, lower = count, bound
        return lower


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All samples of a metrics page by name."""

    samples: Mapping[str, Mapping[LabelSet, float]]

    def by_version(self, name: str, **labels: str) -> dict[int, float]:
        """Sums of a counter, by the label ``version``; of samples that have these labels."""
        sums: dict[int, float] = defaultdict(float)
        for found, value in self._matching(name, labels):
            sums[int(found["version"])] += value
        return dict(sorted(sums.items()))

    def histograms_by_version(self, name: str, **labels: str) -> dict[int, Histogram]:
        """The histogram ``name`` for each version."""
        found: dict[int, Histogram] = defaultdict(Histogram)
        for sample, value in self._matching(f"{name}_bucket", labels):
            counts = found[int(sample["version"])].counts
            bound = float(sample["le"])
            counts[bound] = counts.get(bound, 0.0) + value
        return dict(sorted(found.items()))

    def _matching(self, name: str, labels: Mapping[str, str]) -> list[tuple[dict[str, str], float]]:
        return [
            (dict(found), value)
            for found, value in self.samples.get(name, {}).items()
            if labels.items() <= dict(found).items()
        ]


def read_page(text: str) -> Page:
    """Reads Prometheus' text format.

    Raises:
        ValueError: It is not that format.
    """
    samples: dict[str, dict[LabelSet, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name][frozenset(sample.labels.items())] = sample.value
    return Page(samples=samples)

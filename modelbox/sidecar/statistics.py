"""What the protocol's statistics say of each version: counts and times of its calls.

Owns the sums that the loader's own statistics do not have (rows, cache, the adapters' part of a call) and the form of
the answer. Times are cumulative since the sidecar started, in nanoseconds. Calls over the Unix socket are counted
like the protocol's own, except that reading and writing their frames is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from modelbox.loader.stats import CallStats

__all__ = ("VersionTally", "rows_of")


_MAX_SIZES = 512


def rows_of(inputs: Mapping[str, Any]) -> int:
    """The length of the first dimension that all inputs share; 1 where they do not."""
    rows = -1
    for value in inputs.values():
        shape = getattr(value, "shape", ())
        if not shape or (rows >= 0 and shape[0] != rows):
            return 1
        rows = shape[0]
    return rows if rows > 0 else 1


class VersionTally:
    """The calls that one version of one reference has answered.

    Attributes:
        version: Its number.
        run: The loader's statistics of its runs.
    """

    __slots__ = (
        "_alone",
        "_last_ns",
        "_unsized",
        "decode_ns",
        "encode_ns",
        "failed",
        "failed_ns",
        "hit_ns",
        "hits",
        "miss_ns",
        "misses",
        "ok",
        "ok_ns",
        "queue_ns",
        "rows",
        "run",
        "version",
    )

    def __init__(self, version: int, run: CallStats) -> None:
        self.version = version
        self.run = run
        self.ok = self.ok_ns = self.failed = self.failed_ns = self.queue_ns = self.rows = 0
        self.hits = self.hit_ns = self.misses = self.miss_ns = self.decode_ns = self.encode_ns = 0
        self._last_ns = 0
        self._alone: dict[int, list[int]] = {}
        self._unsized = 0

    def add(self, took_ns: int, rows: int, *, alone: bool) -> None:
        """One call that was run and answered; ``alone`` if its run was for it only."""
        self.ok += 1
        if alone:
            runs = self._alone.get(rows)
            if runs is None and len(self._alone) < _MAX_SIZES:
                runs = self._alone[rows] = [0, 0]
            if runs is not None:
                runs[0] += 1
                runs[1] += took_ns
            else:
                self._unsized += 1
        self.ok_ns += took_ns
        self.rows += rows
        self._last_ns = time.time_ns()

    def add_hit(self, took_ns: int) -> None:
        """One call that was answered from the cache."""
        self.ok += 1
        self.ok_ns += took_ns
        self.hits += 1
        self.hit_ns += took_ns
        self._last_ns = time.time_ns()

    def add_failed(self, took_ns: int) -> None:
        """One call that got an error."""
        self.failed += 1
        self.failed_ns += took_ns

    def to_json(self, name: str) -> dict[str, Any]:
        """One entry of the protocol's ``model_stats``."""
        run = self.run.snapshot()
        ran = self.ok - self.hits
        waited_ns = self.queue_ns + round(run.queue_s.sum * 1e9)
        infer_ns = max(self.ok_ns - self.hit_ns - waited_ns, 0)
        by_rows = {rows: list(runs) for rows, runs in self._alone.items()}
        for rows, (count, ns) in self.run.joined_runs().items():
            runs = by_rows.setdefault(rows, [0, 0])
            runs[0] += count
            runs[1] += ns
        return {
            "name": name,
            "version": str(self.version),
            "last_inference": self._last_ns // 1_000_000,
            "inference_count": self.rows,
            "execution_count": sum(count for count, _ in by_rows.values()) + self._unsized,
            "inference_stats": {
                "success": _pair(self.ok, self.ok_ns + self.decode_ns + self.encode_ns),
                "fail": _pair(self.failed, self.failed_ns),
                "queue": _pair(self.ok, waited_ns),
                "compute_input": _pair(ran, self.decode_ns),
                "compute_infer": _pair(ran, infer_ns),
                "compute_output": _pair(ran, self.encode_ns),
                "cache_hit": _pair(self.hits, self.hit_ns),
                "cache_miss": _pair(self.misses, self.miss_ns),
            },
            "response_stats": {},
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": _pair(count, 0),
                    "compute_infer": _pair(count, ns),
                    "compute_output": _pair(count, 0),
                }
                for rows, (count, ns) in sorted(by_rows.items())
            ],
            "memory_usage": [],
        }


def _pair(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}

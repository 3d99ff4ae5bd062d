"""What a run was, and what to show of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ("Outcome", "telling")

_OUTPUT_CHARS = 20_000


@dataclass(kw_only=True)
class Outcome:
    """What a run was.

    Attributes:
        seconds: How long the load lasted.
        answered: Good answers, by protocol or handle.
        operations: Done to models, by kind.
        failed: Calls that failed while the sidecar was away, by protocol.
        refused: Bad requests that were refused, by kind.
        faults: Done, by kind.
        violations: What must not be.
        output: What the programs printed from the first error on, if there were any; in part.
        memory: Resident bytes by process: at the start, at the end, and the most that was seen.
    """

    seconds: float = 0.0
    answered: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    output: dict[str, str] = field(default_factory=dict)
    memory: dict[str, tuple[int, int, int]] = field(default_factory=dict)


def telling(output: str) -> str:
    """The part of a log in which the first error stands, or its end."""
    first = output.find(" ERROR ")
    begin = max(0, first - 2000) if first >= 0 else max(0, len(output) - _OUTPUT_CHARS)
    return output[begin : begin + _OUTPUT_CHARS]

"""What the demo says: its progress, its claims with their evidence, and the table at the end."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from .latency import Figures

__all__ = ("Claim", "Report", "table")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Something that the demo set out to show, whether it held, and what was seen."""

    name: str
    held: bool
    evidence: str


class Report:
    """Prints as it goes and remembers what was claimed.

    Args:
        out: Where to print.
    """

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self.claims: list[Claim] = []
        self.figures: list[Figures] = []
        self._out = out
        self._began = time.monotonic()

    @property
    def held(self) -> bool:
        """Whether there was something to show and all of it held."""
        return bool(self.claims) and all(claim.held for claim in self.claims)

    def step(self, title: str) -> None:
        """Begins a step."""
        self._print(f"\n{title}")

    def say(self, text: str) -> None:
        """Tells what goes on, with the seconds since the start."""
        self._print(f"  {time.monotonic() - self._began:5.1f} s  {text}")

    def claim(self, name: str, held: bool, evidence: str) -> None:
        """Records one claim and prints it on a line of its own."""
        claim = Claim(name=name, held=held, evidence=evidence)
        self.claims.append(claim)
        self._print(f"  {self._verdict(claim)}     {name}: {evidence}")

    def show(self, text: str) -> None:
        """Prints a block of text, indented."""
        for line in text.splitlines():
            self._print(f"  {line}" if line else "")

    def finish(self) -> None:
        """Prints the table of figures and the verdict."""
        if self.figures:
            self._print("\nCalls of the clients; latency counts from when a call was due")
            self.show(table(self.figures))
        failed = [claim for claim in self.claims if not claim.held]
        for claim in failed:
            self._print(f"\n{self._verdict(claim)} {claim.name}: {claim.evidence}")
        kept = len(self.claims) - len(failed)
        self._print(f"\n{kept} of {len(self.claims)} claims held, in {time.monotonic() - self._began:.0f} s.")

    def write_json(self, path: Path) -> None:
        """Writes claims and figures for a program to read."""
        rows = [{k: None if v != v else v for k, v in asdict(row).items()} for row in self.figures]
        content = {"held": self.held, "claims": [asdict(claim) for claim in self.claims], "figures": rows}
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")

    def _verdict(self, claim: Claim) -> str:
        word = "ok  " if claim.held else "FAIL"
        if not self._out.isatty():
            return word
        return f"\x1b[{32 if claim.held else 31}m{word}\x1b[0m"

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)


def table(rows: Sequence[Figures]) -> str:
    """The figures, one row per phase, with a column for each version that answered."""
    versions = sorted({version for row in rows for version in row.by_version})
    head = ["phase", "calls", *(f"by v{version}" for version in versions), "failed", "p50 ms", "p99 ms", "max ms"]
    cells = [
        [
            row.phase,
            str(row.calls),
            *(str(row.by_version.get(version, 0)) for version in versions),
            str(row.failed),
            *("-" if math.isnan(ms) else f"{ms:.1f}" for ms in (row.p50_ms, row.p99_ms, row.max_ms)),
        ]
        for row in rows
    ]
    widths = [max(len(row[column]) for row in [head, *cells]) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        name, *numbers = row
        aligned = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
        return "  ".join([name.ljust(widths[0]), *aligned]).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, cells)])

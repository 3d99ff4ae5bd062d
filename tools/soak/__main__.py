"""``python -m tools.soak [--minutes N] [--seed N]``: mixed load and faults; 0 when nothing went wrong."""

from __future__ import annotations

import argparse
import resource
import secrets
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import anyio

from tools.soak.run import Outcome, soak


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.soak",
        description="Asks a sidecar over every protocol while versions move, bad requests come in, and the sidecar and "
        "the server are killed at random; checks every answer.",
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, help="of the faults, to repeat a run")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="write there, in a directory that is removed")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    _say(f"soak: {options.minutes:g} min, seed {seed}")
    with tempfile.TemporaryDirectory(prefix="modelbox-soak-", dir=options.directory) as name:
        outcome = anyio.run(lambda: soak(Path(name), seconds=options.minutes * 60, seed=seed, say=_say))
    _print(outcome, seed)
    return 1 if outcome.violations else 0


def _print(outcome: Outcome, seed: int) -> None:
    print(f"{outcome.seconds:.0f} s, seed {seed}")
    total = outcome.answered.total()
    print(f"operations: {total} good answers ({total / outcome.seconds:.0f}/s)")
    for name, count in outcome.answered.items():
        print(f"  {name:32} {count:9}  failed while the sidecar was away: {outcome.failed[name]}")
    for title, counts in (("bad requests, refused", outcome.refused), ("faults injected", outcome.faults)):
        print(f"{title}: {counts.total()}")
        for name, count in sorted(counts.items()):
            print(f"  {name:32} {count:9}")
    print("memory, MiB: start, end, most (a process that was killed starts anew)")
    for name, sizes in outcome.memory.items():
        print(f"  {name:32} {' '.join(f'{size / 2**20:9.1f}' for size in sizes)}")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  {'this process':32} {'':19} {own:9.1f}")
    print(f"violations: {len(outcome.violations)}")
    for text in dict.fromkeys(outcome.violations):
        print(f"  {text}")
    for name, text in outcome.output.items():
        print(f"--- what the {name} printed\n{text}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

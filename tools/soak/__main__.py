"""``python -m tools.soak [--minutes N] [--seed N] [--of PART]``: load and faults; 0 when nothing went wrong."""

from __future__ import annotations

import argparse
import resource
import secrets
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio

from tools.soak.outcome import Outcome
from tools.soak.run import soak
from tools.soak.whole import soak_whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.soak",
        description="Two parts, each for half of the time. sidecar: asks a sidecar over every protocol while versions "
        "move, bad requests come in, and the sidecar and the server are killed at random; checks every answer. whole: "
        "random operations and faults over two servers on one database, two loaders, a sidecar and two watchers, "
        "held against a model in memory.",
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, help="of the faults, to repeat a run")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="write there, in a directory that is removed")
    parser.add_argument("--of", choices=("both", "sidecar", "whole"), default="both", help="one part only")
    parser.add_argument("--mariadb", action="store_true", help="the whole on a MariaDB, and not on a PostgreSQL")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    _say(f"soak: {options.minutes:g} min, seed {seed}")
    parts = ("sidecar", "whole") if options.of == "both" else (options.of,)
    seconds = options.minutes * 60 / len(parts)
    violated = False
    for part in parts:
        with tempfile.TemporaryDirectory(prefix="mb-soak-", dir=options.directory) as name:
            directory = Path(name)
            if part == "sidecar":
                outcome = anyio.run(partial(soak, directory, seconds=seconds, seed=seed, say=_say))
            else:
                outcome = soak_whole(directory, seconds=seconds, seed=seed, say=_say, mariadb=options.mariadb)
        print(f"== {part}")
        _print(outcome, seed)
        violated |= bool(outcome.violations)
    return 1 if violated else 0


def _print(outcome: Outcome, seed: int) -> None:
    print(f"{outcome.seconds:.0f} s, seed {seed}")
    total = outcome.answered.total()
    print(f"answers: {total} good ones ({total / outcome.seconds:.0f}/s)")
    for name, count in outcome.answered.items():
        failed = f"  failed while the sidecar was away: {outcome.failed[name]}" if outcome.failed else ""
        print(f"  {name:32} {count:9}{failed}")
    for title, counts in (
        ("operations on models", outcome.operations),
        ("bad requests, refused", outcome.refused),
        ("faults injected", outcome.faults),
    ):
        if not counts:
            continue
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

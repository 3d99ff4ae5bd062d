"""``python -m bench [GROUP …] [--quick] [--database KIND] [--json FILE]``: measures, prints a table, and writes JSON.

Exits 0 when everything could be measured, whether or not aims were reached: a figure is a statement about a machine,
and a busy one is no reason to fail a build.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from bench.databases import Databases, Kind
from bench.figure import Figure
from bench.machine import describe
from bench.report import print_table, write_json
from bench.run import Run

GROUPS: dict[str, str] = {
    "predict": "calls in the process against the bare runtime, on every event loop",
    "telemetry": "what one record costs",
    "open": "load with everything in the cache against opening the file",
    "cold": "load with an empty cache against receiving and writing the bytes",
    "artifacts": "upload and download of one large file, and memory on both sides",
    "s3": "upload and download of one large file with an S3 store, through the server and past it",
    "sidecar": "calls through a sidecar's Unix socket against an echo over one",
    "oip": "calls of the Open Inference Protocol through a sidecar against bare servers",
    "swap": "from a promotion to the first answer, and what callers see of it",
    "swaps": "memory over many swaps",
    "start": "start and idle memory of the server",
    "resolve": "one small call to the server",
    "feed": "commits per second through the server",
    "spool": "what logging costs a training program",
    "tracking": "points of metrics and runs through the server, and reading them back",
    "points": "points of metrics on PostgreSQL, through the server against asyncpg alone",
    "find": "finding runs among a thousand to a hundred thousand of them",
    "watch": "a change on its way to many watchers",
    "fanout": "processor time of the feed for thousands of watchers",
    "backends": "commits, runs and points per second and changes between two replicas, on each database",
}
"""Modules of `bench.groups`, in the order in which they run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures ModelBox beside the floors of this machine.",
        epilog="groups:\n" + "\n".join(f"  {name:10} {what}" for name, what in GROUPS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="what to measure; everything without")
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--database", type=Kind, choices=list(Kind), default=Kind.SQLITE, help="what servers keep everything in"
    )
    parser.add_argument("--directory", type=Path, metavar="DIR", help="write test files there (up to 12 GiB)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.groups if name not in GROUPS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(GROUPS)}")

    figures: list[Figure] = []
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="modelbox-bench-", dir=options.directory))
        directory = Path(name)
        about = describe(directory) | {"quick": options.quick, "database": options.database.value}
        group_s: dict[str, float] = {}
        databases = stack.enter_context(Databases())
        run = Run(directory=directory, quick=options.quick, say=_say, databases=databases, database=options.database)
        began = time.monotonic()
        for group in options.groups or GROUPS:
            _say(f"{group}: {GROUPS[group]}")
            started = time.monotonic()
            try:
                figures += import_module(f"bench.groups.{group}").measure(run)
            except Exception as exc:
                traceback.print_exc()
                failed[group] = f"{type(exc).__name__}: {exc}"
            group_s[group] = round(time.monotonic() - started, 1)
        about |= {"took_s": round(time.monotonic() - began, 1), "group_s": group_s}
    print_table(figures, about)
    if options.json is not None:
        write_json(options.json, figures, about, failed)
    if failed:
        _say(f"could not be measured: {', '.join(failed)}")
    missed = [figure.name for figure in figures if figure.reached is False]
    _say(f"{about['took_s']} s, {len(figures)} figures" + (f", aims missed: {', '.join(missed)}" if missed else ""))
    return 1 if failed else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""``python -m examples.demo``: plays the demo; exit code 0 only if every claim held."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import anyio

from .processes import DemoError
from .report import Report
from .steps import DemoSettings, play


def main(arguments: Sequence[str] | None = None) -> int:
    """Plays the demo in a temporary directory; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--clients", type=int, default=8, help="how many call at once (8)")
    parser.add_argument("--calls", type=int, default=100, help="answers to wait for in each phase (100)")
    parser.add_argument("--within", type=float, default=5.0, help="seconds that clients may take to follow a move (5)")
    parser.add_argument("--keep", action="store_true", help="keep the directory with all data and logs")
    parser.add_argument("--json", type=Path, help="write claims and figures to this file as well")
    options = parser.parse_args(arguments)
    if options.clients < 1 or options.calls < 1:
        parser.error("--clients and --calls must be at least 1")

    directory = Path(tempfile.mkdtemp(prefix="modelbox-demo-"))
    report = Report()
    try:
        settings = DemoSettings(clients=options.clients, calls=options.calls, swap_within_s=options.within)
        interrupted = anyio.run(_play_until_signal, report, directory, settings)
        if options.json is not None:
            report.write_json(options.json)
    finally:
        if options.keep:
            print(f"Data and logs: {directory}", flush=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    if interrupted is not None:
        print(f"\nInterrupted by {interrupted.name}; everything that was started has ended.", flush=True)
        return 128 + interrupted
    return 0 if report.held else 1


async def _play_until_signal(report: Report, directory: Path, settings: DemoSettings) -> signal.Signals | None:
    interrupted: list[signal.Signals] = []

    async def cancel_at_signal(scope: anyio.CancelScope) -> None:
        async for received in signals:
            interrupted.append(received)
            scope.cancel()

    # The receiver outlives the cancellation, so that a second Ctrl-C does not cut the clean-up short.
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_at_signal, tasks.cancel_scope, name="signals")
            await _play(report, directory, settings)
            tasks.cancel_scope.cancel()
    return interrupted[0] if interrupted else None


async def _play(report: Report, directory: Path, settings: DemoSettings) -> None:
    try:
        await play(report, directory, settings)
    except* DemoError as group:
        for error in _leaves(group):
            report.claim("the demo went through to its end", False, error.headline)
    report.finish()


def _leaves(group: BaseExceptionGroup[DemoError]) -> list[DemoError]:
    found: list[DemoError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    sys.exit(main())

"""``modelbox server gc`` and ``du``, and what ``fsck`` shares with them: space of a running server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.exits import Exit
from modelbox.cli.output import (
    OutputFormat,
    OutputOption,
    UrlOption,
    note,
    print_json,
    print_line,
    print_table,
    size_text,
)
from modelbox.cli.run import with_client

if TYPE_CHECKING:
    from modelbox.client import Client
    from modelbox.space import Collected, SpaceCheck, SpaceReport, Usage

__all__ = ("du", "fsck_of_server", "gc", "print_report", "say_check")


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Remove bytes that no version and no artifact has had for the server's grace time (blob_grace_s).

    The server does so by itself every hour. Uploads and publications may go on meanwhile.

    Example: modelbox server gc --dry-run
    """

    def say(done: Collected) -> None:
        _progress(f"{done.blobs} files, {size_text(done.bytes)}; looked at {done.seen}")

    async def run(client: Client) -> None:
        done = await client.collect_garbage(dry_run=dry_run, on_progress=say)
        if output is OutputFormat.JSON:
            print_json(done)
            return
        verb = "would remove" if dry_run else "removed"
        print_line(
            f"{verb} {done.blobs} files, {size_text(done.bytes)}"
            f"{f'; {done.orphans} of them were remains of broken uploads' if done.orphans else ''}"
        )

    with_client(url, run)


def du(
    namespace: Annotated[
        str, typer.Argument(metavar="[NAMESPACE]", help="Its models; all namespaces if left out.")
    ] = "",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show who uses how much space. Equal bytes count once in each line, so lines need not add up.

    Example: modelbox server du langtech
    """

    async def run(client: Client) -> None:
        usage = [one async for one in client.iter_usage(namespace)]
        totals = await client.space_totals()
        if output is OutputFormat.JSON:
            print_json({"usage": usage, "totals": totals})
            return
        _print_usage(usage, models=bool(namespace))
        if not namespace:
            note(
                f"{totals.blobs} different files in all, {size_text(totals.bytes_blobs)}; {totals.uploads} unfinished "
                "uploads"
            )

    with_client(url, run)


def _print_usage(usage: list[Usage], *, models: bool) -> None:
    columns = ["MODEL" if models else "NAMESPACE", "VERSIONS", "OF VERSIONS", "OF ARTIFACTS"]
    if not models:
        columns += ["HELD", "UNUSED", "QUOTA"]
    rows = []
    for one in usage:
        row = [one.path, str(one.versions), size_text(one.bytes_versions), size_text(one.bytes_artifacts)]
        if not models:
            quota = "" if one.quota_bytes is None else size_text(one.quota_bytes)
            row += [size_text(one.bytes_held), size_text(one.bytes_unused), quota]
        rows.append(row)
    print_table(columns, rows, empty="nothing is stored", numbers=columns[1:])


def fsck_of_server(url: str | None, *, checksums: bool, repair: bool) -> SpaceReport:
    """Has a running server check itself."""

    async def run(client: Client) -> SpaceReport:
        return await client.check_space(checksums=checksums, repair=repair, on_progress=say_check)

    return with_client(url, run)


def print_report(report: SpaceReport, output: OutputFormat) -> None:
    """What a check found; exits where something is wrong and not repaired."""
    if output is OutputFormat.JSON:
        print_json(report)
    else:
        rows = [
            (one.kind, one.subject, one.detail, ", ".join(one.used_by), "yes" if one.repaired else "")
            for one in report.findings
        ]
        if rows:
            print_table(("WRONG", "WHAT", "HOW", "USED BY", "REPAIRED"), rows, empty="")
        counts = ", ".join(f"{count} {stage}" for stage, count in report.checked.items())
        print_line(f"{len(rows)} findings; checked {counts}; read {size_text(report.bytes_read)}")
    if any(not one.repaired for one in report.findings):
        raise typer.Exit(Exit.INTEGRITY)


def say_check(said: SpaceCheck) -> None:
    """How far a check is, where somebody is looking."""
    _progress(f"{said.stage}: {said.checked}{f', read {size_text(said.bytes_read)}' if said.bytes_read else ''}")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}\r")
        sys.stderr.flush()

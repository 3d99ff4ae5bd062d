"""``modelbox cache …``: what this user's processes have downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.output import (
    OutputFormat,
    OutputOption,
    local_time,
    note,
    print_json,
    print_line,
    print_table,
    short_digest,
    size_text,
)
from modelbox.errors import IntegrityError, InvalidError

if TYPE_CHECKING:
    from modelbox.loader.cache import Cache

__all__ = ("app",)

app = typer.Typer(
    help="The local cache of downloaded models.",
    epilog="Example: modelbox cache prune --max-bytes '5 GiB'",
    no_args_is_help=True,
)

DirectoryOption = Annotated[
    Path | None, typer.Option("--cache-dir", metavar="DIR", help="The cache, instead of MODELBOX_CACHE_DIR.")
]


def _open(directory: Path | None, max_bytes: str | None = None) -> tuple[Cache, int]:
    from modelbox.config import load_client_config
    from modelbox.loader.cache import Cache

    config = load_client_config(cache_dir=directory, cache_max_bytes=max_bytes)
    cache = Cache(config.cache_dir, max_bytes=config.cache_max_bytes)
    cache.open()
    return cache, config.cache_max_bytes


@app.command("list")
def list_entries(cache_dir: DirectoryOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """List the versions in the cache, least recently used first.

    Example: modelbox cache list
    """
    cache, _ = _open(cache_dir)
    entries = cache.usage()
    if output is OutputFormat.JSON:
        print_json(entries)
        return
    rows = [
        (
            ", ".join(entry.names) or "-",
            short_digest(entry.digest),
            size_text(entry.size_bytes),
            entry.files,
            "in use" if entry.leased else "complete" if entry.complete else "incomplete",
            local_time(entry.last_used_at),
        )
        for entry in entries
    ]
    print_table(("VERSION", "DIGEST", "SIZE", "FILES", "STATE", "LAST USED"), rows, empty=f"{cache.directory} is empty")


@app.command("verify")
def verify(cache_dir: DirectoryOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Hash every file again, and remove what is not what it should be.

    Example: modelbox cache verify
    """
    cache, _ = _open(cache_dir)
    report = cache.verify()
    if output is OutputFormat.JSON:
        print_json(report)
    else:
        for problem in report.problems:
            note(f"{problem.path}: {problem.reason}{', removed' if problem.removed else ''}")
        print_line(f"verified {report.files} files, {size_text(report.size_bytes)}: {len(report.problems)} problems")
    if report.problems:
        raise IntegrityError(
            f"{len(report.problems)} files in {cache.directory} were not what their digests say; "
            "what was removed is downloaded again when it is needed"
        )


@app.command("prune")
def prune(
    max_bytes: Annotated[
        str | None,
        typer.Option("--max-bytes", metavar="SIZE", help="Keep at most this: bytes, or text such as '5 GiB'."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Keep only what is in use.")] = False,
    cache_dir: DirectoryOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Remove versions that were not used for longest, until the cache is small enough.

    Example: modelbox cache prune --max-bytes '5 GiB'
    """
    if everything and max_bytes is not None:
        raise InvalidError("give either --all or --max-bytes")
    cache, limit = _open(cache_dir, max_bytes)
    removed = cache.prune(0 if everything else limit)
    if output is OutputFormat.JSON:
        print_json({"removed_bytes": removed})
    else:
        print_line(f"removed {size_text(removed)} from {cache.directory}")

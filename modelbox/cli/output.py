"""What commands print: results on stdout, progress and errors on stderr.

Owns the two forms, ``table`` for people and ``json`` for programs, and the options that every command shares. Text that
came from elsewhere is printed without its control characters, so that no model's description drives a terminal.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelbox.errors import FindError, ModelBoxError
from modelbox.objects import JsonValue, to_json
from modelbox.redaction import redact

if TYPE_CHECKING:
    from modelbox._local_files import Progress

__all__ = (
    "CsvOutput",
    "OutputFormat",
    "OutputOption",
    "UrlOption",
    "fields",
    "local_time",
    "note",
    "number_text",
    "pairs_text",
    "plain",
    "print_error",
    "print_json",
    "print_line",
    "print_table",
    "print_text",
    "progress_bar",
    "short_digest",
    "size_text",
    "time_text",
    "value_text",
)

_NUMBERS = frozenset(["COUNT", "EPOCH", "FILES", "LATEST", "MAX", "MIN", "POINTS", "RECORDS", "REV", "SIZE", "STEP"])


class OutputFormat(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[
    OutputFormat,
    typer.Option("--output", "-o", help="How to print the result; errors on stderr take the same form."),
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="HTTP address of the server, instead of MODELBOX_URL and the settings."),
]


def plain(value: object) -> str:
    """``value`` as one line without control characters."""
    text = "" if value is None else str(value)
    return text if text.isprintable() else "".join(ch if ch.isprintable() else _escaped(ch) for ch in text)


def _escaped(ch: str) -> str:
    return " " if ch in "\n\r\t" else ascii(ch)[1:-1]


def print_line(text: str) -> None:
    """One line on stdout, at once."""
    sys.stdout.write(f"{plain(text)}\n")
    sys.stdout.flush()


def print_text(text: str) -> None:
    """Text of several lines on stdout, such as a readme."""
    for line in text.splitlines():
        sys.stdout.write(f"{plain(line).rstrip()}\n")
    sys.stdout.flush()


def print_json(value: object, *, lines: bool = False) -> None:
    """A value of the library, or plain JSON, on stdout; with ``lines`` on one line of its own."""
    indent = None if lines else 2
    sys.stdout.write(json.dumps(to_json(value), indent=indent, ensure_ascii=False, allow_nan=True) + "\n")
    sys.stdout.flush()


class CsvOutput:
    """Where a `csv.writer` writes to for stdout: lines end as every line here does."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()

    def write(self, row: str) -> int:
        """One row with its end."""
        line = row.removesuffix("\r\n")
        return sys.stdout.write(f"{plain(line) if self._terminal else line}\n")


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str, numbers: Collection[str] = _NUMBERS
) -> None:
    """A table on stdout; ``empty`` says on stderr that there is nothing, ``numbers`` are columns set to the right."""
    if not rows:
        note(empty)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(Text(plain(name)), overflow="fold", justify="right" if name in numbers else "left")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    # A pipe has no width; a line per row is what grep and awk want.
    console = Console(width=4096, highlight=False, color_system=None, file=io.StringIO())
    with console.capture() as captured:
        console.print(table)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())
    sys.stdout.flush()


def fields(pairs: Mapping[str, object]) -> None:
    """Names and values on stdout, one a line; empty values are left out."""
    shown = {name: plain(value) for name, value in pairs.items() if value not in (None, "", (), {})}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        sys.stdout.write(f"{name:<{width}}  {value}\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """A remark on stderr."""
    sys.stderr.write(f"{plain(text)}\n")
    sys.stderr.flush()


def print_error(error: ModelBoxError, output: OutputFormat) -> None:
    """An error on stderr: one line (and where a query is wrong, the place in it below), or a JSON object."""
    if output is OutputFormat.JSON:
        told = error.to_dict()
        if error.request_id:
            # What an admin looks for in the audit log, and in the server's own.
            told["request_id"] = error.request_id
        sys.stderr.write(json.dumps(to_json(told), ensure_ascii=False, default=str) + "\n")
    elif isinstance(error, FindError):
        for line in redact(f"error: {error}").splitlines():
            # The last one is blanks and a caret.
            sys.stderr.write(f"{plain(line)}\n")
        sys.stderr.flush()
    else:
        note(redact(f"error: {error}"))


@contextmanager
def progress_bar(text: str, output: OutputFormat) -> Iterator[Progress | None]:
    """A bar on stderr, where somebody is looking; yields what to call with bytes done and bytes in all."""
    if output is OutputFormat.JSON or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(plain(text), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def size_text(size_bytes: int) -> str:
    """A size as people read it."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def local_time(value: datetime) -> str:
    """A time in the local zone, to the second."""
    return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def time_text(value: timedelta) -> str:
    """A duration as people read it."""
    seconds = value.total_seconds()
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def number_text(value: float | None) -> str:
    """A number to six digits; empty for None."""
    return "" if value is None else f"{value:.6g}"


def value_text(value: JsonValue, *, max_chars: int = 100) -> str:
    """A JSON value on one line; what is longer is cut and says so."""
    text = value if isinstance(value, str) else json.dumps(to_json(value), ensure_ascii=False)
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"


def short_digest(digest: str) -> str:
    """The first 12 digits."""
    return digest.removeprefix("sha256:")[:12]


def pairs_text(values: Mapping[str, Any]) -> str:
    """``key=value`` pairs on one line."""
    return ", ".join(f"{key}={value}" for key, value in sorted(values.items()))

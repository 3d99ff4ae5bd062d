"""``modelbox spool …``: what programs recorded and the server has not got yet."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.output import (
    OutputFormat,
    OutputOption,
    UrlOption,
    local_time,
    note,
    print_json,
    print_line,
    print_table,
    size_text,
)
from modelbox.cli.run import with_client

if TYPE_CHECKING:
    from modelbox.client import Client
    from modelbox.spool import PushedSpool, SpoolStatus

__all__ = ("app",)

app = typer.Typer(
    help="What programs recorded on this machine and the server has not got yet.",
    epilog="Example: modelbox spool status",
    no_args_is_help=True,
)

DirectoryOption = Annotated[
    Path | None, typer.Option("--directory", metavar="DIR", help="Where spools lie, instead of the setting spool_dir.")
]


@app.command("status")
def status(directory: DirectoryOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """List spools, whose they are, and how much is in them.

    Example: modelbox spool status
    """
    from modelbox.config import load_client_config
    from modelbox.spool import spool_status

    where = directory or load_client_config().spool_dir
    found = spool_status(Path(where))
    if output is OutputFormat.JSON:
        print_json(
            [
                {
                    "spool": one.about.spool,
                    "directory": str(one.about.directory),
                    "url": one.about.url,
                    "actor": one.about.actor,
                    "host": one.about.host,
                    "pid": one.about.pid,
                    "created_at": _created(one.about.created_us),
                    "owned": one.owned,
                    "refused": one.about.refused,
                    "records": one.records,
                    "size_bytes": one.size_bytes,
                    "damaged": one.damaged,
                    "open_runs": one.open_runs,
                }
                for one in found
            ]
        )
        return
    rows = [
        (
            one.about.spool,
            f"{_state(one)}{', damaged' if one.damaged else ''}",
            one.records,
            size_text(one.size_bytes),
            one.about.url,
            f"{one.about.host}:{one.about.pid}",
            local_time(_created(one.about.created_us)),
            ", ".join(one.open_runs),
        )
        for one in found
    ]
    columns = ("SPOOL", "STATE", "RECORDS", "SIZE", "SERVER", "PROCESS", "SINCE", "OPEN RUNS")
    print_table(columns, rows, empty=f"there are no spools in {where}: everything was delivered")
    if any(not one.owned and not one.about.refused for one in found):
        note("`modelbox spool push` delivers what was left behind")
    if any(not one.owned and one.about.refused for one in found):
        note(
            "refused: what it is about was not there, or hidden from the caller; `modelbox spool push` offers it again,"
            " and whoever does not want it removes its directory"
        )


def _state(status: SpoolStatus) -> str:
    if status.owned:
        return "in use"
    return "refused" if status.about.refused else "left behind"


def _created(created_us: int) -> datetime:
    return datetime.fromtimestamp(created_us / 1e6, UTC)


@app.command("push")
def push(
    directory: DirectoryOption = None,
    any_url: Annotated[
        bool, typer.Option("--any-url", help="Also what was recorded for a server of another address.")
    ] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Deliver what programs that are gone have left behind; of those that still run, nothing is touched.

    What was refused before because it is about something that was not there, or hidden, is offered again.

    Exits with the error of the first spool that could not be delivered.

    Example: modelbox spool push
    """

    async def run(client: Client) -> None:
        pushed = await client.push_spools(directory, any_url=any_url)
        if output is OutputFormat.JSON:
            print_json([_json(one) for one in pushed])
        else:
            _print(pushed, client.config.url, any_url=any_url)
        for one in pushed:
            if one.error is not None:
                raise one.error

    with_client(url, run)


def _json(pushed: PushedSpool) -> dict[str, object]:
    return {
        "spool": pushed.about.spool,
        "url": pushed.about.url,
        "delivered": pushed.delivered,
        "refused": [
            {"rejection": one.rejection, "object": one.object, "what": one.what, "kept": one.kept}
            for one in pushed.refused
        ],
        "error": None if pushed.error is None else pushed.error.to_dict(),
    }


def _print(pushed: tuple[PushedSpool, ...], url: str, *, any_url: bool) -> None:
    if not pushed:
        note(f"nothing was left behind{'' if any_url else f' for {url}'}")
    for one in pushed:
        rest = "; the rest is kept" if one.error is not None else ""
        print_line(f"delivered {one.delivered} records of {one.about.spool}, {len(one.refused)} refused{rest}")
        for refusal in one.refused:
            kept = " (kept for another push)" if refusal.kept else ""
            note(f"refused{kept}: {refusal.what} of {refusal.object or 'no object'}: {refusal.rejection.message}")

"""``modelbox watch`` and ``modelbox fleet``: what happens, and who serves what."""

from __future__ import annotations

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
)
from modelbox.cli.run import with_client
from modelbox.feed import Change, Kind, Resync
from modelbox.objects import InstanceState

if TYPE_CHECKING:
    from modelbox.client import Client

__all__ = ("fleet", "watch")


def watch(
    objects: Annotated[
        list[str] | None, typer.Argument(metavar="[NAMESPACE/MODEL...]", help="Only these models.")
    ] = None,
    namespace: Annotated[str, typer.Option("--namespace", help="Only of this namespace.")] = "",
    kind: Annotated[
        list[Kind] | None, typer.Option("--kind", help="Only changes of this kind; may be given several times.")
    ] = None,
    token: Annotated[str, typer.Option("--token", help="Go on after this place (`token` in JSON output).")] = "",
    list_first: Annotated[bool, typer.Option("--list", help="Begin with the current state of everything.")] = False,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="Stop after this many changes; default: never.")
    ] = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Print changes as they happen, across broken connections; with --output json one JSON object a line.

    Example: modelbox watch langtech/wav2vec --kind alias
    """

    async def run(client: Client) -> None:
        seen = 0
        feed = client.changes(
            token,
            namespace=namespace,
            objects=objects or (),
            kinds=[str(one) for one in kind or ()],
            list_first=list_first,
        )
        async with feed:
            async for change in feed:
                _print_change(change, feed.token, output)
                seen += isinstance(change, Change)
                if seen == count:
                    return

    with_client(url, run)


def _print_change(change: Change | Resync, token: str, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_json({"token": token, "resync" if isinstance(change, Resync) else "change": change}, lines=True)
    elif isinstance(change, Resync):
        note(f"history is gone ({change.reason}): {change.message}; the current state follows")
    else:
        target = f"  -> {change.state['version']}" if _moved(change) else ""
        actor = f"  by {change.actor}" if change.actor else ""
        print_line(
            f"{local_time(change.at)}  {change.rev:>6}  {change.kind:<9}  {change.action:<7}  "
            f"{change.object}{target}{actor}"
        )


def _moved(change: Change) -> bool:
    return change.kind == Kind.ALIAS and isinstance(change.state, dict) and "version" in change.state


def fleet(
    path: Annotated[
        str, typer.Argument(metavar="[NAMESPACE or NAMESPACE/MODEL]", help="Only instances that serve these.")
    ] = "",
    include_lost: Annotated[bool, typer.Option("--all", help="Also instances that fell silent.")] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List which process serves which version now.

    Example: modelbox fleet langtech/wav2vec
    """

    async def run(client: Client) -> None:
        found = [instance async for instance in client.iter_instances(path, include_lost=include_lost)]
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = []
        for instance in found:
            report = instance.report
            state = report.state if instance.alive or report.state == InstanceState.GONE else "lost"
            wanted = report.target_version if report.target_version not in (0, report.version) else ""
            why = f"{report.stage}: {report.reason}" if report.reason else ""
            rows.append(
                (
                    report.ref,
                    report.version or "-",
                    wanted,
                    f"{state}, stale" if report.stale else state,
                    report.host,
                    report.pid,
                    local_time(instance.last_seen_at),
                    why,
                )
            )
        columns = ("REF", "SERVES", "WANTED", "STATE", "HOST", "PID", "LAST SEEN", "REASON")
        print_table(columns, rows, empty="no instances")

    with_client(url, run)

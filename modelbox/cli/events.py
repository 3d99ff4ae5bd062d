"""``modelbox events …``: what outside systems report of objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.models import MetadataOption
from modelbox.cli.objects import ObjectArgument, object_id
from modelbox.cli.output import (
    OutputFormat,
    OutputOption,
    UrlOption,
    local_time,
    note,
    print_json,
    print_line,
    print_table,
    value_text,
)
from modelbox.cli.run import json_pairs, time_of, with_client

if TYPE_CHECKING:
    from modelbox.client import Client
    from modelbox.tracking import Event

__all__ = ("app",)

app = typer.Typer(
    help="Events: what outside systems report of objects.",
    epilog="Example: modelbox events list langtech --since 1d",
    no_args_is_help=True,
)


@app.command("list")
def list_events(
    target: ObjectArgument,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only what happened then or later: a time, or 7d.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Only what happened before: a time, or 7d.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Only events of this name.")] = "",
    source: Annotated[str, typer.Option("--source", help="Only from this source.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 100,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List the events of an object, or all in a namespace, newest first.

    Example: modelbox events list langtech --since 2026-05-03 --source scheduler
    """
    begin = time_of(since, "--since") if since else None
    end = time_of(until, "--until") if until else None

    async def run(client: Client) -> None:
        found: list[Event] = []
        object_name = await object_id(client, target)
        async for event in client.iter_events(object_name, since=begin, until=end, name=name, source=source):
            if len(found) == limit:
                note(f"there are more than {limit}: --limit shows more of them")
                break
            found.append(event)
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = [
            (local_time(one.at), one.name, one.source, one.object, value_text(one.metadata) if one.metadata else "")
            for one in found
        ]
        print_table(("WHEN", "NAME", "SOURCE", "OBJECT", "METADATA"), rows, empty=f"{target} has no such events")

    with_client(url, run)


@app.command("log")
def log(
    target: ObjectArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What happened, such as gpu.lost.")],
    source: Annotated[str, typer.Option("--source", help="Who says so, such as scheduler.")] = "",
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="When it happened: a time, or 5m for ago; default: now.")
    ] = None,
    metadata: MetadataOption = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Record that something happened to an object.

    Example: modelbox events log langtech/wav2vec gpu.lost --source scheduler --metadata node=7
    """
    when = time_of(at, "--at") if at else None
    values = json_pairs(metadata or [], "--metadata")

    async def run(client: Client) -> None:
        event = await client.log_event(await object_id(client, target), name, source=source, at=when, metadata=values)
        if output is OutputFormat.JSON:
            print_json(event)
        else:
            print_line(f"logged {event.name} of {event.object} {event.id}")

    with_client(url, run)

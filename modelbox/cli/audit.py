"""``modelbox audit …``: who did what to which object, from where, with before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelbox.cli.audit_verify import Compared, compare, open_new, read_export
from modelbox.cli.exits import Exit
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
from modelbox.cli.run import time_of, with_client
from modelbox.feed import Action, Kind
from modelbox.objects import JsonValue, to_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from modelbox.audit import AuditEntry
    from modelbox.client import Client

__all__ = ("app",)

app = typer.Typer(
    help="The audit log: who did what, from where, with before and after; for admins.",
    epilog="Example: modelbox audit list --object langtech/wav2vec@prod",
    no_args_is_help=True,
)

ActorOption = Annotated[str, typer.Option("--actor", help="Only what this account did.")]
NamespaceOption = Annotated[str, typer.Option("--namespace", help="Only what happened there.")]
ObjectOption = Annotated[
    str, typer.Option("--object", help="Only this path or id; a model's takes in its versions and aliases.")
]
KindOption = Annotated[
    list[Kind] | None, typer.Option("--kind", help="Only objects of this kind; may be given several times.")
]
ActionOption = Annotated[
    list[Action] | None, typer.Option("--action", help="Only this action; may be given several times.")
]
DenialsOption = Annotated[bool, typer.Option("--denials", help="Only calls that were refused.")]
TokenOption = Annotated[str, typer.Option("--token-id", help="Only with this token, by its public part.")]
AddressOption = Annotated[str, typer.Option("--address", help="Only from there.")]
RequestOption = Annotated[str, typer.Option("--request-id", help="Only by this call, as its error names it.")]
SinceOption = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="Only what happened then or later: a time, or 7d.")
]
UntilOption = Annotated[
    str | None, typer.Option("--until", metavar="TIME", help="Only what happened before: a time, or 7d.")
]

_SHOWN_FIELDS = 4
_TOLD_BY_OTHERS = frozenset(["mod_rev", "updated_at"])
"""Fields that change with every change."""


@app.command("list")
def list_audit(
    actor: ActorOption = "",
    namespace: NamespaceOption = "",
    object_path: ObjectOption = "",
    kind: KindOption = None,
    action: ActionOption = None,
    denials: DenialsOption = False,
    token_id: TokenOption = "",
    address: AddressOption = "",
    request_id: RequestOption = "",
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 100,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List what was done, newest first.

    Example: modelbox audit list --actor ci-bot --since 7d --action deleted
    """

    async def run(client: Client) -> None:
        found: list[AuditEntry] = []
        entries = _entries(
            client,
            actor=actor,
            namespace=namespace,
            object=object_path,
            kind=kind,
            action=action,
            denials=denials,
            token_id=token_id,
            address=address,
            request_id=request_id,
            since=since,
            until=until,
        )
        async for entry in entries:
            if len(found) == limit:
                note(f"there are more than {limit}: --limit shows more of them")
                break
            found.append(entry)
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = [
            (
                local_time(one.at),
                one.rev,
                one.actor,
                one.address,
                one.action,
                one.kind,
                one.object,
                _difference(one),
            )
            for one in found
        ]
        columns = ("WHEN", "REV", "WHO", "FROM", "ACTION", "KIND", "OBJECT", "WHAT")
        print_table(columns, rows, empty="nothing of the kind")

    with_client(url, run)


@app.command("export")
def export_audit(
    actor: ActorOption = "",
    namespace: NamespaceOption = "",
    object_path: ObjectOption = "",
    kind: KindOption = None,
    action: ActionOption = None,
    denials: DenialsOption = False,
    token_id: TokenOption = "",
    address: AddressOption = "",
    request_id: RequestOption = "",
    since: SinceOption = None,
    until: UntilOption = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="A new file to write; default: stdout.")
    ] = None,
    url: UrlOption = None,
) -> None:
    """Write what was done, oldest first: one JSON object a line, with whole states before and after.

    Example: modelbox audit export --since 30d --file audit.jsonl
    """

    async def run(client: Client) -> None:
        entries = _entries(
            client,
            actor=actor,
            namespace=namespace,
            object=object_path,
            kind=kind,
            action=action,
            denials=denials,
            token_id=token_id,
            address=address,
            request_id=request_id,
            since=since,
            until=until,
            oldest_first=True,
        )
        count = 0
        with open_new(file) as lines:
            async for entry in entries:
                lines.write(f"{json.dumps(to_json(entry), ensure_ascii=False)}\n")
                count += 1
        if file is not None:
            note(f"wrote {count} entries into {file}")

    with_client(url, run)


@app.command("verify")
def verify_audit(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What modelbox audit export printed.", exists=True, dir_okay=False)
    ],
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Compare an export with what the server says now: nothing in it may be altered or gone.

    Finds what modelbox server fsck cannot: a history that was rewritten as a whole. Exits with 6 where something is not
    what it was.

    Example: modelbox audit verify audit.jsonl
    """
    times = [entry.at for entry in read_export(file)]

    async def run(client: Client) -> Compared:
        if not times:
            return Compared()
        oldest = await anext(client.iter_audit(oldest_first=True), None)
        # To the end, and not to the last time: clocks may have been set.
        now = client.iter_audit(since=min(times), oldest_first=True)
        return await compare(read_export(file), now, oldest_rev=oldest.rev if oldest is not None else 1)

    found = with_client(url, run)
    if output is OutputFormat.JSON:
        print_json(found)
    else:
        for fault in found.faults:
            print_line(fault)
        old = f", {found.forgotten} are older than what the server keeps" if found.forgotten else ""
        print_line(f"{found.same} entries are as they were, {found.wrong} are not{old}")
    if found.wrong:
        raise typer.Exit(Exit.INTEGRITY)


def _entries(
    client: Client,
    *,
    kind: list[Kind] | None,
    action: list[Action] | None,
    since: str | None,
    until: str | None,
    **wanted: Any,
) -> AsyncIterator[AuditEntry]:
    return client.iter_audit(
        kinds=[str(one) for one in kind or ()],
        actions=[str(one) for one in action or ()],
        since=time_of(since, "--since") if since else None,
        until=time_of(until, "--until") if until else None,
        **wanted,
    )


def _difference(entry: AuditEntry) -> str:
    """What is other than it was, on one line."""
    before, after = entry.before, entry.after
    if entry.kind == Kind.DENIAL and isinstance(after, dict):
        if after.get("others"):
            return f"{after.get('count')} refusals of {after.get('others')} kinds"
        needs = f", needs {after['permission']}" if after.get("permission") else ""
        return f"{after.get('count')} x {after.get('method')}{needs}"
    if not isinstance(before, dict) or not isinstance(after, dict):
        return ""
    changed = [name for name in after if name not in _TOLD_BY_OTHERS and after[name] != before.get(name)]
    shown = [f"{name}: {_short(before.get(name))} -> {_short(after[name])}" for name in changed[:_SHOWN_FIELDS]]
    return ", ".join(shown) + (", …" if len(changed) > _SHOWN_FIELDS else "")


def _short(value: JsonValue) -> str:
    return value_text(value, max_chars=40)

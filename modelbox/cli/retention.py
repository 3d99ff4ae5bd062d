"""``modelbox retention …``: what is kept; ``modelbox versions …``: locks; ``modelbox quotas …``: how much space."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.objects import ask
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
from modelbox.cli.run import seconds_of, with_client
from modelbox.errors import InvalidError
from modelbox.refs import shown
from modelbox.retention import Best, BestMode, RetentionPolicy, check_kind

if TYPE_CHECKING:
    from modelbox.client import Client

__all__ = ("quotas", "retention", "versions")

retention = typer.Typer(
    help="What is kept of versions, checkpoints, runs and the bin; the rest goes by itself.",
    epilog="Example: modelbox retention set langtech --keep-last 10 --keep-best 3:wer:min --keep-younger 30d",
    no_args_is_help=True,
)
versions = typer.Typer(
    help="Locks on versions: what is locked is deleted by nobody.",
    epilog='Example: modelbox versions lock langtech/wav2vec@7 --reason "audit 2026"',
    no_args_is_help=True,
)
quotas = typer.Typer(
    help="How many bytes a namespace may hold.",
    epilog="Example: modelbox quotas set langtech 500GiB",
    no_args_is_help=True,
)

_BEST = re.compile(r"(\d{1,9}):(.+?)(?::(min|max))?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[kKMGTP]i?B?)?")
_FACTORS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}

ScopeArgument = Annotated[str, typer.Argument(metavar="SCOPE", help="A namespace, or namespace/model.")]
OptionalScope = Annotated[
    str, typer.Argument(metavar="[SCOPE]", help="A namespace, or namespace/model; all if left out.")
]
NamespaceArgument = Annotated[str, typer.Argument(metavar="NAMESPACE", help="The namespace.")]
RefArgument = Annotated[str, typer.Argument(metavar="NAMESPACE/MODEL@NUMBER", help="The version.")]
KindOption = Annotated[
    str, typer.Option("--kind", metavar="KIND", help="What it is about: versions, checkpoints, runs or bin.")
]
LastOption = Annotated[int | None, typer.Option("--keep-last", min=1, metavar="N", help="Keep the newest N.")]
YoungerOption = Annotated[
    str | None, typer.Option("--keep-younger", metavar="AGE", help="Keep what is younger, such as 30d or 12h.")
]
BestOption = Annotated[
    list[str] | None,
    typer.Option(
        "--keep-best",
        metavar="N:METRIC[:min|max]",
        help="Keep the N best by a metric, such as 3:accuracy or 3:wer:min; may be given several times.",
    ),
]
AllOption = Annotated[bool, typer.Option("--keep-all", help="Keep everything, whatever the namespace's policy says.")]


def _policy(
    scope: str, kind: str, last: int | None, younger: str | None, best: Sequence[str], everything: bool
) -> RetentionPolicy:
    return RetentionPolicy(
        scope=scope,
        kind=check_kind(kind),
        keep_all=everything,
        keep_last=last,
        keep_younger_s=None if younger is None else seconds_of(younger, "--keep-younger"),
        keep_best=tuple(_best(text) for text in best),
    )


def _best(text: str) -> Best:
    match = _BEST.fullmatch(text)
    if match is None:
        raise InvalidError(f"--keep-best is {shown(text)}: expected N:METRIC or N:METRIC:min")
    return Best(metric=match[2], count=int(match[1]), mode=BestMode(match[3] or "max"))


def _rules(policy: RetentionPolicy) -> str:
    rules = ["all"] if policy.keep_all else []
    if policy.keep_last is not None:
        rules.append(f"newest {policy.keep_last}")
    rules += [f"best {one.count} by {one.metric} ({one.mode})" for one in policy.keep_best]
    if policy.keep_younger_s is not None:
        days = policy.keep_younger_s / 86400
        rules.append(f"younger than {days:.6g} d" if days >= 1 else f"younger than {policy.keep_younger_s:.6g} s")
    return ", ".join(rules)


def _print_policies(policies: Sequence[RetentionPolicy], output: OutputFormat, *, one: bool) -> None:
    if output is OutputFormat.JSON:
        print_json(policies[0] if one else policies)
        return
    rows = [
        (
            policy.scope,
            policy.kind,
            _rules(policy),
            "" if policy.updated_at is None else local_time(policy.updated_at),
            policy.updated_by,
        )
        for policy in policies
    ]
    print_table(("SCOPE", "KIND", "KEEPS", "SET", "BY"), rows, empty="no policies: everything is kept")


@retention.command("set")
def set_policy(
    scope: ScopeArgument,
    kind: KindOption = "versions",
    keep_last: LastOption = None,
    keep_younger: YoungerOption = None,
    keep_best: BestOption = None,
    keep_all: AllOption = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Say what is kept; what any one rule keeps stays, and what is held stays always. See first: retention plan.

    Example: modelbox retention set langtech/wav2vec --keep-last 10 --keep-best 3:wer:min
    """
    policy = _policy(scope, kind, keep_last, keep_younger, keep_best or (), keep_all)

    async def run(client: Client) -> None:
        made = await client.set_retention(
            scope,
            kind=policy.kind,
            keep_last=policy.keep_last,
            keep_younger_s=policy.keep_younger_s,
            keep_best=policy.keep_best,
            keep_all=policy.keep_all,
        )
        _print_policies([made], output, one=True)

    with_client(url, run)


@retention.command("get")
def get_policy(
    scope: ScopeArgument,
    kind: KindOption = "versions",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show the policy of a namespace or model.

    Example: modelbox retention get langtech
    """

    async def run(client: Client) -> None:
        _print_policies([await client.get_retention(scope, kind=kind)], output, one=True)

    with_client(url, run)


@retention.command("list")
def list_policies(
    namespace: Annotated[str, typer.Option("--namespace", help="Only of this namespace.")] = "",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List policies.

    Example: modelbox retention list --namespace langtech
    """

    async def run(client: Client) -> None:
        _print_policies(await client.list_retention(namespace), output, one=False)

    with_client(url, run)


@retention.command("delete")
def delete_policy(
    scope: ScopeArgument,
    kind: KindOption = "versions",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Remove a policy: from then on everything is kept, or a model follows its namespace's.

    Example: modelbox retention delete langtech/wav2vec
    """

    async def run(client: Client) -> None:
        await client.delete_retention(scope, kind=kind)
        if output is OutputFormat.JSON:
            print_json({"deleted": scope, "kind": kind})
        else:
            print_line(f"deleted the policy of {scope} for {kind}")

    with_client(url, run)


@retention.command("plan")
def plan(
    scope: OptionalScope = "",
    kind: KindOption = "versions",
    only: Annotated[bool, typer.Option("--only-deleted", help="Leave out what is kept.")] = False,
    keep_last: LastOption = None,
    keep_younger: YoungerOption = None,
    keep_best: BestOption = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show what the policies would let go, and why; with rules, what a policy of these rules would. Changes nothing.

    Example: modelbox retention plan langtech --keep-last 5 --only-deleted
    """
    what_if = None
    if keep_last is not None or keep_younger is not None or keep_best:
        if not scope:
            raise InvalidError("a plan by rules of its own needs a scope: a namespace, or namespace/model")
        what_if = _policy(scope, kind, keep_last, keep_younger, keep_best or (), False)

    async def run(client: Client) -> None:
        found = [
            one async for one in client.iter_retention_plan(scope, kind=kind, policy=what_if) if not (only and one.keep)
        ]
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = [
            (
                one.name,
                "keep" if one.keep else "delete",
                size_text(one.size_bytes) if one.size_bytes else "",
                one.policy,
                "; ".join(one.reasons),
            )
            for one in found
        ]
        print_table(("OBJECT", "PLAN", "SIZE", "POLICY OF", "WHY"), rows, empty="nothing to decide about")
        gone = [one for one in found if not one.keep]
        if found:
            note(f"{len(gone)} of {len(found)} would go, {size_text(sum(one.size_bytes for one in gone))}")

    with_client(url, run)


@retention.command("run")
def run_policies(
    scope: OptionalScope = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Follow the policies now, as the server does by itself every hour.

    Example: modelbox retention run langtech --yes
    """
    ask(f"Delete what no policy keeps{f' of {scope}' if scope else ''}?", yes=yes)

    async def run(client: Client) -> None:
        done = await client.run_retention(scope)
        if output is OutputFormat.JSON:
            print_json(done)
        else:
            print_line(
                f"deleted {done.versions} versions, put {done.binned} objects into the bin, removed {done.purged} from "
                "there"
            )

    with_client(url, run)


# -- locks -----------------------------------------------------------------------------------------------------------


@versions.command("lock")
def lock(
    ref: RefArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why.")] = "",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Lock a version: nobody deletes it, nor its model, until it is unlocked.

    Example: modelbox versions lock langtech/wav2vec@7 --reason "audit 2026"
    """

    async def run(client: Client) -> None:
        locked = await client.lock_version(ref, reason=reason)
        if output is OutputFormat.JSON:
            print_json(locked)
        else:
            print_line(f"locked {ref} by {locked.locked_by}{f': {locked.reason}' if locked.reason else ''}")

    with_client(url, run)


@versions.command("unlock")
def unlock(ref: RefArgument, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Unlock a version.

    Example: modelbox versions unlock langtech/wav2vec@7
    """

    async def run(client: Client) -> None:
        unlocked = await client.unlock_version(ref)
        if output is OutputFormat.JSON:
            print_json({"unlocked": unlocked})
        else:
            print_line(f"unlocked {ref}" if unlocked else f"{ref} was not locked")

    with_client(url, run)


@versions.command("locks")
def locks(scope: OptionalScope = "", url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """List locked versions.

    Example: modelbox versions locks langtech
    """

    async def run(client: Client) -> None:
        found = await client.list_locks(scope)
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = [
            (f"{one.namespace}/{one.model}@{one.version}", local_time(one.locked_at), one.locked_by, one.reason)
            for one in found
        ]
        print_table(("VERSION", "LOCKED", "BY", "REASON"), rows, empty="no version is locked")

    with_client(url, run)


# -- quotas ----------------------------------------------------------------------------------------------------------


def _bytes_of(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidError(f"{shown(text)} is not a size: expected bytes, or such as 500GiB or 1.5TB")
    unit = (match[2] or "").upper().removesuffix("B")
    factor = 1024 if unit.endswith("I") else 1000
    return round(float(match[1]) * float(factor) ** _FACTORS[unit.removesuffix("I")])


@quotas.command("set")
def set_quota(
    namespace: NamespaceArgument,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="Bytes, or such as 500GiB or 1.5TB.")],
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Limit how many bytes a namespace may hold; more are refused, and nothing is deleted.

    Example: modelbox quotas set langtech 500GiB
    """
    limit_bytes = _bytes_of(size)

    async def run(client: Client) -> None:
        quota = await client.set_quota(namespace, limit_bytes)
        if output is OutputFormat.JSON:
            print_json(quota)
        else:
            print_line(f"{namespace} may hold {size_text(quota.limit_bytes)} and holds {size_text(quota.used_bytes)}")

    with_client(url, run)


@quotas.command("list")
def list_quotas(url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """List quotas, and what is used of them.

    Example: modelbox quotas list
    """

    async def run(client: Client) -> None:
        found = await client.list_quotas()
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = [
            (
                one.namespace,
                size_text(one.limit_bytes),
                size_text(one.used_bytes),
                f"{one.used_bytes / one.limit_bytes:.0%}" if one.limit_bytes else "",
                local_time(one.updated_at),
                one.updated_by,
            )
            for one in found
        ]
        numbers = ("LIMIT", "USED", "PART")
        print_table(("NAMESPACE", "LIMIT", "USED", "PART", "SET", "BY"), rows, empty="no quotas", numbers=numbers)

    with_client(url, run)


@quotas.command("delete")
def delete_quota(
    namespace: NamespaceArgument, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE
) -> None:
    """Let a namespace hold as much as there is room for.

    Example: modelbox quotas delete langtech
    """

    async def run(client: Client) -> None:
        await client.delete_quota(namespace)
        if output is OutputFormat.JSON:
            print_json({"deleted": namespace})
        else:
            print_line(f"{namespace} has no quota")

    with_client(url, run)

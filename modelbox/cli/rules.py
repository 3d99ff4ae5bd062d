"""``modelbox rules …``: what versions must have; ``modelbox aliases …``: protected aliases, and who approves a move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.exits import Exit
from modelbox.cli.objects import ask
from modelbox.cli.output import OutputFormat, OutputOption, UrlOption, local_time, print_json, print_line, print_table
from modelbox.cli.run import with_client
from modelbox.rules import AliasProtection, AliasRequest, Rule

if TYPE_CHECKING:
    from modelbox.client import Client

__all__ = ("aliases", "rules")

rules = typer.Typer(
    help="What versions must have to be published, or to be what an alias points to.",
    epilog="Example: modelbox rules set langtech --owner --dataset",
    no_args_is_help=True,
)
aliases = typer.Typer(
    help="Protected aliases, and moves that wait for a second person.",
    epilog="Example: modelbox aliases protect langtech 'prod*' --approval",
    no_args_is_help=True,
)

ScopeArgument = Annotated[str, typer.Argument(metavar="SCOPE", help="A namespace, or namespace/model.")]
OptionalScope = Annotated[
    str, typer.Argument(metavar="[SCOPE]", help="A namespace, or namespace/model; all if left out.")
]
PatternArgument = Annotated[str, typer.Argument(metavar="ALIAS", help="An alias, or a pattern such as 'prod*'.")]
PatternOption = Annotated[
    str,
    typer.Option(
        "--alias",
        metavar="ALIAS",
        help="Only versions that this alias points to, or those of a pattern such as 'prod*'; all that are published"
        " if left out.",
    ),
]
PathArgument = Annotated[str, typer.Argument(metavar="NAMESPACE/MODEL", help="The model.")]
RequestArgument = Annotated[str, typer.Argument(metavar="REQUEST", help="Its id, as aliases requests shows it.")]
CommentOption = Annotated[str, typer.Option("--comment", help="Why, for its history.")]


# -- rules -----------------------------------------------------------------------------------------------------------


def _parts(rule: Rule) -> str:
    parts = [f"label {key}" for key in rule.labels] + [f"metadata {key}" for key in rule.metadata]
    flags = (("owner", rule.owner), ("description", rule.description), ("dataset", rule.dataset))
    parts += [name for name, asked in (*flags, ("signature", rule.signed)) if asked]
    return ", ".join(parts)


def _print_rules(found: Sequence[Rule], output: OutputFormat, *, one: bool) -> None:
    if output is OutputFormat.JSON:
        print_json(found[0] if one else found)
        return
    rows = [
        (
            rule.scope,
            rule.alias or "every publication",
            _parts(rule),
            "" if rule.updated_at is None else local_time(rule.updated_at),
            rule.updated_by,
        )
        for rule in found
    ]
    print_table(("SCOPE", "FOR", "NEEDS", "SET", "BY"), rows, empty="no rules: every version may be published")


@rules.command("set")
def set_rule(
    scope: ScopeArgument,
    alias: PatternOption = "",
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY", help="This label; may be given several times.")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", metavar="KEY", help="This metadata; may be given several times.")
    ] = None,
    owner: Annotated[bool, typer.Option("--owner", help="An owner of the model.")] = False,
    description: Annotated[bool, typer.Option("--description", help="A description of the version.")] = False,
    dataset: Annotated[
        bool, typer.Option("--dataset", help="A version of a dataset, in its lineage or its metadata 'dataset'.")
    ] = False,
    signed: Annotated[bool, typer.Option("--signed", help="A signature.")] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Say what versions must have; replaces the rule of the same scope and alias.

    Example: modelbox rules set langtech --alias 'prod*' --label reviewed-by --description --signed
    """

    async def run(client: Client) -> None:
        rule = await client.set_rule(
            scope,
            alias=alias,
            labels=label or [],
            metadata=metadata or [],
            owner=owner,
            description=description,
            dataset=dataset,
            signed=signed,
        )
        _print_rules([rule], output, one=True)

    with_client(url, run)


@rules.command("show")
def show_rules(scope: OptionalScope = "", url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Show the rules of a namespace and its models, or all that hold for a model.

    Example: modelbox rules show langtech/wav2vec
    """

    async def run(client: Client) -> None:
        _print_rules(await client.list_rules(scope), output, one=False)

    with_client(url, run)


@rules.command("check")
def check_rules(
    ref: Annotated[str, typer.Argument(metavar="NAMESPACE/MODEL@NUMBER", help="The version.")],
    alias: Annotated[str, typer.Option("--alias", metavar="ALIAS", help="For being what this alias points to.")] = "",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show what a version lacks, and the commands that add it; changes nothing, and exits with 7 if it lacks something.

    Example: modelbox rules check langtech/wav2vec@7 --alias prod
    """
    missing = with_client(url, lambda client: client.check_rules(ref, alias=alias))
    if output is OutputFormat.JSON:
        print_json({"missing": missing})
    else:
        rows = [(str(one), one.scope, one.fix) for one in missing]
        print_table(("LACKS", "RULE OF", "TO ADD IT"), rows, empty=f"{ref} has all that it must have")
    if missing:
        raise typer.Exit(Exit.REFUSED)


@rules.command("delete")
def delete_rule(
    scope: ScopeArgument,
    alias: PatternOption = "",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Remove a rule; those of other aliases and scopes stay.

    Example: modelbox rules delete langtech --alias 'prod*'
    """

    async def run(client: Client) -> None:
        await client.delete_rule(scope, alias=alias)
        if output is OutputFormat.JSON:
            print_json({"deleted": scope, "alias": alias})
        else:
            print_line(f"removed the rule of {scope} for {alias or 'every publication'}")

    with_client(url, run)


# -- protected aliases -----------------------------------------------------------------------------------------------


def _print_protections(found: Sequence[AliasProtection], output: OutputFormat, *, one: bool) -> None:
    if output is OutputFormat.JSON:
        print_json(found[0] if one else found)
        return
    rows = [
        (
            protection.alias,
            protection.scope or "everywhere (the server's settings)",
            "two promoters" if protection.approval else "a promoter",
            "" if protection.updated_at is None else local_time(protection.updated_at),
            protection.updated_by,
        )
        for protection in found
    ]
    print_table(("ALIAS", "OF", "MOVED BY", "SET", "BY"), rows, empty="no alias is protected: writers move them")


@aliases.command("protect")
def protect(
    scope: ScopeArgument,
    alias: PatternArgument,
    approval: Annotated[
        bool, typer.Option("--approval", help="A move waits until a second promoter approves it.")
    ] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Let only promoters move some aliases.

    Example: modelbox aliases protect langtech 'prod*' --approval
    """

    async def run(client: Client) -> None:
        _print_protections([await client.protect_alias(scope, alias, approval=approval)], output, one=True)

    with_client(url, run)


@aliases.command("unprotect")
def unprotect(
    scope: ScopeArgument,
    alias: PatternArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Let writers move some aliases again, unless another protection holds.

    Example: modelbox aliases unprotect langtech 'prod*' --yes
    """
    ask(f"Let every writer of {scope} move {alias}?", yes=yes)

    async def run(client: Client) -> None:
        await client.unprotect_alias(scope, alias)
        if output is OutputFormat.JSON:
            print_json({"unprotected": scope, "alias": alias})
        else:
            print_line(f"{alias} of {scope} is no longer protected")

    with_client(url, run)


@aliases.command("protected")
def protected(scope: OptionalScope = "", url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Show which aliases are protected.

    Example: modelbox aliases protected langtech/wav2vec
    """

    async def run(client: Client) -> None:
        _print_protections(await client.list_protections(scope), output, one=False)

    with_client(url, run)


# -- requests --------------------------------------------------------------------------------------------------------


def _versions(request: AliasRequest) -> str:
    before = "none" if request.from_version is None else str(request.from_version)
    return f"{before} -> {'deleted' if request.to_version is None else request.to_version}"


@aliases.command("requests")
def requests(
    path: Annotated[str, typer.Argument(metavar="NAMESPACE/MODEL[@ALIAS]", help="The model, or one alias of it.")],
    everything: Annotated[bool, typer.Option("--all", help="Also those that wait for nobody any more.")] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show moves that wait for a second person, newest first.

    Example: modelbox aliases requests langtech/wav2vec
    """
    model, _, alias = path.partition("@")

    async def run(client: Client) -> None:
        found = [one async for one in client.iter_alias_requests(model, alias, everything=everything)]
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = [
            (
                one.id,
                one.alias,
                _versions(one),
                one.state,
                one.requested_by,
                local_time(one.expires_at),
                one.reason,
                one.decided_by,
                one.comment,
            )
            for one in found
        ]
        columns = ("REQUEST", "ALIAS", "MOVE", "STATE", "BY", "UNTIL", "REASON", "DECIDED BY", "COMMENT")
        print_table(columns, rows, empty=f"no move of {path} waits for anybody")

    with_client(url, run)


@aliases.command("approve")
def approve(
    path: PathArgument,
    request: RequestArgument,
    comment: CommentOption = "",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Move an alias as somebody else asked for.

    Example: modelbox aliases approve langtech/wav2vec req_5f0c2a7be91d34f608a1c2d3
    """

    async def run(client: Client) -> None:
        _print_decided(await client.approve_alias(path, request, comment=comment), output)

    with_client(url, run)


@aliases.command("reject")
def reject(
    path: PathArgument,
    request: RequestArgument,
    comment: CommentOption = "",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Refuse a move, or take back a request of one's own.

    Example: modelbox aliases reject langtech/wav2vec req_5f0c2a7be91d34f608a1c2d3 --comment "not tested yet"
    """

    async def run(client: Client) -> None:
        _print_decided(await client.reject_alias(path, request, comment=comment), output)

    with_client(url, run)


def _print_decided(request: AliasRequest, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_json(request)
    else:
        path = f"{request.namespace}/{request.model}@{request.alias}"
        print_line(f"{request.state} {path}: {_versions(request)}")

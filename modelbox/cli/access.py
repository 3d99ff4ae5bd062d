"""``modelbox accounts …``, ``roles …``, ``tokens …`` and ``whoami``: who may do what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.objects import ask
from modelbox.cli.output import (
    OutputFormat,
    OutputOption,
    UrlOption,
    fields,
    local_time,
    note,
    print_json,
    print_line,
    print_table,
)
from modelbox.cli.run import seconds_of, with_client
from modelbox.errors import InvalidError
from modelbox.refs import check_name

if TYPE_CHECKING:
    from modelbox.accounts import Account, AccountGrant, TokenInfo
    from modelbox.client import Client

__all__ = ("accounts", "roles", "tokens", "whoami")

accounts = typer.Typer(
    help="Accounts: people and programs that may call the server.",
    epilog='Example: modelbox accounts create ada --description "Ada, speech team"',
    no_args_is_help=True,
)
roles = typer.Typer(
    help="What accounts may do, and where: reader, writer, promoter or admin.",
    epilog="Example: modelbox roles grant ada promoter langtech",
    no_args_is_help=True,
)
tokens = typer.Typer(
    help="Tokens: what programs show to be let in.",
    epilog="Example: modelbox tokens create ci-bot --role writer --namespace langtech",
    no_args_is_help=True,
)

NameArgument = Annotated[str, typer.Argument(metavar="ACCOUNT", help="The account.")]
ScopeArgument = Annotated[
    str, typer.Argument(metavar="[SCOPE]", help="A namespace, or namespace/model; or --everywhere.")
]
EverywhereOption = Annotated[bool, typer.Option("--everywhere", help="In all namespaces, and on the server itself.")]
CertificateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--certificate-name",
        metavar="NAME",
        help="A name in client certificates that means this account; may be given several times.",
    ),
]


def _place(scope: str, everywhere: bool) -> tuple[str, str]:
    if bool(scope) == everywhere:
        raise InvalidError("name a namespace or namespace/model, or pass --everywhere")
    namespace, _, model = scope.partition("/")
    return namespace, model


# -- accounts --------------------------------------------------------------------------------------------------------


def _print_accounts(found: Sequence[Account]) -> None:
    rows = [
        (
            one.name,
            one.description,
            ", ".join(one.certificate_names),
            "disabled" if one.disabled else "",
            local_time(one.created_at),
            one.created_by,
        )
        for one in found
    ]
    print_table(("ACCOUNT", "DESCRIPTION", "CERTIFICATES", "STATE", "CREATED", "BY"), rows, empty="no accounts")


@accounts.command("create")
def create_account(
    name: NameArgument,
    description: Annotated[str, typer.Option("--description", help="For people.")] = "",
    certificate_name: CertificateOption = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Make an account; give it a role next. One that is there stays as it is.

    Example: modelbox accounts create ci-bot --certificate-name spiffe://example.org/ci
    """

    async def run(client: Client) -> None:
        made = await client.create_account(name, description=description, certificate_names=certificate_name or ())
        if output is OutputFormat.JSON:
            print_json(made)
        else:
            print_line(f"{name} {'exists already' if made.existed else 'made'}")

    with_client(url, run)


@accounts.command("list")
def list_accounts(url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """List accounts.

    Example: modelbox accounts list
    """

    async def run(client: Client) -> None:
        found = [one async for one in client.iter_accounts()]
        if output is OutputFormat.JSON:
            print_json(found)
        else:
            _print_accounts(found)

    with_client(url, run)


@accounts.command("update")
def update_account(
    name: NameArgument,
    description: Annotated[str | None, typer.Option("--description", help="For people.")] = None,
    certificate_name: CertificateOption = None,
    disable: Annotated[
        bool | None, typer.Option("--disable/--enable", help="Take nothing of it any more; or take it again.")
    ] = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Change an account; certificate names replace those that it has, and an empty one removes them.

    Example: modelbox accounts update ada --disable
    """

    async def run(client: Client) -> None:
        names = None if certificate_name is None else [one for one in certificate_name if one]
        account = await client.update_account(name, description=description, certificate_names=names, disabled=disable)
        if output is OutputFormat.JSON:
            print_json(account)
        else:
            _print_accounts([account])

    with_client(url, run)


@accounts.command("delete")
def delete_account(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: UrlOption = None,
) -> None:
    """Remove an account with its roles and tokens; history keeps its name. To keep it out only: accounts update.

    Example: modelbox accounts delete ada --yes
    """
    check_name(name, "account")
    ask(f"remove the account {name} with all its roles and tokens?", yes=yes)

    async def run(client: Client) -> None:
        await client.delete_account(name)
        print_line(f"{name} removed")

    with_client(url, run)


# -- roles -----------------------------------------------------------------------------------------------------------


def _print_grants(found: Sequence[AccountGrant]) -> None:
    rows = [
        (
            one.account,
            one.role,
            f"{one.namespace}/{one.model}" if one.model else one.namespace or "everywhere",
            local_time(one.granted_at),
            one.granted_by,
        )
        for one in found
    ]
    print_table(("ACCOUNT", "ROLE", "WHERE", "GRANTED", "BY"), rows, empty="no roles")


@roles.command("grant")
def grant_role(
    name: NameArgument,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="reader, writer, promoter or admin.")],
    scope: ScopeArgument = "",
    everywhere: EverywhereOption = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Give an account a role, in the place of the one that it has there.

    Example: modelbox roles grant ada promoter langtech/wav2vec
    """
    namespace, model = _place(scope, everywhere)

    async def run(client: Client) -> None:
        given = await client.grant_role(name, role, namespace=namespace, model=model)
        if output is OutputFormat.JSON:
            print_json(given)
        else:
            _print_grants([given])

    with_client(url, run)


@roles.command("revoke")
def revoke_role(
    name: NameArgument, scope: ScopeArgument = "", everywhere: EverywhereOption = False, url: UrlOption = None
) -> None:
    """Take an account's role in a place away; what other roles give it stays.

    Example: modelbox roles revoke ada langtech/wav2vec
    """
    namespace, model = _place(scope, everywhere)

    async def run(client: Client) -> None:
        revoked = await client.revoke_role(name, namespace=namespace, model=model)
        place = "everywhere" if everywhere else f"in {scope}"
        print_line(f"{name}'s role {place} is taken away" if revoked else f"{name} had no role given {place}")

    with_client(url, run)


@roles.command("list")
def list_roles(
    account: Annotated[str, typer.Option("--account", metavar="ACCOUNT", help="Of this account only.")] = "",
    namespace: Annotated[
        str, typer.Option("--namespace", metavar="NAMESPACE", help="In this namespace only, models included.")
    ] = "",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List roles: your own, and those where you are an admin.

    Example: modelbox roles list --namespace langtech
    """

    async def run(client: Client) -> None:
        found = [one async for one in client.iter_grants(account=account, namespace=namespace)]
        if output is OutputFormat.JSON:
            print_json(found)
        else:
            _print_grants(found)

    with_client(url, run)


# -- tokens ----------------------------------------------------------------------------------------------------------


def _print_tokens(found: Sequence[TokenInfo]) -> None:
    rows = [
        (
            one.id,
            one.account,
            one.role or "all of it",
            ", ".join(one.namespaces) or "everywhere",
            f"revoked by {one.revoked_by}" if one.revoked_at else local_time(one.expires_at),
            "never" if one.used_at is None else local_time(one.used_at),
            one.created_by,
            one.description,
        )
        for one in found
    ]
    columns = ("ID", "ACCOUNT", "AT MOST", "WHERE", "EXPIRES", "USED", "MADE BY", "DESCRIPTION")
    print_table(columns, rows, empty="no tokens")


@tokens.command("create")
def create_token(
    name: Annotated[str, typer.Argument(metavar="[ACCOUNT]", help="Whose; your own if left out.")] = "",
    role: Annotated[
        str,
        typer.Option(
            "--role",
            metavar="ROLE",
            help="The most that it lets do: reader, writer, promoter or admin; all that the account may if left out."
            " Makes the account with this role if there is none.",
        ),
    ] = "",
    namespace: Annotated[
        list[str] | None,
        typer.Option(
            "--namespace",
            metavar="NAMESPACE",
            help="Where alone it holds; may be given several times, else everywhere.",
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="AGE", help="How long it holds, such as 30d; at most 365d.")
    ] = None,
    description: Annotated[str, typer.Option("--description", help="For people.")] = "",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Make a token and print it: the only time that it is shown.

    Example: modelbox tokens create ci-bot --role writer --namespace langtech --expires 30d
    """

    async def run(client: Client) -> None:
        made = await client.create_token(
            name,
            role=role,
            namespaces=namespace or (),
            expires_in_s=None if expires is None else seconds_of(expires, "--expires"),
            description=description,
            create_account=bool(name and role),
        )
        if output is OutputFormat.JSON:
            print_json(made)
            return
        print_line(made.token)
        account = made.info.account
        if made.account_created:
            where = ", ".join(namespace) if namespace else "everywhere"
            account = f"the account {account}, made along with it as a {role} ({where})"
        note(f"token {made.info.id} of {account}; it holds until {local_time(made.info.expires_at)}")

    with_client(url, run)


@tokens.command("list")
def list_tokens(
    name: Annotated[str, typer.Argument(metavar="[ACCOUNT]", help="Whose; all if left out.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Revoked and expired ones, too.")] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List tokens, newest first: your account's own, and those that you may revoke.

    Example: modelbox tokens list ci-bot --all
    """

    async def run(client: Client) -> None:
        found = [one async for one in client.iter_tokens(account=name, include_ended=everything)]
        if output is OutputFormat.JSON:
            print_json(found)
        else:
            _print_tokens(found)

    with_client(url, run)


@tokens.command("revoke")
def revoke_tokens(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="As tokens list shows them.")] = None,
    account: Annotated[
        str, typer.Option("--account", metavar="ACCOUNT", help="All that this account has, instead of ids.")
    ] = "",
    url: UrlOption = None,
) -> None:
    """End tokens at once, and the watches that they opened.

    Example: modelbox tokens revoke 3k9x0a1b2c3d
    """
    if bool(ids) == bool(account):
        raise InvalidError("name the tokens to revoke by their ids, or an account with --account")

    async def run(client: Client) -> None:
        ended = list(ids or ())
        if account:
            own = (await client.whoami()).token_id
            ended = [one.id async for one in client.iter_tokens(account=account)]
            # The one that this is done with comes last.
            ended.sort(key=own.__eq__)
        for one in ended:
            info = await client.revoke_token(one)
            print_line(f"{info.id} of {info.account} revoked")

    with_client(url, run)


# -- oneself ---------------------------------------------------------------------------------------------------------


def whoami(url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Show who the server takes you for, and what you may do.

    Example: modelbox whoami
    """

    async def run(client: Client) -> None:
        found = await client.whoami()
        if output is OutputFormat.JSON:
            print_json(found)
            return
        fields(
            {
                "account": found.name if found.access else f"{found.name or 'nobody'} (by your own word)",
                "token": found.token_id,
                "expires": None if found.expires_at is None else local_time(found.expires_at),
                "address": found.address,
                "may": "; ".join(str(grant) for grant in found.grants) if found.access else "everything",
            }
        )
        if not found.access:
            note("this server has no access control")

    with_client(url, run)

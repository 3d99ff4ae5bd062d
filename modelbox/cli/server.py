"""``modelbox server``: starts the central server, writes a file with its settings, and copies what it keeps.

Only these commands touch `modelbox.runtime`, and only once they run: the rest of the command line works without the
server's packages.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.exits import Exit
from modelbox.cli.output import OutputFormat, OutputOption, UrlOption, local_time, print_json, print_table
from modelbox.cli.run import with_client
from modelbox.cli.space import du, fsck_of_server, gc, print_report, say_check
from modelbox.errors import InvalidError

if TYPE_CHECKING:
    from modelbox.client import Client
    from modelbox.runtime.config import ServerConfig

__all__ = ("server_app", "write_settings")

_CLOCK_SHOWN_S = 0.1
"""A clock that is off by less is nobody's business."""

server_app = typer.Typer(
    name="server", help="Run the central server.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)


@server_app.command(
    "start",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def start(context: typer.Context) -> None:
    """Start the server; the same as python -m modelbox.runtime. Its --help lists all settings.

    Example: modelbox server start --config-path modelbox-server.toml
    """
    from modelbox.runtime.__main__ import main

    raise typer.Exit(main(context.args, prog="modelbox server start"))


@server_app.command("init-config")
def init_config(
    path: Annotated[Path, typer.Argument(help="File to write; - for stdout.")] = Path("modelbox-server.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Write a TOML file with every setting of the server, explained and commented out.

    Example: modelbox server init-config /etc/modelbox/server.toml
    """
    from modelbox.runtime.config import server_config_toml

    write_settings(path, server_config_toml(), force=force, start="modelbox server start --config-path")


@server_app.command("members")
def members(url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """List the servers that share a database; those that were lost are listed for an hour.

    Example: modelbox server members --url http://modelbox.example.org:8080
    """

    async def run(client: Client) -> None:
        found = await client.list_members()
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = [
            (
                member.name,
                member.role,
                member.state if member.alive else "lost",
                member.version,
                member.grpc_address,
                member.http_address,
                local_time(member.started_at),
                local_time(member.last_seen_at),
                f"{member.clock_ahead_s:+.1f} s" if abs(member.clock_ahead_s) >= _CLOCK_SHOWN_S else "",
                str(member.rev),
                ", ".join(member.leases),
            )
            for member in found
        ]
        columns = (
            "NAME", "ROLE", "STATE", "VERSION", "GRPC", "HTTP", "STARTED", "SEEN", "CLOCK", "REVISION", "ALONE IN"
        )  # fmt: skip
        print_table(columns, rows, empty="no servers", numbers=("REVISION",))

    with_client(url, run)


server_app.command("gc")(gc)
server_app.command("du")(du)

_ConfigPath = Annotated[Path | None, typer.Option("--config-path", help="TOML file with settings.")]
_DataDir = Annotated[str | None, typer.Option("--data-dir", help="As the server's setting data_dir.")]
_DatabaseUrl = Annotated[str | None, typer.Option("--database-url", help="As the server's setting database_url.")]
_BlobsUrl = Annotated[str | None, typer.Option("--blobs-url", help="As the server's setting blobs_url.")]


@server_app.command("export")
def export(
    directory: Annotated[Path, typer.Argument(help="Directory to write: new, or of an export that was broken off.")],
    config_path: _ConfigPath = None,
    data_dir: _DataDir = None,
    database_url: _DatabaseUrl = None,
    blobs_url: _BlobsUrl = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Write nothing: read a finished export, and prove it.")
    ] = False,
) -> None:
    """Copy all that a server keeps into a directory, while it runs or not; for backups, and to move it elsewhere.

    Settings are those of the server: options over MODELBOX_... variables over the file. Broken off, run it again.

    Example: modelbox server export --config-path modelbox-server.toml /backups/2026-05-03
    """
    from modelbox.runtime.moving.commands import run_export, run_verify

    if verify:
        done, what = run_verify(directory, say=_progress), "whole"
    else:
        config = _settings(config_path, data_dir=data_dir, database_url=database_url, blobs_url=blobs_url)
        done, what = run_export(config, directory, say=_progress), "exported"
    typer.echo(
        f"{what}: {done.rows:,} rows, {done.blobs.count:,} files, revision {done.feed.rev:,} of {done.created_at}"
    )


@server_app.command("import")
def import_(
    directory: Annotated[Path, typer.Argument(help="A finished export.")],
    config_path: _ConfigPath = None,
    data_dir: _DataDir = None,
    database_url: _DatabaseUrl = None,
    blobs_url: _BlobsUrl = None,
) -> None:
    """Fill an empty database and a store of files with an export; no server may use them meanwhile.

    Everything keeps its ids, versions, times and history. Broken off, run it again.

    Example: modelbox server import --config-path modelbox-server.toml /backups/2026-05-03
    """
    from modelbox.runtime.moving.commands import run_import

    config = _settings(config_path, data_dir=data_dir, database_url=database_url, blobs_url=blobs_url)
    done = run_import(config, directory, say=_progress)
    typer.echo(f"imported: {done.rows:,} rows, {done.blobs.count:,} files, revision {done.feed.rev:,}, all read again")


@server_app.command("check")
def check(
    config_path: _ConfigPath = None,
    data_dir: _DataDir = None,
    database_url: _DatabaseUrl = None,
    blobs_url: _BlobsUrl = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Check the database and the store of files as a server would find them; exits with 1 if something cannot work.

    Looks at the connection, the schema, clocks, permissions, and settings that lose changes; changes nothing.

    Example: modelbox server check --config-path modelbox-server.toml
    """
    from modelbox.runtime.upkeep import run_check

    config = _settings(config_path, data_dir=data_dir, database_url=database_url, blobs_url=blobs_url)
    report = run_check(config)
    if output is OutputFormat.JSON:
        print_json(report)
    else:
        rows = [(found.check, found.state.value, found.detail) for found in report.findings]
        print_table(("CHECK", "STATE", "DETAIL"), rows, empty="")
    if not report.ok:
        raise typer.Exit(Exit.FAILED)


@server_app.command("fsck")
def fsck(
    checksums: Annotated[
        bool, typer.Option("--checksums", help="Read every byte and sum it, and every point of metrics.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Put right what can be put right for sure; lost bytes cannot.")
    ] = False,
    config_path: _ConfigPath = None,
    data_dir: _DataDir = None,
    database_url: _DatabaseUrl = None,
    blobs_url: _BlobsUrl = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Prove that every row has its bytes, that counters are right, and that the change feed is whole.

    Asks a running server; where one of the server's settings is given as an option, looks by itself. Exits with 6 where
    something is wrong and was not repaired.

    Example: modelbox server fsck --checksums
    """
    options = (config_path, data_dir, database_url, blobs_url)
    if all(option is None for option in options):
        print_report(fsck_of_server(url, checksums=checksums, repair=repair), output)
        return
    if url is not None:
        raise InvalidError("fsck asks a running server (--url), or looks at what settings name, not both")
    from modelbox.runtime.fsck import run_fsck

    config = _settings(config_path, data_dir=data_dir, database_url=database_url, blobs_url=blobs_url)
    print_report(run_fsck(config, checksums=checksums, repair=repair, say=say_check), output)


@server_app.command("migrate")
def migrate(
    config_path: _ConfigPath = None,
    data_dir: _DataDir = None,
    database_url: _DatabaseUrl = None,
    to: Annotated[str | None, typer.Option("--to", help="Another revision than the newest, such as 0004.")] = None,
    metrics_to: Annotated[str | None, typer.Option("--metrics-to", help="The same of the tables of metrics.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go back to an older revision: what it cannot hold is lost.")
    ] = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Bring the database's tables to the newest revision, as a server does when it starts.

    For a user of the database who may change tables where the servers' own may not, and to go back.

    Example: modelbox server migrate --config-path modelbox-server.toml
    """
    from modelbox.runtime.upkeep import run_migrate

    config = _settings(config_path, data_dir=data_dir, database_url=database_url)
    changes = run_migrate(config, to=to, metrics_to=metrics_to, force=force)
    if output is OutputFormat.JSON:
        print_json(changes)
        return
    for one in changes:
        before, after = one.before or "nothing", one.after or "nothing"
        typer.echo(f"{one.tables}: {after}, as before" if before == after else f"{one.tables}: {before} -> {after}")


@server_app.command("admin-token")
def admin_token(
    config_path: _ConfigPath = None,
    data_dir: _DataDir = None,
    database_url: _DatabaseUrl = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Make another token of the account admin, an admin everywhere, straight in the database; and print it.

    The way back in where every other token is lost. Asks nobody: whoever can write to the database may do it. Over
    SQLite the server must be stopped.

    Example: modelbox server admin-token --config-path modelbox-server.toml
    """
    from modelbox.runtime.upkeep import run_admin_token

    made = run_admin_token(_settings(config_path, data_dir=data_dir, database_url=database_url))
    if output is OutputFormat.JSON:
        print_json(made)
        return
    typer.echo(made.token)
    typer.echo(
        f"token {made.info.id} of {made.info.account}; it holds until {local_time(made.info.expires_at)}", err=True
    )


def _settings(config_path: Path | None, **flags: str | None) -> ServerConfig:
    from modelbox.runtime.config import load_server_config

    return load_server_config(flags=flags, env=os.environ, config_path=config_path)


def _progress(text: str) -> None:
    typer.echo(text, err=True)


def write_settings(path: Path, text: str, *, force: bool, start: str) -> None:
    """Writes a program's file of settings, for its user alone; ``start`` is how to use it."""
    if str(path) == "-":
        sys.stdout.write(text)
        return
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
    try:
        with open(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        typer.echo(f"modelbox: {path} exists: choose another name, or --force", err=True)
        raise typer.Exit(1) from None
    except OSError as exc:
        typer.echo(f"modelbox: cannot write {path}: {exc.strerror}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"wrote {path}; start with: {start} {path}")

"""``modelbox server``: starts the central server, and writes a file with its settings.

Only these commands touch `modelbox.runtime`, and only once they run: the rest of the command line works without the
server's packages.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ("server_app", "write_settings")

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

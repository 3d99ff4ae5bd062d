"""``modelbox sidecar``: serves models from a process of their own, and writes a file with its settings.

Only these commands touch `modelbox.sidecar`, and only once they run: the rest of the command line works without
onnxruntime.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from modelbox.cli.server import write_settings

__all__ = ("sidecar_app",)


class _StartByDefault(TyperGroup):
    """``modelbox sidecar acme/ranker@prod`` means ``modelbox sidecar start acme/ranker@prod``."""

    def parse_args(self, ctx: Any, args: Sequence[str]) -> list[str]:
        known = bool(args) and args[0] in self.commands
        return super().parse_args(ctx, list(args) if known else ["start", *args])


sidecar_app = typer.Typer(
    name="sidecar",
    cls=_StartByDefault,
    help="Serve models from a process of their own.",
    rich_markup_mode=None,
    add_completion=False,
)


@sidecar_app.command(
    "start",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def start(context: typer.Context) -> None:
    """Serve models; the same as python -m modelbox.sidecar. Its --help lists all settings.

    Example: modelbox sidecar acme/ranker@prod --socket /run/modelbox/sidecar.sock
    """
    from modelbox.sidecar.__main__ import main

    try:
        code: Any = main(context.args, prog="modelbox sidecar")
    except SystemExit as exc:
        # After --help, and for flags that there are not.
        code = exc.code
    raise typer.Exit(code if isinstance(code, int) else 0)


@sidecar_app.command("init-config")
def init_config(
    path: Annotated[Path, typer.Argument(help="File to write; - for stdout.")] = Path("modelbox-sidecar.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Write a TOML file with every setting of the sidecar, explained and commented out.

    Example: modelbox sidecar init-config /etc/modelbox/sidecar.toml
    """
    from modelbox.sidecar.config import sidecar_config_toml

    write_settings(path, sidecar_config_toml(), force=force, start="modelbox sidecar --config")

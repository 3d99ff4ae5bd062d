"""``modelbox client init-config``: writes the client's settings file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modelbox.cli.output import OutputFormat, OutputOption, print_json, print_line
from modelbox.errors import ConfigError

__all__ = ("init_config",)


def init_config(
    path: Annotated[
        Path | None, typer.Option("--config-path", metavar="FILE", help="Where to write; default: the user's own.")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="HTTP address of the server.")] = None,
    cache_dir: Annotated[
        Path | None, typer.Option("--cache-dir", metavar="DIR", help="Where downloaded models are kept.")
    ] = None,
    actor: Annotated[str | None, typer.Option("--actor", help="Who is named in histories.")] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option("--tls-ca", metavar="FILE", help="Authorities believed for https:// addresses."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="Where the token is that says who you are.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Write a commented settings file.

    Example: modelbox client init-config --url https://models.example:8080 --token-file ~/.modelbox-token
    """
    from modelbox.config import client_config_path, client_config_toml, load_client_config

    target = (path or client_config_path()).expanduser()
    given: dict[str, Any] = {
        "url": url,
        "cache_dir": cache_dir,
        "actor": actor,
        "tls_ca": tls_ca and tls_ca.absolute(),
        "token_file": token_file and token_file.absolute(),
    }
    # Refuses what could not be read back.
    load_client_config(env={"HOME": "/"}, **given)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(client_config_toml(given))
    except FileExistsError as exc:
        raise ConfigError(f"{target} exists already: edit it, or replace it with --force", path=str(target)) from exc
    except OSError as exc:
        raise ConfigError(f"{target} cannot be written: {exc.strerror}", path=str(target)) from exc
    if output is OutputFormat.JSON:
        print_json({"path": str(target)})
    else:
        print_line(f"wrote {target}")

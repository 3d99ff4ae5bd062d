"""The server's command line: ``python -m modelbox.runtime``, and what ``modelbox server start`` hands on to.

Owns flags, exit codes and logging; reads the environment once. Needs no package but those of the server itself.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from modelbox._serving.flags import add_flags
from modelbox._serving.logs import set_up_logging
from modelbox.errors import ConfigError, ModelBoxError
from modelbox.redaction import redact
from modelbox.runtime.config import ServerConfig, load_server_config, setting_help, switches

__all__ = ("main",)

_EPILOG = """\
examples:
  %(prog)s
  %(prog)s --config-path modelbox-server.toml --log-level debug
  %(prog)s --data-dir /var/lib/modelbox --grpc-port 0 --http-port 0

Flags win over the environment (MODELBOX_DATA_DIR ...), which wins over the file. A flag of true|false means true where
it has no value. Exit codes: 0 after SIGTERM or SIGINT, 1 when storage failed, 2 for settings that cannot work.
"""


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Starts the ModelBox server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config-path", type=Path, metavar="FILE", help="TOML file with settings.")
    add_flags(parser, setting_help(), switches())
    return parser


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m modelbox.runtime") -> int:
    """Runs the server.

    Args:
        argv: Arguments; those of the process by default.
        prog: How the help calls the program.

    Returns:
        The exit code.
    """
    flags = vars(_parser(prog).parse_args(argv))
    config_path = flags.pop("config_path")
    try:
        config = load_server_config(flags=flags, env=os.environ, config_path=config_path)
        set_up_logging(config.log_level, chatty=("alembic",))
        # Passes on what MySQL thinks of names of primary keys.
        logging.getLogger("asyncmy").setLevel(logging.ERROR)
        _run(config)
    except ConfigError as exc:
        print(redact(f"modelbox: {exc}"), file=sys.stderr)
        return 2
    except ModelBoxError as exc:
        print(redact(f"modelbox: {exc}"), file=sys.stderr)
        return 1
    return 0


def _run(config: ServerConfig) -> None:
    try:
        import anyio

        from modelbox.runtime.app import serve
    except ModuleNotFoundError as exc:
        raise ConfigError(f"the server needs the package {exc.name}: pip install 'modelbox[server]'") from exc
    # Files of the data directory are for this user alone, whatever the shell's default is.
    os.umask(0o077)
    anyio.run(serve, config, backend_options={"use_uvloop": find_spec("uvloop") is not None})


if __name__ == "__main__":
    sys.exit(main())

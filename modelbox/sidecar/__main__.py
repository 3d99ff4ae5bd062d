"""The sidecar's command line: ``python -m modelbox.sidecar``, and what ``modelbox sidecar`` hands on to.

Owns flags, exit codes and logging; reads the environment once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from modelbox._serving.flags import add_flags, complete_switches
from modelbox._serving.logs import set_up_logging
from modelbox.errors import ConfigError, ModelBoxError
from modelbox.redaction import redact
from modelbox.sidecar.config import SidecarConfig, load_sidecar_config, setting_help, switches

__all__ = ("main",)

_EPILOG = """\
examples:
  %(prog)s langtech/silero-vad@prod acme/ranker@staging
  %(prog)s acme/ranker@prod --socket /run/modelbox/sidecar.sock --server http://models.example:8080
  %(prog)s --config modelbox-sidecar.toml --log-level debug

Flags win over the environment (MODELBOX_SIDECAR_HTTP_PORT ...), which wins over the file. A flag of true|false means
true where it has no value. Exit codes: 0 after SIGTERM or SIGINT, 1 for a failure while it ran, 2 for settings that
cannot work.
"""


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serves models of a ModelBox server, over the Open Inference Protocol and a Unix socket.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("models", nargs="*", metavar="REF", help="What to serve, such as acme/ranker@prod.")
    parser.add_argument(
        "--config", "--config-path", dest="config_path", type=Path, metavar="FILE", help="TOML file with settings."
    )
    add_flags(parser, [(name, text) for name, text in setting_help() if name != "models"], switches())
    return parser


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m modelbox.sidecar") -> int:
    """Runs the sidecar.

    Args:
        argv: Arguments; those of the process by default.
        prog: How the help calls the program.

    Returns:
        The exit code.
    """
    given = complete_switches(sys.argv[1:] if argv is None else argv, switches())
    flags = vars(_parser(prog).parse_args(given))
    config_path = flags.pop("config_path")
    flags["models"] = flags["models"] or None
    try:
        config = load_sidecar_config(flags=flags, env=os.environ, config_path=config_path)
        set_up_logging(config.log_level, chatty=("PIL",))
        _run(config)
    except ConfigError as exc:
        print(redact(f"modelbox: {exc}"), file=sys.stderr)
        return 2
    except ModelBoxError as exc:
        print(redact(f"modelbox: {exc}"), file=sys.stderr)
        return 1
    return 0


def _run(config: SidecarConfig) -> None:
    try:
        import anyio

        from modelbox.loader.session import keep_memory
        from modelbox.sidecar.app import serve
    except ModuleNotFoundError as exc:
        raise ConfigError(f"the sidecar needs the package {exc.name}: pip install 'modelbox[sidecar]'") from exc
    # The cache and the socket are for this user alone, whatever the shell's default is.
    os.umask(0o077)
    keep_memory()
    anyio.run(serve, config, backend_options={"use_uvloop": find_spec("uvloop") is not None})


if __name__ == "__main__":
    sys.exit(main())

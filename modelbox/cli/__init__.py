"""The ``modelbox`` command.

Owns the entry point only; it imports nothing before it knows that the extra is there. Commands are thin: they read
arguments, call one method of the library, and print what it returned.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ("main",)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments without the program's name; None: those of this process.

    Returns:
        The exit code, see `modelbox.cli.exits`.
    """
    try:
        import rich as _rich  # noqa: F401  # both belong to the extra
        import typer as _typer  # noqa: F401
    except ImportError as exc:
        sys.stderr.write(f"error: the command line needs {exc.name}: pip install 'modelbox[cli]'\n")
        return 1
    from modelbox.cli.app import run

    return run(sys.argv[1:] if argv is None else list(argv))

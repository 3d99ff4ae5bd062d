"""The tree of commands, and what becomes of their errors.

Every command is there twice: as ``modelbox models …`` and, as in the earlier project, as ``modelbox client models …``.
Invariant: whatever happens, the last thing on stderr is one line (or one JSON object) that says what went wrong, and
the exit code is one of `modelbox.cli.exits`; a traceback is printed only where MODELBOX_TRACEBACK is set.
"""

from __future__ import annotations

import itertools
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from modelbox.cli import (
    access,
    artifacts,
    attributes,
    audit,
    cache,
    changes,
    checkpoints,
    datasets,
    doctor,
    events,
    experiments,
    finding,
    lineage,
    metrics,
    models,
    notes,
    objects,
    predict,
    retention,
    rules,
    runs,
    settings,
    signing,
    spool,
)
from modelbox.cli.exits import Exit, exit_code
from modelbox.cli.output import OutputFormat, note, print_error, print_line
from modelbox.cli.server import server_app
from modelbox.cli.sidecar import sidecar_app
from modelbox.errors import InvalidError, ModelBoxError
from modelbox.redaction import redact
from modelbox.tracking import AttributeKind

__all__ = ("command", "run")

# Old and new releases of typer, with click inside or beside, have this in common.
_CLICK_ERROR: type[Exception] = typer.BadParameter.__mro__[2]


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        print_line(f"modelbox {version('modelbox')}")
        raise typer.Exit


_GROUPS: Mapping[str, typer.Typer] = {
    "models": models.app,
    "artifacts": artifacts.app,
    "experiments": experiments.app,
    "runs": runs.app,
    "checkpoints": checkpoints.app,
    "metrics": metrics.app,
    "datasets": datasets.app,
    "lineage": lineage.app,
    "params": attributes.group_of(AttributeKind.PARAM),
    "tags": attributes.group_of(AttributeKind.TAG),
    "labels": attributes.group_of(AttributeKind.LABEL),
    "metadata": attributes.group_of(AttributeKind.METADATA),
    "attributes": attributes.attributes,
    "events": events.app,
    "audit": audit.app,
    "retention": retention.retention,
    "versions": retention.versions,
    "quotas": retention.quotas,
    "rules": rules.rules,
    "aliases": rules.aliases,
    "comments": notes.comments,
    "readme": notes.readme,
    "spool": spool.app,
    "accounts": access.accounts,
    "roles": access.roles,
    "tokens": access.tokens,
    "cache": cache.app,
    "keys": signing.keys,
}
_COMMANDS: Mapping[str, Callable[..., None]] = {
    "find": finding.find,
    "purge": objects.purge,
    "watch": changes.watch,
    "fleet": changes.fleet,
    "predict": predict.predict,
    "whoami": access.whoami,
    "sign": signing.sign,
    "verify": signing.verify,
    "publish": models.publish,
    "doctor": doctor.doctor,
}


def command(only: str = "") -> Any:
    """The tree of commands; with ``only``, no more of it than this command or group, which takes a tenth of the time.

    Args:
        only: A command or group below the root or ``client``; empty for all.
    """
    root = typer.Typer(
        name="modelbox",
        help="Record training, publish models, point aliases at them, and watch who serves what.",
        epilog="Example: modelbox models publish langtech/wav2vec model.onnx --alias prod",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @root.callback()
    def options(
        version: Annotated[
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the release and exit.")
        ] = False,
    ) -> None:
        pass

    for name, group in _GROUPS.items():
        if only in ("", name):
            root.add_typer(group, name=name)
    for name, function in _COMMANDS.items():
        if only in ("", name):
            root.command(name)(function)
    client = typer.Typer(
        help="The same commands, and the client's settings file.",
        epilog="Example: modelbox client init-config --url http://models.example:8080",
        no_args_is_help=True,
    )
    client.command("init-config")(settings.init_config)
    root.add_typer(client, name="client")
    if not only:
        root.add_typer(server_app, name="server")
        root.add_typer(sidecar_app, name="sidecar")
    tree: Any = typer.main.get_command(root)
    shared = {name: tree.commands[name] for name in (*_GROUPS, *_COMMANDS) if name in tree.commands}
    tree.commands["client"].commands = shared | tree.commands["client"].commands
    return tree


def _only(argv: Sequence[str]) -> str:
    """What of the tree a command line needs: the first word, where it is known."""
    words = argv[1:] if argv[:1] == ["client"] else argv
    return words[0] if words and (words[0] in _GROUPS or words[0] in _COMMANDS) else ""


def run(argv: Sequence[str]) -> int:
    """Runs one command line and returns its exit code."""
    output = OutputFormat.JSON if _wants_json(argv) else OutputFormat.TABLE
    try:
        result: Any = command(_only(argv))(list(argv), prog_name="modelbox", standalone_mode=False)
        sys.stdout.flush()
    except ModelBoxError as exc:
        _trace()
        print_error(exc, output)
        return exit_code(exc)
    except (KeyboardInterrupt, typer.Abort):
        note("interrupted")
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except _CLICK_ERROR as exc:
        return _usage(exc, output)
    except Exception as exc:
        _trace()
        print_error(
            ModelBoxError(
                f"an error in ModelBox itself: {type(exc).__name__}: {exc} (MODELBOX_TRACEBACK=1 shows where; "
                "please report it)"
            ),
            output,
        )
        return Exit.FAILED
    return result if isinstance(result, int) else Exit.OK


def _usage(exc: Exception, output: OutputFormat) -> int:
    context = getattr(exc, "ctx", None)
    if type(exc).__name__ == "NoArgsIsHelpError" and context is not None:
        print(context.get_help(), file=sys.stderr)
        return Exit.USAGE
    text = exc.format_message() if hasattr(exc, "format_message") else str(exc)
    where = context.command_path if context is not None else "modelbox"
    print_error(InvalidError(f"{text.rstrip('.')} (see: {where} --help)"), output)
    return Exit.USAGE


def _trace() -> None:
    if os.environ.get("MODELBOX_TRACEBACK"):
        sys.stderr.write(redact(traceback.format_exc()))


def _wants_json(argv: Sequence[str]) -> bool:
    # Also where the command line itself is wrong and nothing was parsed.
    return any(
        arg in ("--output=json", "--format=json", "-ojson")
        or (arg in ("--output", "--format", "-o") and after == "json")
        for arg, after in itertools.pairwise((*argv, ""))
    )

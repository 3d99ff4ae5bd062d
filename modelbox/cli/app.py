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
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from modelbox.cli import (
    artifacts,
    attributes,
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
    runs,
    settings,
    spool,
)
from modelbox.cli.exits import Exit, exit_code
from modelbox.cli.output import OutputFormat, note, print_error, print_line
from modelbox.cli.server import server_app
from modelbox.cli.sidecar import sidecar_app
from modelbox.errors import InvalidError, ModelBoxError
from modelbox.tracking import AttributeKind

__all__ = ("app", "run")

# Old and new releases of typer, with click inside or beside, have this in common.
_CLICK_ERROR: type[Exception] = typer.BadParameter.__mro__[2]


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        print_line(f"modelbox {version('modelbox')}")
        raise typer.Exit


def _add_commands(group: typer.Typer) -> None:
    group.add_typer(models.app, name="models")
    group.add_typer(artifacts.app, name="artifacts")
    group.add_typer(experiments.app, name="experiments")
    group.add_typer(runs.app, name="runs")
    group.add_typer(checkpoints.app, name="checkpoints")
    group.add_typer(metrics.app, name="metrics")
    group.add_typer(datasets.app, name="datasets")
    group.add_typer(lineage.app, name="lineage")
    group.add_typer(attributes.group_of(AttributeKind.PARAM), name="params")
    group.add_typer(attributes.group_of(AttributeKind.TAG), name="tags")
    group.add_typer(attributes.group_of(AttributeKind.LABEL), name="labels")
    group.add_typer(attributes.group_of(AttributeKind.METADATA), name="metadata")
    group.add_typer(attributes.attributes, name="attributes")
    group.add_typer(events.app, name="events")
    group.add_typer(notes.comments, name="comments")
    group.add_typer(notes.readme, name="readme")
    group.command("find")(finding.find)
    group.add_typer(spool.app, name="spool")
    group.command("purge")(objects.purge)
    group.add_typer(cache.app, name="cache")
    group.command("watch")(changes.watch)
    group.command("fleet")(changes.fleet)
    group.command("predict")(predict.predict)
    group.command("doctor")(doctor.doctor)


def _build() -> typer.Typer:
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

    _add_commands(root)
    client = typer.Typer(
        help="The same commands, and the client's settings file.",
        epilog="Example: modelbox client init-config --url http://models.example:8080",
        no_args_is_help=True,
    )
    _add_commands(client)
    client.command("init-config")(settings.init_config)
    root.add_typer(client, name="client")
    root.add_typer(server_app, name="server")
    root.add_typer(sidecar_app, name="sidecar")
    return root


app = _build()


def run(argv: Sequence[str]) -> int:
    """Runs one command line and returns its exit code."""
    output = OutputFormat.JSON if _wants_json(argv) else OutputFormat.TABLE
    try:
        result: Any = typer.main.get_command(app)(list(argv), prog_name="modelbox", standalone_mode=False)
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
        traceback.print_exc()


def _wants_json(argv: Sequence[str]) -> bool:
    # Also where the command line itself is wrong and nothing was parsed.
    return any(
        arg in ("--output=json", "--format=json", "-ojson")
        or (arg in ("--output", "--format", "-o") and after == "json")
        for arg, after in itertools.pairwise((*argv, ""))
    )

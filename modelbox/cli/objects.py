"""How commands name objects, and what many kinds of them have in common: the bin.

An object is named by its id, or by a path: ``namespace``, ``ns/model``, ``ns/model@7``. Experiments and datasets have
names of their own beside the models', so their paths say what they are: ``experiment:ns/name``, ``dataset:ns/name@3``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.output import OutputFormat, OutputOption, UrlOption, print_json, print_line
from modelbox.cli.run import time_of, with_client
from modelbox.errors import InvalidError
from modelbox.tracking import ObjectKind, kind_of_id

if TYPE_CHECKING:
    from modelbox.client import Client

__all__ = ("ObjectArgument", "ask", "object_id", "object_ids", "path_of", "purge", "put_into_bin", "take_from_bin")

ObjectArgument = Annotated[
    str,
    typer.Argument(
        metavar="OBJECT",
        help="An id such as run_5f0c…, a namespace, ns/model, ns/model@7, experiment:ns/name or dataset:ns/name@3.",
    ),
]


def path_of(what: str, path: str | None, name: str | None, namespace: str | None) -> str:
    """``namespace/name``, given in one piece or in two.

    Raises:
        InvalidError: It is given in neither form, or in both.
    """
    form = f"NAMESPACE/{'MODEL' if what == 'model' else 'NAME'}"
    if path is None:
        if not name or not namespace:
            raise InvalidError(f"name the {what} as {form}, or with both --name and --namespace")
        return f"{namespace}/{name}"
    if name or namespace:
        raise InvalidError(f"name the {what} either as {form} or with --name and --namespace")
    return path


async def object_id(client: Client, text: str) -> str:
    """What the server knows an object by: an id, or a path of the registry.

    Raises:
        NotFoundError: There is no such experiment or dataset.
    """
    kind, colon, path = text.partition(":")
    if colon and kind == "experiment":
        return (await client.get_experiment(path)).id
    if colon and kind == "dataset":
        dataset = await (client.get_dataset_version(path) if "@" in path else client.get_dataset(path))
        return dataset.id
    return text


async def object_ids(client: Client, kind: ObjectKind, texts: Sequence[str]) -> list[str]:
    """Ids of experiments, runs, checkpoints, datasets or their versions, which may be given by their paths."""
    found = []
    for text in texts:
        if kind_of_id(text) is None and kind is ObjectKind.EXPERIMENT:
            text = f"experiment:{text.removeprefix('experiment:')}"
        elif kind_of_id(text) is None and kind is ObjectKind.DATASET:
            text = f"dataset:{text.removeprefix('dataset:')}"
        found.append(await object_id(client, text))
    return found


def put_into_bin(kind: ObjectKind, objects: Sequence[str], url: str | None, output: OutputFormat) -> None:
    """Deletes objects so that they can be restored."""

    async def run(client: Client) -> None:
        ids = await object_ids(client, kind, objects)
        _print_count("deleted", await client.delete_objects(*ids), ids, output)

    with_client(url, run)


def take_from_bin(kind: ObjectKind, objects: Sequence[str], url: str | None, output: OutputFormat) -> None:
    """Restores objects."""

    async def run(client: Client) -> None:
        ids = await object_ids(client, kind, objects)
        _print_count("restored", await client.restore_objects(*ids), ids, output)

    with_client(url, run)


def _print_count(verb: str, count: int, ids: Sequence[str], output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_json({verb: count, "ids": list(ids)})
    else:
        print_line(f"{verb} {' '.join(ids)} ({count} objects with all below)")


def ask(question: str, *, yes: bool) -> None:
    """Asks whether to go on.

    Raises:
        InvalidError: Nobody can be asked, and ``--yes`` is not given.
        typer.Abort: They said no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidError(f"{question[:1].lower()}{question[1:].rstrip('?')}: needs --yes where nobody can be asked")
    typer.confirm(question, abort=True, err=True)


def purge(
    before: Annotated[
        str, typer.Option("--before", metavar="TIME", help="What was deleted before this, such as 2026-05-03 or 30d.")
    ],
    namespace: Annotated[str, typer.Option("--namespace", help="Only of this namespace.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Remove for good what lies in the bin, with everything attached to it.

    Example: modelbox purge --before 30d --namespace langtech --dry-run
    """
    limit = time_of(before, "--before")
    if not dry_run:
        where = f" of {namespace}" if namespace else ""
        ask(f"Remove for good what was deleted{where} before {limit:%Y-%m-%d %H:%M}?", yes=yes)

    async def run(client: Client) -> None:
        count = await client.purge(limit, namespace=namespace, dry_run=dry_run)
        if output is OutputFormat.JSON:
            print_json({"purged": 0 if dry_run else count, "found": count, "before": limit})
        else:
            print_line(f"{'would remove' if dry_run else 'removed'} {count} objects")

    with_client(url, run)

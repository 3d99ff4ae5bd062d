"""``modelbox comments …`` and ``modelbox readme …``: what people say about objects, in Markdown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.objects import ObjectArgument, object_id, put_into_bin
from modelbox.cli.output import (
    OutputFormat,
    OutputOption,
    UrlOption,
    local_time,
    note,
    print_json,
    print_line,
    print_text,
)
from modelbox.cli.run import with_client
from modelbox.errors import ConfigError, InvalidError
from modelbox.tracking import ObjectKind

if TYPE_CHECKING:
    from modelbox.client import Client

__all__ = ("comments", "readme")

comments = typer.Typer(
    help="Comments on objects.",
    epilog="Example: modelbox comments list langtech/wav2vec",
    no_args_is_help=True,
)
readme = typer.Typer(
    help="The page of an object.",
    epilog="Example: modelbox readme show langtech/wav2vec",
    no_args_is_help=True,
)

TextArgument = Annotated[
    str | None, typer.Argument(metavar="[TEXT]", help="In Markdown; `-` or nothing: read from stdin.")
]


def _text(text: str | None) -> str:
    if text not in (None, "-"):
        assert text is not None
        return text
    if sys.stdin.isatty():
        note("reading Markdown from the terminal; Ctrl-D ends it")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as exc:
        raise InvalidError(f"stdin is no text: {exc.reason} at byte {exc.start}") from exc


@comments.command("list")
def list_comments(target: ObjectArgument, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Show the comments on an object, oldest first.

    Example: modelbox comments list langtech/wav2vec@7
    """

    async def run(client: Client) -> None:
        found = [one async for one in client.iter_comments(await object_id(client, target))]
        if output is OutputFormat.JSON:
            print_json(found)
            return
        if not found:
            note(f"{target} has no comments")
        for number, one in enumerate(found):
            if number:
                print_line("")
            edited = f", edited {local_time(one.edited_at)}" if one.edited_at else ""
            print_line(f"{one.created_by or 'unknown'}, {local_time(one.created_at)}{edited}  [{one.id}]")
            print_text(one.text)

    with_client(url, run)


@comments.command("add")
def add(
    target: ObjectArgument,
    text: TextArgument = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Say something about an object.

    Example: modelbox comments add langtech/wav2vec@7 "Weak on **short** utterances."
    """
    said = _text(text)

    async def run(client: Client) -> None:
        comment = await client.add_comment(await object_id(client, target), said)
        if output is OutputFormat.JSON:
            print_json(comment)
        else:
            print_line(f"added {comment.id}")

    with_client(url, run)


@comments.command("edit")
def edit(
    comment: Annotated[str, typer.Argument(metavar="ID", help="The comment's id, see `comments list`.")],
    text: TextArgument = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Say it better.

    Example: modelbox comments edit cmt_5f0c2a7be91d34f608a1c2d3 "Weak below one second."
    """
    said = _text(text)

    async def run(client: Client) -> None:
        edited = await client.edit_comment(comment, said)
        if output is OutputFormat.JSON:
            print_json(edited)
        else:
            print_line(f"edited {edited.id}")

    with_client(url, run)


@comments.command("delete")
def delete(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of comments, see `comments list`.")],
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Delete comments.

    Example: modelbox comments delete cmt_5f0c2a7be91d34f608a1c2d3
    """
    put_into_bin(ObjectKind.COMMENT, ids, url, output)


@readme.command("show")
def show(target: ObjectArgument, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Print the page of an object, as it was written.

    Example: modelbox readme show langtech/wav2vec
    """

    async def run(client: Client) -> None:
        found = await client.get_readme(await object_id(client, target))
        if output is OutputFormat.JSON:
            print_json(found)
        else:
            print_text(found.text)

    with_client(url, run)


@readme.command("set")
def set_readme(
    target: ObjectArgument,
    text: TextArgument = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="Read it from this file instead.")
    ] = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Write the page of an object; an empty text removes it.

    Example: modelbox readme set langtech/wav2vec "Recognises speech in 12 languages."
    """
    if file is not None and text is not None:
        raise InvalidError("give either a text or a --file")
    try:
        written = _text(text) if file is None else file.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{file} cannot be read: {exc.strerror}", path=str(file)) from exc
    except UnicodeDecodeError as exc:
        raise InvalidError(f"{file} is no text: {exc.reason} at byte {exc.start}") from exc

    async def run(client: Client) -> None:
        found = await client.set_readme(await object_id(client, target), written)
        if output is OutputFormat.JSON:
            print_json(found)
        else:
            print_line(f"wrote the readme of {target}" if found.text else f"removed the readme of {target}")

    with_client(url, run)

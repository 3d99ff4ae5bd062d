"""``modelbox params|tags|labels|metadata …`` and ``modelbox attributes …``: values by key on any object."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.objects import ObjectArgument, object_id
from modelbox.cli.output import (
    OutputFormat,
    OutputOption,
    UrlOption,
    local_time,
    note,
    print_json,
    print_line,
    print_table,
    value_text,
)
from modelbox.cli.run import json_pairs, text_pairs, with_client
from modelbox.objects import JsonValue
from modelbox.tracking import AttributeChange, AttributeKind

if TYPE_CHECKING:
    from modelbox.client import Client

__all__ = ("attributes", "group_of")

_HELP = {
    AttributeKind.PARAM: ("params", "Hyperparameters: what a run was told, JSON by key.", "lr=3e-4 layers=12"),
    AttributeKind.TAG: (
        "tags",
        "Tags: what people call an object, text by key, which may be empty.",
        "team=speech best",
    ),
    AttributeKind.LABEL: ("labels", "Labels: text by key that programs select by.", "stage=trial"),
    AttributeKind.METADATA: ("metadata", "Metadata: any JSON by key.", "data='{\"hours\": 960}'"),
}
_SHOWN_CHARS = 400

attributes = typer.Typer(
    help="Values by key of any kind: parameters, tags, labels and metadata.",
    epilog="Example: modelbox attributes show langtech/wav2vec",
    no_args_is_help=True,
)


def group_of(kind: AttributeKind) -> typer.Typer:
    """The commands of one kind: ``show``, ``set`` and ``remove``."""
    name, help_text, example = _HELP[kind]
    group = typer.Typer(
        help=help_text, epilog=f"Example: modelbox {name} show run_5f0c2a7be91d34f608a1c2d3", no_args_is_help=True
    )
    group.command("show", help=_about(f"Show the {name} of an object.", f"{name} show langtech/wav2vec"))(_show(kind))
    written = f"Set {name}; others stay as they are."
    if kind is AttributeKind.PARAM:
        written = "Set hyperparameters; one that has another value is refused, unless --overwrite is given."
    setting = _about(written, f"{name} set run_5f0c2a7be91d34f608a1c2d3 {example}")
    group.command("set", help=setting)(_set_params if kind is AttributeKind.PARAM else _set(kind))
    removing = _about(
        f"Remove {name}; their history stays.", f"{name} remove run_5f0c2a7be91d34f608a1c2d3 {_key(example)}"
    )
    group.command("remove", help=removing)(_remove(kind))
    return group


def _about(text: str, example: str) -> str:
    return f"{text}\n\nExample: modelbox {example}"


def _key(example: str) -> str:
    return example.partition("=")[0]


PairsArgument = Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="Values; what is no JSON is text.")]
TextsArgument = Annotated[list[str], typer.Argument(metavar="KEY[=TEXT]...", help="Values by key.")]
KeysArgument = Annotated[list[str], typer.Argument(metavar="KEY...", help="Which ones.")]


def _show(kind: AttributeKind) -> Callable[..., None]:
    def show(target: ObjectArgument, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
        async def run(client: Client) -> None:
            found = await client.get_attributes(await object_id(client, target), kinds=[kind])
            if output is OutputFormat.JSON:
                print_json({one.key: one.value for one in found})
                return
            rows = [(one.key, _value(one.value), local_time(one.updated_at), one.updated_by) for one in found]
            print_table(("KEY", "VALUE", "SET", "BY"), rows, empty=f"{target} has no {_HELP[kind][0]}")

        with_client(url, run)

    return show


def _value(value: JsonValue) -> str:
    return value_text(value, max_chars=_SHOWN_CHARS)


def _set_params(
    target: ObjectArgument,
    values: PairsArgument,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also parameters that have another value already.")
    ] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    given = json_pairs(values, "KEY=VALUE")

    async def run(client: Client) -> None:
        await client.set_params(await object_id(client, target), given, overwrite=overwrite)
        _print_set(target, given, output)

    with_client(url, run)


def _set(kind: AttributeKind) -> Callable[..., None]:
    def set_json(
        target: ObjectArgument,
        values: PairsArgument,
        url: UrlOption = None,
        output: OutputOption = OutputFormat.TABLE,
    ) -> None:
        given = json_pairs(values, "KEY=VALUE")

        async def run(client: Client) -> None:
            await client.set_metadata(await object_id(client, target), given)
            _print_set(target, given, output)

        with_client(url, run)

    def set_texts(
        target: ObjectArgument,
        values: TextsArgument,
        url: UrlOption = None,
        output: OutputOption = OutputFormat.TABLE,
    ) -> None:
        given = text_pairs([value if "=" in value else f"{value}=" for value in values], "KEY[=TEXT]")

        async def run(client: Client) -> None:
            call = client.set_tags if kind is AttributeKind.TAG else client.set_labels
            await call(await object_id(client, target), given)
            _print_set(target, given, output)

        with_client(url, run)

    return set_json if kind is AttributeKind.METADATA else set_texts


def _print_set(target: str, given: dict[str, str] | dict[str, JsonValue], output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_json({"object": target, "set": given})
    else:
        print_line(f"set {', '.join(given)} of {target}")


def _remove(kind: AttributeKind) -> Callable[..., None]:
    def remove(
        target: ObjectArgument,
        keys: KeysArgument,
        url: UrlOption = None,
        output: OutputOption = OutputFormat.TABLE,
    ) -> None:
        async def run(client: Client) -> None:
            await client.remove_attributes(await object_id(client, target), kind, keys)
            if output is OutputFormat.JSON:
                print_json({"object": target, "removed": keys})
            else:
                print_line(f"removed {', '.join(keys)} of {target}")

        with_client(url, run)

    return remove


@attributes.command("show")
def show_all(target: ObjectArgument, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Show all values by key of an object.

    Example: modelbox attributes show langtech/wav2vec@7
    """

    async def run(client: Client) -> None:
        found = await client.get_attributes(await object_id(client, target))
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = [(one.kind, one.key, _value(one.value), local_time(one.updated_at), one.updated_by) for one in found]
        print_table(("KIND", "KEY", "VALUE", "SET", "BY"), rows, empty=f"{target} has no values by key")

    with_client(url, run)


@attributes.command("history")
def history(
    target: ObjectArgument,
    kind: Annotated[AttributeKind, typer.Argument(help="Of which kind.")],
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="Only of this key.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 100,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show who set values when, newest first.

    Example: modelbox attributes history langtech/wav2vec label stage
    """

    async def run(client: Client) -> None:
        found: list[AttributeChange] = []
        async for change in client.iter_attribute_history(await object_id(client, target), kind, key):
            if len(found) == limit:
                note(f"there are more than {limit}: --limit shows more of them")
                break
            found.append(change)
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = [
            (local_time(one.at), one.key, "removed" if one.deleted else _value(one.value), one.by, one.rev)
            for one in found
        ]
        print_table(("WHEN", "KEY", "VALUE", "BY", "REV"), rows, empty=f"no {kind} of {target} was ever set")

    with_client(url, run)

"""``modelbox find``: objects by what is recorded of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.output import (
    CsvOutput,
    UrlOption,
    local_time,
    note,
    number_text,
    print_json,
    print_table,
    value_text,
)
from modelbox.cli.run import with_client
from modelbox.errors import InvalidError
from modelbox.objects import JsonValue

if TYPE_CHECKING:
    from modelbox.client import Client
    from modelbox.find import Expression, Field
    from modelbox.frames import FindPage

__all__ = ("FindFormat", "find")


class FindFormat(StrEnum):
    """How what was found is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def find(
    collection: Annotated[
        str, typer.Argument(metavar="COLLECTION", help="runs, experiments, checkpoints, models, versions, datasets ….")
    ],
    where: Annotated[str, typer.Argument(metavar="[WHERE]", help="The query; nothing: everything.")] = "",
    order_by: Annotated[
        list[str] | None,
        typer.Option("--order-by", metavar="FIELD [desc]", help="Sort by this; may be given several times."),
    ] = None,
    within: Annotated[
        str, typer.Option("--within", metavar="OBJECT", help="Only of this namespace, experiment, model or run.")
    ] = "",
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", "-c", metavar="NAME[,NAME...]", help="Which columns, such as id,name,metrics.loss."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 100,
    everything: Annotated[bool, typer.Option("--all", help="As many as there are.")] = False,
    deleted: Annotated[bool, typer.Option("--deleted", help="Also what is in the bin.")] = False,
    url: UrlOption = None,
    output: Annotated[
        FindFormat, typer.Option("--format", "--output", "-o", help="How to print what was found.")
    ] = FindFormat.TABLE,
) -> None:
    """Find objects by what is recorded of them; docs/find.md describes the language.

    A table has the attributes and what the query names; JSON and CSV have everything, unless --columns says otherwise.

    Example: modelbox find runs "metrics.wer < 0.1 and params.lr <= 1e-3" --order-by metrics.wer --limit 10
    """
    orders = order_by or []
    wanted = [name.strip() for value in columns or [] for name in value.split(",") if name.strip()]
    if not wanted and output is FindFormat.TABLE:
        wanted = ["attributes", *_named(collection, where, orders)]

    async def run(client: Client) -> None:
        page = await client.find(
            collection,
            where,
            order_by=orders,
            within=within.removeprefix("experiment:"),
            columns=wanted,
            limit=None if everything else limit,
            include_deleted=deleted,
        )
        if output is FindFormat.JSON:
            print_json(page.rows())
        elif output is FindFormat.CSV:
            page.to_csv(CsvOutput())  # type: ignore[arg-type]  # it writes lines, and nothing else
            sys.stdout.flush()
        else:
            _print(
                page, keep=wanted if columns else _attributes(collection, where, orders), empty=f"no {collection} found"
            )
        if page.next_token:
            note(f"there are more than {len(page)}: --limit or --all shows more of them")

    with_client(url, run)


def _fields_of(collection: str, where: str, orders: Sequence[str]) -> list[Field]:
    """The fields that a query names; none where it does not parse, which the server tells."""
    from modelbox.find import parse_order, parse_where

    try:
        expression = parse_where(collection, where, now=datetime.now(UTC))
        fields = [] if expression is None else list(_fields(expression))
        return fields + [order.field for order in parse_order(collection, orders)]
    except InvalidError:
        return []


def _attributes(collection: str, where: str, orders: Sequence[str]) -> list[str]:
    """The attributes that a query names."""
    from modelbox.find import Scope

    return [field.name for field in _fields_of(collection, where, orders) if field.scope is Scope.ATTRIBUTE]


def _named(collection: str, where: str, orders: Sequence[str]) -> list[str]:
    """The fields beside attributes that a query names, as columns."""
    from modelbox.find import Scope

    names = []
    for field in _fields_of(collection, where, orders):
        if field.scope is not Scope.ATTRIBUTE:
            quoted = field.name.replace("\\", r"\\").replace('"', r"\"")
            part = f".{field.part}" if field.part not in ("", "latest") else ""
            names.append(f'{field.scope.value}."{quoted}"{part}')
    return list(dict.fromkeys(names))


def _fields(expression: Expression) -> Iterator[Field]:
    from modelbox.find import Comparison, Not

    if isinstance(expression, Comparison):
        yield expression.field
        return
    for part in (expression.part,) if isinstance(expression, Not) else expression.parts:
        yield from _fields(part)


# In a table only where they are asked for: what other columns say as well.
_SELDOM = frozenset(["created_by", "dataset_id", "ended_at", "experiment_id", "received_at"])


def _print(page: FindPage, *, keep: Sequence[str], empty: str) -> None:
    seldom = _SELDOM | ({"created_at"} if "started_at" in page.columns else set())
    names = [
        name
        for name, values in page.columns.items()
        if name in keep or (name not in seldom and any(value not in (None, "") for value in values))
    ]
    rows = [[_cell(row[name]) for name in names] for row in page]
    print_table(names, rows, empty=empty, numbers=page.number_columns)


def _cell(value: JsonValue) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return local_time(value)
    if isinstance(value, float):
        return number_text(value)
    return value_text(value, max_chars=60)

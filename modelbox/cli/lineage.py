"""``modelbox lineage …``: what came of what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.objects import object_id
from modelbox.cli.output import OutputFormat, OutputOption, UrlOption, note, print_json, print_line
from modelbox.cli.run import with_client
from modelbox.tracking import Lineage, LineageNode, NewEdge

if TYPE_CHECKING:
    from modelbox.client import Client

__all__ = ("Direction", "app", "tree_lines")

app = typer.Typer(
    help="Lineage: what objects were made from, and what was made from them.",
    epilog="Example: modelbox lineage show langtech/wav2vec@7",
    no_args_is_help=True,
)

_HELP = "An id, ns/model@7, experiment:ns/name or dataset:ns/name@3."
SourceArgument = Annotated[str, typer.Argument(metavar="SOURCE", help=f"What was there before. {_HELP}")]
TargetArgument = Annotated[str, typer.Argument(metavar="TARGET", help=f"What was made from it. {_HELP}")]
TypeOption = Annotated[
    str, typer.Option("--type", help="used (data by a run), produced (by a run), derived, or a word of your own.")
]


class Direction(StrEnum):
    """Which way to go."""

    ANCESTORS = "ancestors"
    DESCENDANTS = "descendants"
    BOTH = "both"


@app.command("show")
def show(
    target: Annotated[str, typer.Argument(metavar="OBJECT", help=_HELP)],
    direction: Annotated[Direction, typer.Option("--direction", help="Which way to go.")] = Direction.BOTH,
    depth: Annotated[int, typer.Option("--depth", min=0, help="How many steps at most; 0: all.")] = 0,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Draw a tree of what an object was made from, and one of what was made from it.

    Example: modelbox lineage show langtech/wav2vec@7 --direction ancestors
    """

    async def run(client: Client) -> None:
        name = await object_id(client, target)
        if output is OutputFormat.JSON:
            print_json(await client.get_lineage(name, direction=direction.value, max_depth=depth))
            return
        ways = (Direction.ANCESTORS, Direction.DESCENDANTS) if direction is Direction.BOTH else (direction,)
        for number, way in enumerate(ways):
            found = await client.get_lineage(name, direction=way.value, max_depth=depth)
            if number:
                print_line("")
            print_line("made from" if way is Direction.ANCESTORS else "what was made from it")
            if not found.edges:
                print_line("nothing that is recorded")
                continue
            for line in tree_lines(found, up=way is Direction.ANCESTORS):
                print_line(line)
            if found.truncated:
                note("there is more: --depth shows less of it, but the near part whole")

    with_client(url, run)


def tree_lines(lineage: Lineage, *, up: bool) -> Iterator[str]:
    """A tree below each object that was asked for; what came before is named, but not drawn again.

    Args:
        lineage: Nodes and edges of one direction.
        up: Whether they are ancestors.
    """
    nodes = {node.id: node for node in lineage.nodes}
    below: dict[str, list[tuple[str, str]]] = {}
    for edge in lineage.edges:
        parent, child = (edge.target, edge.source) if up else (edge.source, edge.target)
        if parent in nodes and child in nodes:
            below.setdefault(parent, []).append((child, edge.type))
    for children in below.values():
        children.sort(key=lambda child: (nodes[child[0]].title, child))
    drawn: set[str] = set()
    for root in (node for node in lineage.nodes if node.depth == 0):
        yield from _tree(root, nodes, below, drawn)


def _tree(
    root: LineageNode,
    nodes: Mapping[str, LineageNode],
    below: Mapping[str, Sequence[tuple[str, str]]],
    drawn: set[str],
) -> Iterator[str]:
    """Without recursion: a chain may be thousands of objects long."""
    yield _title(root)
    drawn.add(root.id)
    stack = [("", child, kind, number == 0) for number, (child, kind) in enumerate(reversed(below.get(root.id, ())))]
    while stack:
        indent, found, kind, last = stack.pop()
        again = found in drawn and bool(below.get(found))
        yield f"{indent}{'└── ' if last else '├── '}{kind}: {_title(nodes[found])}{' (see above)' if again else ''}"
        if found in drawn:
            continue
        drawn.add(found)
        deeper = f"{indent}{'    ' if last else '│   '}"
        stack += [
            (deeper, child, kind, number == 0) for number, (child, kind) in enumerate(reversed(below.get(found, ())))
        ]


def _title(node: LineageNode) -> str:
    kind = node.kind.value.replace("_", " ")
    return f"{kind} {node.title}" if node.title == node.id else f"{kind} {node.title} ({node.id})"


@app.command("add")
def add(
    source: SourceArgument,
    target: TargetArgument,
    type: TypeOption = "derived",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Record that something was made from something.

    Example: modelbox lineage add dataset:langtech/voices@3 run_5f0c2a7be91d34f608a1c2d3 --type used
    """

    async def run(client: Client) -> None:
        edge = NewEdge(source=await object_id(client, source), target=await object_id(client, target), type=type)
        new = await client.add_edges([edge])
        if output is OutputFormat.JSON:
            print_json({"edge": edge, "existed": not new})
        else:
            print_line(f"{'added' if new else 'exists'} {source} -{type}-> {target}")

    with_client(url, run)


@app.command("remove")
def remove(
    source: SourceArgument,
    target: TargetArgument,
    type: TypeOption = "derived",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Take back what `lineage add` recorded.

    Example: modelbox lineage remove dataset:langtech/voices@3 run_5f0c2a7be91d34f608a1c2d3 --type used
    """

    async def run(client: Client) -> None:
        edge = NewEdge(source=await object_id(client, source), target=await object_id(client, target), type=type)
        count = await client.remove_edges([edge])
        if output is OutputFormat.JSON:
            print_json({"edge": edge, "removed": bool(count)})
        else:
            print_line(f"{'removed' if count else 'there is no'} {source} -{type}-> {target}")

    with_client(url, run)

"""``modelbox artifacts …``: named groups of files on an object."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.models import LabelOption, MetadataOption
from modelbox.cli.output import (
    OutputFormat,
    OutputOption,
    UrlOption,
    local_time,
    pairs_text,
    print_json,
    print_line,
    print_table,
    progress_bar,
    size_text,
)
from modelbox.cli.run import json_pairs, text_pairs, with_client
from modelbox.errors import InvalidError
from modelbox.refs import parse_digest

if TYPE_CHECKING:
    from modelbox.client import Client
    from modelbox.objects import Artifact, ArtifactFile, Created

__all__ = ("app",)

app = typer.Typer(
    help="Files that belong to a namespace, model or version.",
    epilog="Example: modelbox artifacts list langtech/wav2vec",
    no_args_is_help=True,
)

ParentArgument = Annotated[
    str, typer.Argument(metavar="PARENT", help="What they belong to: ns, ns/model or ns/model@7.")
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The artifact's name below its parent.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The artifact's id, see `artifacts list`.")]


@app.command("upload")
def upload(
    parent: ParentArgument,
    name: NameArgument,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Files or directories.")],
    label: LabelOption = None,
    metadata: MetadataOption = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Upload files and attach them to an object.

    Example: modelbox artifacts upload langtech/wav2vec@7 evaluation report.html confusion.png
    """

    async def run(client: Client) -> None:
        with progress_bar(f"uploading {name}", output) as on_progress:
            created = await client.upload_artifact(
                parent,
                name,
                files,
                labels=text_pairs(label or [], "--label"),
                metadata=json_pairs(metadata or [], "--metadata"),
                on_progress=on_progress,
            )
        _print_created(created, "uploaded", output)

    with_client(url, run)


@app.command("track")
def track(
    parent: ParentArgument,
    name: NameArgument,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE...]", help="Local files or directories to record.")
    ] = None,
    uri: Annotated[str | None, typer.Option("--uri", help="A file elsewhere, with --digest and --size.")] = None,
    digest: Annotated[str | None, typer.Option("--digest", metavar="sha256:…", help="Its checksum.")] = None,
    size: Annotated[int | None, typer.Option("--size", min=0, help="Its length in bytes.")] = None,
    label: LabelOption = None,
    metadata: MetadataOption = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Record files where they lie, without uploading them: address, size and checksum.

    Example: modelbox artifacts track langtech/wav2vec training-data /data/train.tar
    """
    elsewhere = _elsewhere(uri, digest, size)
    if not files and not elsewhere:
        raise InvalidError("name local files, or a file elsewhere with --uri, --digest and --size")

    async def run(client: Client) -> None:
        created = await client.track_artifact(
            parent,
            name,
            [*(files or []), *elsewhere],
            labels=text_pairs(label or [], "--label"),
            metadata=json_pairs(metadata or [], "--metadata"),
        )
        _print_created(created, "tracked", output)

    with_client(url, run)


def _elsewhere(uri: str | None, digest: str | None, size: int | None) -> list[ArtifactFile]:
    if uri is None and digest is None and size is None:
        return []
    if uri is None or digest is None or size is None:
        raise InvalidError("a file elsewhere needs all of --uri, --digest and --size")
    from modelbox.objects import ArtifactFile

    path = uri.rstrip("/").rpartition("/")[2].partition("?")[0]
    return [ArtifactFile(path=path, size_bytes=size, digest=parse_digest(digest), uri=uri)]


def _print_created(created: Created[Artifact], verb: str, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_json(created)
        return
    artifact = created.item
    size = size_text(sum(file.size_bytes for file in artifact.files))
    print_line(f"{'exists' if created.existed else verb} {artifact.id} {artifact.parent} {artifact.name} {size}")


@app.command("list")
def list_artifacts(
    parent: Annotated[str, typer.Argument(metavar="PARENT", help="ns (all of it), ns/model or ns/model@7.")],
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List the artifacts of an object, or all of a namespace.

    Example: modelbox artifacts list langtech/wav2vec@7
    """

    async def run(client: Client) -> None:
        found = [artifact async for artifact in client.iter_artifacts(parent)]
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = [
            (
                a.id,
                a.parent,
                a.name,
                len(a.files),
                size_text(sum(file.size_bytes for file in a.files)),
                "tracked" if any(file.uri for file in a.files) else "stored",
                local_time(a.created_at),
                a.created_by,
                pairs_text(a.labels),
            )
            for a in found
        ]
        columns = ("ID", "PARENT", "NAME", "FILES", "SIZE", "KIND", "CREATED", "BY", "LABELS")
        print_table(columns, rows, empty=f"{parent} has no artifacts")

    with_client(url, run)


@app.command("download")
def download(
    artifact_id: IdArgument,
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where to.")],
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Write an artifact's files, verified, below a directory.

    Example: modelbox artifacts download 01J9Z3 ./evaluation
    """

    async def run(client: Client) -> None:
        with progress_bar("downloading", output) as on_progress:
            target = await client.download_artifact(artifact_id, directory, on_progress=on_progress)
        if output is OutputFormat.JSON:
            print_json({"directory": str(target)})
        else:
            print_line(f"downloaded {artifact_id} to {target}")

    with_client(url, run)


@app.command("delete")
def delete(
    artifact_id: IdArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Delete an artifact.

    Example: modelbox artifacts delete 01J9Z3 --yes
    """
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidError(f"deleting the artifact {artifact_id} needs --yes where nobody can be asked")
        typer.confirm(f"Delete the artifact {artifact_id}?", abort=True, err=True)

    async def run(client: Client) -> None:
        await client.delete_artifact(artifact_id)
        if output is OutputFormat.JSON:
            print_json({"deleted": artifact_id})
        else:
            print_line(f"deleted {artifact_id}")

    with_client(url, run)

"""``modelbox models …``: models, versions and aliases."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelbox.cli.objects import path_of
from modelbox.cli.output import (
    OutputFormat,
    OutputOption,
    UrlOption,
    fields,
    local_time,
    note,
    pairs_text,
    print_json,
    print_line,
    print_table,
    progress_bar,
    short_digest,
    size_text,
)
from modelbox.cli.run import json_pairs, number_pairs, text_pairs, with_client
from modelbox.cli.signing import CertificateOption, PasswordOption, signing_key
from modelbox.errors import InvalidError
from modelbox.refs import ModelRef

if TYPE_CHECKING:
    from modelbox.client import Client
    from modelbox.objects import Alias, Model, ModelVersion

__all__ = ("app",)

app = typer.Typer(
    help="Models, their versions and aliases.",
    epilog="Example: modelbox models list --namespace langtech",
    no_args_is_help=True,
)

PathArgument = Annotated[str, typer.Argument(metavar="NAMESPACE/MODEL", help="The model.")]
AliasArgument = Annotated[str, typer.Argument(metavar="NAMESPACE/MODEL@ALIAS", help="The alias.")]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label; may be given several times.")
]
MetadataOption = Annotated[
    list[str] | None,
    typer.Option("--metadata", metavar="KEY=JSON", help="Metadata; may be given several times."),
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the alias's history.")]
ExpectedOption = Annotated[
    int | None,
    typer.Option("--if-mod-rev", min=0, help="Only if the alias's mod_rev is still this; 0: only if it is new."),
]


@app.command("create")
def create(
    path: Annotated[str | None, typer.Argument(metavar="[NAMESPACE/MODEL]", help="The model.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Its name, instead of the argument.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", help="Its namespace, with --name.")] = None,
    owner: Annotated[str, typer.Option("--owner", help="Who answers for it.")] = "",
    task: Annotated[str, typer.Option("--task", help="What it is for, such as asr.")] = "",
    description: Annotated[str, typer.Option("--description", help="Free text.")] = "",
    label: LabelOption = None,
    metadata: MetadataOption = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Make a model; an existing one stays as it is.

    Example: modelbox models create langtech/wav2vec --owner speech-team --task asr
    """
    target = path_of("model", path, name, namespace)

    async def run(client: Client) -> None:
        created = await client.create_model(
            target,
            owner=owner,
            task=task,
            description=description,
            labels=text_pairs(label or [], "--label"),
            metadata=json_pairs(metadata or [], "--metadata"),
        )
        if output is OutputFormat.JSON:
            print_json(created)
        else:
            print_line(f"{'exists' if created.existed else 'created'} {created.item.path}")

    with_client(url, run)


@app.command("list")
def list_models(
    namespace: Annotated[str, typer.Option("--namespace", help="Only of this namespace.")] = "",
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List models.

    Example: modelbox models list --namespace langtech
    """

    async def run(client: Client) -> None:
        found = [model async for model in client.iter_models(namespace)]
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = [(m.path, m.latest_version or "-", m.task, m.owner, pairs_text(m.labels), m.description) for m in found]
        print_table(("MODEL", "LATEST", "TASK", "OWNER", "LABELS", "DESCRIPTION"), rows, empty="no models")

    with_client(url, run)


@app.command("show")
def show(
    ref: Annotated[str, typer.Argument(metavar="REF", help="A model, or a version as ns/model@prod or ns/model@7.")],
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show a model with its aliases, or one version with its files.

    Example: modelbox models show langtech/wav2vec@prod
    """

    async def run(client: Client) -> None:
        if "@" in ref:
            version = await client.get_version(ref)
            if output is OutputFormat.JSON:
                print_json(version)
            else:
                _show_version(version)
            return
        model, aliases = await client.get_model(ref), await client.list_aliases(ref)
        if output is OutputFormat.JSON:
            print_json({"model": model, "aliases": aliases})
        else:
            _show_model(model, aliases)

    with_client(url, run)


def _show_model(model: Model, aliases: tuple[Alias, ...]) -> None:
    fields(
        {
            "model": model.path,
            "owner": model.owner,
            "task": model.task,
            "description": model.description,
            "labels": pairs_text(model.labels),
            "metadata": pairs_text(model.metadata),
            "latest version": model.latest_version or "none yet",
            "created": local_time(model.created_at),
        }
    )
    if aliases:
        print_line("")
        rows = [
            (a.name, a.version, short_digest(a.digest), local_time(a.moved_at), a.moved_by, a.reason, a.mod_rev)
            for a in aliases
        ]
        print_table(("ALIAS", "VERSION", "DIGEST", "MOVED", "BY", "REASON", "REV"), rows, empty="")


def _show_version(version: ModelVersion) -> None:
    manifest = version.manifest
    fields(
        {
            "version": str(version.ref),
            "digest": version.digest,
            "framework": manifest.framework,
            "entry point": manifest.entrypoint,
            "size": size_text(manifest.size_bytes),
            "description": version.description,
            "labels": pairs_text(version.labels),
            "metrics": pairs_text(version.metrics),
            "metadata": pairs_text(version.metadata),
            "signed": "yes (modelbox verify tells by whom)" if version.bundle else "no",
            "published": f"{local_time(version.created_at)} by {version.created_by or 'unknown'}",
        }
    )
    if manifest.signature is not None:
        print_line("")
        tensors = [("input", spec) for spec in manifest.signature.inputs]
        tensors += [("output", spec) for spec in manifest.signature.outputs]
        # `name: dtype[shape]`, as the signature itself writes it.
        rows = [(side, str(spec)) for side, spec in tensors]
        print_table(("SIDE", "TENSOR"), rows, empty="")
    print_line("")
    files = [(f.path, size_text(f.size_bytes), f.digest) for f in manifest.files]
    print_table(("FILE", "SIZE", "DIGEST"), files, empty="")


@app.command("update")
def update(
    ref: Annotated[str, typer.Argument(metavar="REF", help="A model, or a version as ns/model@7.")],
    owner: Annotated[str | None, typer.Option("--owner", help="Who answers for the model.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="What the model is for, such as asr.")] = None,
    description: Annotated[str | None, typer.Option("--description", help="Free text.")] = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Edit a model, or the description of a version; what is left out stays. For labels: labels set.

    Example: modelbox models update langtech/wav2vec --owner speech-team
    """
    if owner is None and task is None and description is None:
        raise InvalidError("nothing to edit: give --owner, --task or --description")
    if "@" in ref and not (owner is None and task is None):
        raise InvalidError(f"{ref} is a version: --owner and --task are of its model")

    async def run(client: Client) -> None:
        edited: Model | ModelVersion
        if "@" in ref:
            edited = await client.update_version(ref, description=description)
        else:
            edited = await client.update_model(ref, owner=owner, task=task, description=description)
        if output is OutputFormat.JSON:
            print_json(edited)
        else:
            print_line(f"updated {ref} (mod_rev {edited.mod_rev})")

    with_client(url, run)


@app.command("publish")
def publish(
    path: PathArgument,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Files or directories; NAME=FILE gives a file another name.")
    ],
    framework: Annotated[
        str | None,
        typer.Option(
            "--framework",
            help="What opens it: onnx is served, safetensors read, all else stored. By default as the names say.",
        ),
    ] = None,
    entrypoint: Annotated[
        str | None, typer.Option("--entrypoint", help="Which file to open, where several would do.")
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option("--alias", help="Move this alias to the version; may be given several times.")
    ] = None,
    label: LabelOption = None,
    metadata: MetadataOption = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="KEY=NUMBER", help="A metric; may be given several times.")
    ] = None,
    description: Annotated[str, typer.Option("--description", help="Free text.")] = "",
    made_by: Annotated[str, typer.Option("--run", metavar="RUN", help="Id of the run that made it.")] = "",
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="CHECKPOINT", help="Id of the checkpoint that it was made from.")
    ] = "",
    reason: ReasonOption = "",
    require_signature: Annotated[
        bool, typer.Option("--require-signature", help="Fail if no signature can be read from the model file.")
    ] = False,
    sign_key: Annotated[
        Path | None, typer.Option("--sign-key", metavar="FILE", help="Sign the version with this private key (PEM).")
    ] = None,
    certificate: CertificateOption = None,
    password: PasswordOption = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Publish files as the next version of a model.

    Example: modelbox models publish langtech/wav2vec model.onnx --alias staging --metric wer=0.043
    """
    key = None if sign_key is None else signing_key(sign_key, password, certificate)

    async def run(client: Client) -> None:
        with progress_bar(f"publishing {path}", output) as on_progress:
            created = await client.publish(
                path,
                _named_files(files),
                framework=framework,
                signature="auto" if require_signature else None,
                entrypoint=entrypoint,
                description=description,
                labels=text_pairs(label or [], "--label"),
                metadata=json_pairs(metadata or [], "--metadata"),
                metrics=number_pairs(metric or [], "--metric"),
                aliases=alias or [],
                reason=reason,
                run=made_by,
                checkpoint=checkpoint,
                sign=key,
                on_progress=on_progress,
            )
        version = created.item
        if version.manifest.framework == "onnx" and version.manifest.signature is None:
            note(f"warning: no inputs and outputs could be read from the files of {version.ref}")
        if output is OutputFormat.JSON:
            print_json(created)
        else:
            verb = "exists" if created.existed else "published"
            print_line(f"{verb} {version.ref} {version.digest} {size_text(version.manifest.size_bytes)}")

    with_client(url, run)


def _named_files(values: list[str]) -> list[str] | dict[str, str]:
    """Paths as they are; once one is given another name, all become names."""
    if all("=" not in value or Path(value).exists() for value in values):
        return values
    return text_pairs([value if "=" in value else f"{Path(value).name}={value}" for value in values], "FILE")


@app.command("versions")
def versions(path: PathArgument, url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """List the versions of a model, newest first.

    Example: modelbox models versions langtech/wav2vec
    """

    async def run(client: Client) -> None:
        found = [version async for version in client.iter_versions(path)]
        if output is OutputFormat.JSON:
            print_json(found)
            return
        aliases: dict[int, list[str]] = {}
        for alias in await client.list_aliases(path):
            aliases.setdefault(alias.version, []).append(alias.name)
        rows = [
            (
                v.version,
                short_digest(v.digest),
                size_text(v.manifest.size_bytes),
                ", ".join(aliases.get(v.version, [])),
                local_time(v.created_at),
                v.created_by,
                pairs_text(v.metrics),
                v.description,
            )
            for v in found
        ]
        columns = ("VERSION", "DIGEST", "SIZE", "ALIASES", "PUBLISHED", "BY", "METRICS", "DESCRIPTION")
        print_table(columns, rows, empty=f"{path} has no versions yet")

    with_client(url, run)


@app.command("promote")
def promote(
    ref: AliasArgument,
    version: Annotated[int, typer.Argument(min=1, help="The version's number.")],
    reason: ReasonOption = "",
    if_mod_rev: ExpectedOption = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Point an alias to a version.

    Example: modelbox models promote langtech/wav2vec@prod 7 --reason "passed review"
    """

    async def run(client: Client) -> None:
        _print_alias(await client.promote(ref, version, expected_mod_rev=if_mod_rev, reason=reason), output)

    with_client(url, run)


@app.command("rollback")
def rollback(
    ref: AliasArgument,
    reason: ReasonOption = "",
    if_mod_rev: ExpectedOption = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Point an alias back to what it pointed to before its last move.

    Example: modelbox models rollback langtech/wav2vec@prod --reason "too many errors"
    """

    async def run(client: Client) -> None:
        _print_alias(await client.rollback(ref, expected_mod_rev=if_mod_rev, reason=reason), output)

    with_client(url, run)


def _print_alias(alias: Alias, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_json(alias)
    else:
        print_line(f"{alias.namespace}/{alias.model}@{alias.name} -> {alias.version} (mod_rev {alias.mod_rev})")


@app.command("history")
def history(
    path: Annotated[str, typer.Argument(metavar="NAMESPACE/MODEL[@ALIAS]", help="The model, or one alias of it.")],
    at: Annotated[
        datetime | None,
        typer.Option(
            "--at",
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"],
            help="What did it point to at this time? Local time, unless an offset such as +0000 follows.",
        ),
    ] = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show who moved aliases when and why, newest first; with --at, only the move in force then.

    Example: modelbox models history langtech/wav2vec@prod --at 2026-05-03
    """
    model, at_sign, alias = path.partition("@")
    if at_sign:
        alias = ModelRef.parse(path).alias or ""
        if not alias:
            raise InvalidError(f"{path} names a version, which never moves: expected NAMESPACE/MODEL[@ALIAS]")

    async def run(client: Client) -> None:
        found = [move async for move in client.iter_alias_moves(model, alias, at=at)]
        if at is not None:
            newest = {move.name: move for move in reversed(found)}
            found = [newest[name] for name in sorted(newest)]
        if output is OutputFormat.JSON:
            print_json(found)
            return
        rows = [
            (
                move.name,
                "-" if move.from_version is None else move.from_version,
                "deleted" if move.to_version is None else move.to_version,
                local_time(move.moved_at),
                move.moved_by,
                move.reason,
                move.rev,
            )
            for move in found
        ]
        print_table(("ALIAS", "FROM", "TO", "WHEN", "BY", "REASON", "REV"), rows, empty=f"{path} never moved")

    with_client(url, run)


@app.command("download")
def download(
    ref: Annotated[str, typer.Argument(metavar="REF", help="Which version, such as ns/model@prod.")],
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where to.")],
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Write a version's files, verified, below a directory.

    Example: modelbox models download langtech/wav2vec@prod ./wav2vec
    """

    async def run(client: Client) -> None:
        with progress_bar(f"downloading {ref}", output) as on_progress:
            target = await client.download(ref, directory, on_progress=on_progress)
        if output is OutputFormat.JSON:
            print_json({"directory": str(target)})
        else:
            print_line(f"downloaded {ref} to {target}")

    with_client(url, run)


@app.command("delete")
def delete(
    ref: Annotated[
        str,
        typer.Argument(metavar="REF", help="ns/model (all of it), ns/model@7 or ns/model@alias."),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Delete a model, one version, or an alias.

    Example: modelbox models delete langtech/wav2vec@3 --yes
    """
    parsed = ModelRef.parse(ref)
    whole = "@" not in ref
    if parsed.digest is not None:
        raise InvalidError("a version is deleted by its number: expected ns/model@7")
    what = "the model and all its versions" if whole else "the version" if parsed.version is not None else "the alias"
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidError(f"deleting {what} {ref} needs --yes where nobody can be asked")
        typer.confirm(f"Delete {what} {ref}?", abort=True, err=True)

    async def run(client: Client) -> None:
        if whole:
            await client.delete_model(ref)
        elif parsed.version is not None:
            await client.delete_version(parsed)
        else:
            await client.delete_alias(parsed)
        if output is OutputFormat.JSON:
            print_json({"deleted": ref})
        else:
            print_line(f"deleted {ref}")

    with_client(url, run)

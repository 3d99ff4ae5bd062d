"""``modelbox keys …``, ``modelbox sign`` and ``modelbox verify``: signatures of versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from modelbox.cli.output import OutputFormat, OutputOption, UrlOption, fields, note, print_json, print_line
from modelbox.cli.run import with_client
from modelbox.errors import ConfigError, InvalidError

if TYPE_CHECKING:
    from modelbox.client import Client
    from modelbox.signing import SigningKey, Trust

__all__ = ("PASSWORD_VARIABLE", "CertificateOption", "PasswordOption", "keys", "sign", "signing_key", "verify")

PASSWORD_VARIABLE = "MODELBOX_SIGN_PASSWORD"

PasswordOption = Annotated[
    str | None,
    typer.Option(
        "--key-password",
        envvar=PASSWORD_VARIABLE,
        show_envvar=True,
        metavar="TEXT",
        help="Of an encrypted key; better in the environment, where other users do not see it.",
    ),
]
CertificateOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--certificate", metavar="FILE", help="The signer's certificate, then those between it and a root (PEM)."
    ),
]

keys = typer.Typer(
    help="Keys that sign versions.",
    epilog="Example: modelbox keys create release-key",
    no_args_is_help=True,
)


def signing_key(path: Path, password: str | None, certificates: list[Path] | None) -> SigningKey:
    """The key of these options.

    Raises:
        ConfigError: It cannot be used.
    """
    from modelbox.signing import SigningKey

    return SigningKey.load(path, password=password, certificates=certificates or [])


@keys.command("create")
def create(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Of the private key; the public one is FILE.pub.")],
    kind: Annotated[
        str, typer.Option("--kind", metavar="p256|ed25519", help="p256 is what every tool of the format reads.")
    ] = "p256",
    password: PasswordOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Make a key pair: the private key signs and stays secret, the public one goes to those who load.

    Example: modelbox keys create release-key
    """
    from modelbox.signing import create_key

    made = create_key(path, kind=_kind(kind), password=password)
    if output is OutputFormat.JSON:
        print_json({"private": str(made.private), "public": str(made.public), "key_id": made.key_id})
        return
    print_line(f"wrote {made.private} (keep it secret) and {made.public} (for trusted_keys)")
    print_line(f"key {made.key_id}")


def _kind(text: str) -> Literal["p256", "ed25519"]:
    if text == "ed25519":
        return "ed25519"
    if text == "p256":
        return "p256"
    raise InvalidError("--kind is p256 or ed25519")


@keys.command("show")
def show(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A public or private key.")],
    password: PasswordOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show the id of a key, as signatures and errors name it.

    Example: modelbox keys show release-key.pub
    """
    from modelbox.signing import TrustedFile
    from modelbox.signing.trust import key_id_of

    try:
        key_id = key_id_of(TrustedFile(path=path))
    except ConfigError:
        key_id = signing_key(path, password, None).key_id
    if output is OutputFormat.JSON:
        print_json({"key_id": key_id})
    else:
        print_line(key_id)


def sign(
    ref: Annotated[str, typer.Argument(metavar="REF", help="The version, such as langtech/wav2vec@7.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE...]", help="Its files, as published: compared before anything is signed."),
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="The private key (PEM).")] = None,
    certificate: CertificateOption = None,
    password: PasswordOption = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Sign a version that is published. Without its files, or its digest in REF, you sign what the server says.

    Example: modelbox sign langtech/wav2vec@7 model.onnx --key release-key
    """
    if key is None:
        raise InvalidError("name the key: --key FILE (modelbox keys create FILE makes one)")
    signer = signing_key(key, password, certificate)

    async def run(client: Client) -> None:
        version = await client.sign(ref, signer, files=list(files) if files else None)
        if not files and "@sha256:" not in ref:
            note(f"signed what the server says of {version.ref} ({version.digest}); name its files to compare them")
        if output is OutputFormat.JSON:
            print_json(version)
        else:
            print_line(f"signed {version.ref} {version.digest} with key {signer.key_id[:16]}")

    with_client(url, run)


def verify(
    ref: Annotated[str, typer.Argument(metavar="REF", help="The version.")],
    key: Annotated[
        list[Path] | None,
        typer.Option("--key", metavar="FILE", help="A public key to trust; not those of the settings."),
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option("--root", metavar="FILE", help="Trust these root certificates, not those of the settings."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle-to", metavar="FILE", help="Write the signature there, for other tools (model.sig)."),
    ] = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Find out who signed a version; fails where nobody who is trusted has.

    Example: modelbox verify langtech/wav2vec@prod --key release-key.pub
    """

    async def run(client: Client) -> None:
        # An alias may move meanwhile.
        pinned = (await client.get_version(ref)).ref
        signer = await client.verify(pinned, trust=_trust(key, root))
        version = await client.get_version(pinned)
        if bundle is not None:
            _write(bundle, version.bundle)
        if output is OutputFormat.JSON:
            print_json({"ref": str(pinned), "digest": version.digest, "key_id": signer.key_id, "name": signer.name})
        else:
            fields(
                {"version": str(pinned), "digest": version.digest, "signed by": signer.name, "key": signer.key_id},
            )

    with_client(url, run)


def _trust(keys: list[Path] | None, roots: list[Path] | None) -> Trust | None:
    from modelbox.signing import Trust, TrustedFile

    if not keys and not roots:
        return None
    return Trust(
        keys=[TrustedFile(path=path) for path in keys or ()], roots=[TrustedFile(path=path) for path in roots or ()]
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}", path=str(path)) from exc

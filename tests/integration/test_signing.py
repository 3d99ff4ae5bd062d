"""Signatures against a real server: from the publisher's key to whoever downloads or loads."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import numpy as np
import pytest

from modelbox.client import Client
from modelbox.errors import ConfigError, IntegrityError, SignatureRefused
from modelbox.objects import VersionPatch
from modelbox.signing import Bundle, Refusal, read_statement
from tests.cli import Cli
from tests.onnx_models import add_constant
from tests.server import ServerProcess
from tests.servers.model_signing import ModelSigning, model_signing
from tests.sidecar import SidecarProcess
from tests.signing import Keys, make_authority, make_keys, make_signer


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def ns() -> str:
    return f"ns-{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
async def client(shared_server: ServerProcess, keys: Keys, tmp_path: Path) -> AsyncIterator[Client]:
    """Requires signatures by `keys`."""
    async with Client(
        shared_server.url, signatures="require", trusted_keys=str(keys.public), cache_dir=str(tmp_path / "cache")
    ) as opened:
        yield opened


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


async def test_whoever_publishes_at_once_with_others_signs_the_number_that_it_gets(
    client: Client, keys: Keys, ns: str, tmp_path: Path
) -> None:
    async def publish(content: int) -> None:
        file = write(tmp_path / f"{content}.bin", b"%d" % content)
        created = await client.publish(f"{ns}/m", {"w.bin": file}, framework="raw", sign=keys.signing)
        assert not created.existed

    async with anyio.create_task_group() as tg:
        for content in range(6):
            tg.start_soon(publish, content)
    versions = [version async for version in client.iter_versions(f"{ns}/m")]
    assert sorted(version.version for version in versions) == [1, 2, 3, 4, 5, 6]
    for version in versions:
        assert (await client.verify(version.ref)).key_id == keys.signing.key_id
    await client.delete_version(f"{ns}/m@6")
    created = await client.publish(
        f"{ns}/m", write(tmp_path / "next.bin", b"next"), framework="raw", sign=keys.private, aliases=["prod"]
    )
    assert created.item.version == 7
    assert (await client.verify(f"{ns}/m@prod")).key_id == keys.signing.key_id


async def test_publishing_again_puts_the_publishers_signature_in_place_of_another(
    client: Client, keys: Keys, ns: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "w.bin", b"weights")
    other = make_keys(tmp_path, "other")
    await client.publish(f"{ns}/m", file, framework="raw")
    again = await client.publish(f"{ns}/m", file, framework="raw", sign=other.signing)
    assert (again.existed, again.item.version) == (True, 1)
    with pytest.raises(SignatureRefused, match=Refusal.NOT_TRUSTED):
        await client.verify(f"{ns}/m@1")
    mine = await client.publish(f"{ns}/m", file, framework="raw", sign=keys.signing)
    assert mine.existed
    assert keys.signing.has_signed(mine.item)
    # Signed as it should be, nothing changes any more.
    assert (await client.publish(f"{ns}/m", file, framework="raw", sign=keys.signing)).item == mine.item


async def test_signing_compares_the_files_that_are_here(client: Client, keys: Keys, ns: str, tmp_path: Path) -> None:
    file = write(tmp_path / "w.bin", b"weights")
    version = (await client.publish(f"{ns}/m", file, framework="raw")).item
    write(file, b"others!")
    with pytest.raises(IntegrityError, match=r"w\.bin"):
        await client.sign(f"{ns}/m@1", keys.signing, files=file)
    with pytest.raises(SignatureRefused, match=Refusal.NOT_SIGNED):
        await client.verify(f"{ns}/m@1")
    write(file, b"weights")
    signed = await client.sign(f"{ns}/m@{version.digest}", keys.signing, files=file)
    assert (signed.version, signed.digest) == (1, version.digest)
    assert (await client.verify(f"{ns}/m@1")).key_id == keys.signing.key_id


async def test_nothing_is_downloaded_that_is_not_signed(client: Client, keys: Keys, ns: str, tmp_path: Path) -> None:
    await client.publish(f"{ns}/m", write(tmp_path / "w.bin", b"weights"), framework="raw")
    with pytest.raises(SignatureRefused, match=Refusal.NOT_SIGNED):
        await client.download(f"{ns}/m@1", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    await client.sign(f"{ns}/m@1", keys.signing)
    assert (await client.download(f"{ns}/m@1", tmp_path / "out") / "w.bin").read_bytes() == b"weights"


async def test_a_signed_model_is_loaded_and_another_ones_signature_is_not_taken(
    client: Client, keys: Keys, ns: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "model.onnx", add_constant(1.0))
    await client.publish(f"{ns}/m", file, aliases=["prod"])
    with pytest.raises(SignatureRefused, match=Refusal.NOT_SIGNED):
        await client.load(f"{ns}/m@prod")
    version = await client.sign(f"{ns}/m@prod", keys.signing)
    async with await client.load(f"{ns}/m@prod") as model:
        assert (await model.predict({"x": np.ones((1, 4), np.float32)}))["y"][0, 0] == 2.0
        assert model.info.bundle == version.bundle
    # The server itself refuses to keep what is about something else.
    await client.publish(f"{ns}/other", file)
    patch = VersionPatch(bundle=version.bundle)
    with pytest.raises(ValueError, match="is not one of"):
        await client._call(lambda source: source.grpc.update_version(ns, "other", 1, patch))


async def test_requiring_without_trust_is_a_mistake(shared_server: ServerProcess, ns: str, tmp_path: Path) -> None:
    async with Client(shared_server.url, signatures="require", cache_dir=str(tmp_path)) as client:
        for call in (client.load, client.verify):
            with pytest.raises(ConfigError, match="trusted_keys"):
                await call(f"{ns}/m@1")
        with pytest.raises(ConfigError, match="trusted_keys"):
            await client.download(f"{ns}/m@1", tmp_path / "out")


def test_commands(cli: Cli, ns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, key = write(tmp_path / "w.bin", b"weights"), tmp_path / "release"
    made = cli.json("keys", "create", str(key))
    assert cli("keys", "show", f"{key}.pub").strip() == made["key_id"] == cli("keys", "show", str(key)).strip()
    assert "exists already" in cli("keys", "create", str(key), code=2)
    assert "p256 or ed25519" in cli("keys", "create", str(tmp_path / "k"), "--kind", "rsa", code=2)
    cli("publish", f"{ns}/m", str(file), "--framework", "raw", "--sign-key", str(key))
    assert "signed" in cli("models", "show", f"{ns}/m@1")
    shown = cli.json("verify", f"{ns}/m@1", "--key", f"{key}.pub", "--bundle-to", str(tmp_path / "model.sig"))
    assert shown["key_id"] == made["key_id"]
    bundle = Bundle.from_json((tmp_path / "model.sig").read_text())
    assert read_statement(bundle.payload).subject == f"{ns}/m@1"
    cli("models", "publish", f"{ns}/m", str(write(file, b"more")), "--framework", "raw")
    error = json.loads(cli("verify", f"{ns}/m@2", "--key", f"{key}.pub", "--output", "json", code=7))
    assert (error["code"], error["fields"]["reason"]) == ("load.trust", "NOT_SIGNED")
    assert "differ" in cli("sign", f"{ns}/m@2", str(write(file, b"else")), "--key", str(key), code=6)
    assert "name the key" in cli("sign", f"{ns}/m@2", code=2)
    cli("keys", "create", str(tmp_path / "locked"), "--key-password", "secret words")
    assert "password" in cli("sign", f"{ns}/m@2", "--key", str(tmp_path / "locked"), code=2)
    monkeypatch.setenv("MODELBOX_SIGN_PASSWORD", "secret words")
    assert cli("sign", f"{ns}/m@2", str(write(file, b"more")), "--key", str(tmp_path / "locked")).startswith("signed")
    monkeypatch.setenv("MODELBOX_TRUSTED_KEYS", f"{tmp_path / 'locked'}.pub")
    cli("verify", f"{ns}/m@2")
    assert "NOT_TRUSTED" in cli("verify", f"{ns}/m@1", code=7)
    monkeypatch.setenv("MODELBOX_SIGNATURES", "require")
    assert "NOT_TRUSTED" in cli("models", "download", f"{ns}/m@1", str(tmp_path / "out"), code=7)
    assert "all trusted files can be read" in cli("doctor")
    monkeypatch.setenv("MODELBOX_TRUSTED_KEYS", "")
    cli("doctor", code=1)


async def test_a_sidecar_goes_by_the_same_settings(
    client: Client, keys: Keys, shared_server: ServerProcess, ns: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "model.onnx", add_constant(1.0))
    await client.publish(f"{ns}/signed", file, sign=keys.signing)
    await client.publish(f"{ns}/unsigned", file)
    await client.publish(f"{ns}/tensors", file, framework="safetensors", sign=keys.signing)
    refs = [f"{ns}/{name}@1" for name in ("signed", "unsigned", "tensors")]
    env = {"MODELBOX_SIGNATURES": "require", "MODELBOX_TRUSTED_KEYS": str(keys.public)}

    async def says(pattern: str) -> None:
        await anyio.to_thread.run_sync(partial(sidecar.wait_for, re.compile(pattern), timeout=60))

    with closing(SidecarProcess(tmp_path, shared_server.url, *refs, env=env)) as sidecar:
        await anyio.to_thread.run_sync(sidecar.listen)
        await says(f"{refs[0]} is served")
        await says(f"{refs[1]} cannot be served: NOT_SIGNED")
        await says(f"{refs[2]} cannot be served: .*no graph")
        await client.sign(refs[1], keys.signing)
        await says(f"{refs[1]} is served")


# -- the tool of OpenSSF -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tool() -> ModelSigning:
    return model_signing()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_the_tool_verifies_what_we_signed(
    client: Client, keys: Keys, tool: ModelSigning, ns: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    for path in ("model.onnx", "golden/inputs.npz", "Ünïcode/ä.txt", "a-b/c", "a/d"):
        write(source / path, path.encode())
    root = make_authority("root")
    signer = make_signer(tmp_path, root)
    await client.publish(f"{ns}/m", source, framework="raw", sign=keys.signing)
    directory = await client.download(f"{ns}/m@1", tmp_path / "out")
    version = await client.get_version(f"{ns}/m@1")
    by_key, by_certificate = tmp_path / "key.sig", tmp_path / "certificate.sig"
    by_key.write_text(version.bundle)
    by_certificate.write_text(signer.sign(ns, "m", 1, version.manifest))
    check_key = ("verify", "key", directory, "--signature", by_key, "--public_key", keys.public)
    chain = root.write(tmp_path / "root.pem")
    check_chain = ("verify", "certificate", directory, "--signature", by_certificate, "--certificate_chain", chain)
    tool(*check_key)
    tool(*check_chain)
    write(directory / "a" / "d", b"altered")
    tool(*check_key, ok=False)
    tool(*check_chain, ok=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_we_read_what_the_tool_signed_and_miss_what_it_is_about(
    client: Client, keys: Keys, tool: ModelSigning, ns: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    write(source / "w.bin", b"weights")
    signature = tmp_path / "model.sig"
    tool("sign", "key", source, "--signature", signature, "--private_key", keys.private)
    bundle = Bundle.from_json(signature.read_text())
    assert bundle.key_id == keys.signing.key_id
    version = (await client.publish(f"{ns}/m", source, framework="raw")).item
    statement = read_statement(bundle.payload)
    assert dict(statement.resources) == {f.path: f.digest.removeprefix("sha256:") for f in version.manifest.files}
    # Its signature is valid, but says nothing of a model and a version.
    with pytest.raises(SignatureRefused, match=r"SUBJECT_MISMATCH: the signature by key .* is about 'source'"):
        keys.trust().verify(replace(version, bundle=signature.read_text()))

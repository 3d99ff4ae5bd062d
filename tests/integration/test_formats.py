"""Files that run code or unpack themselves elsewhere: stored, handed out as they are, and never opened."""

from __future__ import annotations

import io
import pickle
import secrets
import tarfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from modelbox.client import Client
from modelbox.errors import FormatRefused, ModelInvalid
from tests.faults.registry import fault
from tests.onnx_models import add_constant
from tests.server import ServerProcess


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def client(shared_server: ServerProcess, tmp_path: Path) -> AsyncIterator[Client]:
    async with Client(shared_server.url, cache_dir=str(tmp_path / "cache")) as opened:
        yield opened


class Touches:
    """Makes a file wherever it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


def zipped(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def tarred(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def corpus(trap: Path) -> dict[str, tuple[str, bytes]]:
    """File and framework by a name for each."""
    evil = pickle.dumps(Touches(trap))
    slip = "../" * 12 + str(trap).lstrip("/")
    bomb = b"\0" * (8 << 20)
    return {
        "pickle": ("model.pkl", evil),
        "joblib": ("model.joblib", evil),
        "pytorch": ("model.pt", zipped("archive/data.pkl", evil)),
        "keras": ("model.keras", zipped("config.json", b'{"class_name": "Lambda"}')),
        "zip": ("model.zip", zipped(slip, b"slipped")),
        "zip-bomb": ("model.zip", zipped("zeros", bomb)),
        "tar": ("model.tar.gz", tarred(slip, b"slipped")),
        "tar-bomb": ("model.tar.gz", tarred("zeros", bomb)),
        "shared-library": ("model.so", b"\x7fELF" + bytes(60)),
        "prompt": ("prompt.txt", b"{{ self.__init__.__globals__ }}"),
    }


@fault(59)
@pytest.mark.parametrize("framework", sorted(corpus(Path("/"))))
async def test_it_is_stored_and_downloaded_and_never_opened(client: Client, tmp_path: Path, framework: str) -> None:
    trap = tmp_path / "trap"
    name, data = corpus(trap)[framework]
    ref = f"ns-{secrets.token_hex(4)}/m"
    file = tmp_path / name
    file.write_bytes(data)
    await client.publish(ref, file, framework=framework)
    with pytest.raises(FormatRefused, match="never runs it"):
        await client.load(f"{ref}@1")
    directory = await client.download(f"{ref}@1", tmp_path / "out")
    assert [path.name for path in directory.rglob("*")] == [name]
    assert (directory / name).read_bytes() == data
    assert not trap.exists()


async def test_the_names_of_the_files_say_which_format_it_is(client: Client, tmp_path: Path) -> None:
    ref = f"ns-{secrets.token_hex(4)}/m"
    tensors = tmp_path / "w.safetensors"
    tensors.write_bytes((2).to_bytes(8, "little") + b"{}")
    model = tmp_path / "model.onnx"
    model.write_bytes(add_constant(1.0))
    assert (await client.publish(ref, tensors)).item.manifest.framework == "safetensors"
    assert (await client.publish(ref, [tensors, model])).item.manifest.framework == "onnx"
    assert (await client.publish(ref, tensors, framework="numpy")).item.manifest.framework == "numpy"


@fault(59)
@pytest.mark.parametrize("framework", ["onnx", "safetensors"])
async def test_what_only_has_the_name_of_a_model_is_refused(client: Client, tmp_path: Path, framework: str) -> None:
    trap = tmp_path / "trap"
    for kind, (_, data) in corpus(trap).items():
        ref = f"ns-{secrets.token_hex(4)}/m"
        file = tmp_path / f"model.{framework}"
        file.write_bytes(data)
        await client.publish(ref, file, framework=framework)
        with pytest.raises(ModelInvalid):
            await client.load(f"{ref}@1")
        assert not trap.exists(), kind


@fault(59)
async def test_what_lies_beside_a_model_is_not_opened_either(client: Client, tmp_path: Path) -> None:
    trap, source = tmp_path / "trap", tmp_path / "source"
    source.mkdir()
    for name, data in corpus(trap).values():
        (source / name).write_bytes(data)
    (source / "model.onnx").write_bytes(add_constant(1.0))
    ref = f"ns-{secrets.token_hex(4)}/m"
    await client.publish(ref, source)
    async with await client.load(f"{ref}@1") as model:
        assert model.version == 1
    assert not trap.exists()


def test_the_trap_is_one(tmp_path: Path) -> None:
    data = corpus(tmp_path / "trap")["pickle"][1]
    pickle.loads(data)  # noqa: S301  # ours
    assert (tmp_path / "trap").exists()

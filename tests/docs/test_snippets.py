"""What README and docs show is run: shell lines as processes, Python blocks against the same server, page by page.

A block runs in the order of its page, in a directory that holds the model files which the text names. What cannot run
inside of a test (installing, a server in the foreground, `make`) is named in `_SKIPPED`, nothing else is left out.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import textwrap
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import modelbox
from modelbox.spool import host
from tests.onnx_models import add_constant
from tests.server import ServerProcess
from tests.training import need

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SKIPPED = (
    *("pip install", "make ", "modelbox server start", "python -m modelbox.runtime", "curl ", "apt-get "),
    *("modelbox server export", "modelbox server import", "export MODELBOX_", "systemctl "),
)
_ENDLESS = ("modelbox watch",)
_GUARDED = ("access.md",)
"""Pages about servers with access control."""


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(language=match[1], text=match[2], line=text.count("\n", 0, match.start()) + 2)
        for match in _FENCE.finditer(text)
        if match[1] in ("sh", "python")
    ]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def workplace(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server, a directory with model files, and the environment that points at them."""
    guarded = request.node.callspec.params["page"].name in _GUARDED
    work = tmp_path / "work"
    work.mkdir()
    for number, name in enumerate(("vad.onnx", "vad-int8.onnx", "model.onnx"), 1):
        (work / name).write_bytes(add_constant(number))
    np.save(work / "x.npy", np.zeros((1, 4), np.float32))
    with ServerProcess(tmp_path / "server", access="on" if guarded else "off") as server:
        if guarded:
            monkeypatch.setenv("MODELBOX_TOKEN", (server.data_dir / "admin-token").read_text().strip())
        monkeypatch.setenv("MODELBOX_URL", server.url)
        monkeypatch.setenv("MODELBOX_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setenv("MODELBOX_SPOOL_DIR", str(tmp_path / "spool"))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.chdir(work)
        yield work
        # What the pages log is delivered while its server is there, and nobody looks for it later.
        for found in list(host._hosts.values()):
            if found.config.spool_dir.is_relative_to(tmp_path):
                found.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=lambda page: page.name)
async def test_page(page: Path, workplace: Path) -> None:
    if page.name == "integrations.md":
        need("torch", "lightning", "keras", "transformers", "accelerate", "sklearn", "skl2onnx", "onnxscript")
        # The libraries warn about themselves.
        warnings.simplefilter("ignore")
    modelbox_url = os.environ["MODELBOX_URL"]
    async with modelbox.Client(modelbox_url) as client:
        await client.publish("langtech/wav2vec", str(workplace / "vad.onnx"), aliases=["prod"])
        if page.name != "README.md":
            await client.publish("langtech/vad", str(workplace / "vad.onnx"), aliases=["prod"])
        model = await client.load("langtech/wav2vec@prod")
        names: dict[str, Any] = {
            "modelbox": modelbox,
            "np": np,
            "client": client,
            "model": model,
            "waveform": np.zeros((1, 4), np.float32),
        }
        for block in blocks_of(page):
            where = f"{page.name}:{block.line}"
            if block.language == "sh":
                for line in block.text.replace("\\\n", " ").splitlines():
                    await anyio.to_thread.run_sync(run_line, line.partition("  #")[0].strip(), where)
            else:
                await run_python(block, where, dict(names), modelbox_url)
    await modelbox.aclose()


def run_line(line: str, where: str) -> None:
    if not line or line.startswith("#") or line.startswith(_SKIPPED):
        return
    assert line.startswith("modelbox "), f"{where}: this line is not run: {line}"
    command = [sys.executable, "-m", "modelbox", *shlex.split(line)[1:]]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=3 if line.startswith(_ENDLESS) else 200, check=False
        )
    except subprocess.TimeoutExpired:
        assert line.startswith(_ENDLESS), f"{where}: {line} did not end"
        return
    assert done.returncode == 0, f"{where}: {line}\n{done.stdout}{done.stderr}"


async def run_python(block: Block, where: str, names: dict[str, Any], url: str) -> None:
    code = block.text.replace("http://127.0.0.1:8080", url).replace('{"input": waveform}', '{"x": waveform}')
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    compiled = compile("\n" * (block.line - 1) + textwrap.dedent(code), where, "exec", flags=flags)
    if compiled.co_flags & 0x80:  # CO_COROUTINE: it awaits
        await eval(compiled, names)  # noqa: S307 - the project's own pages
    else:
        await anyio.to_thread.run_sync(eval, compiled, names)


def test_the_server_shows_the_metrics_that_operations_lists(server: ServerProcess) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    listed = set(re.findall(r"^\| `(modelbox_\w+)` \|", page, re.MULTILINE))
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=60) as answer:
        shown = set(re.findall(r"^# TYPE (modelbox_\w+) ", answer.read().decode(), re.MULTILINE))
    assert {name for name in shown if not name.endswith("_created")} == listed


def test_every_page_is_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((?:docs/)?([\w./-]+\.(?:md|ipynb))", "".join(page.read_text() for page in PAGES)))
    for page in sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.ipynb")]):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name in linked, f"no page links to docs/{name}"

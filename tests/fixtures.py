"""Fixtures for whoever needs a running server."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import Cli
from tests.server import ServerProcess


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of the test's own, with an empty registry; the test may kill it."""
    with ServerProcess(tmp_path / "server") as process:
        yield process


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests of a module: name your own namespaces, and leave it running."""
    with ServerProcess(tmp_path_factory.mktemp("shared") / "server") as process:
        yield process


@pytest.fixture
def cli(
    shared_server: ServerProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Cli:
    """The command line, with settings for `shared_server`."""
    monkeypatch.setenv("MODELBOX_URL", shared_server.url)
    monkeypatch.setenv("MODELBOX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELBOX_ACTOR", "ada@test")
    return Cli(capsys)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that every user of the machine may look into; pytest closes its own ones to others at any time."""
    with tempfile.TemporaryDirectory(prefix="modelbox-open-") as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path

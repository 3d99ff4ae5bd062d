"""Fixtures for whoever needs a running server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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

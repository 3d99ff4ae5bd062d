"""What the tests of integrations share: a server, and settings of the client that point at it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbox import sync
from modelbox.spool import host
from tests.server import ServerProcess


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment of its own, in which the libraries may warn about themselves."""
    monkeypatch.setenv("MODELBOX_SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("MODELBOX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    for found in list(host._hosts.values()):
        if found.config.spool_dir.is_relative_to(tmp_path):
            found.close()


@pytest.fixture
def box(shared_server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[sync.Client]:
    monkeypatch.setenv("MODELBOX_URL", shared_server.url)
    with sync.Client() as client:
        yield client

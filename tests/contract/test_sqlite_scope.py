"""What is hidden over SQLite."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from modelbox.runtime.store.sqlite import SqliteDatabase
from tests.integration.server_core import write_databases

from .scope_feed import ScopeFeedContract
from .scope_places import ScopePlacesContract
from .scope_stores import ScopeContract, world

__all__ = ("world",)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def database(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[SqliteDatabase]:
    path = tmp_path_factory.mktemp("scope")
    write_databases(path)
    async with SqliteDatabase(path) as opened:
        yield opened


class TestScope(ScopeContract):
    pass


class TestFeed(ScopeFeedContract):
    pass


class TestPlaces(ScopePlacesContract):
    pass

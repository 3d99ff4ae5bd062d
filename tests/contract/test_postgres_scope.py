"""What is hidden over PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from modelbox.runtime.store.database import MainDatabase
from modelbox.runtime.store.opening import open_database
from tests.servers.postgres import PostgresServer

from .scope_feed import ScopeFeedContract
from .scope_places import ScopePlacesContract
from .scope_stores import ScopeContract, world

__all__ = ("world",)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def database(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[MainDatabase]:
    url = postgres_server.new_database(migrated=True)
    async with open_database(url, data_dir=tmp_path_factory.mktemp("scope")) as opened:
        yield opened
    postgres_server.drop_database(url)


class TestScope(ScopeContract):
    pass


class TestFeed(ScopeFeedContract):
    pass


class TestPlaces(ScopePlacesContract):
    pass

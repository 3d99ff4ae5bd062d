"""What is hidden over MariaDB."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from modelbox.runtime.store.database import MainDatabase
from modelbox.runtime.store.opening import open_database
from tests.servers.mariadb import MariadbServer

from .scope_feed import ScopeFeedContract
from .scope_places import ScopePlacesContract
from .scope_stores import ScopeContract, world

__all__ = ("world",)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def database(
    mariadb_server: MariadbServer, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[MainDatabase]:
    url = mariadb_server.new_database(migrated=True)
    async with open_database(url, data_dir=tmp_path_factory.mktemp("scope")) as opened:
        yield opened
    mariadb_server.drop_database(url)


class TestScope(ScopeContract):
    pass


class TestFeed(ScopeFeedContract):
    pass


class TestPlaces(ScopePlacesContract):
    pass

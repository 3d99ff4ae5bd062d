"""Finding over MariaDB."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from modelbox.runtime.store.opening import parse_database_url

from .async_connections import run_by
from .find_stores import FindStoreContract, World


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def async_connection(mariadb_migrated_url: str) -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine(parse_database_url(mariadb_migrated_url))
    async with engine.connect() as opened:
        yield opened
    await engine.dispose()


@run_by(World, argument="world")
class TestFind(FindStoreContract):
    pass

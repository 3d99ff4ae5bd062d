"""Accounts, roles and tokens over PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelbox.runtime.store.database import MainDatabase
from modelbox.runtime.store.opening import open_database

from .access_stores import AccountContract, CallerContract, FirstAdminContract, TokenContract, world

__all__ = ("world",)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def database(postgres_migrated_url: str, tmp_path: Path) -> AsyncIterator[MainDatabase]:
    async with open_database(postgres_migrated_url, data_dir=tmp_path) as opened:
        yield opened


class TestAccounts(AccountContract):
    pass


class TestTokens(TokenContract):
    pass


class TestCallers(CallerContract):
    pass


class TestFirstAdmin(FirstAdminContract):
    pass

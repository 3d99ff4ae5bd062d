"""Accounts, roles and tokens over SQLite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelbox.runtime.store.sqlite import SqliteDatabase
from tests.integration.server_core import write_databases

from .access_stores import AccountContract, CallerContract, FirstAdminContract, TokenContract, world

__all__ = ("world",)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    write_databases(tmp_path)
    async with SqliteDatabase(tmp_path) as opened:
        yield opened


class TestAccounts(AccountContract):
    pass


class TestTokens(TokenContract):
    pass


class TestCallers(CallerContract):
    pass


class TestFirstAdmin(FirstAdminContract):
    pass

"""Retention and space over SQLite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelbox.runtime.store.sqlite import SqliteDatabase
from tests.integration.server_core import write_databases

from .space_stores import (
    CheckContract,
    CollectionContract,
    QuotaContract,
    RemoverContract,
    RetentionContract,
    stepped,
    world,
)

__all__ = ("stepped", "world")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    write_databases(tmp_path)
    async with SqliteDatabase(tmp_path) as opened:
        yield opened


class TestCollection(CollectionContract):
    pass


class TestRemovers(RemoverContract):
    pass


class TestQuotas(QuotaContract):
    pass


class TestCheck(CheckContract):
    pass


class TestRetention(RetentionContract):
    pass

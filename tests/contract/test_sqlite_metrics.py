"""Metrics over SQLite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelbox.runtime.store.database import Database
from modelbox.runtime.store.sqlite import SqliteDatabase
from tests.integration.server_core import write_databases

from .metric_stores import MetricStoreContract


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def metrics_database(tmp_path: Path) -> AsyncIterator[Database]:
    write_databases(tmp_path)
    async with SqliteDatabase(tmp_path) as opened:
        yield opened.metrics


class TestMetrics(MetricStoreContract):
    pass

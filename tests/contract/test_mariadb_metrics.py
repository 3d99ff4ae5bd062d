"""Metrics over MariaDB."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelbox.runtime.store.database import Database
from modelbox.runtime.store.opening import open_database

from .metric_stores import MetricStoreContract


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def metrics_database(mariadb_migrated_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(mariadb_migrated_url, data_dir=tmp_path) as opened:
        yield opened.metrics


class TestMetrics(MetricStoreContract):
    pass

"""Metrics over MariaDB."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from anyio import to_thread

from modelbox.runtime.store.database import MetricsDatabase
from modelbox.runtime.store.opening import open_database
from tests.servers.mariadb import MariadbServer

from .metric_replicas import MetricReplicasContract
from .metric_stores import MetricStoreContract


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def metrics_database(mariadb_migrated_url: str, tmp_path: Path) -> AsyncIterator[MetricsDatabase]:
    async with open_database(mariadb_migrated_url, data_dir=tmp_path) as opened:
        yield opened.metrics


class TestMetrics(MetricStoreContract):
    pass


class TestMetricReplicas(MetricReplicasContract):
    @pytest.fixture
    def metrics_url(self, mariadb_migrated_url: str) -> str:
        return mariadb_migrated_url

    @pytest.fixture
    async def replicas(self, metrics_url: str, tmp_path: Path) -> AsyncIterator[Sequence[MetricsDatabase]]:
        async with AsyncExitStack() as stack:
            yield [
                (await stack.enter_async_context(open_database(metrics_url, data_dir=tmp_path))).metrics
                for _ in range(2)
            ]

    @pytest.fixture
    def cut(self, mariadb_server: MariadbServer, metrics_url: str) -> Callable[[], Awaitable[None]]:
        async def end_connections() -> None:
            await to_thread.run_sync(_end_connections, mariadb_server, metrics_url)

        return end_connections


def _end_connections(server: MariadbServer, url: str) -> None:
    ids = server.fetch(f"SELECT id FROM information_schema.processlist WHERE db = '{urlsplit(url).path[1:]}'")
    for (number,) in ids:
        with contextlib.suppress(Exception):
            # One may have ended by itself.
            server.execute(f"KILL {number:d}")

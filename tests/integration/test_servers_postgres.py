"""The PostgreSQL that tests start."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial

import pytest

from tests.servers.postgres import PostgresServer


def test_databases_are_apart_and_migrated_if_asked(postgres_server: PostgresServer) -> None:
    empty, migrated = postgres_server.new_database(), postgres_server.new_database(migrated=True)

    tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
    assert postgres_server.fetch(tables, url=empty) == [(0,)]
    assert postgres_server.fetch("SELECT count(*) FROM feed_changes", url=migrated) == [(0,)]
    postgres_server.execute("CREATE TABLE mine (id int)", url=empty)
    assert postgres_server.fetch(tables, url=postgres_server.new_database()) == [(0,)]
    for url in (empty, migrated):
        postgres_server.drop_database(url)


def test_the_password_is_asked_for(postgres_server: PostgresServer, postgres_url: str) -> None:
    with pytest.raises(Exception, match="password authentication failed"):
        postgres_server.fetch("SELECT 1", url=postgres_url.replace(postgres_server.password, "wrong"))


def test_a_killed_server_comes_back_on_its_port_with_what_was_committed() -> None:
    with PostgresServer() as server:
        url = server.new_database()
        server.execute("CREATE TABLE kept (id int)", url=url)
        ends: tuple[Callable[[], None], ...] = (server.kill, partial(server.stop, signal.SIGQUIT), server.stop)
        for number, end in enumerate(ends):
            server.execute(f"INSERT INTO kept VALUES ({number})", url=url)
            end()
            with pytest.raises(OSError, match="Connect"):
                server.fetch("SELECT 1", url=url)
            server.start()

        assert server.fetch("SELECT id FROM kept ORDER BY id", url=url) == [(0,), (1,), (2,)]


def test_a_paused_server_does_not_answer() -> None:
    with PostgresServer() as server:
        server.pause()
        with pytest.raises(TimeoutError):
            server.fetch("SELECT 1", timeout=0.5)
        server.resume()

        assert server.fetch("SELECT 1") == [(1,)]

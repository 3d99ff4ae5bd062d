"""The MariaDB that tests start."""

from __future__ import annotations

import pytest

from tests.servers.mariadb import MariadbServer


def test_databases_are_apart_and_migrated_if_asked(mariadb_server: MariadbServer) -> None:
    empty, migrated = mariadb_server.new_database(), mariadb_server.new_database(migrated=True)

    tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = database()"
    assert mariadb_server.fetch(tables, url=empty) == [(0,)]
    mariadb_server.execute(
        "INSERT INTO feed_head (id, server_id, epoch, rev, chain, compact_rev, compact_chain)"
        " VALUES (1, 's', 'e', 0, '', 0, '')",
        "INSERT INTO namespaces (name, created_at_us, mod_rev) VALUES ('n', 1, 1)",
        url=migrated,
    )
    mariadb_server.drop_database(migrated)
    again = mariadb_server.new_database(migrated=True)
    for table in ("feed_head", "namespaces"):
        assert mariadb_server.fetch(f"SELECT count(*) FROM {table}", url=again) == [(0,)]
    for url in (empty, again):
        mariadb_server.drop_database(url)


def test_the_password_is_asked_for(mariadb_server: MariadbServer) -> None:
    with pytest.raises(Exception, match="Access denied"):
        mariadb_server.fetch("SELECT 1", password="wrong")


def test_a_killed_server_comes_back_with_what_was_committed_and_a_paused_one_does_not_answer() -> None:
    with MariadbServer() as server:
        url = server.new_database()
        server.execute("CREATE TABLE kept (id int) ENGINE=InnoDB", url=url)
        for number, end in enumerate((server.kill, server.stop)):
            server.execute(f"INSERT INTO kept VALUES ({number})", url=url)
            end()
            with pytest.raises(Exception, match="Can't connect"):
                server.fetch("SELECT 1", url=url)
            server.start()
        assert server.fetch("SELECT id FROM kept ORDER BY id", url=url) == [(0,), (1,)]

        server.pause()
        with pytest.raises(TimeoutError):
            server.fetch("SELECT 1", timeout=0.5)
        server.resume()
        assert server.fetch("SELECT 1") == [(1,)]

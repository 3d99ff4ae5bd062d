"""Which addresses of databases are taken, and that a refusal never repeats what may be a password."""

from __future__ import annotations

import pytest

from modelbox.errors import ConfigError
from modelbox.runtime.store.opening import parse_database_url


def test_sslmode_is_what_asyncpg_calls_ssl() -> None:
    url = parse_database_url("postgres://me:pw@db/box?sslmode=verify-full")
    assert url.drivername == "postgresql+asyncpg"
    assert dict(url.query) == {"ssl": "verify-full"}


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:pw@/box?host=/run/postgresql&port=5433",
        "postgresql://me:pw@/box?host=a:5432&host=b:5432&target_session_attrs=read-write",
        "mysql://me:pw@/box?unix_socket=/run/mysqld.sock",
        "mariadb://me:pw@db:3307/box?ssl_ca=/etc/ca.pem",
        "postgresql://me:p%40s%2Fw@db/box",
        "postgresql://me:pw@[::1]:5432/box",
    ],
)
def test_addresses_with_options_are_taken(text: str) -> None:
    assert parse_database_url(text).database == "box"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SECRET", "is not an address"),
        ("oracle://me:SECRET@db/box", "begins with 'oracle'"),
        ("postgresql://me:SECRET@db", "names no database"),
        ("postgresql://me:a/SECRET@SECRET@db/box", "write %40 for @ and"),
        ("mysql://me:a@SECRET@db/box", "write %40 for @ and"),
        ("postgresql://me:SECRET@db/box?sslmode=SECRET", "unknown sslmode: expected disable, allow"),
        ("postgresql://me:pw@db/box?password=SECRET", "unknown options after its ?: password; known: host, passfile"),
        ("postgresql://me:pw@db/box?sslrootcert=SECRET", "?: sslrootcert;"),
        ("mysql://me:pw@db/box?sslmode=SECRET", "?: sslmode; known: charset"),
    ],
)
def test_what_cannot_be_right_is_refused_without_repeating_it(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_database_url(text)
    assert said in str(caught.value)
    assert "SECRET" not in str(caught.value)

"""A token goes to the server and to nobody else, and is read again where it is kept."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelbox._transport.security import Security
from modelbox.config import load_client_config
from modelbox.errors import ConfigError
from tests.certificates import Authority, put

SECRET = "mbx_q7_AbCdEfGhIjKlMnOpQrStUvWxYz012345"
OTHER = "mbx_q8_ZyXwVuTsRqPoNmLkJiHgFeDcBa543210"
FAR = "https://models.example"


def security_of(**settings: Any) -> Security:
    return Security(load_client_config(env={"HOME": "/", "USER": "ada"}, **settings))


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets a minute pass."""
    now = 1000.0

    def pass_time() -> None:
        nonlocal now
        now += 60

    monkeypatch.setattr("modelbox._transport.security.time.monotonic", lambda: now)
    return pass_time


def test_without_a_token_nothing_is_said() -> None:
    assert security_of().headers("models.example", tls=False) == {}


@pytest.mark.parametrize(
    ("host", "tls", "insecure"),
    [
        ("models.example", True, False),
        ("10.1.2.3", True, False),
        ("127.0.0.1", False, False),
        ("localhost", False, False),
        ("::1", False, False),
        ("models.example", False, True),
    ],
)
def test_a_token_is_sent_where_nobody_else_reads_it(host: str, tls: bool, insecure: bool) -> None:
    assert security_of(url=FAR, token=SECRET, insecure_token=insecure).headers(host, tls=tls) == bearer(SECRET)


@pytest.mark.parametrize(
    "host", ["models.example", "10.1.2.3", "fd00::1", "127.0.0.1.example.org", "localhost.example", "0.0.0.0", ""]
)
def test_a_token_is_not_sent_in_plaintext_to_others(host: str) -> None:
    # Such as an address that a server at a loopback address has named.
    with pytest.raises(ConfigError, match=r"not sent to .* without TLS") as caught:
        security_of(token=SECRET).headers(host, tls=False)
    assert SECRET not in str(caught.value)


def test_a_file_is_read_again_when_it_changes(tmp_path: Path, later: Callable[[], None]) -> None:
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    known = security_of(url=FAR, token_file=path)
    assert known.headers("models.example", tls=True) == bearer(SECRET)
    put(path, OTHER.encode())
    assert known.headers("models.example", tls=True) == bearer(SECRET)
    later()
    assert known.headers("models.example", tls=True) == bearer(OTHER)


def test_a_token_that_was_refused_is_looked_for_at_once(tmp_path: Path, later: Callable[[], None]) -> None:
    path = tmp_path / "token"
    path.write_text(SECRET)
    known = security_of(url=FAR, token_file=path)
    known.headers("models.example", tls=True)
    put(path, OTHER.encode())
    known.rejected()
    assert known.headers("models.example", tls=True) == bearer(OTHER)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"two words", b"\xff\xfe", b"x" * 5000, b"a\nb", b"a\0b"])
def test_a_file_without_a_token_is_said_to_be_one(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"token_file: .*token"):
        security_of(url=FAR, token_file=path).headers("models.example", tls=True)


def test_a_file_that_is_being_replaced_is_no_reason_to_go_without(
    tmp_path: Path, later: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "token"
    path.write_text(SECRET)
    known = security_of(url=FAR, token_file=path)
    known.headers("models.example", tls=True)
    path.unlink()
    for _ in range(3):
        later()
        assert known.headers("models.example", tls=True) == bearer(SECRET)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    path.write_text(OTHER)
    later()
    assert known.headers("models.example", tls=True) == bearer(OTHER)
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("url", "host", "name"),
    [
        (FAR, "models.example", None),
        (FAR, "other.example", None),
        (FAR, "10.1.2.3", "models.example"),
        (FAR, "fd00::1", "models.example"),
        ("https://10.9.9.9", "10.1.2.3", None),
    ],
)
def test_a_bare_address_has_to_show_the_servers_name(url: str, host: str, name: str | None) -> None:
    assert security_of(url=url).name_of(host) == name


def test_a_secret_is_in_no_text(tmp_path: Path) -> None:
    known = security_of(token=SECRET)
    assert SECRET not in repr(known)
    assert SECRET not in repr(known._config)


def test_files_of_tls_are_read_when_they_are_needed(tmp_path: Path) -> None:
    known = security_of(url=FAR, tls_ca=tmp_path / "absent.pem")
    with pytest.raises(ConfigError, match=r"absent\.pem: cannot be read"):
        _ = known.http
    authority = Authority(tmp_path, "absent")
    assert known.http is not True
    assert known.grpc is not None
    assert os.path.samefile(authority.certificate, tmp_path / "absent.pem")
    plain = security_of(tls_ca=tmp_path / "nowhere.pem")
    assert (plain.http, plain.grpc) == (True, None)

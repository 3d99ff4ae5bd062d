"""What a program's TLS settings must be, and what it says of its certificate."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from modelbox._serving.tls import ServerTls, TlsSettings, open_tls, tls_problems
from modelbox.errors import ConfigError
from tests.certificates import DAY, Authority, Pair, put


@dataclass(frozen=True, kw_only=True)
class Options:
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    tls_client_auth: str = "off"


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(tls_cert="c"),
        Options(tls_cert="c", tls_key="k"),
        Options(tls_cert="c", tls_client_ca="a", tls_client_auth="optional"),
        Options(tls_cert="c", tls_client_ca="a", tls_client_auth="required"),
    ],
)
def test_settings_that_fit(options: Options) -> None:
    assert tls_problems(options) == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (Options(tls_key="k"), "tls_key is set, and tls_cert is not"),
        (Options(tls_client_ca="a"), "tls_client_ca is set, and tls_cert is not"),
        (Options(tls_client_auth="required"), "needs tls_cert and tls_client_ca"),
        (Options(tls_cert="c", tls_client_auth="optional"), "optional needs tls_client_ca"),
        (Options(tls_cert="c", tls_client_ca="a"), "tls_client_auth is off"),
    ],
)
def test_settings_that_do_not(options: Options, problem: str) -> None:
    (found,) = tls_problems(options)
    assert problem in found


def test_every_problem_is_told() -> None:
    assert len(tls_problems(Options(tls_key="k", tls_client_ca="a", tls_client_auth="required"))) == 3


async def test_without_a_certificate_there_is_no_tls() -> None:
    assert await open_tls(Options()) is None


async def test_the_key_may_be_in_the_same_file(pair: Pair) -> None:
    pair.certificate.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    tls = await open_tls(Options(tls_cert=str(pair.certificate)))
    assert tls is not None
    assert 19 < tls.gauges()["modelbox_tls_certificate_days_left"][1]() < 21


@pytest.mark.parametrize("key", ["tls_cert", "tls_key", "tls_client_ca"])
async def test_a_file_that_is_not_there_is_named(pair: Pair, key: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "tls_cert": str(pair.certificate),
        "tls_key": str(pair.key),
        "tls_client_ca": str(pair.certificate),
        "tls_client_auth": "required",
        key: str(tmp_path / "absent.pem"),
    }
    with pytest.raises(ConfigError, match=r"absent\.pem: cannot be read: No such file"):
        await open_tls(Options(**settings))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue("server", "localhost")


def tls_of(pair: Pair, **settings: Any) -> ServerTls:
    return ServerTls(TlsSettings(certificate=pair.certificate, key=pair.key, **settings))


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


async def test_new_files_are_taken_and_said_so(
    authority: Authority, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modelbox._serving.tls")
    tls = tls_of(pair)
    tls.open()
    refused = tls.gauges()["modelbox_tls_files_refused"][1]
    old = pair.key.read_bytes()

    async def until_said(level: str, text: str) -> None:
        while not any(level == told and text in message for told, message in logged(caplog)):
            await anyio.sleep(0.002)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: tls.watch(every_s=0.001))
        with anyio.fail_after(60):
            put(pair.key, b"")
            await until_said("ERROR", f"are not used, those before go on: {pair.certificate}, {pair.key}")
            assert refused() == 1
            put(pair.key, old)
            await until_said("INFO", "new TLS files are in use; the certificate ends in 20.0 days")
            assert refused() == 0
            pair.replace_by(authority.issue("new", "localhost", ends=25 * DAY))
            await until_said("INFO", "new TLS files are in use; the certificate ends in 25.0 days")
            assert 24 < tls.gauges()["modelbox_tls_certificate_days_left"][1]() < 26
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("days", "text"), [(13.0, "ends in 13.0 days: renew"), (-2.0, "ended 2.0 days ago: renew"), (15.0, "")]
)
def test_a_certificate_that_ends_soon_is_warned_of_once_a_day(
    authority: Authority, caplog: pytest.LogCaptureFixture, days: float, text: str
) -> None:
    now = datetime.now(UTC)
    pair = authority.issue("server", "localhost", ends=20 * DAY)
    settings = TlsSettings(certificate=pair.certificate, key=pair.key)
    tls = ServerTls(settings, now=lambda: now + (20 - days) * DAY)
    tls.open()
    tls._warn()
    assert logged(caplog) == ([("WARNING", f"the TLS certificate {text} {pair.certificate}")] if text else [])


def test_a_key_that_everybody_may_read_is_warned_of(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    tls_of(pair).open()
    assert logged(caplog) == []
    pair.key.chmod(0o644)
    tls_of(pair).open()
    assert logged(caplog) == [("WARNING", f"everybody on this machine may read the key {pair.key}: give it mode 600")]


def test_without_files_there_are_no_days(pair: Pair) -> None:
    assert math.isnan(tls_of(pair).gauges()["modelbox_tls_certificate_days_left"][1]())

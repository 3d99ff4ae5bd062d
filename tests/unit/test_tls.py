"""What becomes of certificate files that change: each handshake gets one whole set, the newest that works."""

from __future__ import annotations

import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from modelbox._tls import LiveTls, Validity, harden, load_authorities, load_pair, read_validity
from modelbox.errors import ConfigError
from tests.certificates import DAY, Authority, Pair, put, serial_of


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends after a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    done: set[ssl.SSLObject] = set()
    for _ in range(10):
        for end in (theirs, ours):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            done.add(end)
        if len(done) == 2:
            return ours, theirs
    raise AssertionError("the handshake did not end")


class Files:
    """A server's files, and what a client sees of them."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory)
        self.pair = self.authority.issue("server", "localhost")
        self.told: list[str] = []
        self.built = 0
        self.now = datetime.now(UTC)
        self.live = LiveTls(
            ssl.PROTOCOL_TLS_SERVER,
            build=self._build,
            paths=(self.pair.certificate, self.pair.key),
            certificate=self.pair.certificate,
            changed=lambda live: self.told.append(live.problem),
            now=lambda: self.now,
        )
        self.context = self.live.context("h2")
        self.client = ssl.create_default_context(cafile=str(self.authority.certificate))
        self.client.set_alpn_protocols(["h2", "http/1.1"])

    def _build(self) -> ssl.SSLContext:
        self.built += 1
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        harden(context)
        load_pair(context, self.pair.certificate, self.pair.key)
        return context

    def served(self) -> int:
        _, theirs = handshake(self.context, self.client)
        assert theirs.selected_alpn_protocol() == "h2"
        certificate = theirs.getpeercert(binary_form=True)
        assert certificate is not None
        return serial_of(certificate)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files(tmp_path)
    files.live.open()
    return files


def test_a_handshake_gets_the_files_of_its_time(files: Files) -> None:
    first = files.served()
    assert first == serial_of(files.pair.certificate)
    new = files.authority.issue("new", "localhost")
    files.pair.replace_by(new)
    assert files.served() == first
    files.live.refresh()
    assert files.served() == serial_of(new.certificate)
    assert files.told == [""]


def test_a_handshake_that_has_begun_goes_on_with_what_it_has(files: Files) -> None:
    first = files.served()
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = files.context.wrap_bio(to_server, to_client, server_side=True)
    files.pair.replace_by(files.authority.issue("new", "localhost"))
    files.live.refresh()
    theirs = files.client.wrap_bio(to_client, to_server, server_hostname="localhost")
    for end in (theirs, ours, theirs, ours):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    certificate = theirs.getpeercert(binary_form=True)
    assert certificate is not None
    assert serial_of(certificate) == first


def test_files_that_did_not_change_are_not_read_again(files: Files) -> None:
    for _ in range(3):
        files.live.refresh()
    assert files.built == 1


def test_half_of_a_new_pair_changes_nothing(files: Files) -> None:
    first = files.served()
    new = files.authority.issue("new", "localhost")
    put(files.pair.certificate, new.certificate.read_bytes())
    files.live.refresh()
    assert files.served() == first
    assert "the key is not that of the certificate" in files.live.problem
    put(files.pair.key, new.key.read_bytes())
    files.live.refresh()
    assert files.served() == serial_of(new.certificate)
    assert files.live.problem == ""
    assert [bool(text) for text in files.told] == [True, False]


@pytest.mark.parametrize(
    ("which", "content", "problem"),
    [
        ("certificate", b"", "no certificate in PEM"),
        ("certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no certificate in PEM"),
        ("certificate", b"-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n", "in PEM"),
        ("key", b"", "no certificate and key in PEM"),
        ("key", b"\x00\xff" * 100, "no certificate and key in PEM"),
        ("certificate", None, "cannot be read: No such file"),
        ("key", None, "cannot be read: No such file"),
    ],
)
def test_what_is_no_certificate_changes_nothing(files: Files, which: str, content: bytes | None, problem: str) -> None:
    first = files.served()
    path = {"certificate": files.pair.certificate, "key": files.pair.key}[which]
    if content is None:
        path.unlink()
    else:
        put(path, content)
    files.live.refresh()
    files.live.refresh()
    assert files.served() == first
    assert problem in files.live.problem
    assert str(path) in files.live.problem
    assert len(files.told) == 1


def test_a_key_with_a_password_is_not_asked_for(files: Files, tmp_path: Path) -> None:
    new = files.authority.issue("new", "localhost")
    key = serialization.load_pem_private_key(new.key.read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"a password"),
    )
    put(new.key, locked)
    files.pair.replace_by(new)
    files.live.refresh()
    assert "a key that needs a password" in files.live.problem


@pytest.mark.parametrize(("begins", "ends"), [(-3 * DAY, -1 * DAY), (1 * DAY, 3 * DAY)])
def test_a_certificate_of_another_time_does_not_replace_one_that_holds(
    files: Files, begins: timedelta, ends: timedelta
) -> None:
    first = files.served()
    files.pair.replace_by(files.authority.issue("other", "localhost", begins=begins, ends=ends))
    files.live.refresh()
    assert files.served() == first
    assert "which is not now" in files.live.problem


def test_where_neither_holds_the_newest_is_taken(files: Files) -> None:
    files.now += 365 * DAY
    new = files.authority.issue("new", "localhost")
    files.pair.replace_by(new)
    files.live.refresh()
    assert files.live.problem == ""
    assert files.live.days_left() < 0


def test_the_days_left_are_those_of_the_certificate_in_use(files: Files) -> None:
    assert 19.9 < files.live.days_left() <= 20
    files.pair.replace_by(files.authority.issue("new", "localhost", ends=25 * DAY))
    assert files.live.days_left() <= 20
    files.live.refresh()
    assert 24.9 < files.live.days_left() <= 25


def test_the_first_files_have_to_work(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.pair.key.unlink()
    with pytest.raises(ConfigError, match=r"server\.key: cannot be read"):
        files.live.open()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_versions_are_refused(files: Files, version: ssl.TLSVersion) -> None:
    files.client.set_ciphers("ALL:@SECLEVEL=0")
    files.client.minimum_version = files.client.maximum_version = version
    with pytest.raises(ssl.SSLError) as caught:
        handshake(files.context, files.client)
    # Which is what the server finds: the client would.
    assert caught.value.reason == "UNSUPPORTED_PROTOCOL"


def test_tls_1_2_has_forward_secrecy_and_no_old_modes(files: Files) -> None:
    files.client.maximum_version = ssl.TLSVersion.TLSv1_2
    ours, _ = handshake(files.context, files.client)
    cipher = ours.cipher()
    assert cipher is not None
    assert cipher[0].startswith("ECDHE-")
    files.client.set_ciphers("ECDHE-ECDSA-AES128-SHA256:AES128-GCM-SHA256")
    with pytest.raises(ssl.SSLError):
        handshake(files.context, files.client)


def test_authorities_have_to_be_some(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    path = tmp_path / "authorities.pem"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_authorities(context, path)
    path.write_bytes(b"nobody")
    with pytest.raises(ConfigError, match="no certificates in PEM"):
        load_authorities(context, path)


@pytest.mark.parametrize("ends", [20 * DAY, 365 * 40 * DAY], ids=["two digits of the year", "four"])
def test_the_time_is_read_as_the_library_reads_it(tmp_path: Path, ends: timedelta) -> None:
    from cryptography import x509

    pair: Pair = Authority(tmp_path).issue("server", "localhost", ends=ends)
    found = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    assert read_validity(pair.certificate) == Validity(
        not_before=found.not_valid_before_utc, not_after=found.not_valid_after_utc
    )


def test_a_certificate_cut_anywhere_is_none(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("server", "localhost")
    der = ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())
    for end in range(0, 120):
        pair.certificate.write_text(ssl.DER_cert_to_PEM_cert(der[:end]))
        with pytest.raises(ConfigError, match="no certificate in PEM"):
            read_validity(pair.certificate)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("garbage") / "certificate.pem"


@given(der=st.binary(max_size=200))
def test_garbage_is_no_certificate(place: Path, der: bytes) -> None:
    place.write_text(ssl.DER_cert_to_PEM_cert(der))
    try:
        read_validity(place)
    except ConfigError:
        return
    # Whatever has the shape of one has times.
    assert len(der) > 30

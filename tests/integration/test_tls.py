"""A server with TLS on all ports, and what its clients make of it: real processes, real certificates.

Certificates are renewed while clients call. Who has not the right ones, or speaks something else, is refused, and told
what to do about it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest

import modelbox
from modelbox.errors import AuthError, ConfigError, NotAuthenticated, Unavailable
from tests.certificates import DAY, Authority, put, serial_of
from tests.server import ServerProcess

TOKEN = "mbx_q7_AbCdEfGhIjKlMnOpQrStUvWxYz012345"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with TLS that takes certificates of clients, and does not ask for them."""
    pair = authority.issue("server", "localhost", "127.0.0.1")
    with ServerProcess(
        tmp_path_factory.mktemp("server") / "data",
        tls_cert=pair.certificate,
        tls_key=pair.key,
        tls_client_ca=authority.certificate,
        tls_client_auth="optional",
    ) as server:
        yield server


@pytest.fixture(scope="module")
def strict(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that wants to see a certificate of every client."""
    pair = authority.issue("strict", "localhost", "127.0.0.1")
    with ServerProcess(
        tmp_path_factory.mktemp("strict") / "data",
        tls_cert=pair.certificate,
        tls_key=pair.key,
        tls_client_ca=authority.certificate,
        tls_client_auth="required",
    ) as server:
        yield server


def client_of(server: ServerProcess, directory: Path, **settings: Any) -> modelbox.Client:
    settings = {"url": server.url, "actor": "ada", **settings}
    return modelbox.Client(cache_dir=directory / "cache", spool_dir=directory / "spool", **settings)


async def reach(client: modelbox.Client) -> None:
    """Calls over HTTP and over gRPC."""
    async with client:
        await client._call(lambda source: source.http.server_info())
        await client._call(lambda source: source.grpc.list_namespaces())


def fetched(url: str, context: ssl.SSLContext) -> str:
    with urllib.request.urlopen(url, context=context, timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def shown(address: str, authority: Authority) -> int:
    """Which certificate a new connection is shown."""
    host, port = address.split(":")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    with socket.create_connection((host, int(port)), timeout=60) as raw:
        with context.wrap_socket(raw, server_hostname="localhost") as connection:
            certificate = connection.getpeercert(binary_form=True)
            assert certificate is not None
            return serial_of(certificate)


# --- who gets on -------------------------------------------------------------------------------------------------


async def test_everything_goes_over_tls(server: ServerProcess, authority: Authority, tmp_path: Path) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(bytes(range(256)) * 12_000)
    async with client_of(server, tmp_path, tls_ca=authority.certificate, token=TOKEN) as client:
        published = await client.publish("langtech/speech", weights, framework="other", aliases=["prod"])
        assert (await client.resolve("langtech/speech@prod")).version.digest == published.item.digest
        got = await client.download("langtech/speech@prod", tmp_path / "got")
        assert (got / "weights.bin").read_bytes() == weights.read_bytes()
        async with client.changes(objects=["langtech/speech@prod"], list_first=True) as changes:
            async for change in changes:
                if getattr(change, "object", "") == "langtech/speech@prod":
                    break


@pytest.mark.parametrize("which", ["http", "metrics"])
def test_http_and_metrics_speak_tls_1_3_with_others(server: ServerProcess, authority: Authority, which: str) -> None:
    url = server.url + "/readyz" if which == "http" else server.metrics_url
    context = ssl.create_default_context(cafile=str(authority.certificate))
    text = fetched(url, context)
    if which == "metrics":
        assert "modelbox_tls_files_refused 0.0" in text
        left = [line for line in text.splitlines() if line.startswith("modelbox_tls_certificate_days_left ")]
        assert 19 < float(left[0].split()[1]) < 21


def health_of(channel: grpc.Channel) -> bytes:
    """What the standard health service says; 1 is SERVING."""
    check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
    answer: bytes = check(b"", timeout=60)
    return answer


def test_another_grpc_library_gets_on(server: ServerProcess, authority: Authority) -> None:
    credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    with grpc.secure_channel(server.grpc_address, credentials) as channel:
        assert health_of(channel) == b"\x08\x01"


def test_a_stop_loses_no_answer(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("stopped", "127.0.0.1")
    with ServerProcess(tmp_path / "data", tls_cert=pair.certificate, tls_key=pair.key) as server:
        credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
        with grpc.secure_channel(server.grpc_address, credentials) as channel:
            assert health_of(channel) == b"\x08\x01"
            assert server.terminate(timeout=60) == 0
    assert "Traceback" not in server.output


async def test_a_certificate_says_who_calls(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("accounts", "localhost", "127.0.0.1")
    mine = authority.issue("gpu-7", "gpu-7.example.org", "spiffe://example.org/gpu-7")
    unknown = authority.issue("gpu-8", "spiffe://example.org/gpu-8")
    with ServerProcess(
        tmp_path / "data",
        access="on",
        tls_cert=pair.certificate,
        tls_key=pair.key,
        tls_client_ca=authority.certificate,
        tls_client_auth="optional",
    ) as server:
        token = (tmp_path / "data" / "admin-token").read_text().strip()
        async with client_of(server, tmp_path, tls_ca=authority.certificate, token=token) as admin:
            await admin.create_account("gpu-7", certificate_names=["spiffe://example.org/gpu-7"])
            await admin.grant_role("gpu-7", "reader", namespace="langtech")
        ours = {"tls_ca": authority.certificate, "tls_client_cert": mine.certificate, "tls_client_key": mine.key}
        async with client_of(server, tmp_path, **ours) as client:
            assert (await client.whoami()).name == "gpu-7"
            with pytest.raises(AuthError):
                await client.create_model("other/model")
        context = ssl.create_default_context(cafile=str(authority.certificate))
        context.load_cert_chain(mine.certificate, mine.key)
        assert json.loads(fetched(f"{server.url}/api/v1/whoami", context))["name"] == "gpu-7"
        for settings in (
            {},
            {"tls_client_cert": unknown.certificate, "tls_client_key": unknown.key},
        ):
            async with client_of(server, tmp_path, tls_ca=authority.certificate, **settings) as stranger:
                with pytest.raises(NotAuthenticated):
                    await stranger.whoami()
        assert token not in server.output


# --- renewal -----------------------------------------------------------------------------------------------------


async def test_certificates_are_renewed_while_clients_call(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("renewed", "localhost", "127.0.0.1")
    with ServerProcess(tmp_path / "data", tls_cert=pair.certificate, tls_key=pair.key) as server:
        addresses = (server.http_address, server.grpc_address, server.metrics_address)
        failed: list[Exception] = []
        calls = 0
        over = threading.Event()

        def connect_again_and_again() -> None:
            nonlocal calls
            context = ssl.create_default_context(cafile=str(authority.certificate))
            while not over.is_set():
                connection = http.client.HTTPSConnection(server.http_address, context=context, timeout=60)
                try:
                    connection.request("GET", "/api/v1/server")
                    assert connection.getresponse().status == 200
                    calls += 1
                except Exception as exc:
                    failed.append(exc)
                finally:
                    connection.close()

        threads = [threading.Thread(target=connect_again_and_again) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            async with client_of(server, tmp_path, tls_ca=authority.certificate) as client:
                for number in range(2):
                    await client._call(lambda source: source.grpc.list_namespaces())
                    new = authority.issue(f"new-{number}", "localhost", "127.0.0.1")
                    # Half of a pair first: that is refused, and nobody notices.
                    seen = len(server.output)
                    put(pair.certificate, new.certificate.read_bytes())
                    refused = "the new TLS files are not used, those before go on"
                    server.wait_for(refused, timeout=60, after=seen)
                    await client._call(lambda source: source.http.server_info())
                    put(pair.key, new.key.read_bytes())
                    server.wait_for("new TLS files are in use", timeout=60, after=seen)
                    assert {shown(address, authority) for address in addresses} == {serial_of(new.certificate)}
                await client._call(lambda source: source.grpc.list_namespaces())
            with anyio.fail_after(60):
                while calls <= 10 and not failed:
                    await anyio.sleep(0.01)
        finally:
            over.set()
            for thread in threads:
                thread.join()
    assert failed == []


async def test_a_client_shows_the_certificate_of_the_time(
    strict: ServerProcess, authority: Authority, tmp_path: Path
) -> None:
    mine = Authority(tmp_path, "foreign").issue("mine", "spiffe://example.org/ci")
    async with client_of(
        strict, tmp_path, tls_ca=authority.certificate, tls_client_cert=mine.certificate, tls_client_key=mine.key
    ) as client:
        with pytest.raises(Unavailable):
            await client._call(lambda source: source.http.server_info())
        mine.replace_by(authority.issue("renewed-client", "spiffe://example.org/ci"))
        await client._call(lambda source: source.http.server_info())
        await client._call(lambda source: source.grpc.list_namespaces())


# --- who does not ------------------------------------------------------------------------------------------------


async def test_clients_believe_names_and_times(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("yesterday", "127.0.0.1", begins=-3 * DAY, ends=-1 * DAY)
    with ServerProcess(tmp_path / "data", tls_cert=pair.certificate, tls_key=pair.key) as server:
        server.wait_for(r"the TLS certificate ended 1\.0 days ago: renew .*yesterday\.pem", timeout=60)
        with pytest.raises(Unavailable, match=r"not believed .certificate has expired."):
            await reach(client_of(server, tmp_path, tls_ca=authority.certificate))
        seen = len(server.output)
        pair.replace_by(authority.issue("elsewhere", "elsewhere.example", "127.0.0.9"))
        server.wait_for("new TLS files are in use", timeout=60, after=seen)
        with pytest.raises(Unavailable, match=r"not believed .IP address mismatch"):
            await reach(client_of(server, tmp_path, tls_ca=authority.certificate))


async def test_clients_believe_their_authorities_only(
    server: ServerProcess, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    for settings in ({"tls_ca": other.certificate}, {}):
        with pytest.raises(Unavailable, match=r"certificate is not believed \(.*\); tls_ca says which"):
            await reach(client_of(server, tmp_path, **settings))
    with pytest.raises(ConfigError, match=r"nowhere\.pem: cannot be read"):
        await reach(client_of(server, tmp_path, tls_ca=tmp_path / "nowhere.pem"))


async def test_a_client_without_a_certificate_is_refused_everywhere(
    strict: ServerProcess, authority: Authority, tmp_path: Path
) -> None:
    with pytest.raises(Unavailable, match=r"Does it ask for a client certificate|client's certificate"):
        await reach(client_of(strict, tmp_path, tls_ca=authority.certificate))
    context = ssl.create_default_context(cafile=str(authority.certificate))
    for address in (strict.http_address, strict.grpc_address, strict.metrics_address):
        assert is_cut_off(address, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", context)
    mine = authority.issue("allowed", "spiffe://example.org/ci")
    context.load_cert_chain(mine.certificate, mine.key)
    assert not is_cut_off(strict.metrics_address, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", context)


def is_cut_off(address: str, request: bytes, context: ssl.SSLContext | None) -> bool:
    """Whether a connection ends without an answer in plain sight."""
    host, port = address.split(":")
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
        try:
            if context is not None:
                connection = stack.enter_context(context.wrap_socket(connection, server_hostname="localhost"))
            connection.sendall(request)
            return not connection.recv(100).startswith(b"HTTP/")
        except (ssl.SSLError, ConnectionError):
            return True


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_versions_are_refused(server: ServerProcess, authority: Authority, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    for address in (server.http_address, server.grpc_address, server.metrics_address):
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), timeout=60) as raw:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                context.wrap_socket(raw, server_hostname="localhost")


async def test_plaintext_is_refused(server: ServerProcess, tmp_path: Path) -> None:
    for address in (server.http_address, server.grpc_address, server.metrics_address):
        for request in (b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            assert is_cut_off(address, request, None)
    plain = server.url.replace("https:", "http:")
    with pytest.raises(Unavailable, match="with an https:// address"):
        await reach(client_of(server, tmp_path, url=plain))


async def test_tls_is_not_spoken_to_plaintext(tmp_path: Path, authority: Authority) -> None:
    with ServerProcess(tmp_path / "data") as plain:
        url = plain.url.replace("http:", "https:")
        with pytest.raises(Unavailable, match="does not speak TLS there"):
            await reach(client_of(plain, tmp_path, url=url, tls_ca=authority.certificate))


def test_who_is_silent_in_a_handshake_is_cut_off(server: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        silent = []
        for address in (server.http_address, server.grpc_address, server.metrics_address):
            host, port = address.split(":")
            silent.append(stack.enter_context(socket.create_connection((host, int(port)), timeout=60)))
            # The beginning of a ClientHello.
            silent[-1].sendall(b"\x16\x03\x01\x02\x00\x01")
        assert [connection.recv(1) for connection in silent] == [b"", b"", b""]


def test_nothing_of_it_is_a_failure_of_the_server(server: ServerProcess, strict: ServerProcess) -> None:
    # The last one of this module, after all of the others.
    for process in (server, strict):
        assert process.running
        assert "Traceback" not in process.output
        assert TOKEN not in process.output

"""The blocking client: the names of the asynchronous one, against a real server, with and without a loop around."""

from __future__ import annotations

import inspect
import secrets
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

import modelbox
from modelbox import sync
from modelbox._blocking import finish
from modelbox.errors import ClientClosed, NotFoundError, Unavailable
from modelbox.feed import Change
from tests.server import ServerProcess

# Waiting for an event loop is what the blocking form has not.
ASYNC_ONLY = {"aclose", "load_sync", "source"}
SYNC_ONLY = {"close"}


@pytest.fixture
def client(shared_server: ServerProcess) -> Iterator[sync.Client]:
    with sync.Client(shared_server.url, actor="ada@test") as opened:
        yield opened


@pytest.fixture
def path() -> str:
    return f"ns-{secrets.token_hex(4)}/model"


def _public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_both_clients_have_the_same_names() -> None:
    assert _public(modelbox.Client) - ASYNC_ONLY == _public(sync.Client) - SYNC_ONLY


def test_the_methods_take_the_same_arguments() -> None:
    for name in _public(modelbox.Client) - ASYNC_ONLY:
        there, here = getattr(modelbox.Client, name), getattr(sync.Client, name)
        if callable(there):
            assert inspect.signature(there).parameters == inspect.signature(here).parameters, name


def test_publish_resolve_page_and_delete(client: sync.Client, path: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    for text in ("one", "two"):
        file.write_text(text)
        client.publish(path, file, framework="raw", aliases=["prod"])
    assert client.resolve(f"{path}@prod").version.version == 2
    assert [version.version for version in client.iter_versions(path)] == [2, 1]
    assert (client.download(f"{path}@1", tmp_path / "out") / "weights.bin").read_text() == "one"
    with pytest.raises(NotFoundError, match="no version"):
        client.get_version(f"{path}@9")


def test_changes_are_followed(client: sync.Client, path: str) -> None:
    other = f"{path}-of-before"
    client.create_model(other)
    with client.changes(objects=[other, path], list_first=True) as feed:
        listed = next(feed)
        assert isinstance(listed, Change)
        assert listed.object == other
        timer = threading.Timer(0.2, client.create_model, [path])
        timer.start()
        change = next(feed)
        # The change may be told before the call that made it is answered.
        timer.join()
        assert isinstance(change, Change)
        assert (change.object, change.action) == (path, "created")
        assert feed.token
    assert list(feed) == []


async def test_it_blocks_but_works_inside_of_an_event_loop(shared_server: ServerProcess, path: str) -> None:
    with sync.Client(shared_server.url) as client:
        client.create_model(path)
        assert client.get_model(path).path == path


def test_threads_share_one_client(client: sync.Client, path: str) -> None:
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append(client.create_model(path).existed)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [False] + [True] * 7


def test_a_server_out_of_reach_and_a_closed_client_are_told() -> None:
    client = sync.Client("http://127.0.0.1:1")
    with pytest.raises(Unavailable):
        client.get_model("ns/m")
    client.close()
    client.close()
    with pytest.raises(ClientClosed):
        client.get_model("ns/m")


def test_what_waits_for_a_loop_is_refused() -> None:
    class Waits:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def call() -> None:
        await Waits()

    with pytest.raises(RuntimeError, match="waits for an event loop"):
        finish(call())

"""What is configured holds over the socket too: users, sizes, deadlines, statistics, the prediction cache."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import modelbox
from modelbox._frames import HEADER, Kind, json_body
from modelbox.errors import DeadlineExceeded, LimitError, NotFoundError
from tests.onnx_models import add_constant, perceptron
from tests.server import ServerProcess
from tests.sidecar import SidecarProcess
from tests.sidecar_socket import Raw, error_of, infer

ROOT = Path(__file__).parents[2]
ONE = {"x": np.ones((1, 4), np.float32)}
REF = "settings/add@prod"
SLOW = "settings/slow@prod"
NOBODY = 65534


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("registry")

    async def publish(url: str) -> None:
        async with modelbox.Client(url, cache_dir=directory / "cache") as client:
            for name, model in (
                ("add", add_constant(1.0)),
                ("wide", add_constant(1.0, columns=200_000)),
                ("slow", perceptron(1024, 12)),
            ):
                (directory / "model.onnx").write_bytes(model)
                await client.publish(f"settings/{name}", directory / "model.onnx", aliases=["prod"])

    with ServerProcess(directory / "server") as server:
        anyio.run(publish, server.url)
        yield server


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def client_of(sidecar: SidecarProcess) -> modelbox.Client:
    return modelbox.Client(
        "http://127.0.0.1:9", cache_dir=sidecar.directory / "unused", sidecar=sidecar.socket_url, request_timeout_s=60
    )


def statistics(sidecar: SidecarProcess, model: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{sidecar.http_url}/v2/models/{model}/stats", timeout=60) as answer:
        (entry,) = json.load(answer)["model_stats"]
    return dict(entry)


# -- who may connect

_CALL = """
import asyncio, os, sys
import numpy as np
import modelbox

async def call():
    # Whoever goes on asking does it for as long.
    async with modelbox.Client(
        "http://127.0.0.1:9", cache_dir=sys.argv[2], sidecar=sys.argv[1], request_timeout_s=600
    ) as client:
        model = await client.load(sys.argv[3])
        return float((await model.predict({"x": np.ones((1, 4), np.float32)}))["y"][0, 0])

# Once as root, who may do anything: this interpreter's modules may be nobody else's to read.
asyncio.run(call())
os.setgroups([])
os.setuid(int(sys.argv[4]))
try:
    print(asyncio.run(call()))
except modelbox.errors.ModelBoxError as exc:
    print(type(exc).__name__, exc)
"""


def call_as(user: int, sidecar: SidecarProcess, directory: Path) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", _CALL, sidecar.socket_url, str(directory / "unused"), REF, str(user)],
        cwd=ROOT,
        env={**os.environ, "XDG_CONFIG_HOME": str(directory / "config")},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return ran.stdout + ran.stderr


@pytest.mark.root
def test_a_user_who_is_not_named_is_told_so_at_once(registry: ServerProcess, open_path: Path) -> None:
    with SidecarProcess(
        open_path, registry.url, REF, http="false", grpc="false", socket_mode="666", socket_users="1"
    ) as sidecar:
        text = call_as(NOBODY, sidecar, open_path)
        assert text.startswith("AuthError "), text
        assert "user 65534 may not use this sidecar" in text
        assert "socket_users" in text
        assert call_as(1, sidecar, open_path).strip() == "2.0"
        assert call_as(0, sidecar, open_path).strip() == "2.0"


def test_one_connection_too_many_is_told_so(registry: ServerProcess, tmp_path: Path) -> None:
    with (
        SidecarProcess(tmp_path, registry.url, REF, http="false", grpc="false", max_connections=1) as sidecar,
        Raw(sidecar) as first,
    ):
        first.hello()
        with Raw(sidecar) as second:
            kind, _, _, id_, _, body = second.next()
            assert (kind, id_, json_body(body)["code"]) == (Kind.ERROR, 0, "busy")
        handle = first.open(REF)
        first.send(infer(handle, ONE))
        assert first.until(Kind.RESULT)[3] == 2


# -- how much


async def test_a_request_that_is_too_large_is_refused_here_and_there(registry: ServerProcess, tmp_path: Path) -> None:
    wide = "settings/wide@prod"
    large = {"x": np.ones((2, 200_000), np.float32)}
    with SidecarProcess(tmp_path, registry.url, wide, http="false", grpc="false", max_request_mb=1) as sidecar:
        async with client_of(sidecar) as client:
            model = await client.load(wide)
            with pytest.raises(LimitError, match="max_request_mb"):
                await model.predict(large)
            fits = {"x": np.ones((1, 200_000), np.float32)}
            assert (await model.predict(fits))["y"][0, 0] == 2
            # One that does not look at what it was told.
            with Raw(sidecar) as raw:
                handle = raw.hello().open(wide)
                raw.send(infer(handle, {"x": np.ones((1, 300_000), np.float32)}))
                assert error_of(raw) == "limit"
                raw.send(HEADER.pack(64 << 20, Kind.INFER, 0, 0, 3, handle))
                with pytest.raises((EOFError, ConnectionError)):
                    raw.next()
            assert (await model.predict(fits))["y"][0, 0] == 2


# -- how long


def test_the_default_timeout_holds_over_the_socket(registry: ServerProcess, tmp_path: Path) -> None:
    x = {"x": np.ones((1, 1024), np.float32)}
    with (
        SidecarProcess(
            tmp_path,
            registry.url,
            SLOW,
            http="false",
            grpc="false",
            batching="on",
            max_delay_ms=10_000,
            default_timeout_s=0.1,
        ) as sidecar,
        Raw(sidecar) as raw,
    ):
        handle = raw.hello().open(SLOW)
        # Two, because one alone would not wait for company.
        raw.send(infer(handle, x, 5) + infer(handle, x, 6))
        ended = [raw.next() for _ in range(2)]
        assert sorted(frame[3] for frame in ended) == [5, 6]
        for kind, _, _, _, _, body in ended:
            assert (kind, json_body(body)["code"]) == (Kind.ERROR, DeadlineExceeded.code)


def test_a_joined_call_ends_at_its_deadline_and_its_neighbour_does_not(registry: ServerProcess, tmp_path: Path) -> None:
    x = {"x": np.ones((1, 1024), np.float32)}
    with (
        SidecarProcess(
            tmp_path, registry.url, SLOW, http="false", grpc="false", batching="on", max_delay_ms=10_000, max_batch=3
        ) as sidecar,
        Raw(sidecar) as raw,
    ):
        handle = raw.hello().open(SLOW)
        raw.send(infer(handle, x, 5, timeout_ms=100) + infer(handle, x, 6))
        kind, _, _, id_, _, body = raw.next()
        assert (kind, id_, json_body(body)["code"]) == (Kind.ERROR, 5, "transport.deadline")
        # With two more there is nothing left to wait for.
        raw.send(infer(handle, x, 7) + infer(handle, x, 8))
        assert sorted(raw.until(Kind.RESULT)[3] for _ in range(3)) == [6, 7, 8]
        raw.send(HEADER.pack(16, Kind.PING, 0, 0, 7, 0))
        assert raw.next()[:4:3] == (Kind.PONG, 7)


# -- what is counted and kept


async def test_calls_over_the_socket_are_in_the_protocols_statistics(registry: ServerProcess, tmp_path: Path) -> None:
    with SidecarProcess(tmp_path, registry.url, REF, grpc="false") as sidecar:
        async with client_of(sidecar) as client:
            model = await client.load(REF)
            for _ in range(3):
                await model.predict({"x": np.ones((2, 4), np.float32)})
            async with model.lease() as lease:
                await lease.predict(ONE)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(8):
                    tasks.create_task(model.predict(ONE))
        with Raw(sidecar) as raw:
            raw.send(infer(raw.hello().open(REF), {"x": np.ones((1, 3), np.float32)}))
            assert error_of(raw) == "invalid.input"
        entry = statistics(sidecar, "settings/add")
        assert entry["inference_stats"]["success"]["count"] == 12
        assert entry["inference_count"] == 3 * 2 + 1 + 8
        assert entry["inference_stats"]["success"]["ns"] > 0
        assert entry["inference_stats"]["fail"]["count"] == 1
        sizes = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in entry["batch_stats"]}
        assert sum(rows * runs for rows, runs in sizes.items()) == 15
        assert entry["execution_count"] == sum(sizes.values())


@pytest.mark.parametrize("columns", [4, 200_000], ids=["small", "shared memory"])
async def test_the_prediction_cache_answers_over_the_socket(
    registry: ServerProcess, tmp_path: Path, columns: int
) -> None:
    ref = REF if columns == 4 else "settings/wide@prod"
    with SidecarProcess(tmp_path, registry.url, ref, grpc="false", prediction_cache_mb=16) as sidecar:
        async with client_of(sidecar) as client:
            model = await client.load(ref)
            for value in (1, 2, 1, 2, 1):
                outputs = await model.predict({"x": np.full((1, columns), value, np.float32)})
                assert outputs["y"].shape == (1, columns)
                assert outputs["y"][0, 0] == value + 1
                assert outputs.version.version == 1
                # The caller's own, whatever is kept in the sidecar.
                outputs["y"][:] = 99
        stats = statistics(sidecar, ref.partition("@")[0])["inference_stats"]
        assert (stats["cache_hit"]["count"], stats["cache_miss"]["count"]) == (3, 2)
        assert stats["success"]["count"] == 5


async def test_a_handle_answers_again_once_its_model_is_loaded_again(registry: ServerProcess, tmp_path: Path) -> None:
    def repository(action: str) -> None:
        url = f"{sidecar.http_url}/v2/repository/models/settings/add/{action}"
        with urllib.request.urlopen(urllib.request.Request(url, data=b"{}", method="POST"), timeout=60) as answer:
            assert answer.status == 200

    with SidecarProcess(tmp_path, registry.url, REF, grpc="false") as sidecar, Raw(sidecar) as raw:
        handle = raw.hello().open(REF)
        raw.send(infer(handle, ONE, 2))
        assert raw.until(Kind.RESULT)[3] == 2
        repository("unload")
        raw.send(infer(handle, ONE, 3))
        assert error_of(raw) == NotFoundError.code
        repository("load")
        raw.send(infer(handle, ONE, 4))
        assert raw.until(Kind.RESULT)[3] == 4


def test_an_id_that_is_in_use_is_refused(registry: ServerProcess, tmp_path: Path) -> None:
    x = {"x": np.ones((1, 1024), np.float32)}
    with (
        SidecarProcess(
            tmp_path, registry.url, SLOW, http="false", grpc="false", batching="on", max_delay_ms=300
        ) as sidecar,
        Raw(sidecar) as raw,
    ):
        handle = raw.hello().open(SLOW)
        raw.send(infer(handle, x, 5) + infer(handle, x, 5))
        assert error_of(raw) == "invalid"
        assert raw.until(Kind.RESULT)[3] == 5
        raw.send(infer(handle, x, 5))
        assert raw.until(Kind.RESULT)[3] == 5

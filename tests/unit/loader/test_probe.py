"""Trials in a process of its own: what passes, what is refused and why, and that no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import anyio
import numpy as np
import pytest

from modelbox.errors import (
    ConfigError,
    ModelBoxError,
    ModelInvalid,
    NotEnoughMemory,
    ProbeFailed,
    UnsupportedOperator,
    WarmupFailed,
)
from modelbox.events import ReloadSucceeded
from modelbox.loader import probe as probe_module
from modelbox.loader.cache import Cache
from modelbox.loader.loader import Loader
from modelbox.loader.onnx_scan import scan
from modelbox.loader.probe import ProbeMode, Trial, allowance_bytes, probe
from modelbox.loader.report import Identity
from modelbox.loader.session import SessionOptions
from modelbox.loader.settings import LoadOptions
from modelbox.refs import ModelRef
from modelbox.signing import SignaturePolicy, parse_modes
from tests.faults.registry import fault
from tests.feed_source import FeedSource
from tests.heavy_models import hungry_to_open, slow_to_open
from tests.loading import SETTINGS, Log
from tests.onnx_models import add_constant, endless_loop, unknown_operator
from tests.signing import make_keys, signed
from tests.trials import children, trial_under_way

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory hold on Linux only")

ROOT = Path(__file__).parents[3]
LONG_S = 100.0


def trial_of(path: Path, content: bytes, *, scanned: bool = True) -> Trial:
    """What the loader would try of a file, with all the time in the world."""
    path.write_bytes(content)
    if scanned:
        scan(path)
    max_bytes, max_is_room = allowance_bytes(len(content), SessionOptions())
    assert not max_is_room, "these tests need 1 GiB of memory"
    return Trial(
        path=path,
        golden=None,
        options=SessionOptions(),
        open_timeout_s=LONG_S,
        warm_up_timeout_s=LONG_S,
        max_bytes=max_bytes,
    )


async def refused(trial: Trial) -> ModelBoxError:
    with pytest.raises(ModelBoxError) as caught:
        await probe(trial)
    assert not children()
    return caught.value


async def test_what_opens_and_runs_passes(tmp_path: Path) -> None:
    await probe(trial_of(tmp_path / "model.onnx", add_constant(1)))
    assert not children()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


async def test_golden_inputs_are_tried_too(tmp_path: Path) -> None:
    trial = trial_of(tmp_path / "model.onnx", add_constant(1))
    golden = tmp_path / "golden"
    golden.mkdir()
    np.savez(golden / "inputs.npz", x=np.ones((1, 4), np.float32))
    np.savez(golden / "outputs.npz", y=np.full((1, 4), 5, np.float32))
    error = await refused(replace(trial, golden=golden))
    assert isinstance(error, WarmupFailed)
    assert "not the golden one" in str(error)


@pytest.mark.parametrize(
    ("content", "error", "stage"),
    [
        (b"not a model", ModelInvalid, "open"),
        (unknown_operator(), UnsupportedOperator, "open"),
    ],
    ids=["garbage", "operator"],
)
async def test_errors_are_those_of_opening_it_here(
    content: bytes, error: type[ModelBoxError], stage: str, tmp_path: Path
) -> None:
    told = await refused(trial_of(tmp_path / "model.onnx", content, scanned=False))
    assert type(told) is error
    assert told.fields["stage"] == stage


@fault(52)
async def test_memory_that_no_look_at_the_file_tells_is_refused(tmp_path: Path) -> None:
    trial = trial_of(tmp_path / "model.onnx", hungry_to_open(768))
    error = await refused(trial)
    assert isinstance(error, ProbeFailed)
    assert (error.fields["reason"], error.fields.get("doubtful")) == ("MEMORY", None)
    assert "probe_max_bytes" in str(error)
    # It needs that memory and nothing else.
    await probe(replace(trial, max_bytes=4 << 30))


async def test_want_of_memory_here_is_not_held_against_the_model(tmp_path: Path) -> None:
    trial = trial_of(tmp_path / "model.onnx", hungry_to_open(512))
    error = await refused(replace(trial, max_bytes=256 << 20, max_is_room=True))
    assert isinstance(error, NotEnoughMemory)
    assert "256 MiB" in str(error)


@fault(52)
async def test_an_opening_without_end_is_ended(tmp_path: Path) -> None:
    trial = trial_of(tmp_path / "model.onnx", slow_to_open())
    error = await refused(replace(trial, open_timeout_s=1.0, warm_up_timeout_s=0.5))
    assert isinstance(error, ProbeFailed)
    assert (error.fields["reason"], error.fields["doubtful"]) == ("TIME", True)
    assert "probe_timeout_s" in str(error)


async def test_a_run_without_end_is_ended(tmp_path: Path) -> None:
    trial = trial_of(tmp_path / "model.onnx", endless_loop())
    error = await refused(replace(trial, warm_up_timeout_s=0.2))
    assert isinstance(error, WarmupFailed)
    assert "within 0.2 s" in str(error)


@fault(52)
@pytest.mark.parametrize(
    ("number", "doubtful"),
    [(signal.SIGSEGV, None), (signal.SIGABRT, None), (signal.SIGKILL, True)],
    ids=["SIGSEGV", "SIGABRT", "SIGKILL"],
)
async def test_a_crash_is_told(number: signal.Signals, doubtful: bool | None, tmp_path: Path) -> None:
    trial = trial_of(tmp_path / "model.onnx", slow_to_open())

    async def strike() -> None:
        os.kill(await trial_under_way(), number)

    async with anyio.create_task_group() as tg:
        tg.start_soon(strike)
        error = await refused(trial)
    assert isinstance(error, ProbeFailed)
    assert (error.fields["reason"], error.fields["signal"]) == ("SIGNAL", number.name)
    assert error.fields.get("doubtful") is doubtful


async def test_a_cancelled_trial_leaves_no_process(tmp_path: Path) -> None:
    trial = trial_of(tmp_path / "model.onnx", slow_to_open())
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe, trial)
        await trial_under_way()
        tg.cancel_scope.cancel()
    assert not children()


async def test_trials_that_wait_for_their_turn_are_cancelled_too(tmp_path: Path) -> None:
    trial = trial_of(tmp_path / "model.onnx", slow_to_open())
    limiter = anyio.CapacityLimiter(1)
    async with anyio.create_task_group() as tg:
        for _ in range(3):
            tg.start_soon(lambda: probe(trial, limiter=limiter))
        await trial_under_way()
        await anyio.wait_all_tasks_blocked()
        assert len(children()) == 1
        tg.cancel_scope.cancel()
    assert not children()
    with anyio.fail_after(LONG_S):
        # Its thread gives the place back after all else.
        while limiter.borrowed_tokens:
            await anyio.sleep(0.01)


async def test_a_trial_inherits_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELBOX_TOKEN", "mbx_canary")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    trial = trial_of(tmp_path / "model.onnx", slow_to_open())
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe, trial)
        pid = await trial_under_way()
        told = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
        tg.cancel_scope.cancel()
    assert b"MALLOC_ARENA_MAX" in told
    assert b"canary" not in told


@pytest.mark.parametrize("is_signed", [True, False], ids=["signed", "not signed"])
async def test_only_what_nobody_signed_may_be_tried(is_signed: bool, tmp_path: Path) -> None:
    keys = make_keys(tmp_path)
    source = FeedSource()
    version = source.add({"model.onnx": add_constant(1)})
    source.versions[str(version.ref)] = version = signed(version, keys.signing) if is_signed else version
    source.move("prod", version)
    cache = Cache(tmp_path / "cache")
    await anyio.to_thread.run_sync(cache.open)
    log = Log()
    loader = Loader(
        source,
        cache,
        server_key="memory",
        identity=Identity(instance_id="i-1", host="here", pid=1),
        settings=replace(SETTINGS, probe=ProbeMode.UNSIGNED),
        observe=log,
        policy=SignaturePolicy(parse_modes("warn"), keys.trust()),
    )
    async with loader:
        await loader.load(ModelRef.parse("ns/model@prod"), LoadOptions())
    (loaded,) = [event for event in log.events if isinstance(event, ReloadSucceeded)]
    assert ("probe" in loaded.stage_s) is not is_signed


_PARENT = """
import sys
import anyio
from pathlib import Path
from modelbox.loader.probe import Trial, probe
from modelbox.loader.session import SessionOptions

trial = Trial(path=Path(sys.argv[1]), golden=None, options=SessionOptions(), open_timeout_s=100.0,
              warm_up_timeout_s=100.0, max_bytes=None)
anyio.run(probe, trial)
"""


async def test_a_trial_ends_with_the_process_that_began_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(slow_to_open())
    parent = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", textwrap.dedent(_PARENT), str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        with anyio.fail_after(LONG_S):
            while not (found := children(parent.pid)):
                assert parent.poll() is None
                await anyio.sleep(0.01)
    finally:
        parent.kill()
        parent.wait()
    with anyio.fail_after(LONG_S / 2):
        while _alive(found[0]):
            await anyio.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # Whoever inherits it may be slow to take note.
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


async def test_a_program_without_an_interpreter_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(ConfigError, match="probe = off"):
        await probe(trial_of(tmp_path / "model.onnx", add_constant(1)))


async def test_a_process_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "_MODULE", "modelbox.loader.not_there")
    error = await refused(trial_of(tmp_path / "model.onnx", add_constant(1)))
    assert isinstance(error, ProbeFailed)
    assert (error.fields["reason"], error.fields["doubtful"]) == ("ENDED", True)
    assert "not_there" in str(error)


def test_the_allowance_follows_the_files_and_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = SessionOptions(), SessionOptions(intra_op_threads=2)
    monkeypatch.setattr(probe_module, "room_bytes", lambda: 1 << 40)
    assert allowance_bytes(0, one) == ((512 + 16) << 20, False)
    assert allowance_bytes(1 << 30, two) == ((4 << 30) + ((512 + 32) << 20), False)
    assert allowance_bytes(1 << 30, one, 1 << 20) == (1 << 20, False)
    assert allowance_bytes(1, SessionOptions(providers=("CUDAExecutionProvider",))) == (None, False)
    monkeypatch.setattr(probe_module, "room_bytes", lambda: 100 << 20)
    assert allowance_bytes(1, one) == (100 << 20, True)
    monkeypatch.setattr(probe_module, "room_bytes", lambda: None)
    assert allowance_bytes(1, one, 1 << 20) == (1 << 20, False)

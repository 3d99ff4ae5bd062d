"""The trial of a model in a process of its own, before the process that serves opens it.

A model can crash the runtime that opens it, take memory without end, or never be done; whatever else is served in the
same process is lost with it. So where the settings ask for it, a candidate is first opened and warmed up by a child
(`probe_process`), which has limits of memory and time. This module owns that child: it starts it, waits for it, ends
it, and makes one error out of how it ended.

It is a wall against accidents and bombs, not a sandbox: the child is the same user, with the same files and network.

Invariants: a child never outlives its trial. It is killed at the deadline, on cancellation, and (by itself) when the
process that started it is gone. It gets none of that process's environment but what a library needs to be found.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

import anyio
from anyio import CapacityLimiter, to_thread

from modelbox.errors import ConfigError, LoadError, ModelBoxError, NotEnoughMemory, ProbeFailed, error_from_dict
from modelbox.loader.memory import room_bytes
from modelbox.loader.session import SessionOptions

__all__ = ("ProbeMode", "Trial", "allowance_bytes", "probe")

_log = logging.getLogger(__name__)

_MODULE = "modelbox.loader.probe_process"
_FACTOR = 4
"""Opening takes the weights, packed copies of them, and what is read ahead; a first run its outputs."""
_BASE_BYTES = 512 << 20
_THREAD_BYTES = 16 << 20
_REAP_S = 10.0
"""How long to wait for a child that was killed; a process in the middle of a read from a dead disk takes longer."""
_MAX_SAID_BYTES = 8 << 20
"""What a child may write; its own limit of file sizes."""

_ENVIRONMENT = frozenset(
    [
        "CUDA_VISIBLE_DEVICES",
        "LANG",
        "LC_ALL",
        "LD_LIBRARY_PATH",
        "NVIDIA_VISIBLE_DEVICES",
        "PATH",
        "SYSTEMROOT",
        "TEMP",
        "TMPDIR",
    ]
)
"""All that a child gets of the environment: what libraries and devices are found by, and no secret is in."""

_OUT_OF_MEMORY = re.compile(rb"bad_alloc|MemoryError|Failed to allocate memory|Cannot allocate memory")
_PASSING = frozenset(["SIGHUP", "SIGINT", "SIGKILL", "SIGTERM"])
"""Signals that somebody sent: the system for want of memory, or a person. They say nothing of the model."""


class ProbeMode(StrEnum):
    """Which versions get a trial before they are opened."""

    OFF = "off"
    UNSIGNED = "unsigned"
    ON = "on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What to try, and within which limits.

    Attributes:
        path: The model.
        golden: Directory of golden inputs, if they are to be reproduced.
        options: How it is to be opened.
        open_timeout_s: How long the child may take to start and to open it.
        warm_up_timeout_s: How long the first runs may take after that.
        max_bytes: Memory that it may take beyond that of the runtime itself; None for no limit.
        max_is_room: Whether that is all the memory there is, rather than all that such a model should need.
    """

    path: Path
    golden: Path | None
    options: SessionOptions
    open_timeout_s: float
    warm_up_timeout_s: float
    max_bytes: int | None
    max_is_room: bool = False

    @property
    def timeout_s(self) -> float:
        """How long all of it may take."""
        return self.open_timeout_s + self.warm_up_timeout_s


def allowance_bytes(size_bytes: int, options: SessionOptions, max_bytes: int = 0) -> tuple[int | None, bool]:
    """How much memory a trial may take, and whether that is all there is now, rather than all that it should need.

    Args:
        size_bytes: Of the version's files.
        options: How they are opened.
        max_bytes: What the settings say; 0 for an allowance by the size of the files.
    """
    if options.providers != ("CPUExecutionProvider",) and not max_bytes:
        # Drivers reserve addresses by the terabyte.
        return None, False
    wanted = max_bytes or _FACTOR * size_bytes + _BASE_BYTES + options.intra_op_threads * _THREAD_BYTES
    room = room_bytes()
    return (wanted, False) if room is None or wanted <= room else (room, True)


async def probe(trial: Trial, *, limiter: CapacityLimiter | None = None) -> None:
    """Has a child open and warm up a model.

    Args:
        trial: What, and how.
        limiter: Bounds how many of them there are at once.

    Raises:
        ProbeFailed: The child crashed, or took too much memory or time. ``fields["reason"]`` is ``MEMORY``, ``TIME``,
            ``SIGNAL`` or ``ENDED``; ``fields["doubtful"]`` says that it may have been the machine's fault.
        NotEnoughMemory: It took all the memory that is left here.
        LoadError: As opening and warming up here would have raised it.

    Cancellation: the child is killed and waited for.
    """
    child = _Child(trial)
    try:
        await to_thread.run_sync(child.run, limiter=limiter, abandon_on_cancel=True)
    except BaseException:
        child.kill()
        with anyio.move_on_after(_REAP_S, shield=True):
            await to_thread.run_sync(child.ended.wait, _REAP_S)
        raise


class _Child:
    """One child process; `run` belongs to a worker thread, `kill` to anybody."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._begun = False
        self.ended = threading.Event()

    def kill(self) -> None:
        """Ends the child, or keeps it from being started."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()
            if not self._begun:
                # Its turn never came.
                self.ended.set()

    def run(self) -> None:
        """Starts the child, waits for it, and judges; blocks."""
        with self._lock:
            if self._killed:
                return
            self._begun = True
        try:
            # Files instead of pipes: the child's limit of file sizes bounds what it says, and nobody has to read along.
            with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as log:
                self._run(answer, log)
        finally:
            self.ended.set()

    def _run(self, answer: IO[bytes], log: IO[bytes]) -> None:
        trial = self._trial
        with self._lock:
            if self._killed:
                return
            self._process = process = subprocess.Popen(
                [_interpreter(), "-P", "-B", "-m", _MODULE],
                stdin=subprocess.PIPE,
                stdout=answer,
                stderr=log,
                cwd=trial.path.anchor or None,
                env=_environment(os.environ),
                start_new_session=True,
            )
        late = False
        try:
            # Its standard input stays open for as long as this process lives: that is how it learns of our end.
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(_request(trial))
                process.stdin.flush()
            try:
                process.wait(trial.timeout_s)
            except subprocess.TimeoutExpired:
                late = True
        finally:
            process.kill()
            process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # type: ignore[union-attr]
        if not self._killed:
            _judge(trial, process.returncode, _read(answer), _read(log), late=late)


def _judge(trial: Trial, code: int, answer: bytes, log: bytes, *, late: bool) -> None:
    """Raises what the end of a child says of the model; returns if all is well."""
    said = _parsed(answer)
    name = _signal_name(-code) if code < 0 else ""
    if late or name in ("SIGALRM", "SIGXCPU"):
        raise ProbeFailed(
            f"the model was not open and warm within {trial.timeout_s:g} s, in a process of its own: raise "
            "probe_timeout_s if it rightly takes longer to open",
            reason="TIME",
            doubtful=True,
        )
    # The runtime goes on without what it could not allocate, and would ask for it again here.
    if _OUT_OF_MEMORY.search(log) or said.get("code") == NotEnoughMemory.code:
        raise _memory_error(trial)
    if len(log) >= _MAX_SAID_BYTES:
        raise ProbeFailed(
            f"the runtime gave more than {_MAX_SAID_BYTES >> 20} MiB of warnings about the model, in a process of its "
            "own, too many to judge it by: export it anew",
            reason="ENDED",
        )
    if code == 0 and said.get("code") == "":
        return
    if code == 0 and said:
        error = error_from_dict(said)
        raise error if isinstance(error, LoadError | ConfigError) else LoadError(str(error))
    if name in _PASSING:
        raise ProbeFailed(
            f"the process in which the model was tried was ended by {name}, from outside; most likely the system was "
            "short of memory",
            reason="SIGNAL",
            signal=name,
            doubtful=True,
        )
    if name:
        raise ProbeFailed(
            f"the model crashed the process in which it was tried ({name}), and would have crashed this one: export it "
            "anew, or report it to onnxruntime",
            reason="SIGNAL",
            signal=name,
        )
    raise ProbeFailed(
        f"the process in which the model was to be tried ended with code {code}: {_last_line(log)}",
        reason="ENDED",
        doubtful=True,
    )


def _memory_error(trial: Trial) -> ModelBoxError:
    mebibytes = (trial.max_bytes or 0) >> 20
    if trial.max_is_room or trial.max_bytes is None:
        left = f"the {mebibytes} MiB that are left" if trial.max_bytes else "what is left"
        return NotEnoughMemory(
            f"opening the model and a first run take more than {left} here: raise the memory limit, or serve fewer "
            "models in one process",
            room=trial.max_bytes,
        )
    return ProbeFailed(
        f"opening the model and a first run take more than {mebibytes} MiB, more than files of its size should need: "
        "set probe_max_bytes if it rightly does",
        reason="MEMORY",
        max_bytes=trial.max_bytes,
    )


def _interpreter() -> str:
    if not sys.executable:
        raise ConfigError("this program does not know its Python interpreter, so it can try no model: set probe = off")
    return sys.executable


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """The child's environment."""
    kept = {name: value for name, value in env.items() if name in _ENVIRONMENT}
    return kept | {
        # As this process was told to look for modules, by whatever means.
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(os.path.abspath(path) for path in sys.path if path)),
        # Each arena reserves addresses that it does not use.
        "MALLOC_ARENA_MAX": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }


def _request(trial: Trial) -> bytes:
    options = trial.options
    request = {
        "path": os.fspath(trial.path),
        "golden": os.fspath(trial.golden) if trial.golden is not None else None,
        "providers": options.providers,
        "intra_op_threads": options.intra_op_threads,
        "prepack": options.prepack,
        "timeout_s": trial.timeout_s,
        "warm_up_timeout_s": trial.warm_up_timeout_s,
        "max_bytes": trial.max_bytes,
        "max_said_bytes": _MAX_SAID_BYTES,
    }
    return json.dumps(request).encode() + b"\n"


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(_MAX_SAID_BYTES)


def _parsed(answer: bytes) -> dict[str, object]:
    try:
        said = json.loads(answer)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_line(log: bytes) -> str:
    lines = log.decode(errors="replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it said nothing")

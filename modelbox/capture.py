"""Code and environment of a program, as metadata for a run: what somebody needs to repeat it.

Owns what is looked at and what is left out: what is secret is replaced by ``***`` before anything leaves this module
(see `modelbox.redaction`). Uses no network, runs nothing but ``git`` (without hooks, pagers or configured helpers), and
gives up on each part rather than on the caller: what cannot be found out in time is missing, and nothing is raised.

`capture_environment` gives JSON of at most 48 KiB for metadata; the text of uncommitted changes is for an artifact and
comes from `capture_diff`.
"""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import logging
import os
import platform
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelbox.objects import JsonValue
from modelbox.redaction import redact, redact_command

__all__ = ("MAX_DIFF_BYTES", "Diff", "capture_diff", "capture_environment", "notebook_path")

_LOG = logging.getLogger(__name__)

MAX_DIFF_BYTES = 256 << 10
_MAX_COMMAND_CHARS = 8192
_MAX_PACKAGES_BYTES = 32 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """Uncommitted changes of tracked files, as ``git diff HEAD`` writes them.

    Attributes:
        text: At most 256 KiB, cut after a line.
        truncated: There is more.
    """

    text: str
    truncated: bool


def capture_environment(
    *, directory: Path | None = None, command: Sequence[str] | None = None, timeout_s: float = 5.0
) -> dict[str, JsonValue]:
    """What runs here, as metadata.

    Keys, each left out where it is not known: ``git`` (``commit``, ``branch``, ``dirty``, ``root``, ``remote``),
    ``notebook``, ``packages`` (versions by name), ``python``, ``platform``, ``command``, ``directory``, ``hostname``,
    ``user``, ``cpus``.

    Args:
        directory: Whose repository is looked at; by default that of the main script, else the working directory.
        command: The command line; by default this process's.
        timeout_s: For all of it. Blocks for 20 to 100 ms as a rule: call it in a thread beside an event loop.
    """
    deadline = time.monotonic() + timeout_s
    directory = directory or _code_directory()
    captured: dict[str, JsonValue] = {
        "git": _git_state(directory, deadline),
        "notebook": notebook_path(),
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "platform": _platform(),
        "command": redact_command(_command() if command is None else command)[:_MAX_COMMAND_CHARS],
        "directory": _or_empty(os.getcwd),
        "hostname": _or_empty(socket.gethostname),
        "user": _or_empty(getpass.getuser),
        "cpus": os.cpu_count(),
        "packages": _packages(deadline),
    }
    return {key: value for key, value in captured.items() if value}


def capture_diff(*, directory: Path | None = None, timeout_s: float = 5.0) -> Diff | None:
    """Uncommitted changes of the code; None where there are none, no repository, or no answer in time.

    Untracked files are not in it. What looks like a key or a password is replaced.

    Args:
        directory: As for `capture_environment`.
        timeout_s: Blocks no longer than this.
    """
    deadline = time.monotonic() + timeout_s
    raw = _git(
        directory or _code_directory(),
        ["diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color", "--submodule=short"],
        deadline,
        max_bytes=MAX_DIFF_BYTES + 1,
    )
    if not raw:
        return None
    truncated = len(raw) > MAX_DIFF_BYTES
    if truncated:
        raw = raw[: raw.rfind(b"\n", 0, MAX_DIFF_BYTES) + 1 or MAX_DIFF_BYTES]
    return Diff(text=redact(raw.decode("utf-8", "replace"), names=False), truncated=truncated)


def notebook_path() -> str:
    """The notebook that this program runs in, as its front end told; empty where there is none or it did not say."""
    main = sys.modules.get("__main__")
    if "ipykernel" not in sys.modules:
        return ""
    told = getattr(main, "__vsc_ipynb_file__", "") or os.environ.get("JPY_SESSION_NAME", "")
    return str(told) if str(told).endswith(".ipynb") else ""


# -- parts -----------------------------------------------------------------------------------------------------------


def _code_directory() -> Path:
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    for candidate in (notebook_path(), script):
        if candidate and Path(candidate).is_file():
            return Path(candidate).resolve().parent
    return Path(_or_empty(os.getcwd) or "/")


def _command() -> list[str]:
    return list(getattr(sys, "orig_argv", sys.argv))


def _platform() -> dict[str, JsonValue]:
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
    }


def _packages(deadline: float) -> dict[str, JsonValue]:
    """Versions of what is installed, as ``pip freeze`` lists them; by name, cut where they become too many."""
    found: dict[str, str] = {}
    try:
        for distribution in importlib.metadata.distributions():
            name = distribution.metadata["Name"]
            if name:
                # The first on the path is the one that is imported.
                found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
            if time.monotonic() > deadline:
                break
    except Exception:
        # Broken metadata of one package, of which there are many kinds, must not cost a run.
        _LOG.warning("could not list all installed packages", exc_info=True)
    kept: dict[str, JsonValue] = {}
    size = 2
    for name in sorted(found):
        size += len(json.dumps(name)) + len(json.dumps(found[name])) + 4
        if size > _MAX_PACKAGES_BYTES:
            break
        kept[name] = found[name]
    return kept


def _git_state(directory: Path, deadline: float) -> dict[str, JsonValue]:
    status = _git(directory, ["status", "--porcelain=v2", "--branch", "--untracked-files=no"], deadline)
    if status is None:
        return {}
    state: dict[str, JsonValue] = {"dirty": False}
    for line in status.decode("utf-8", "replace").splitlines():
        if line.startswith("# branch.oid ") and not line.endswith("(initial)"):
            state["commit"] = line.rpartition(" ")[2]
        elif line.startswith("# branch.head ") and not line.endswith("(detached)"):
            state["branch"] = line.partition("# branch.head ")[2]
        elif not line.startswith("#"):
            state["dirty"] = True
    for key, arguments in (
        ("root", ["rev-parse", "--show-toplevel"]),
        ("remote", ["config", "--get", "remote.origin.url"]),
    ):
        answer = _git(directory, arguments, deadline)
        if answer and answer.strip():
            state[key] = _without_user(answer.decode("utf-8", "replace").strip())
    return state


def _without_user(address: str) -> str:
    """An address without whoever logs in to it: tokens stand there, too."""
    return re.sub(r"://[^/@\s]+@", "://", address)


def _git(directory: Path, arguments: list[str], deadline: float, *, max_bytes: int = 1 << 20) -> bytes | None:
    """What git says, at most ``max_bytes`` of it; None where it fails or takes too long."""
    left = deadline - time.monotonic()
    if left <= 0:
        return None
    # Neither a monitor nor a pager nor a lock: looking must change nothing and start nothing.
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=true", "--no-pager", *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except (OSError, ValueError):
        return None
    killer = threading.Timer(left, process.kill)
    killer.daemon = True
    killer.start()
    with process:
        assert process.stdout is not None
        output = process.stdout.read(max_bytes)
        cut = len(output) == max_bytes
        if cut:
            process.kill()
        status = process.wait()
        killer.cancel()
    return output if cut or status == 0 else None


def _or_empty(read: Callable[[], str]) -> str:
    try:
        return read()
    except (OSError, KeyError, ImportError):
        return ""

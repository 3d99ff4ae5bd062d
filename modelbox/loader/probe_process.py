"""The child of `probe`: opens one model, warms it up, says how that went, and ends.

``python -m modelbox.loader.probe_process`` reads one line of JSON from its standard input and writes one to its
standard output: an error as `ModelBoxError.to_dict` gives it, with an empty code where there is none. Its standard
input stays open for as long as the parent lives.

Invariants: it takes limits upon itself before it looks at the model, keeps nothing, writes no file, and ends when the
parent does.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from modelbox.errors import ModelBoxError, NotEnoughMemory, PredictError
from modelbox.loader.inputs import Feed
from modelbox.loader.session import Session, SessionOptions, open_native, runtime, runtime_options

__all__ = ("main",)

_WARNINGS = 2
_GRACE_S = 5.0
_NICENESS = 5
"""It gets out of the way of those who serve."""

_NO_MEMORY = re.compile(r"bad_alloc|Failed to allocate memory|Cannot allocate memory")


class _Tried(Session):
    """A session whose runs tell a want of memory from inputs that do not fit."""

    __slots__ = ()

    def run_within(self, feed: Feed, run_options: Any) -> list[Any]:
        """As `Session.run_within`.

        Raises:
            NotEnoughMemory: The run asked for more than there is.
        """
        try:
            return super().run_within(feed, run_options)
        except PredictError as exc:
            if _NO_MEMORY.search(str(exc)):
                raise NotEnoughMemory(str(exc), stage="warm") from exc
            raise


def main() -> None:
    """Runs the child; does not return."""
    request = json.loads(sys.stdin.buffer.readline())
    _limit_files(request)
    # What libraries print goes to the log, where it cannot be taken for the answer.
    answer = os.dup(1)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, name="modelbox-parent", daemon=True).start()
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, request["timeout_s"] + _GRACE_S)
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    said: dict[str, object] = {"code": ""}
    try:
        _try(request)
    except ModelBoxError as exc:
        said = exc.to_dict()
    except MemoryError:
        said = {"code": NotEnoughMemory.code}
    os.write(answer, json.dumps(said).encode())
    # No destructors: all of it goes with the process.
    os._exit(0)


def _try(request: dict[str, Any]) -> None:
    options = SessionOptions(
        providers=tuple(request["providers"]),
        intra_op_threads=request["intra_op_threads"],
        prepack=request["prepack"],
    )
    runtime()
    _limit_use(request, options)
    native = runtime_options(options)
    # While it opens a model, the runtime tells of memory that it did not get in a warning only.
    native.log_severity_level = _WARNINGS
    session = _Tried(open_native(Path(request["path"]), native, options), options)
    session.warm(request["warm_up_timeout_s"], Path(request["golden"]) if request["golden"] else None)


def _limit_files(request: dict[str, Any]) -> None:
    """What this process may write from now on."""
    with contextlib.suppress(ImportError):
        import resource

        _lower(resource.RLIMIT_CORE, 0)
        _lower(resource.RLIMIT_FSIZE, request["max_said_bytes"])


def _limit_use(request: dict[str, Any], options: SessionOptions) -> None:
    """What time and memory it may take from now on; what is loaded already does not count."""
    try:
        import resource
    except ImportError:
        return
    # One thread more for the interpreter's.
    _lower(resource.RLIMIT_CPU, math.ceil((request["timeout_s"] + _GRACE_S) * (options.intra_op_threads + 1)))
    if request["max_bytes"] is not None and (used := _address_space()):
        _lower(resource.RLIMIT_AS, used + request["max_bytes"])


def _lower(which: int, value: int) -> None:
    import resource

    soft, hard = resource.getrlimit(which)
    for held in (soft, hard):
        if held != resource.RLIM_INFINITY:
            value = min(value, held)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(which, (value, value))


def _address_space() -> int:
    """Bytes of addresses in use; 0 where nobody says."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()

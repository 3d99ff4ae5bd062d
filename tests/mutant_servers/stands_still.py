"""A server that stops (SIGSTOP) in the middle of a change, with the lock of the feed's head, when a file says so."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from modelbox.runtime.__main__ import main
from modelbox.runtime.store.shared_writer import SharedWriter

_WHEN = "TEST_STOP_FILE"
_run_group = SharedWriter._run_group


def _standing_still(writer: SharedWriter, conn: Any, group: Any, savepoints: bool) -> Any:
    outcomes = _run_group(writer, conn, group, savepoints)
    path = Path(os.environ[_WHEN])
    if writer._first is not None and path.exists():
        path.unlink()
        os.kill(os.getpid(), signal.SIGSTOP)
    return outcomes


SharedWriter._run_group = _standing_still  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())

"""A server that stops (SIGSTOP) in the middle of a change, with the lock of the feed's head, when a file says so."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from sqlalchemy import Connection

from modelbox.runtime.__main__ import main
from modelbox.runtime.store import writing
from modelbox.runtime.store.history import Place, next_rev

_WHEN = "TEST_STOP_FILE"


def _standing_still(conn: Connection) -> Place:
    place = next_rev(conn)
    path = Path(os.environ[_WHEN])
    if path.exists():
        path.unlink()
        os.kill(os.getpid(), signal.SIGSTOP)
    return place


writing.next_rev = _standing_still  # type: ignore[attr-defined]

if __name__ == "__main__":
    sys.exit(main())

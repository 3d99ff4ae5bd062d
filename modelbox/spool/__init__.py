"""What programs record about their runs, on disk until the server has it.

`modelbox.run.LiveRun` writes, `modelbox.spool.host` delivers; here is what the command line needs.
"""

from __future__ import annotations

from modelbox.spool.delivery import PushedSpool, SpoolStatus, push_spools, spool_status
from modelbox.spool.push import Refusal
from modelbox.spool.reader import SpoolAbout

__all__ = ("PushedSpool", "Refusal", "SpoolAbout", "SpoolStatus", "push_spools", "spool_status")

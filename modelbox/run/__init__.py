"""A run while it happens: what training code logs to.

Every call encodes what it was given, writes it to the spool of this process on disk, and returns. The spool delivers it
in the background, in order, when the server is there. Refuses to raise for a server that is away, and by default for a
bad value, too: a training run is never stopped by logging. A value that cannot be kept is left out, counted
(`LiveRun.skipped`) and said once for each key; ``strict=True`` raises instead.

Invariants: what a call recorded outlives the process, however it ends. One spool never speaks of a run that it has not
announced, so the spools of a program and of its forked children can be delivered in any order.
"""

from modelbox.run.live import LiveRun

__all__ = ("LiveRun",)

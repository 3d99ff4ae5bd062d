"""One opened version and the calls that use it.

Owns the count of leases and the one moment at which the last of them ends after retirement. Refuses leases once
retired, so a caller that loses the race reads ``Runner.active`` again. Closing the session is up to whoever retired the
generation: `Generation.retire` only says when.

Invariants: ``on_drained`` runs exactly once, after the last lease; nothing is leased after it. Every method may be
called from any thread.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from modelbox._fork import reset_in_child
from modelbox.loader.inputs import InputChecker
from modelbox.loader.stats import CallStats
from modelbox.objects import ModelVersion
from modelbox.signature import Signature

if TYPE_CHECKING:
    from modelbox.loader.session import Session

__all__ = ("Generation",)


class Generation:
    """A version that answers, or has answered, with the session that runs it.

    Args:
        number: Grows with every swap of a runner.
        version: What the session was opened from.
        session: Opened and warmed; the generation does not close it.
        batching: Calls of one loop tick may run as one batch; only for models whose rows are independent.

        stats: Where to count its calls; an aggregate of its own otherwise.

    Attributes:
        average_ns: Running average of one run of one call, which decides where the next one runs.
        row_ns: The same for one row of a batch.
    """

    __slots__ = (
        "__weakref__",
        "_drained",
        "_leases",
        "_lock",
        "_retired",
        "average_ns",
        "batching",
        "check",
        "checker",
        "number",
        "output_names",
        "row_ns",
        "run",
        "run_here",
        "run_within",
        "session",
        "stats",
        "version",
    )

    def __init__(
        self,
        *,
        number: int,
        version: ModelVersion,
        session: Session,
        batching: bool = False,
        stats: CallStats | None = None,
    ) -> None:
        self.number = number
        self.version = version
        self.session = session
        self.checker = InputChecker(session.signature)
        self.batching = batching and self.checker.has_rows
        self.output_names = tuple(spec.name for spec in session.signature.outputs)
        self.check = self.checker.check
        self.run = session.run
        self.run_here = session.run_here
        self.run_within = session.run_within
        self.stats = stats if stats is not None else CallStats()
        # Not known without a warm-up; then the first run happens in the pool.
        self.average_ns: float = math.inf if session.run_s is None else session.run_s * 1e9
        self.row_ns = self.average_ns
        self._lock = threading.Lock()
        self._leases = 0
        self._retired = False
        self._drained: Callable[[], None] | None = None
        reset_in_child(self)

    @property
    def signature(self) -> Signature:
        """Inputs and outputs, as the session reports them."""
        return self.session.signature

    @property
    def leases(self) -> int:
        """How many calls and leases use the session now."""
        return self._leases

    @property
    def retired(self) -> bool:
        """Whether it takes no more leases."""
        return self._retired

    def acquire(self) -> bool:
        """Takes a lease; False once retired, then `Runner.active` is another one."""
        with self._lock:
            if self._retired:
                return False
            self._leases += 1
            return True

    def share(self) -> None:
        """Takes one more lease on the strength of one that the caller holds, retired or not."""
        with self._lock:
            self._leases += 1

    def release(self) -> None:
        """Ends a lease."""
        with self._lock:
            # Never below zero: a lease taken before a fork may end in the child, where the count began anew.
            self._leases = max(self._leases - 1, 0)
            if self._leases or self._drained is None:
                return
            drained, self._drained = self._drained, None
        drained()

    def retire(self, on_drained: Callable[[], None]) -> None:
        """Takes no more leases, and calls ``on_drained`` once those that exist have ended.

        Args:
            on_drained: Runs in the thread that ends the last lease, often an application's event loop, or here when
                there is none. It must return at once and not raise: hand the work on.

        Raises:
            RuntimeError: It was retired before.
        """
        with self._lock:
            if self._retired:
                raise RuntimeError(f"generation {self.number} was retired before")
            self._retired = True
            if self._leases:
                self._drained = on_drained
                return
        on_drained()

    def force(self) -> None:
        """Stops all runs in flight and refuses new ones; their callers get `RunTerminated` and end their leases."""
        self.session.terminate()

    def slow_down(self, average_ns: float) -> None:
        """One run took far longer than the average says, and the next one may."""
        self.average_ns = max(self.average_ns, average_ns)
        self.row_ns = max(self.row_ns, average_ns)

    def observe(self, took_ns: int, ceiling_ns: float) -> None:
        """Takes one run into the average; a single stall counts as no more than ``ceiling_ns``."""
        # Not locked: a lost update of an average is harmless.
        average = self.average_ns
        if average == math.inf:
            self.average_ns = took_ns
            return
        self.average_ns = average + ((took_ns if took_ns < ceiling_ns else ceiling_ns) - average) * 0.0625

    def observe_rows(self, took_ns: int, rows: int, ceiling_ns: float) -> None:
        """Takes one batch into the average per row."""
        row_ns = self.row_ns
        took = took_ns if took_ns < ceiling_ns else ceiling_ns
        self.row_ns = took / rows if row_ns == math.inf else row_ns + (took / rows - row_ns) * 0.125

    def _after_fork_in_child(self) -> None:
        # Those who held leases are threads and tasks of the parent.
        self._lock = threading.Lock()
        self._leases = 0

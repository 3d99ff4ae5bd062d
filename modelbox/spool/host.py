"""The spool of this process: one for each server, shared by all runs, delivered in the background.

Owns the spool's engine (a thread with a loop, its own, so that delivery outlives the client that began a run), the task
that delivers, the one that syncs to disk, and what is said at exit. Also delivers what programs that died here left
behind for the same server, first of all at the start.

Invariants: appending never waits for any of this. A forked child has a spool of its own and lets go of its parent's.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from modelbox._fork import reset_in_child
from modelbox._loops import current_loop
from modelbox.config import ClientConfig
from modelbox.engine import Engine
from modelbox.errors import ConfigError, ModelBoxError
from modelbox.spool.log import SpoolLog
from modelbox.spool.operations import operation_data
from modelbox.spool.push import Destination, Refusal, deliver_all, end_open_runs, ended_unsaid
from modelbox.spool.reader import Spool, adopt, find_spools, sweep

if TYPE_CHECKING:
    from modelbox.spool.remote import Remote

__all__ = ("SpoolHost", "open_host")

_log = logging.getLogger(__name__)

_GATHER_S = 0.2
"""How long to wait for more after the first record: fewer, larger calls."""
_SYNC_S = 1.0
_ORPHANS_S = 30.0
_BACKOFF_BASE_S = 0.5
_BACKOFF_CAP_S = 15.0
_WAITED_FOR_CAP_S = 0.5
"""The longest pause while somebody waits in `SpoolHost.wait`."""
_EXIT_GRACE_S = 2.0
_MAX_REFUSALS = 10_000


class SpoolHost:
    """The spool of this process for one server.

    Args:
        config: The client's settings.
        destination: Where to deliver instead of the server that ``config`` names; for tests.

    Raises:
        ConfigError: No directory can be written.

    Attributes:
        log: Where to append.
        refusals: What the server refused for good, oldest first; the first 10,000.
    """

    def __init__(self, config: ClientConfig, *, destination: Destination | None = None) -> None:
        self.config = config
        self.log = _open_log(config)
        self.refusals: list[Refusal] = []
        self._spool = Spool(self.log.directory, self.log)
        self._destination = destination
        self._delivered = threading.Condition()
        self._waiting = 0
        self._error: Exception | None = None
        self._ring: Callable[[], None] | None = None
        self._kicked = False
        self._orphans_at = 0.0
        self._closed = False
        self._engine = Engine(name="modelbox-spool")
        self._engine.start_soon(self._deliver, name="spool delivery")
        self._engine.start_soon(self._sync, name="spool sync")
        # After the engine's, so that it runs before it.
        self._at_exit: Callable[[], None] = self.close
        atexit.register(self._at_exit)
        reset_in_child(self)

    @property
    def directory(self) -> Path:
        """Of the spool."""
        return self.log.directory

    @property
    def error(self) -> Exception | None:
        """Why the last attempt to deliver failed; None if it went through."""
        return self._error

    @property
    def left(self) -> int:
        """About how many records are not delivered; exactly 0 if none is."""
        return max(0, self.log.last_seq - self._spool.delivered_seq)

    def wait(self, seq: int, timeout_s: float | None, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Waits until everything up to ``seq`` is delivered; blocks the thread.

        Args:
            seq: Number of a record.
            timeout_s: None for as long as it takes.
            give_up: Looked at twice a second.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._delivered:
            self._waiting += 1
            try:
                self.kick()
                while self._spool.delivered_seq < seq:
                    left = 0.5 if deadline is None else min(0.5, deadline - time.monotonic())
                    if left <= 0 or give_up() or self._closed:
                        return False
                    self._delivered.wait(left)
                return True
            finally:
                self._waiting -= 1

    def kick(self) -> None:
        """Has delivery begin now; from any thread."""
        self._kicked = True
        if self._ring is not None:
            self._ring()

    def close(self) -> None:
        """Delivers for a short while, ends the background work, and says what is left. Idempotent."""
        if self._closed:
            return
        atexit.unregister(self._at_exit)
        for run_id in self._spool.open_runs():
            # Begun without a block, and never ended.
            if self.log.append_operation(operation_data(ended_unsaid(run_id, datetime.now(UTC)))):
                self.log.mark_ended(run_id)
        # Where the last attempt failed, the program has waited in its run already.
        self.wait(self.log.last_seq, _EXIT_GRACE_S if self._error is None else 0.0)
        self._closed = True
        _hosts_drop(self)
        with contextlib.suppress(RuntimeError):  # no more threads at interpreter exit
            self._engine.close()
        left = self.left
        self._spool.close()
        self.log.close(remove=not left)
        if left:
            error = self._error
            _say(
                f"modelbox: what {left} log calls recorded has not reached {self.config.url}"
                f"{f' ({error})' if error else ''}; it is kept in {self.directory}.\n"
                "modelbox: deliver it when the server is there: modelbox spool push"
            )

    # --- on the engine's loop ------------------------------------------------------------------------------------

    async def _deliver(self) -> None:
        remote: Remote | None = None
        if self._destination is None:
            from modelbox.spool.remote import Remote

            remote = Remote(self.config)
        to: Destination = self._destination or remote  # type: ignore[assignment]  # one of them is there
        loop = current_loop()
        bell = anyio.Event()

        def rung() -> None:
            bell.set()

        def ring() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(rung)

        self.log.notify = self._ring = ring
        failures = 0
        try:
            while True:
                bell = anyio.Event()
                try:
                    if time.monotonic() >= self._orphans_at:
                        await self._deliver_orphans(to)
                    seen = self.log.last_seq
                    await deliver_all(self._spool, to, refused=self._refused, advanced=self._advanced)
                    self._error, failures = None, 0
                except (ModelBoxError, OSError) as exc:
                    self._failed(exc)
                    failures += 1
                    with anyio.move_on_after(self._pause_s(failures)):
                        await bell.wait()
                    # A caller that waits rings once; the next attempts keep to their pauses.
                    continue
                self.log.listen()
                if self.log.last_seq == seen:
                    with anyio.move_on_after(_ORPHANS_S):
                        await bell.wait()
                if not self._kicked and not self._waiting:
                    with anyio.move_on_after(_GATHER_S):
                        bell = anyio.Event()
                        await bell.wait()
                self._kicked = False
        finally:
            self._ring = None
            if remote is not None:
                with anyio.move_on_after(1, shield=True):
                    await remote.aclose()

    def _pause_s(self, failures: int) -> float:
        from modelbox._transport.faults import backoff_s

        cap = _WAITED_FOR_CAP_S if self._waiting else _BACKOFF_CAP_S
        return backoff_s(failures, base_s=_BACKOFF_BASE_S, cap_s=cap)

    async def _deliver_orphans(self, to: Destination) -> None:
        """Delivers what dead programs left here for the same server.

        Raises:
            ModelBoxError: The server is away.
        """
        self._orphans_at = time.monotonic() + _ORPHANS_S
        here = socket.gethostname()
        await anyio.to_thread.run_sync(sweep, self.directory.parent)
        for about in await anyio.to_thread.run_sync(find_spools, self.directory.parent):
            if about.spool == self.log.id or about.url != self.config.url or about.host != here:
                continue
            with adopt(about.directory) as spool:
                if spool is None:
                    continue
                other: Remote | None = None
                if self._destination is None and about.actor != self.config.actor:
                    from modelbox.spool.remote import Remote

                    other = Remote(replace(self.config, actor=about.actor))
                try:
                    await deliver_all(spool, other or to, refused=self._refused)
                    await end_open_runs(spool, other or to)
                    await anyio.to_thread.run_sync(spool.remove)
                except (ModelBoxError, OSError) as exc:
                    if isinstance(exc, ModelBoxError) and exc.retryable:
                        # The server is away: what came first goes first when it is back.
                        self._orphans_at = 0.0
                        raise
                    _log.warning("the spool %s of an earlier program cannot be delivered: %s", spool.directory, exc)
                finally:
                    if other is not None:
                        with anyio.move_on_after(1, shield=True):
                            await other.aclose()

    async def _sync(self) -> None:
        while True:
            await anyio.sleep(_SYNC_S)
            await anyio.to_thread.run_sync(self.log.sync)

    def _advanced(self, count: int) -> None:
        self._error = None
        with self._delivered:
            self._delivered.notify_all()

    def _refused(self, refusal: Refusal) -> None:
        if len(self.refusals) < _MAX_REFUSALS:
            self.refusals.append(refusal)

    def _failed(self, error: Exception) -> None:
        if self._error is None:
            _log.warning("records of runs cannot be delivered now, and are kept in %s: %s", self.directory, error)
        self._error = error

    # --- fork ----------------------------------------------------------------------------------------------------

    def _after_fork_in_child(self) -> None:
        self._closed = True
        self._ring = None
        self.log.notify = lambda: None
        self.log.abandon()
        atexit.unregister(self._at_exit)
        _inherited.append(self)


# --- one for each server -----------------------------------------------------------------------------------------

_lock = threading.Lock()
_hosts: dict[tuple[Path, str, str], SpoolHost] = {}
# A forked child must not collect the connections that it inherited.
_inherited: list[SpoolHost] = []


def open_host(config: ClientConfig) -> SpoolHost:
    """The spool of this process for the server that ``config`` names; made with the first call.

    Raises:
        ConfigError: No directory can be written.
    """
    key = (config.spool_dir, config.url, config.actor)
    with _lock:
        host = _hosts.get(key)
        if host is None:
            host = _hosts[key] = SpoolHost(config)
        return host


def _hosts_drop(host: SpoolHost) -> None:
    with _lock:
        for key, other in list(_hosts.items()):
            if other is host:
                del _hosts[key]


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _hosts.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _open_log(config: ClientConfig) -> SpoolLog:
    fallback = Path(tempfile.gettempdir()) / f"modelbox-spool-{os.getuid()}"
    first: OSError | None = None
    for parent in (config.spool_dir, fallback):
        try:
            log = SpoolLog(parent, url=config.url, actor=config.actor, max_bytes=config.spool_max_bytes)
        except OSError as exc:
            first = first or exc
            continue
        if first is not None:
            _say(
                f"modelbox: {config.spool_dir} cannot be written ({first.strerror}): runs are recorded in {parent}"
                " meanwhile; see MODELBOX_SPOOL_DIR"
            )
        return log
    raise ConfigError(
        f"neither {config.spool_dir} nor {fallback} can be written ({first.strerror if first else ''}): set"
        " MODELBOX_SPOOL_DIR to a directory that can",
        path=str(config.spool_dir),
    )


def _say(text: str) -> None:
    """Tells whoever looks at the terminal; a program whose log nobody reads must not lose records in silence."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)

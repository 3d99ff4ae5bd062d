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
from collections.abc import Awaitable, Callable, Mapping
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
from modelbox.errors import ConfigError, ModelBoxError, UsageError
from modelbox.spool.log import SpoolLog
from modelbox.spool.operations import operation_data
from modelbox.spool.push import Delivery, Destination, Refusal, ended_unsaid
from modelbox.spool.reader import Spool, SpoolAbout, adopt, find_spools, read_about, sweep

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
_LIMIT_TRIES = 5
_EXIT_GRACE_S = 2.0
_MAX_REFUSALS = 10_000


class SpoolHost:
    """The spool of this process for one server.

    Args:
        config: The client's settings.
        destination: Where to deliver instead of the server that ``config`` names; for tests.
        read_last_steps: Asked for the last step of each metric of an object instead of that server; for the same.

    Raises:
        ConfigError: No directory can be written.

    Attributes:
        log: Where to append.
        refusals: What the server refused for good, oldest first; the first 10,000.
    """

    def __init__(
        self,
        config: ClientConfig,
        *,
        destination: Destination | None = None,
        read_last_steps: Callable[[str], Awaitable[Mapping[str, int]]] | None = None,
    ) -> None:
        self.config = config
        self.log = _open_log(config)
        self.refusals: list[Refusal] = []
        self._spool = Spool(self.log.directory, self.log)
        self._destination = destination
        self._read_last_steps = read_last_steps
        self._delivered = threading.Condition()
        self._waiting = 0
        self._errors: dict[str, Exception] = {}
        self._ring: Callable[[], None] | None = None
        self._bells: dict[str, anyio.Event] = {}
        self._kicked = False
        self._orphans_at = 0.0
        self._left_by_others: set[Path] = set()
        """Spools of dead programs of which only artifacts are left."""
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
        return next(iter(self._errors.values()), None)

    @property
    def left(self) -> int:
        """About how many records are not delivered; exactly 0 if none is."""
        return self._spool.left

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

    def last_steps(self, object_id: str, timeout_s: float) -> Mapping[str, int] | None:
        """The last step of each metric of an object, what was recorded here so far included; blocks the thread.

        Args:
            object_id: Such as a run's.
            timeout_s: How long to wait for the server.

        Returns:
            None if it did not answer in time.
        """
        deadline = time.monotonic() + timeout_s
        # What a dead program left comes before what is recorded here.
        if not self.wait(self.log.last_seq, timeout_s) or self._read_last_steps is None:
            return None
        try:
            return self._engine.call_sync(
                self._read_last_steps, object_id, timeout=max(0.1, deadline - time.monotonic())
            )
        except (ModelBoxError, UsageError):
            return None

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
        for run_id, ending in self._spool.open_runs().items():
            # Begun without a block, and never ended; or its end found no room.
            data = ending or operation_data(ended_unsaid(run_id, datetime.now(UTC)))
            if self.log.append_operation(data):
                self.log.mark_ended(run_id)
        # Where the last attempt failed, the program has waited in its run already.
        self.wait(self.log.last_seq, _EXIT_GRACE_S if self.error is None else 0.0)
        self._closed = True
        _hosts_drop(self)
        with contextlib.suppress(RuntimeError):  # no more threads at interpreter exit
            self._engine.close()
        error = self.error
        self._spool.close()
        # Other threads may be logging still: what came in since is kept.
        if not self.log.close(delivered_seq=self._spool.delivered_seq):
            _say(
                f"modelbox: what {self.left} log calls recorded has not reached {self.config.url}"
                f"{f' ({error})' if error else ''}; it is kept in {self.directory}.\n"
                "modelbox: deliver it when the server is there: modelbox spool push"
            )

    # --- on the engine's loop ------------------------------------------------------------------------------------

    async def _deliver(self) -> None:
        remote: Remote | None = None
        if self._destination is None:
            from modelbox.spool.remote import Remote

            remote = Remote(self.config)
            self._read_last_steps = remote.last_steps
        to: Destination = self._destination or remote  # type: ignore[assignment]  # one of them is there
        loop = current_loop()

        def rung() -> None:
            for bell in self._bells.values():
                bell.set()

        def ring() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(rung)

        self._bells = {"records": anyio.Event(), "uploads": anyio.Event()}
        self.log.notify = self._ring = ring
        own = Delivery(
            self._spool,
            to,
            refused=self._refused,
            advanced=lambda _: self._advanced("records"),
            uploaded=lambda: self._advanced("uploads"),
            limit_tries=_LIMIT_TRIES,
            aside_bytes=self.config.spool_max_bytes,
        )
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._try_for_ever, "uploads", self._upload, own, to)
                await self._try_for_ever("records", self._deliver_records, own, to)
        finally:
            self._ring = None
            if remote is not None:
                with anyio.move_on_after(1, shield=True):
                    await remote.aclose()

    async def _try_for_ever(
        self, name: str, attempt: Callable[[Delivery, Destination], Awaitable[None]], own: Delivery, to: Destination
    ) -> None:
        """Makes one attempt after another, with pauses behind those that failed."""
        failures = 0
        while True:
            bell = self._bells[name] = anyio.Event()
            try:
                await attempt(own, to)
                self._errors.pop(name, None)
                failures = 0
            except Exception as exc:
                self._failed(name, exc)
                failures += 1
                with anyio.move_on_after(self._pause_s(failures)):
                    await bell.wait()
                # A caller that waits rings once; the next attempts keep to their pauses.

    async def _deliver_records(self, own: Delivery, to: Destination) -> None:
        """Delivers what there is, and waits for more."""
        if time.monotonic() >= self._orphans_at:
            await self._deliver_orphans(to)
        seen = self.log.last_seq
        await own.records()
        self._errors.pop("records", None)
        self.log.listen()
        if self.log.last_seq == seen:
            with anyio.move_on_after(_ORPHANS_S):
                await self._bells["records"].wait()
        if not self._kicked and not self._waiting:
            with anyio.move_on_after(_GATHER_S):
                bell = self._bells["records"] = anyio.Event()
                await bell.wait()
        self._kicked = False

    async def _upload(self, own: Delivery, to: Destination) -> None:
        """Uploads what there is, those of dead programs last, and waits for more."""
        await own.uploads()
        self._errors.pop("uploads", None)
        while self._left_by_others and self._spool.next_upload() is None:
            directory = self._left_by_others.pop()
            with adopt(directory) as spool:
                if spool is not None:
                    await self._deliver_orphan(read_about(directory), spool, to, uploads=True)
        if self._spool.next_upload() is None:
            with anyio.move_on_after(_ORPHANS_S):
                await self._bells["uploads"].wait()

    def _pause_s(self, failures: int) -> float:
        from modelbox._transport.faults import backoff_s

        cap = _WAITED_FOR_CAP_S if self._waiting else _BACKOFF_CAP_S
        return backoff_s(failures, base_s=_BACKOFF_BASE_S, cap_s=cap)

    async def _deliver_orphans(self, to: Destination) -> None:
        """Delivers what dead programs left here for the same server, but for their artifacts: these are left for later.

        Raises:
            ModelBoxError: The server is away.
        """
        self._orphans_at = time.monotonic() + _ORPHANS_S
        here = socket.gethostname()
        await anyio.to_thread.run_sync(sweep, self.directory.parent)
        for about in await anyio.to_thread.run_sync(find_spools, self.directory.parent):
            if about.spool == self.log.id or about.url != self.config.url or about.host != here:
                continue
            if about.refused:
                # It would be refused again, and again: whoever knows of a reason why not has it pushed.
                continue
            with adopt(about.directory) as spool:
                if spool is None:
                    continue
                try:
                    await self._deliver_orphan(about, spool, to, uploads=False)
                except ModelBoxError:
                    # The server is away: what came first goes first when it is back.
                    self._orphans_at = 0.0
                    raise

    async def _deliver_orphan(self, about: SpoolAbout, spool: Spool, to: Destination, *, uploads: bool) -> None:
        """Delivers one; passes over what will not work next time either.

        Raises:
            ModelBoxError: The server is away.
        """
        other: Remote | None = None
        if self._destination is None and about.actor != self.config.actor:
            from modelbox.spool.remote import Remote

            other = Remote(replace(self.config, actor=about.actor))
        delivery = Delivery(spool, other or to, refused=self._refused, aside_bytes=self.config.spool_max_bytes)
        try:
            await delivery.records()
            await delivery.end_open_runs()
            if uploads:
                await delivery.uploads()
            if spool.uploads:
                self._left_by_others.add(about.directory)
                self._bells["uploads"].set()
            else:
                await anyio.to_thread.run_sync(spool.remove)
        except Exception as exc:
            if isinstance(exc, ModelBoxError) and exc.retryable:
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

    def _advanced(self, name: str) -> None:
        self._errors.pop(name, None)
        if name == "records" and self._spool.uploads:
            self._bells["uploads"].set()
        with self._delivered:
            self._delivered.notify_all()

    def _refused(self, refusal: Refusal) -> None:
        if len(self.refusals) < _MAX_REFUSALS:
            self.refusals.append(refusal)

    def _failed(self, name: str, error: Exception) -> None:
        if name not in self._errors:
            unexpected = None if isinstance(error, ModelBoxError | OSError) else error
            _log.warning(
                "%s of runs cannot be delivered now, and are kept in %s: %s",
                name,
                self.directory,
                error,
                exc_info=unexpected,
            )
        self._errors[name] = error

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

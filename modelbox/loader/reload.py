"""One reference in service: what it should serve, what it serves, and every way from one to the other.

The machine, for the newest target of the reference::

    offered ─▶ fetched ─▶ verified (─▶ probed) ─▶ opened ─▶ warmed ─▶ active      (`prepare`, then `_activate`)
                  │           │           │          │         │
                  └───────────┴───────────┴──────────┴─────────┴──▶ refused: the old version goes on
    the one before: active ─▶ draining ─▶ freed                            (`_drain`)

Invariants:

* `Runner.active` changes by one assignment, only to a session that has answered its warm-up.
* Targets are levels, not events: only the newest counts, and one that arrives during a reload ends that reload.
* With `swap_interval_s`, a target waits until the version that serves has served for so long, and what overtakes it
  meanwhile takes its place. A way back does not wait: each version on it was once left for a newer one, so that there
  are never more ways back than there were waits.
* A version that can never work is quarantined for the move of the alias that brought it: it is tried again only when
  the alias moves. What may pass (network, disk, memory) is tried again with growing pauses.
* Nothing here raises into callers of `predict`.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import Any, Protocol

import anyio
from anyio import CancelScope, to_thread

from modelbox._loops import current_loop
from modelbox.errors import (
    IntegrityError,
    InvalidError,
    LoadError,
    ModelBoxError,
    NotEnoughMemory,
    NotFoundError,
    ProbeFailed,
    SignatureRefused,
)
from modelbox.events import (
    DownloadProgress,
    ModelEvent,
    Observer,
    ReloadFailed,
    ReloadStarted,
    ReloadSucceeded,
    SessionFreed,
    StaleChanged,
    StateConfirmed,
)
from modelbox.feed import ResumeToken
from modelbox.loader.cache import Cache, Quarantined, RefState
from modelbox.loader.generation import Generation
from modelbox.loader.ledger import CallLabels, Ledger
from modelbox.loader.prepare import Prepared, Preparer
from modelbox.loader.report import Identity, Reporter
from modelbox.loader.runner import Runner
from modelbox.loader.settings import LoaderSettings, LoadOptions
from modelbox.objects import Alias, InstanceReport, InstanceState, ModelVersion, Resolved
from modelbox.refs import ModelRef

__all__ = ("ModelState", "Reloader", "as_resolved")

_log = logging.getLogger(__name__)
_numbers = itertools.count(1)
_ATTEMPTS = 3
"""At what is permanent, unless it was the network's or the machine's fault."""
_MAX_QUARANTINED = 20
_MAX_SERVED = 200


class ModelState(StrEnum):
    """What a loaded reference is doing."""

    LOADING = "loading"
    ACTIVE = "active"
    RELOADING = "reloading"
    CLOSED = "closed"


class Spawner(Protocol):
    """Starts a task that the loader owns."""

    def __call__(self, fn: Callable[..., Any], *args: object, name: str) -> None:
        """As `TaskGroup.start_soon`."""


class Reloader:
    """Keeps one reference in service.

    Concurrency: belongs to the engine's loop; `state`, `stale` and `runner` may be read, and `observers` appended to
        and removed from, anywhere.
    """

    def __init__(
        self,
        ref: ModelRef,
        options: LoadOptions,
        *,
        runner: Runner,
        preparer: Preparer,
        cache: Cache,
        cache_key: str,
        reporter: Reporter,
        identity: Identity,
        settings: LoaderSettings,
        spawn: Spawner,
        observe: Observer,
        ledger: Ledger,
    ) -> None:
        self.ref = ref
        self.options = options
        self.runner = runner
        self.state = ModelState.LOADING
        self.stale = False
        self._preparer = preparer
        self._cache = cache
        self._cache_key = cache_key
        self._reporter = reporter
        self._identity = identity
        self._settings = settings
        self._spawn = spawn
        self._ledger = ledger
        self.observers: list[Observer] = [observe]
        self._target: Resolved | None = None
        self._current: Resolved | None = None
        self._previous: ModelVersion | None = None
        self._active: Prepared | None = None
        self._quarantine: dict[str, Quarantined] = {}
        # In the order of their last swaps.
        self._served: dict[str, None] = {}
        # The way back: what served before what serves, and what before that; the last one serves.
        self._trail: list[str] = []
        self._swapped_at: float | None = None
        self._wake = anyio.Event()
        self._attempt_scope: CancelScope | None = None
        self._saving = anyio.Lock()

    # -- what the informer tells

    def offer(self, resolved: Resolved, *, reset: bool = False) -> None:
        """Takes what the reference points to now; older news of the same history is ignored.

        Args:
            resolved: The server's answer.
            reset: The server's history was replaced (a restored backup): numbers of before do not count any more.
        """
        self.confirmed()
        held = self._target or self._current
        if held is not None and not reset and _history(held) == _history(resolved):
            if _order(resolved) < _order(held):
                _log.warning("%s: ignored an older state (revision %d)", self.ref, resolved.mod_rev)
                return
        elif held is not None and _history(held) != _history(resolved):
            _log.warning("%s: the server's history is another one than before", self.ref)
        if self._current is not None and _same_content(resolved, self._current):
            self._supersede(None)
            self._adopt_edits(resolved)
            return
        if self._target is not None and _same_content(resolved, self._target):
            if resolved.version.bundle != self._target.version.bundle:
                self._supersede(resolved)  # a signature may be what it waited for
            self._target = resolved
            return
        self._supersede(resolved)

    def missing(self, error: NotFoundError) -> None:
        """The server does not know the reference (any more): what serves goes on."""
        if self._current is not None:
            _log.warning("%s is gone from the server, version %d goes on: %s", self.ref, self.version_number, error)

    def refused(self, error: ModelBoxError) -> None:
        """What the server says of the reference cannot be true: what serves goes on."""
        if self._current is None:
            return
        _log.warning("%s: version %d goes on: %s", self.ref, self.version_number, error)
        self._emit(
            ReloadFailed(
                ref=str(self.ref),
                version=0,
                digest="",
                stage="resolve",
                code=error.code,
                reason=str(error),
                quarantined=False,
            )
        )
        self._reporter.update(self._report(InstanceState.FAILED, stage="resolve", reason=str(error)))

    def confirmed(self) -> None:
        """The server has just said what the reference points to, whether that is new or not."""
        self._emit(StateConfirmed(ref=str(self.ref)))

    def set_stale(self, stale: bool) -> None:
        """Notes whether the server can be reached."""
        if stale != self.stale:
            self.stale = stale
            self._emit(StaleChanged(ref=str(self.ref), stale=stale))
            self._report_active()
            if not stale and self._target is not None:
                # What failed may have failed for want of the server, and its pause may be long by now.
                self._wake.set()

    # -- life

    async def start(self, resolved: Resolved, last_good: RefState | None) -> None:
        """Brings the first version into service.

        With a last-known-good version at hand, a target that cannot be served is refused as in a later reload, and the
        last good one serves.

        Raises:
            ModelBoxError: Nothing could be brought into service.
        """
        if last_good is not None:
            self._quarantine = {q.digest: q for q in last_good.quarantine}
            self._previous = last_good.previous
            self._trail = [v.digest for v in (last_good.previous, last_good.version) if v is not None]
        fallback = as_resolved(self.ref, last_good) if last_good is not None else None
        same = fallback is not None and _same_content(fallback, resolved)
        if fallback is not None and not same and self._is_quarantined(resolved):
            await self._bring(fallback)
            return
        try:
            await self._bring(resolved)
            if fallback is not None and not same:
                self._previous = fallback.version
        except ModelBoxError as exc:
            # The same content as it was signed before is as good as it was then.
            if fallback is None or (same and not isinstance(exc, SignatureRefused)):
                raise
            final = _is_permanent(exc) and not _is_doubtful(exc)
            self._refused(resolved, exc, quarantine=final)
            await self._bring(fallback)
            if not final and not same:
                self._supersede(resolved)

    def adopt(self, other: Reloader) -> None:
        """Takes over what a reloader of the parent process served before the fork."""
        self._current, self._previous, self._active = other._current, other._previous, other._active
        self._quarantine = dict(other._quarantine)
        self._served = dict(other._served)
        self._trail, self._swapped_at = list(other._trail), other._swapped_at
        self.state = ModelState.ACTIVE

    async def run(self) -> None:
        """Reloads whenever the target changes.

        Cancellation: what serves goes on serving; a reload under way leaves verified files in the cache only.
        """
        failures = doubts = 0
        doubted: Resolved | None = None
        pause_s: float | None = None
        while True:
            if self._target is None or pause_s is not None:
                with anyio.move_on_after(pause_s):
                    await self._wake.wait()
            if self._wake.is_set():
                failures, pause_s = 0, None
                self._wake = anyio.Event()
            target = self._target
            if target is None:
                continue
            if self._is_quarantined(target):
                self._target = None
                continue
            if (wait_s := self._wait_s(target)) > 0:
                pause_s = wait_s
                continue
            self.state = ModelState.RELOADING
            error = await self._try(target)
            self.state = ModelState.ACTIVE
            if error is None:
                failures, pause_s = 0, None
                continue
            failures += 1
            if doubted is None or not _same_move(doubted, target):
                doubted, doubts = target, 0
            doubts += _is_doubtful(error)
            again = not _is_permanent(error) or (_is_doubtful(error) and doubts < _ATTEMPTS)
            self._refused(target, error, quarantine=not again)
            if again:
                bound = min(self._settings.retry_max_s, self._settings.retry_base_s * 2.0 ** min(failures - 1, 16))
                pause_s = bound * random.uniform(0.5, 1.0)
            elif self._target is target:
                self._target, pause_s = None, None

    async def close(self) -> None:
        """Takes the reference out of service; running calls may end."""
        if self.state is ModelState.CLOSED:
            return
        self.state = ModelState.CLOSED
        self._supersede(None)
        old = self.runner.close()
        prepared, self._active = self._active, None
        self._reporter.update(self._report(InstanceState.GONE))
        if old is not None and prepared is not None:
            await self._drain(old, prepared)

    # -- one reload

    async def _try(self, target: Resolved) -> ModelBoxError | None:
        """One attempt; None when it is in service or was overtaken by a newer target."""
        with CancelScope() as self._attempt_scope:
            try:
                await self._bring(target)
            except ModelBoxError as exc:
                return exc
            except Exception as exc:
                _log.exception("%s: version %d failed in an unexpected way", self.ref, target.version.version)
                return ModelBoxError(f"an error in ModelBox itself, see the log: {type(exc).__name__}: {exc}")
            finally:
                self._attempt_scope = None
            if self._target is target:
                self._target = None
        return None

    async def _bring(self, target: Resolved) -> None:
        version = target.version
        self._emit(ReloadStarted(ref=str(self.ref), version=version.version, digest=version.digest))

        def progress(done: int, total: int) -> None:
            self._emit(DownloadProgress(ref=str(self.ref), version=version.version, done_bytes=done, total_bytes=total))

        prepared = await self._preparer.prepare(
            self.ref,
            version,
            self.options,
            before=self.runner.active,
            on_progress=progress,
            served=version.digest in self._served,
            rollback=self._is_rollback(target),
        )
        try:
            # Threads are not interrupted: what was overtaken while one of them worked must not come into service.
            await anyio.lowlevel.checkpoint()
        except BaseException:
            with CancelScope(shield=True):
                await self._preparer.discard(prepared.session, prepared.lease)
            raise
        self._activate(target, prepared)

    def _activate(self, target: Resolved, prepared: Prepared) -> None:
        version = target.version
        labels = CallLabels(model=self.ref.path, version=version.version, alias=self.ref.alias or "")
        generation = Generation(
            number=next(_numbers),
            version=version,
            session=prepared.session,
            batching=prepared.batching,
            stats=self._ledger.stats(labels),
        )
        old, old_prepared = self.runner.swap(generation), self._active
        self._active = prepared
        if self._current is not None and not _same_content(self._current, target):
            self._previous = self._current.version
        previous_number = self._current.version.version if self._current is not None else None
        self._current = target
        self._quarantine.pop(version.digest, None)
        self._served.pop(version.digest, None)
        self._served[version.digest] = None
        while len(self._served) > _MAX_SERVED:
            del self._served[next(iter(self._served))]
        self._follow_trail(version.digest)
        self.state = ModelState.ACTIVE
        self._emit(
            ReloadSucceeded(
                ref=str(self.ref),
                version=version.version,
                digest=version.digest,
                previous_version=previous_number,
                stage_s=prepared.stage_s,
                slowdown=prepared.slowdown.factor if prepared.slowdown is not None else None,
            )
        )
        if previous_number is not None:
            self._swapped_at = time.monotonic()
        if self._is_slower(prepared):
            _log.warning("%s: version %d is slow: %s", self.ref, version.version, prepared.slowdown)
        self._report_active()
        if old is not None and old_prepared is not None:
            self._spawn(self._drain, old, old_prepared, name=f"modelbox drain {self.ref}")
        self._spawn(self._settle, target, prepared, name=f"modelbox settle {self.ref}")

    async def _settle(self, target: Resolved, prepared: Prepared) -> None:
        """What follows a swap and must not delay it."""
        await self._save()
        if prepared.optimised:
            return
        await anyio.sleep(self._settings.optimise_after_s)
        if self._active is prepared:
            await self._preparer.keep_optimised(prepared, self.options)

    async def _drain(self, old: Generation, prepared: Prepared) -> None:
        drained = anyio.Event()
        loop = current_loop()

        def on_drained() -> None:
            loop.call_soon_threadsafe(drained.set)

        old.retire(on_drained)
        forced = False
        with anyio.move_on_after(self._settings.drain_timeout_s) as scope:
            await drained.wait()
        if scope.cancelled_caught:
            forced = True
            _log.warning("%s: version %d still has calls, terminating them", self.ref, old.version.version)
            old.force()
            with anyio.move_on_after(self._settings.drain_timeout_s):
                await drained.wait()
        with CancelScope(shield=True):
            await self._preparer.discard(prepared.session, prepared.lease)
        self._emit(
            SessionFreed(ref=str(self.ref), version=old.version.version, digest=old.version.digest, forced=forced)
        )

    # -- bookkeeping

    @property
    def version_number(self) -> int:
        """The serving version's number, 0 for none."""
        return self._current.version.version if self._current is not None else 0

    def _supersede(self, target: Resolved | None) -> None:
        self._target = target
        self._wake.set()
        if self._attempt_scope is not None:
            self._attempt_scope.cancel()

    def _adopt_edits(self, resolved: Resolved) -> None:
        """The same version under newer labels, metadata or alias state."""
        if self._current is not None and resolved.version.bundle != self._current.version.bundle:
            self._spawn(self._adopt_signature, resolved, name=f"modelbox signature {self.ref}")
            return
        self._take_edits(resolved)

    async def _adopt_signature(self, resolved: Resolved) -> None:
        """The same version with another signature, which is remembered only if it counts: a start needs it again."""
        held = self._current
        try:
            await self._preparer.check(self.ref, resolved.version)
        except ModelBoxError as exc:
            if held is None:
                return
            _log.warning("%s: version %d keeps the signature it had: %s", self.ref, self.version_number, exc)
            resolved = replace(resolved, version=replace(resolved.version, bundle=held.version.bundle))
        if self._current is held and held is not None and _same_content(resolved, held):
            self._take_edits(resolved)

    def _take_edits(self, resolved: Resolved) -> None:
        self._current = resolved
        active = self.runner.active
        if active is not None:
            active.version = resolved.version
        self._report_active()
        self._spawn(self._save, name=f"modelbox save {self.ref}")

    def _is_quarantined(self, target: Resolved) -> bool:
        held = self._quarantine.get(target.version.digest)
        return held is not None and held.mod_rev == target.mod_rev

    def _refused(self, target: Resolved, error: ModelBoxError, *, quarantine: bool | None = None) -> None:
        version, stage = target.version, str(error.fields.get("stage", ""))
        if quarantine is None:
            quarantine = _is_permanent(error)
        if quarantine:
            self._quarantine[version.digest] = Quarantined(
                digest=version.digest, mod_rev=target.mod_rev, reason=f"{error.code}: {error}"
            )
            while len(self._quarantine) > _MAX_QUARANTINED:
                del self._quarantine[next(iter(self._quarantine))]
            self._spawn(self._save, name=f"modelbox save {self.ref}")
        _log.warning("%s: version %d refused in stage %r: %s", self.ref, version.version, stage, error)
        self._emit(
            ReloadFailed(
                ref=str(self.ref),
                version=version.version,
                digest=version.digest,
                stage=stage,
                code=error.code,
                reason=str(error),
                quarantined=quarantine,
            )
        )
        self._reporter.update(self._report(InstanceState.FAILED, target, stage=stage, reason=str(error)))

    def _wait_s(self, target: Resolved) -> float:
        """How much longer the version that serves is to go on before ``target`` may replace it."""
        interval_s = self._settings.swap_interval_s
        if not interval_s or self._swapped_at is None or self._is_rollback(target):
            return 0.0
        return self._swapped_at + interval_s - time.monotonic()

    def _is_rollback(self, target: Resolved) -> bool:
        return target.version.digest in self._trail[:-1]

    def _follow_trail(self, digest: str) -> None:
        if digest in self._trail:
            del self._trail[self._trail.index(digest) + 1 :]
        else:
            self._trail.append(digest)
            del self._trail[:-_MAX_SERVED]

    def _is_slower(self, prepared: Prepared) -> bool:
        return prepared.slowdown is not None and prepared.slowdown.factor > self._settings.slower_factor

    def _report_active(self) -> None:
        active = self._active
        if self._current is not None:
            said = {}
            if active is not None and self._is_slower(active):
                said = {"stage": "warm", "reason": str(active.slowdown)}
            self._reporter.update(self._report(InstanceState.ACTIVE, self._current, **said))

    def _report(
        self, state: InstanceState, target: Resolved | None = None, *, stage: str = "", reason: str = ""
    ) -> InstanceReport:
        current = self._current
        return InstanceReport(
            instance_id=self._identity.instance_id,
            host=self._identity.host,
            pid=self._identity.pid,
            ref=str(self.ref),
            state=state,
            version=current.version.version if current else 0,
            digest=current.version.digest if current else "",
            target_version=target.version.version if target else 0,
            target_digest=target.version.digest if target else "",
            mod_rev=target.mod_rev if target else 0,
            stage=stage,
            reason=reason[:1000],
            stale=self.stale,
        )

    async def _save(self) -> None:
        """Remembers on disk what to serve when the server cannot be reached; serving does not depend on it."""
        async with self._saving:
            current = self._current
            if current is None:
                return
            state = RefState(
                ref=str(self.ref),
                server_id=current.server_id,
                version=current.version,
                alias_mod_rev=current.mod_rev,
                token=current.token,
                previous=self._previous,
                quarantine=tuple(self._quarantine.values()),
            )
            try:
                await to_thread.run_sync(self._cache.save_ref, self._cache_key, state)
            except ModelBoxError as exc:
                _log.warning("%s: could not remember the last good version: %s", self.ref, exc)

    def _emit(self, event: ModelEvent) -> None:
        for observer in tuple(self.observers):
            observer(event)


def _is_permanent(error: ModelBoxError) -> bool:
    # A signature may still come, a key be trusted that was not, and memory be given back.
    passing = isinstance(error, SignatureRefused | NotEnoughMemory)
    return isinstance(error, LoadError | InvalidError | IntegrityError) and not passing


def _is_doubtful(error: ModelBoxError) -> bool:
    return isinstance(error, IntegrityError) or (isinstance(error, ProbeFailed) and bool(error.fields.get("doubtful")))


def _order(resolved: Resolved) -> tuple[int, int]:
    return (resolved.mod_rev, resolved.version.mod_rev)


def _history(resolved: Resolved) -> tuple[str, str]:
    return (resolved.server_id, ResumeToken.parse(resolved.token).epoch if resolved.token else "")


def _same_content(one: Resolved, other: Resolved) -> bool:
    return (one.version.version, one.version.digest) == (other.version.version, other.version.digest)


def _same_move(one: Resolved, other: Resolved) -> bool:
    return _same_content(one, other) and one.mod_rev == other.mod_rev


def as_resolved(ref: ModelRef, state: RefState) -> Resolved:
    """The last-known-good state in the form of a server's answer."""
    alias = None
    if ref.alias is not None:
        alias = Alias(
            namespace=ref.namespace,
            model=ref.model,
            name=ref.alias,
            version=state.version.version,
            digest=state.version.digest,
            moved_at=state.version.created_at,
            mod_rev=state.alias_mod_rev,
        )
    return Resolved(ref=ref, version=state.version, alias=alias, token=state.token, server_id=state.server_id)

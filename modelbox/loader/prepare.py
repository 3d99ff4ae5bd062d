"""Makes a version ready to serve: fetch, verify, try, open, compare the interface, warm up.

Owns the order of the stages and what is left behind when one fails: nothing but verified files in the cache. Knows
nothing of references, retries or swaps; those are `reload`'s.

Opening happens by path, in one thread at a time: from bytes it would hold the interpreter's lock for the whole copy,
and two openings at once would need the memory of both.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
from anyio import CapacityLimiter, to_thread

from modelbox.errors import (
    CacheError,
    FormatRefused,
    LoadError,
    ModelBoxError,
    NotEnoughMemory,
    SignatureChanged,
    WarmupFailed,
)
from modelbox.loader import onnx_scan
from modelbox.loader.cache import Cache, Lease
from modelbox.loader.download import Downloader
from modelbox.loader.generation import Generation
from modelbox.loader.memory import check_room
from modelbox.loader.optimise import find_optimised, optimised_key, write_optimised
from modelbox.loader.probe import ProbeMode, Trial, allowance_bytes, probe
from modelbox.loader.session import Session, WarmReport
from modelbox.loader.settings import LoaderSettings, LoadOptions
from modelbox.loader.slower import Slowdown, Slower, compare_speed
from modelbox.loader.tensor_files import TensorFiles
from modelbox.manifest import Manifest
from modelbox.objects import ModelVersion
from modelbox.refs import ModelRef
from modelbox.signature import Signature, find_incompatibilities
from modelbox.signing.policy import SignaturePolicy
from modelbox.signing.trust import SignedBy

__all__ = ("Prepared", "Preparer", "find_entrypoint")

_log = logging.getLogger(__name__)
T = TypeVar("T")

ENTRY_SUFFIXES = (".onnx", ".ort")
TENSOR_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An open and warmed session, and what it stands on.

    Attributes:
        lease: Keeps the version's files in the cache; release it after the session is closed.
        batching: Whether calls may be joined along the first dimension.
        stage_s: Seconds by stage.
        optimised: Whether it was opened from the form that the cache keeps, or there is none to keep.
        slowdown: How its runs compare with those of the version before; None where that was not measured.
    """

    version: ModelVersion
    session: Session
    lease: Lease
    batching: bool
    stage_s: dict[str, float]
    model_path: Path
    optimised: bool
    slowdown: Slowdown | None = None


def find_entrypoint(manifest: Manifest) -> str:
    """Path of the file to open.

    Raises:
        FormatRefused: The version is not of a format that ModelBox opens, or several files would do.
    """
    if manifest.framework == "safetensors":
        raise FormatRefused(
            "the version holds tensors and no graph: there is nothing to run here; load it in the application, or "
            "publish an ONNX export",
            framework=manifest.framework,
        )
    if manifest.framework != "onnx":
        raise _refused(manifest)
    if manifest.entrypoint is not None:
        found = [manifest.entrypoint]
    else:
        found = [file.path for file in manifest.files if file.path.endswith(ENTRY_SUFFIXES)]
    if len(found) != 1 or not found[0].endswith(ENTRY_SUFFIXES):
        names = ", ".join(found or [file.path for file in manifest.files[:5]])
        raise FormatRefused(
            f"cannot tell which file to open ({names}): publish with an entry point that ends in .onnx, or, where the "
            "files are of another format, with its framework (ModelBox opens onnx and safetensors only)",
            files=names,
        )
    return found[0]


def find_tensor_files(manifest: Manifest) -> list[str]:
    """Paths of the files with tensors: the entry point alone where there is one.

    Raises:
        FormatRefused: There is none.
    """
    found = [file.path for file in manifest.files if file.path.endswith(TENSOR_SUFFIX)]
    if manifest.entrypoint is not None:
        found = [manifest.entrypoint] if manifest.entrypoint.endswith(TENSOR_SUFFIX) else []
    if not found:
        raise FormatRefused(f"the version has no file that ends in {TENSOR_SUFFIX}, nor is one its entry point")
    return found


def _refused(manifest: Manifest) -> FormatRefused:
    return FormatRefused(
        f"the version's framework is {manifest.framework!r}: ModelBox stores it and never runs it; it opens onnx and "
        "safetensors only. Download it (`client.download`), or publish an export in one of these",
        framework=manifest.framework,
    )


class Preparer:
    """Runs the stages.

    Concurrency: `prepare` may run for several versions at once; openings queue.
    """

    def __init__(
        self,
        *,
        cache: Cache,
        downloader: Downloader,
        settings: LoaderSettings,
        policy: SignaturePolicy | None = None,
    ) -> None:
        self._cache = cache
        self._downloader = downloader
        self._settings = settings
        self._policy = policy or SignaturePolicy()
        self._opening = CapacityLimiter(1)
        self._probing = CapacityLimiter(1)
        self._held = 0

    async def check(self, ref: ModelRef, version: ModelVersion) -> SignedBy | None:
        """Whether ``version`` may be used for ``ref``, and whose signature says so; None where none counts.

        Raises:
            SignatureRefused: It has no signature that counts, and has to have one.
            IntegrityError: It is another version than the one that was asked for.
            ConfigError: A file of trusted keys cannot be used.
        """
        return await to_thread.run_sync(self._policy.check, ref, version)

    async def prepare(
        self,
        ref: ModelRef,
        version: ModelVersion,
        options: LoadOptions,
        *,
        before: Generation | None,
        on_progress: Callable[[int, int], None],
        served: bool = False,
        rollback: bool = False,
    ) -> Prepared:
        """Fetches, opens and warms ``version``, after a look at who signed it: nothing of it is kept before.

        Args:
            ref: What it is to serve.
            version: What to open.
            options: How.
            before: What serves now, and whose callers rely on its interface; None for a first load.
            on_progress: Called with verified and total bytes.
            served: Whether this process has served it before, so that it needs no trial.
            rollback: Whether it is a way back, so that it may be as slow as it was.

        Raises:
            ModelBoxError: With ``fields["stage"]``: ``fetch``, ``verify``, ``probe``, ``open``, ``signature`` or
                ``warm``.

        Cancellation: the session is closed and the lease released; verified files stay in the cache.
        """
        stage_s: dict[str, float] = {}
        with _stage("verify", stage_s):
            signed = await self.check(ref, version)
            holds_tensors = options.tensors and version.manifest.framework == "safetensors"
            entries = find_tensor_files(version.manifest) if holds_tensors else [find_entrypoint(version.manifest)]
        if holds_tensors:
            return await self._prepare_tensors(version, entries, stage_s, on_progress)
        (entry,) = entries
        lease = await to_thread.run_sync(self._cache.lease, version.digest)
        try:
            with _stage("fetch", stage_s):
                tree = await self._downloader.fetch(version, on_progress)
            path = tree / entry
            with _stage("verify", stage_s):
                kept = await to_thread.run_sync(self._find_optimised, version, options)
                # What the cache keeps was made of a version that passed.
                if kept is None and entry.endswith(".onnx"):
                    await to_thread.run_sync(onnx_scan.scan, path, version.manifest)
            golden = tree / "golden" if options.golden and (tree / "golden").is_dir() else None
            if kept is None and not served and self._is_tried(signed):
                with _stage("probe", stage_s):
                    await self._probe(path, golden, version, options)
            with _stage("open", stage_s):
                opening = partial(Session.open, path, options=options.session, optimised=kept)
                session = await self._in_opener(self._opened, opening, version)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(lease.release)
            raise
        try:
            await anyio.lowlevel.checkpoint()
            with _stage("signature", stage_s):
                _compare(before.signature if before is not None else None, session.signature, options)
            with _stage("warm", stage_s):
                report = await self._in_opener(session.warm, self._warm_up_timeout_s(options), golden)
                await anyio.lowlevel.checkpoint()
                slowdown = await self._compare_speed(session, report, before, lenient=served or rollback)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.discard(session, lease)
            raise
        wanted = options.batching if options.batching is not None else version.metadata.get("batching")
        return Prepared(
            version=version,
            session=session,
            lease=lease,
            batching=report.rows_independent if wanted is None else bool(wanted),
            stage_s=stage_s,
            model_path=path,
            optimised=kept is not None,
            slowdown=slowdown,
        )

    async def _prepare_tensors(
        self,
        version: ModelVersion,
        entries: list[str],
        stage_s: dict[str, float],
        on_progress: Callable[[int, int], None],
    ) -> Prepared:
        """The same for tensors without a graph: there is nothing to run, so nothing to warm or to compare."""
        lease = await to_thread.run_sync(self._cache.lease, version.digest)
        try:
            with _stage("fetch", stage_s):
                tree = await self._downloader.fetch(version, on_progress)
            with _stage("open", stage_s):
                paths = [tree / entry for entry in entries]
                session = await self._in_opener(self._opened, partial(TensorFiles.open_files, paths), version)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(lease.release)
            raise
        return Prepared(
            version=version,
            session=session,
            lease=lease,
            batching=False,
            stage_s=stage_s,
            model_path=paths[0],
            optimised=True,
        )

    async def discard(self, session: Session, lease: Lease) -> None:
        """Frees a session and gives its files back to the cache's care."""
        await self._in_opener(self._closed, session)
        await to_thread.run_sync(lease.release)

    async def keep_optimised(self, prepared: Prepared, options: LoadOptions) -> None:
        """Writes what onnxruntime made of the model into the cache, so that the next opening is faster.

        Only ever an improvement: a failure is logged and forgotten.
        """
        if prepared.optimised or not self._settings.keep_optimised:
            return
        try:
            await self._in_opener(self._write_optimised, prepared.version, prepared.model_path, options)
        except ModelBoxError as exc:
            _log.info("the optimised form of %s is not kept: %s", prepared.version.ref, exc)

    async def _compare_speed(
        self, session: Session, report: WarmReport, before: Generation | None, *, lenient: bool
    ) -> Slowdown | None:
        mode, limit = self._settings.slower, self._settings.slower_factor
        if before is None or mode is Slower.OFF:
            return None
        try:
            found = await self._in_opener(compare_speed, session, report, before, limit)
        except Exception as exc:
            # It is a measurement, and no reason to keep a version out.
            _log.warning("how fast the new version is could not be compared: %s", exc)
            return None
        if found is not None and found.factor > limit and mode is Slower.REFUSE and not lenient:
            raise WarmupFailed(
                f"{found}, more than slower_factor allows: make it faster, or load with slower = warn",
                stage="warm",
                factor=round(found.factor, 3),
            )
        return found

    def _is_tried(self, signed: SignedBy | None) -> bool:
        mode = self._settings.probe
        return mode is ProbeMode.ON or (mode is ProbeMode.UNSIGNED and signed is None)

    async def _probe(self, path: Path, golden: Path | None, version: ModelVersion, options: LoadOptions) -> None:
        max_bytes, max_is_room = await to_thread.run_sync(
            allowance_bytes, version.manifest.size_bytes, options.session, self._settings.probe_max_bytes
        )
        trial = Trial(
            path=path,
            golden=golden,
            options=options.session,
            open_timeout_s=self._settings.probe_timeout_s,
            warm_up_timeout_s=self._warm_up_timeout_s(options),
            max_bytes=max_bytes,
            max_is_room=max_is_room,
        )
        await probe(trial, limiter=self._probing)

    def _warm_up_timeout_s(self, options: LoadOptions) -> float:
        return options.warm_up_timeout_s or self._settings.warm_up_timeout_s

    def _opened(self, opening: Callable[[], T], version: ModelVersion) -> T:
        """Opens a session, if there is room for it beside those that are open; the first one may try in any case."""
        if self._held:
            check_room(version.manifest.size_bytes)
        session = opening()
        self._held += 1
        return session

    def _closed(self, session: Session) -> None:
        session.close()
        self._held -= 1

    def _find_optimised(self, version: ModelVersion, options: LoadOptions) -> Path | None:
        kept = self._cache.find_derived(version.digest, _kept_key(options))
        return find_optimised(kept) if kept is not None else None

    def _write_optimised(self, version: ModelVersion, path: Path, options: LoadOptions) -> None:
        key = _kept_key(options)
        if self._cache.find_derived(version.digest, key) is None:
            check_room(version.manifest.size_bytes)
            with self._cache.new_derived(version.digest, key) as writer:
                write_optimised(path, writer.directory, options=options.session)
                writer.commit()

    async def _in_opener(self, fn: Callable[..., T], *args: object) -> T:
        # Never abandoned: a thread that opens a session has to hand it over, or nobody would close it.
        with anyio.CancelScope(shield=True):
            return await to_thread.run_sync(fn, *args, limiter=self._opening)
        raise AssertionError("nobody cancels this scope")


def _kept_key(options: LoadOptions) -> str:
    # The scan's rules are a part of it: a form that passed older ones is made again.
    return f"{optimised_key(options.session)}-scan{onnx_scan.RULES}"


@contextmanager
def _stage(name: str, stage_s: dict[str, float]) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    except ModelBoxError as exc:
        exc.fields.setdefault("stage", name)
        raise
    except (MemoryError, OSError) as exc:
        # Nothing that is wrong with the model: what this machine lacks may be there later.
        if isinstance(exc, MemoryError) or exc.errno == errno.ENOMEM:
            raise NotEnoughMemory(f"there is not enough memory in stage {name!r}: {exc}", stage=name) from exc
        raise CacheError(f"the system failed in stage {name!r}: {exc}", stage=name) from exc
    except Exception as exc:
        _log.exception("unexpected failure while preparing a model (%s)", name)
        if name == "fetch":
            # Of the way here, not of the version, which must not be refused for it.
            raise ModelBoxError(f"unexpected {type(exc).__name__} in stage {name!r}: {exc}", stage=name) from exc
        raise LoadError(f"unexpected {type(exc).__name__} in stage {name!r}: {exc}", stage=name) from exc
    finally:
        stage_s[name] = stage_s.get(name, 0.0) + time.perf_counter() - began


def _compare(old: Signature | None, new: Signature, options: LoadOptions) -> None:
    problems = [] if old is None else find_incompatibilities(old, new, options.compatibility)
    if problems:
        raise SignatureChanged(
            f"the new version has another interface ({'; '.join(problems)}): publish it under another model, or load "
            "with a wider `compatibility`",
            problems=problems,
        )

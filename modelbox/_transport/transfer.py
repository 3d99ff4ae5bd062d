"""Whole transfers: publishing local files, attaching them to objects, writing stored ones to a directory.

Owns the order of things: bytes first, verified by the server, then the row that names them; downloads verified in a
staging directory, then moved into place. Owns the repetition of uploads and downloads after a break: as long as one
makes progress it goes on, after several breaks in a row without any it gives up. Two files travel at a time.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread

from modelbox._local_files import FilesArgument, LocalFile, Progress, collect, measure
from modelbox._transport import signed
from modelbox._transport.faults import backoff_s
from modelbox._transport.signed import publish_signed
from modelbox._transport.source import RemoteSource
from modelbox.errors import (
    CacheError,
    ConflictError,
    DeadlineExceeded,
    InvalidError,
    ModelBoxError,
    NotFoundError,
    ServerBusy,
    Unavailable,
)
from modelbox.loader.disk import write_chunks
from modelbox.loader.transfer import receive
from modelbox.loader.verify import FileVerifier
from modelbox.manifest import Manifest, ManifestFile
from modelbox.objects import (
    Artifact,
    ArtifactFile,
    Created,
    JsonValue,
    ModelVersion,
    NewArtifact,
    NewVersion,
)
from modelbox.ports import ByteStream
from modelbox.refs import Digest, ModelRef, check_alias, check_name
from modelbox.signature import Signature
from modelbox.signing.keys import SigningKey
from modelbox.signing.policy import SignaturePolicy

__all__ = ("Publication", "download_artifact", "download_version", "track_artifact", "upload_artifact")

T = TypeVar("T")
_AT_A_TIME = 2
_BREAKS_IN_A_ROW = 6
_PAUSE_BASE_S = 0.2
_PAUSE_CAP_S = 5.0
_STALL_S = 30.0
_ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_MIN_BYTES_PER_S = 1024
_BROKEN = (Unavailable, DeadlineExceeded, ServerBusy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A version to be; see `modelbox.Client.publish` for the fields."""

    namespace: str
    model: str
    files: FilesArgument
    framework: str | None
    signature: Signature | Literal["auto"] | None
    entrypoint: str | None
    description: str
    labels: Mapping[str, str]
    metadata: Mapping[str, JsonValue]
    metrics: Mapping[str, float]
    aliases: tuple[str, ...]
    reason: str
    run_id: str
    checkpoint_id: str
    sign: SigningKey | None = None

    async def run(self, source: RemoteSource, on_progress: Progress | None) -> Created[ModelVersion]:
        """Reads, uploads and publishes."""
        for alias in self.aliases:
            check_alias(alias)
        files = await _measured(self.files)
        framework = self.framework or _framework_of(files)
        manifest = Manifest(
            files=tuple(
                ManifestFile(path=f.path, size_bytes=f.size_bytes, digest=f.digest, media_type=f.media_type)
                for f in files
            ),
            framework=framework,
            signature=await self._signature(files, framework),
            entrypoint=self.entrypoint,
        )
        await _upload_all(source, self.namespace, files, on_progress)
        new = NewVersion(
            namespace=self.namespace,
            model=self.model,
            manifest=manifest,
            description=self.description,
            labels=self.labels,
            metadata=self.metadata,
            metrics=self.metrics,
            aliases=self.aliases,
            reason=self.reason,
            run=self.run_id,
            checkpoint=self.checkpoint_id,
        )
        if self.sign is not None:
            return await publish_signed(source, new, self.sign)
        return await source.grpc.publish_version(new)

    async def _signature(self, files: tuple[LocalFile, ...], framework: str) -> Signature | None:
        if isinstance(self.signature, Signature):
            return self.signature
        if framework != "onnx":
            return None
        models = [f for f in files if f.path.endswith(".onnx")]
        if self.entrypoint is not None:
            models = [f for f in files if f.path == self.entrypoint]
        if len(models) != 1:
            if self.signature is None:
                return None
            found = ", ".join(f.path for f in models) or "none"
            raise InvalidError(f"the signature comes from one ONNX file, and there are: {found}; name the entry point")
        from modelbox.loader.onnx_scan import scan

        try:
            return (await anyio.to_thread.run_sync(scan, models[0].local.resolve())).signature
        except ModelBoxError:
            if self.signature is None:
                return None
            raise


async def upload_artifact(
    source: RemoteSource,
    parent: str,
    name: str,
    files: FilesArgument,
    *,
    labels: Mapping[str, str],
    metadata: Mapping[str, JsonValue],
    on_progress: Progress | None,
) -> Created[Artifact]:
    """Uploads files and attaches them to ``parent``."""
    namespace = _namespace(parent)
    measured = await _measured(files)
    await _upload_all(source, namespace, measured, on_progress)
    listed = tuple(
        ArtifactFile(path=f.path, size_bytes=f.size_bytes, digest=f.digest, media_type=f.media_type) for f in measured
    )
    return await source.grpc.create_artifact(
        NewArtifact(parent=parent, name=name, files=listed, labels=labels, metadata=metadata)
    )


async def track_artifact(
    source: RemoteSource,
    parent: str,
    name: str,
    files: tuple[ArtifactFile | str | os.PathLike[str], ...],
    *,
    labels: Mapping[str, str],
    metadata: Mapping[str, JsonValue],
) -> Created[Artifact]:
    """Attaches files to ``parent`` that stay where they are."""
    _namespace(parent)
    listed = [file for file in files if isinstance(file, ArtifactFile)]
    for file in listed:
        if not file.uri:
            raise InvalidError(f"the file {file.path} has no uri: a tracked file says where it lies", path=file.path)
    local = [file for file in files if not isinstance(file, ArtifactFile)]
    if local:
        try:
            measured = await _measured(local)
        except InvalidError as exc:
            for text in (os.fspath(file) for file in local):
                if _ELSEWHERE.match(text):
                    raise InvalidError(
                        f"{text} is no local file: what lies elsewhere is an ArtifactFile with uri, size_bytes and "
                        "digest (--uri, --size and --digest)",
                        path=text,
                    ) from exc
            raise
        listed += [
            ArtifactFile(
                path=f.path,
                size_bytes=f.size_bytes,
                digest=f.digest,
                media_type=f.media_type,
                uri=f.local.as_uri(),
            )
            for f in measured
        ]
    return await source.grpc.create_artifact(
        NewArtifact(parent=parent, name=name, files=tuple(listed), labels=labels, metadata=metadata)
    )


def _framework_of(files: tuple[LocalFile, ...]) -> str:
    """What opens the files, as their names say: tensors alone are no graph."""
    suffixes = {PurePosixPath(file.path).suffix for file in files}
    return "safetensors" if ".safetensors" in suffixes and not suffixes & {".onnx", ".ort"} else "onnx"


async def sign_version(
    source: RemoteSource, ref: ModelRef, key: SigningKey, files: FilesArgument | None
) -> ModelVersion:
    """Signs a version that is published, after a comparison with local files where there are any."""
    return await signed.sign_version(source, ref, key, None if files is None else await _measured(files))


async def download_version(
    source: RemoteSource, ref: ModelRef, directory: Path, on_progress: Progress | None, policy: SignaturePolicy
) -> Path:
    """Writes a version's files below ``directory``, if its signature is one that ``policy`` lets pass."""
    await anyio.to_thread.run_sync(policy.open)
    version = await source.grpc.get_version(ref)
    await anyio.to_thread.run_sync(policy.check, ref, version)
    download_id = await source.begin_download(version)

    def opened(file: ManifestFile, offset: int) -> AbstractAsyncContextManager[ByteStream]:
        return source.open_file(version, file, offset=offset, download_id=download_id)

    return await _download_all(version.manifest.files, opened, directory, on_progress)


async def download_artifact(
    source: RemoteSource, artifact_id: str, directory: Path, on_progress: Progress | None
) -> Path:
    """Writes an artifact's stored files below ``directory``."""
    artifact = await source.grpc.get_artifact(artifact_id)
    if tracked := [file for file in artifact.files if file.uri]:
        raise InvalidError(
            f"{tracked[0].path} of this artifact is not stored here: it lies at {tracked[0].uri}", uri=tracked[0].uri
        )
    # A manifest's rules make the paths safe to write to.
    files = Manifest(
        files=tuple(
            ManifestFile(path=f.path, size_bytes=f.size_bytes, digest=f.digest, media_type=f.media_type)
            for f in artifact.files
        )
    ).files

    def opened(file: ManifestFile, offset: int) -> AbstractAsyncContextManager[ByteStream]:
        return source.http.open_artifact_file(artifact.id, file, offset=offset)

    return await _download_all(files, opened, directory, on_progress)


# --- up ----------------------------------------------------------------------------------------------------------


async def _measured(files: FilesArgument) -> tuple[LocalFile, ...]:
    found = await anyio.to_thread.run_sync(collect, files)
    measured: dict[str, LocalFile] = {}

    async def one(entry: tuple[str, Path]) -> None:
        # The thread notices a cancelled call at its next block.
        measured[entry[0]] = await anyio.to_thread.run_sync(
            measure, entry[0], entry[1], lambda _: anyio.from_thread.check_cancelled()
        )

    await _each(found, one)
    return tuple(measured[path] for path, _ in found)


async def _upload_all(
    source: RemoteSource, namespace: str, files: tuple[LocalFile, ...], on_progress: Progress | None
) -> None:
    check_name(namespace, "namespace")
    distinct = {file.digest: file for file in files}
    progress = _Sum(sum(f.size_bytes for f in distinct.values()), on_progress)

    async def one(file: LocalFile) -> None:
        await _upload(source, namespace, file, progress.part(file.digest))

    await _each(distinct.values(), one)


async def _upload(source: RemoteSource, namespace: str, file: LocalFile, at: Callable[[int], None]) -> None:
    held, breaks, begun = -1, 0, False
    while True:
        try:
            state = await source.grpc.begin_upload(namespace, file.digest, file.size_bytes)
            begun = True
            if state.offset > held:
                held, breaks = state.offset, 0
            if not state.complete:
                at(state.offset)
                state = await source.http.send(
                    state.upload_id, file.local, offset=state.offset, size_bytes=file.size_bytes, on_bytes=at
                )
            if state.complete:
                at(file.size_bytes)
                return
            error: ModelBoxError = Unavailable(f"the server took {state.offset} of {file.size_bytes} bytes")
        except (*_BROKEN, ConflictError, NotFoundError) as exc:
            # Conflict, not found: somebody else went on with this upload, or it was swept away. Ask anew.
            if isinstance(exc, NotFoundError) and not begun:
                raise
            error = exc
        breaks += 1
        if breaks == _BREAKS_IN_A_ROW:
            raise error
        await anyio.sleep(backoff_s(breaks, base_s=_PAUSE_BASE_S, cap_s=_PAUSE_CAP_S))


# --- down --------------------------------------------------------------------------------------------------------

_Opener = Callable[[ManifestFile, int], AbstractAsyncContextManager[ByteStream]]


async def _download_all(
    files: tuple[ManifestFile, ...], opened: _Opener, directory: Path, on_progress: Progress | None
) -> Path:
    staging = await anyio.to_thread.run_sync(_make_staging, directory)
    progress = _Sum(sum(file.size_bytes for file in files), on_progress)

    async def one(file: ManifestFile) -> None:
        await _download(file, opened, staging / file.path, progress.part(file.path))

    try:
        await _each(files, one)
        await anyio.to_thread.run_sync(_reveal, staging, directory, [file.path for file in files])
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(staging, ignore_errors=True))
    return directory


async def _download(file: ManifestFile, opened: _Opener, target: Path, at: Callable[[int], None]) -> None:
    sink = await anyio.to_thread.run_sync(_FileSink, file, target)
    written = 0

    def advance(size_bytes: int) -> None:
        nonlocal written
        written += size_bytes
        at(written)

    try:
        breaks = 0
        while sink.missing:
            before = sink.offset
            try:
                await receive(
                    opened(file, sink.offset),
                    sink,
                    thread=_in_thread,
                    advance=advance,
                    stall_s=_STALL_S,
                    min_bytes_per_s=_MIN_BYTES_PER_S,
                )
            except _BROKEN:
                breaks = breaks + 1 if sink.offset == before else 1
                if breaks == _BREAKS_IN_A_ROW:
                    raise
                await anyio.sleep(backoff_s(breaks, base_s=_PAUSE_BASE_S, cap_s=_PAUSE_CAP_S))
        await anyio.to_thread.run_sync(sink.finish)
    finally:
        sink.close()


async def _in_thread(fn: Callable[..., T], *args: object) -> T:
    return await anyio.to_thread.run_sync(fn, *args)


class _FileSink:
    """A plain file that is verified while it grows; a `modelbox.loader.transfer.Sink`."""

    def __init__(self, file: ManifestFile, target: Path) -> None:
        self._verifier = FileVerifier(file)
        self._target = target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except OSError as exc:
            raise _cannot(exc, target) from exc

    @property
    def offset(self) -> int:
        return self._verifier.offset

    @property
    def missing(self) -> int:
        return self._verifier.missing

    def check(self, chunks: Sequence[bytes]) -> None:
        for chunk in chunks:
            self._verifier.feed(chunk)

    def store(self, chunks: Sequence[bytes]) -> None:
        try:
            write_chunks(self._fd, chunks)
        except OSError as exc:
            raise _cannot(exc, self._target) from exc

    def finish(self) -> None:
        """Confirms that every byte is right and on disk."""
        self._verifier.finish()
        try:
            os.fsync(self._fd)
        except OSError as exc:
            raise _cannot(exc, self._target) from exc

    def close(self) -> None:
        os.close(self._fd)


def _make_staging(directory: Path) -> Path:
    """A new directory on the volume of ``directory``: inside of it where it exists, else beside it."""
    try:
        if directory.exists() and not directory.is_dir():
            raise CacheError(f"{directory} is a file: name a directory", path=str(directory))
        parent = directory if directory.is_dir() else directory.parent
        parent.mkdir(parents=True, exist_ok=True)
        staging = parent / f".{directory.name}.{secrets.token_hex(6)}.part"
        staging.mkdir()
    except OSError as exc:
        raise _cannot(exc, directory) from exc
    return staging


def _reveal(staging: Path, directory: Path, paths: list[str]) -> None:
    try:
        if not directory.exists():
            os.rename(staging, directory)
            return
        for path in paths:
            target = directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / path, target)
    except OSError as exc:
        raise _cannot(exc, directory) from exc


def _cannot(exc: OSError, path: Path) -> CacheError:
    return CacheError(
        f"{path} cannot be written: {exc.strerror}; free space, or name another directory", path=str(path)
    )


# --- both ways ---------------------------------------------------------------------------------------------------


class _Sum:
    """Progress of several files as one number."""

    def __init__(self, total: int, report: Progress | None) -> None:
        self._total = total
        self._report = report
        self._parts: dict[str, int] = {}
        self._done = 0

    def part(self, key: str | Digest) -> Callable[[int], None]:
        """Takes the offset that one file has reached."""

        def at(offset: int) -> None:
            self._done += offset - self._parts.get(key, 0)
            self._parts[key] = offset
            if self._report is not None:
                self._report(self._done, self._total)

        return at


async def _each(items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Works off ``items``, two at a time; the first error ends it and is raised as it is."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with anyio.create_task_group() as group:
            for number in range(_AT_A_TIME):
                group.start_soon(worker, name=f"transfer {number + 1}")
    except BaseExceptionGroup as exc:
        raise _first(exc) from exc


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _namespace(parent: str) -> str:
    return check_name(parent.partition("@")[0].partition("/")[0], "namespace")

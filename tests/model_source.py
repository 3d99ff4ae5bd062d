"""A `ModelSource` that serves bytes from memory or from files, and breaks in every way a server can.

It is the port's real contract behind a switchboard, not a mock: the loader under test cannot tell it from a server.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.lowlevel

from modelbox.errors import NotAuthenticated, NotFoundError, Unavailable
from modelbox.feed import Bookmark, FeedItem
from modelbox.manifest import Manifest, ManifestFile
from modelbox.objects import InstanceReport, ModelVersion, Resolved
from modelbox.ports import ByteStream
from modelbox.refs import Digest, ModelRef
from modelbox.signature import Signature

NOW = datetime(2026, 5, 3, 12, 0, tzinfo=UTC)


def digest_of(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def manifest_of(
    files: Mapping[str, bytes], *, signature: Signature | None = None, entrypoint: str | None = None
) -> Manifest:
    return Manifest(
        files=tuple(
            ManifestFile(path=path, size_bytes=len(data), digest=digest_of(data)) for path, data in files.items()
        ),
        signature=signature,
        entrypoint=entrypoint,
    )


def version_of(manifest: Manifest, *, version: int = 1, namespace: str = "ns", model: str = "model") -> ModelVersion:
    return ModelVersion(
        id=f"{namespace}-{model}-{version}",
        namespace=namespace,
        model=model,
        version=version,
        digest=manifest.digest,
        manifest=manifest,
        created_at=NOW,
        mod_rev=version,
    )


@dataclass
class Faults:
    """What goes wrong; each is looked at anew whenever a file is opened.

    Attributes:
        chunk_bytes: Length of the chunks.
        reset_after: Break every connection after so many bytes.
        resets_left: How many connections break; None for all.
        truncate: End every file quietly after so many bytes of it.
        extra: Bytes to send after the end.
        corrupt_at: Flip a bit of this byte of a file, as often as ``corruptions_left`` says.
        silent_after: Send nothing any more after so many bytes of a connection.
        bytes_per_s: Send no faster.
        down: Refuse to answer at all.
        unknown: Refuse whoever asks, as a server does that does not take a token.
    """

    chunk_bytes: int = 64 << 10
    reset_after: int | None = None
    resets_left: int | None = None
    truncate: int | None = None
    extra: bytes = b""
    corrupt_at: int | None = None
    corruptions_left: int = 1
    silent_after: int | None = None
    bytes_per_s: float | None = None
    down: bool = False
    unknown: bool = False


@dataclass
class MemorySource:
    """Serves what `add` was given; counts what it is asked for."""

    contents: dict[Digest, bytes | Path] = field(default_factory=dict)
    versions: dict[str, ModelVersion] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    opens: list[tuple[str, int]] = field(default_factory=list)
    open_now: int = 0
    downloads: int = 0
    sent_bytes: int = 0
    reports: list[InstanceReport] = field(default_factory=list)
    gate: anyio.Event | None = None

    def add(self, files: Mapping[str, bytes | Path], *, version: int = 1) -> ModelVersion:
        entries = []
        for path, data in files.items():
            if isinstance(data, Path):
                with open(data, "rb") as file:
                    digest = Digest("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())
                size = data.stat().st_size
            else:
                digest, size = digest_of(data), len(data)
            self.contents[digest] = data
            entries.append(ManifestFile(path=path, size_bytes=size, digest=digest))
        added = version_of(Manifest(files=tuple(entries)), version=version)
        self.versions[str(added.ref)] = added
        return added

    async def resolve(self, ref: ModelRef) -> Resolved:
        self._refuse_if_down()
        for version in self.versions.values():
            if version.ref == ref:
                return Resolved(ref=ref, version=version, alias=None, token="", server_id="memory")
        raise NotFoundError(f"{ref} does not exist", exists=sorted(self.versions))

    async def begin_download(self, version: ModelVersion) -> str:
        self._refuse_if_down()
        self.downloads += 1
        return f"download-{self.downloads}"

    def open_file(
        self, version: ModelVersion, file: ManifestFile, *, offset: int = 0, download_id: str = ""
    ) -> AbstractAsyncContextManager[ByteStream]:
        return self._open(file, offset)

    @asynccontextmanager
    async def _open(self, file: ManifestFile, offset: int) -> AsyncIterator[ByteStream]:
        self._refuse_if_down()
        self.opens.append((file.path, offset))
        self.open_now += 1
        stream = self._send(file, offset)
        try:
            yield stream
        finally:
            self.open_now -= 1
            await stream.aclose()

    async def _send(self, file: ManifestFile, offset: int) -> AsyncGenerator[bytes, None]:
        faults = self.faults
        sent = 0
        resets = faults.reset_after is not None and faults.resets_left != 0
        if resets and faults.resets_left is not None:
            faults.resets_left -= 1
        for chunk in self._read(file, offset):
            await anyio.lowlevel.checkpoint()
            if self.gate is not None:
                await self.gate.wait()
            if resets and faults.reset_after is not None and sent + len(chunk) > faults.reset_after:
                yield chunk[: faults.reset_after - sent]
                raise Unavailable("the connection was reset")
            if faults.silent_after is not None and sent + len(chunk) > faults.silent_after:
                yield chunk[: faults.silent_after - sent]
                await anyio.sleep_forever()
            if faults.bytes_per_s is not None:
                await anyio.sleep(len(chunk) / faults.bytes_per_s)
            sent += len(chunk)
            self.sent_bytes += len(chunk)
            yield chunk
        if faults.extra:
            yield faults.extra

    def _read(self, file: ManifestFile, offset: int) -> Generator[bytes, None, None]:
        faults = self.faults
        content = self.contents[file.digest]
        end = file.size_bytes if faults.truncate is None else min(file.size_bytes, faults.truncate)
        flip = faults.corrupt_at if faults.corrupt_at is not None and faults.corruptions_left > 0 else None
        position = offset
        handle = open(content, "rb") if isinstance(content, Path) else None  # noqa: SIM115
        try:
            while position < end:
                length = min(faults.chunk_bytes, end - position)
                if handle is not None:
                    handle.seek(position)
                    chunk = handle.read(length)
                else:
                    assert isinstance(content, bytes)
                    chunk = content[position : position + length]
                if flip is not None and position <= flip < position + length:
                    faults.corruptions_left -= 1
                    at = flip - position
                    chunk = chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]
                position += length
                yield chunk
        finally:
            if handle is not None:
                handle.close()

    def watch(self, objects: Sequence[str], token: str) -> AbstractAsyncContextManager[AsyncIterator[FeedItem]]:
        return self._watch(token)

    @asynccontextmanager
    async def _watch(self, token: str) -> AsyncIterator[AsyncIterator[FeedItem]]:
        self._refuse_if_down()

        async def items() -> AsyncIterator[FeedItem]:
            yield Bookmark(rev=0, head_rev=0, token=token)
            await anyio.sleep_forever()

        yield items()

    async def report(self, reports: Sequence[InstanceReport]) -> None:
        self._refuse_if_down()
        self.reports.extend(reports)

    def _refuse_if_down(self) -> None:
        if self.faults.down:
            raise Unavailable("the server does not answer")
        if self.faults.unknown:
            raise NotAuthenticated("the token is not valid any more")

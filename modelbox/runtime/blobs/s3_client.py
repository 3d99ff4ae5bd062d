"""Requests to an S3-compatible store, as few kinds of them as will do, with our errors and our limits.

Owns aiobotocore: its client, its retries (with backoff, by its "standard" mode), its timeouts, and the translation of
what goes wrong. Nothing else in the server imports it. Invariants:

* Every body that is sent carries its MD5, which every store checks, old ones too; so bytes that changed on the way are
  refused. The newer "flexible checksums", which aiobotocore would add by itself and which many stores refuse, are off.
* The payload is not hashed a second time for the signature: that would block the event loop for each part.
* No error and no log line holds a key, a secret or a presigned address.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import aiohttp
import anyio
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.loaders import Loader

from modelbox.errors import LimitError, ModelBoxError, ServerBusy, StorageError

__all__ = ("Found", "Multipart", "Part", "S3Address", "S3Client", "md5_of")

_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 60
_ATTEMPTS = 4
_CONNECTIONS = 64
_RETRY_AFTER_S = 2.0
_COPIES_AT_A_TIME = 4
_GONE = frozenset(["404", "NoSuchKey", "NoSuchUpload", "NotFound"])
# Bytes that changed on the way, and parts that are not what we were told: the next try looks what is there.
_AGAIN = frozenset(["BadDigest", "InvalidPart", "IncompleteBody", "MalformedXML"])
_BUSY = frozenset(["SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "ServiceUnavailable"]) | _AGAIN
_FULL = frozenset(["QuotaExceeded", "EntityTooLarge", "XMinioStorageFull", "InsufficientStorage"])
_NOT_THERE = frozenset(["412", "PreconditionFailed", "ConditionalRequestConflict"])


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Address:
    """Where a store is and what in it is ours.

    Attributes:
        prefix: Of all our keys: empty, or ending in a slash.
        endpoint: Empty for the one of the region.
        region: Empty for what the environment says.
        public_endpoint: What presigned addresses name; empty for ``endpoint``.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    path_style: bool = False
    public_endpoint: str = ""

    def __str__(self) -> str:
        where = f" at {self.endpoint}" if self.endpoint else ""
        return f"s3://{self.bucket}/{self.prefix}{where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An object; ``modified_at`` is whole seconds, as not every answer tells more."""

    key: str
    size_bytes: int
    etag: str
    modified_at: datetime
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Multipart:
    """A multipart upload that was neither completed nor aborted."""

    key: str
    id: str
    begun_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of one."""

    number: int
    size_bytes: int
    etag: str
    modified_at: datetime


def md5_of(data: bytes) -> str:
    """What goes into ``Content-MD5``; takes about 2 ms per MiB, so call it in a thread."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


class S3Client:
    """One bucket of one store. An async context manager; needs asyncio.

    Concurrency: any number of tasks; at most 64 requests at a time are under way, the others wait.
    """

    def __init__(self, address: S3Address) -> None:
        self._address = address
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._signer: Any = None
        self._conditional = False
        self._copies = anyio.Semaphore(_COPIES_AT_A_TIME)

    async def __aenter__(self) -> Self:
        with self._errors("opening"):
            self._client = await self._open(self._address.endpoint)
            public = self._address.public_endpoint
            self._signer = await self._open(public) if public else self._client
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self._stack.aclose()

    async def _open(self, endpoint: str) -> Any:
        for name in ("aiobotocore", "botocore"):
            # What they tell of each request has signatures in it.
            logger = logging.getLogger(name)
            logger.setLevel(max(logger.level, logging.INFO))
        address = self._address
        style: dict[str, object] = {"payload_signing_enabled": False}
        if address.path_style:
            style["addressing_style"] = "path"
        config = AioConfig(
            connect_timeout=_CONNECT_TIMEOUT_S,
            max_pool_connections=_CONNECTIONS,
            read_timeout=_READ_TIMEOUT_S,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            s3=style,
            signature_version="s3v4",
        )
        return await self._stack.enter_async_context(
            _session().create_client(
                "s3",
                config=config,
                endpoint_url=endpoint or None,
                # Stores other than Amazon's mostly take any region, but the signature needs one.
                region_name=address.region or ("us-east-1" if endpoint else None),
            )
        )

    def key(self, name: str) -> str:
        """The whole key of what we call ``name``."""
        return self._address.prefix + name

    # -- what the store can ----------------------------------------------------------------------------------------

    async def probe(self, name: str) -> bool:
        """Finds out by trying whether we may list, write and delete, and what the store understands.

        Args:
            name: Of an object that is made and removed.

        Returns:
            Whether the store itself checks a sha256 that it is given with a body.
        """
        await self.list_page(name)
        await self.put(name, b"modelbox")
        try:
            self._conditional = True
            try:
                # Takes no notice: it cannot do it.
                self._conditional = not await self.put(name, b"modelbox", only_new=True)
            except (StorageError, ServerBusy):
                self._conditional = False
            wrong = base64.b64encode(hashlib.sha256(b"something else").digest()).decode()
            try:
                await self._client.put_object(
                    Bucket=self._address.bucket, Key=self.key(name), Body=b"modelbox", ChecksumSHA256=wrong
                )
            except ClientError as exc:
                return _status(exc) == 400
            return False
        finally:
            with anyio.CancelScope(shield=True):
                await self.delete(name)

    # -- objects ---------------------------------------------------------------------------------------------------

    async def head(self, name: str) -> Found | None:
        """The object of that name, None if there is none."""
        with self._errors("HeadObject"):
            try:
                answer = await self._client.head_object(
                    Bucket=self._address.bucket, Key=self.key(name), ChecksumMode="ENABLED"
                )
            except ClientError as exc:
                if _code(exc) in _GONE:
                    return None
                raise
            return Found(
                key=name,
                size_bytes=answer["ContentLength"],
                etag=answer["ETag"].strip('"'),
                modified_at=_seconds(answer["LastModified"]),
                sha256=answer.get("ChecksumSHA256", "") if answer.get("ChecksumType", "") != "COMPOSITE" else "",
            )

    async def put(self, name: str, data: bytes, *, md5: str = "", only_new: bool = False) -> bool:
        """Writes an object.

        Args:
            name: Its name.
            data: All of it.
            md5: Of `md5_of` where it is known; small data need none.
            only_new: Whether an object that is there stays, as far as the store can do that.

        Returns:
            Whether it was written; False only with ``only_new``.
        """
        more: dict[str, str] = {"IfNoneMatch": "*"} if only_new and self._conditional else {}
        with self._errors("PutObject"):
            try:
                await self._client.put_object(
                    Bucket=self._address.bucket,
                    Key=self.key(name),
                    Body=io.BytesIO(data),
                    ContentLength=len(data),
                    ContentMD5=md5 or md5_of(data),
                    ContentType="application/octet-stream",
                    **more,
                )
            except ClientError as exc:
                if more and (_code(exc) in _NOT_THERE or _status(exc) in (409, 412)):
                    return False
                raise
        return True

    @asynccontextmanager
    async def get(self, name: str, offset: int, length: int | None) -> AsyncIterator[Any]:
        """The bytes of an object, as a reader with ``read(size)``; None for a range that begins behind its end."""
        last = "" if length is None else str(offset + length - 1)
        with self._errors("GetObject"):
            try:
                answer = await self._client.get_object(
                    Bucket=self._address.bucket,
                    Key=self.key(name),
                    **({"Range": f"bytes={offset}-{last}"} if offset or last else {}),
                )
            except ClientError as exc:
                if _status(exc) == 416:
                    answer = None
                else:
                    raise
        if answer is None:
            yield None
            return
        body = answer["Body"]
        try:
            yield body
        finally:
            # What was not read to its end is cut off, not drained.
            body.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around each read of what `get` gave."""
        with self._errors("GetObject"):
            yield

    async def delete(self, name: str) -> None:
        """Removes an object; nothing happens if there is none."""
        with self._errors("DeleteObject"):
            await self._client.delete_object(Bucket=self._address.bucket, Key=self.key(name))

    async def list_page(self, prefix: str, *, token: str = "") -> tuple[list[Found], str, datetime]:
        """Up to 1000 objects, what continues behind them, and the store's time."""
        more = {"ContinuationToken": token} if token else {}
        with self._errors("ListObjectsV2"):
            answer = await self._client.list_objects_v2(
                Bucket=self._address.bucket, Prefix=self.key(prefix), MaxKeys=1000, **more
            )
        cut = len(self._address.prefix)
        found = [
            Found(
                key=item["Key"][cut:],
                size_bytes=item["Size"],
                etag=item["ETag"].strip('"'),
                modified_at=_seconds(item["LastModified"]),
            )
            for item in answer.get("Contents", ())
        ]
        return found, answer.get("NextContinuationToken", "") if answer.get("IsTruncated") else "", _time_of(answer)

    async def list_all(self, prefix: str) -> AsyncIterator[Found]:
        """All objects whose names begin so, a page at a time."""
        token = ""
        while True:
            found, token, _ = await self.list_page(prefix, token=token)
            for item in found:
                yield item
            if not token:
                return

    async def copy(self, source: str, target: str, size_bytes: int, *, range_bytes: int) -> None:
        """Copies an object inside the store; in ranges where it is larger than ``range_bytes``. Appears as a whole."""
        origin = {"Bucket": self._address.bucket, "Key": self.key(source)}
        if size_bytes <= range_bytes:
            with self._errors("CopyObject"):
                await self._client.copy_object(
                    Bucket=self._address.bucket, Key=self.key(target), CopySource=origin, MetadataDirective="COPY"
                )
            return
        multipart = await self.create_multipart(target)
        etags: dict[int, str] = {}

        async def one(number: int, first: int) -> None:
            last = min(first + range_bytes, size_bytes) - 1
            async with self._copies:
                with self._errors("UploadPartCopy"):
                    answer = await self._client.upload_part_copy(
                        Bucket=self._address.bucket,
                        Key=self.key(target),
                        UploadId=multipart.id,
                        PartNumber=number,
                        CopySource=origin,
                        CopySourceRange=f"bytes={first}-{last}",
                    )
            etags[number] = answer["CopyPartResult"]["ETag"].strip('"')

        try:
            try:
                async with anyio.create_task_group() as tasks:
                    for number, first in enumerate(range(0, size_bytes, range_bytes), 1):
                        tasks.start_soon(one, number, first, name=f"copy range {number}")
            except ExceptionGroup as group:
                raise _first(group) from group
            await self.complete(multipart, [etags[number] for number in sorted(etags)])
        except BaseException:
            with anyio.move_on_after(_READ_TIMEOUT_S, shield=True):
                await self.abort(multipart)
            raise

    # -- multipart uploads -----------------------------------------------------------------------------------------

    async def create_multipart(self, name: str) -> Multipart:
        """Begins one."""
        with self._errors("CreateMultipartUpload"):
            answer = await self._client.create_multipart_upload(
                Bucket=self._address.bucket, Key=self.key(name), ContentType="application/octet-stream"
            )
        return Multipart(key=name, id=answer["UploadId"], begun_at=_time_of(answer))

    async def put_part(self, multipart: Multipart, number: int, data: bytes, *, md5: str) -> str:
        """Writes a part, or replaces it; returns its entity tag.

        Raises:
            StorageError: Among others, the upload was completed or aborted.
        """
        with self._errors("UploadPart"):
            answer = await self._client.upload_part(
                Bucket=self._address.bucket,
                Key=self.key(multipart.key),
                UploadId=multipart.id,
                PartNumber=number,
                Body=io.BytesIO(data),
                ContentLength=len(data),
                ContentMD5=md5,
            )
            return str(answer["ETag"]).strip('"')

    async def list_parts(self, multipart: Multipart) -> list[Part]:
        """All parts, by number; none where the upload was completed or aborted."""
        parts: list[Part] = []
        marker = 0
        with self._errors("ListParts"):
            while True:
                try:
                    answer = await self._client.list_parts(
                        Bucket=self._address.bucket,
                        Key=self.key(multipart.key),
                        UploadId=multipart.id,
                        PartNumberMarker=marker,
                    )
                except ClientError as exc:
                    if _code(exc) in _GONE:
                        return []
                    raise
                parts += [
                    Part(
                        number=item["PartNumber"],
                        size_bytes=item["Size"],
                        etag=item["ETag"].strip('"'),
                        modified_at=_seconds(item["LastModified"]),
                    )
                    for item in answer.get("Parts", ())
                ]
                if not answer.get("IsTruncated"):
                    return sorted(parts, key=lambda part: part.number)
                marker = int(answer["NextPartNumberMarker"])

    async def list_multiparts(self, prefix: str) -> list[Multipart]:
        """All that are under way whose names begin so."""
        found: list[Multipart] = []
        more: dict[str, str] = {}
        cut = len(self._address.prefix)
        with self._errors("ListMultipartUploads"):
            while True:
                answer = await self._client.list_multipart_uploads(
                    Bucket=self._address.bucket, Prefix=self.key(prefix), **more
                )
                found += [
                    Multipart(key=item["Key"][cut:], id=item["UploadId"], begun_at=_seconds(item["Initiated"]))
                    for item in answer.get("Uploads", ())
                ]
                if not answer.get("IsTruncated"):
                    return found
                more = {
                    "KeyMarker": answer.get("NextKeyMarker", ""),
                    "UploadIdMarker": answer.get("NextUploadIdMarker", ""),
                }

    async def complete(self, multipart: Multipart, etags: Sequence[str]) -> bool:
        """Makes an object of parts 1, 2 …, each with its tag.

        Returns:
            False where the upload is no more: it was completed or aborted by somebody else.

        Raises:
            StorageError: Among others, a part is missing, or another one than its tag says.
        """
        parts = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in enumerate(etags, 1)]
        with self._errors("CompleteMultipartUpload"):
            try:
                await self._client.complete_multipart_upload(
                    Bucket=self._address.bucket,
                    Key=self.key(multipart.key),
                    UploadId=multipart.id,
                    MultipartUpload={"Parts": parts},
                )
            except ClientError as exc:
                if _code(exc) in _GONE:
                    return False
                raise
        return True

    async def abort(self, multipart: Multipart) -> None:
        """Ends one and removes its parts; nothing happens if it is no more."""
        with self._errors("AbortMultipartUpload"):
            try:
                await self._client.abort_multipart_upload(
                    Bucket=self._address.bucket, Key=self.key(multipart.key), UploadId=multipart.id
                )
            except ClientError as exc:
                if _code(exc) not in _GONE:
                    raise

    # -- addresses for others --------------------------------------------------------------------------------------

    async def sign(self, operation: str, name: str, *, expires_s: int, **more: object) -> str:
        """The address at which its holder may do one thing for a while."""
        with self._errors("signing"):
            url: str = await self._signer.generate_presigned_url(
                operation,
                Params={"Bucket": self._address.bucket, "Key": self.key(name), **more},
                ExpiresIn=expires_s,
            )
        return url

    @contextmanager
    def _errors(self, operation: str) -> Iterator[None]:
        try:
            yield
        except ModelBoxError:
            raise
        except ClientError as exc:
            raise self._refusal(operation, exc) from exc
        except (NoCredentialsError, PartialCredentialsError) as exc:
            raise StorageError(f"{self._address} needs credentials, and there are none", status=401) from exc
        except (ConnectionError, HTTPClientError, aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise ServerBusy(
                f"the blob store {self._address} does not answer to {operation} ({type(exc).__name__})",
                retry_after_s=_RETRY_AFTER_S,
            ) from exc
        except BotoCoreError as exc:
            raise StorageError(f"{operation} at {self._address} failed: {exc}") from exc

    def _refusal(self, operation: str, exc: ClientError) -> ModelBoxError:
        code, status = _code(exc), _status(exc)
        text = f"the blob store {self._address} answers {operation} with {status} {code}"
        if code in _FULL or status == 507:
            return LimitError(f"{text}: it is full")
        if code in _BUSY or status >= 500 or status == 429:
            return ServerBusy(text, retry_after_s=_RETRY_AFTER_S)
        return StorageError(text, status=status, reason=code)


@functools.cache
def _models() -> Loader:
    # Descriptions of the service's calls, half a second to parse.
    return Loader()


def _session() -> AioSession:
    session = get_session()
    session.register_component("data_loader", _models())
    return session


def _code(exc: ClientError) -> str:
    return str(exc.response.get("Error", {}).get("Code", ""))


def _status(exc: ClientError) -> int:
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _seconds(value: datetime) -> datetime:
    return value.astimezone(UTC).replace(microsecond=0)


def _time_of(answer: Mapping[str, Any]) -> datetime:
    """The store's own time, by which the age of what it keeps is judged."""
    header = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    try:
        return parsedate_to_datetime(header).astimezone(UTC)
    except ValueError:
        return datetime.now(UTC)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

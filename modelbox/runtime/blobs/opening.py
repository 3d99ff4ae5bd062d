"""Where a server keeps blobs: `blobs_url` decides, and without one it is the data directory."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from modelbox.errors import ConfigError
from modelbox.runtime.blobs.filesystem import FilesystemBlobs

if TYPE_CHECKING:
    from modelbox.runtime.blobs.s3 import S3Blobs

__all__ = ("S3Options", "open_blobs")

_EXPECTED = "expected s3://bucket, s3://bucket/prefix or file:///directory"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Options:
    """How an S3-compatible store is reached.

    Attributes:
        endpoint: Empty for Amazon's of the region.
        region: Empty for what the environment says.
        path_style: Whether the bucket stands in the path, and not in the host's name.
        public_endpoint: What presigned addresses name; empty for ``endpoint``.
        presign: Whether clients may be sent to the store.
    """

    endpoint: str = ""
    region: str = ""
    path_style: bool = False
    public_endpoint: str = ""
    presign: bool = False


def open_blobs(
    blobs_url: str, *, data_dir: Path, s3: S3Options | None = None, connect_timeout_s: float = 30.0
) -> AbstractAsyncContextManager[FilesystemBlobs | S3Blobs]:
    """The blob store of a server; enter it.

    Args:
        blobs_url: Address; the data directory for an empty one.
        data_dir: Directory where ``blobs_url`` is empty.
        s3: How an S3 store is reached.
        connect_timeout_s: How long entering waits for a store that does not answer.

    Raises:
        ConfigError: The address is none, or the package for it is not installed.
    """
    if not blobs_url:
        return FilesystemBlobs(data_dir)
    try:
        url = urlsplit(blobs_url)
    except ValueError as exc:
        raise ConfigError(f"blobs_url is not an address: {_EXPECTED}") from exc
    if url.query or url.fragment or "@" in url.netloc:
        raise ConfigError(f"blobs_url holds more than a place: {_EXPECTED}; credentials come from the environment")
    if url.scheme == "file" and url.netloc in ("", "localhost") and url.path.startswith("/"):
        return FilesystemBlobs(Path(unquote(url.path)))
    if url.scheme != "s3" or not url.netloc:
        raise ConfigError(f"blobs_url is {blobs_url!r}: {_EXPECTED}")
    prefix = url.path.strip("/")
    if not prefix.isascii() or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise ConfigError(f"the prefix in blobs_url is {prefix!r}: expected plain names with single slashes between")
    try:
        from modelbox.runtime.blobs.s3 import S3Blobs
        from modelbox.runtime.blobs.s3_client import S3Address
    except ModuleNotFoundError as exc:
        if exc.name not in ("aiobotocore", "botocore"):
            raise
        raise ConfigError("s3:// needs the package aiobotocore: pip install 'modelbox[s3]'") from exc
    options = s3 or S3Options()
    return S3Blobs(
        S3Address(
            bucket=url.netloc,
            prefix=f"{prefix}/" if prefix else "",
            endpoint=options.endpoint,
            region=options.region,
            path_style=options.path_style,
            public_endpoint=options.public_endpoint,
        ),
        connect_timeout_s=connect_timeout_s,
        presign=options.presign,
    )

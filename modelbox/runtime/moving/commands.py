"""``modelbox server export`` and ``modelbox server import``: opens what the settings name, beside any server."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import anyio

from modelbox.errors import ConfigError
from modelbox.runtime.blobs.opening import S3Options, open_blobs
from modelbox.runtime.config import ServerConfig
from modelbox.runtime.moving.export import write_export
from modelbox.runtime.moving.importing import read_export
from modelbox.runtime.moving.manifest import ExportManifest
from modelbox.runtime.moving.verify import verify_export
from modelbox.runtime.ports import BlobStore
from modelbox.runtime.store.opening import open_database
from modelbox.runtime.store.snapshot import open_snapshot

__all__ = ("run_export", "run_import", "run_verify")

Say = Callable[[str], None]


def run_export(config: ServerConfig, directory: Path, *, say: Say) -> ExportManifest:
    """Copies what a server with these settings keeps; see `write_export`."""
    if not config.database_url and not (config.data_dir / "modelbox.db").is_file():
        raise ConfigError(f"there is no database in {config.data_dir.absolute()}: set data_dir, or database_url")

    async def run() -> ExportManifest:
        async with _blobs(config) as blobs:
            return await write_export(
                lambda: open_snapshot(config.database_url, data_dir=config.data_dir), blobs, directory, say=say
            )

    return _run(run)


def run_import(config: ServerConfig, directory: Path, *, say: Say) -> ExportManifest:
    """Fills what a server with these settings is going to use; see `read_export`."""

    async def run() -> ExportManifest:
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(
                open_database(
                    config.database_url,
                    data_dir=config.data_dir,
                    connections=2,
                    connect_timeout_s=config.database_connect_timeout_s,
                    application="modelbox import",
                )
            )
            blobs = await stack.enter_async_context(_blobs(config))
            return await read_export(directory, database, blobs, say=say)

    return _run(run)


def run_verify(directory: Path, *, say: Say) -> ExportManifest:
    """Reads all of an export; see `verify_export`."""
    return verify_export(directory, say=say)


def _blobs(config: ServerConfig) -> AbstractAsyncContextManager[BlobStore]:
    return open_blobs(
        config.blobs_url,
        data_dir=config.data_dir,
        connect_timeout_s=config.database_connect_timeout_s,
        s3=S3Options(endpoint=config.s3_endpoint, region=config.s3_region, path_style=config.s3_path_style),
    )


def _run(work: Callable[[], Awaitable[ExportManifest]]) -> ExportManifest:
    # Of migrations, what plugins Alembic loads is nobody's business.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # What is written is for this user alone, whatever the shell's default is.
    before = os.umask(0o077)
    try:
        return anyio.run(work)
    finally:
        os.umask(before)

"""``modelbox server fsck`` without a server: opens what the settings name, and has it checked."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AsyncExitStack

import anyio

from modelbox.errors import ConfigError
from modelbox.runtime.blobs.opening import S3Options, open_blobs
from modelbox.runtime.config import ServerConfig
from modelbox.runtime.services.space import SpaceService
from modelbox.runtime.store.opening import open_database
from modelbox.runtime.store.space import SqlSpaceStore
from modelbox.space import Finding, SpaceCheck, SpaceReport

__all__ = ("run_fsck",)


def run_fsck(config: ServerConfig, *, checksums: bool, repair: bool, say: Callable[[SpaceCheck], None]) -> SpaceReport:
    """Checks what a server with these settings keeps. One with SQLite must be stopped first.

    Raises:
        ConfigError: There is no database, or a server uses it.
    """
    if not config.database_url and not (config.data_dir / "modelbox.db").is_file():
        raise ConfigError(f"there is no database in {config.data_dir.absolute()}: set data_dir, or database_url")

    async def run() -> SpaceReport:
        checked: dict[str, int] = {}
        findings: list[Finding] = []
        bytes_read = 0
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(
                open_database(
                    config.database_url,
                    data_dir=config.data_dir,
                    connections=2,
                    connect_timeout_s=config.database_connect_timeout_s,
                    application="modelbox fsck",
                )
            )
            blobs = await stack.enter_async_context(
                open_blobs(
                    config.blobs_url,
                    data_dir=config.data_dir,
                    connect_timeout_s=config.database_connect_timeout_s,
                    s3=S3Options(endpoint=config.s3_endpoint, region=config.s3_region, path_style=config.s3_path_style),
                )
            )
            space = SpaceService(SqlSpaceStore(database), blobs, grace_s=config.blob_grace_s)
            async for said in space.check(checksums=checksums, repair=repair):
                checked[said.stage], bytes_read = said.checked, said.bytes_read
                findings += said.findings
                say(said)
        return SpaceReport(checked=checked, bytes_read=bytes_read, findings=tuple(findings))

    before = os.umask(0o077)
    try:
        return anyio.run(run)
    finally:
        os.umask(before)

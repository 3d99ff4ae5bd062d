"""``modelbox server check`` and ``modelbox server migrate``: looks at what the settings name, or brings it up to date.

Both run beside the servers, and without any.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio

from modelbox.accounts import CreatedToken
from modelbox.errors import ModelBoxError
from modelbox.runtime.blobs.opening import S3Options, open_blobs
from modelbox.runtime.config import ServerConfig
from modelbox.runtime.first_admin import recover_admin
from modelbox.runtime.store.access import SqlAccessStore
from modelbox.runtime.store.changing import SchemaChange, change_schema
from modelbox.runtime.store.checking import Finding, State, check_database
from modelbox.runtime.store.opening import open_database

__all__ = ("Report", "run_admin_token", "run_check", "run_migrate")

T = TypeVar("T")

_PROBE_BYTES = 4096
_BLOBS_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found; ``ok`` unless something failed."""

    ok: bool
    findings: tuple[Finding, ...]


def run_check(config: ServerConfig) -> Report:
    """Looks at the database and the blob store of a server with these settings.

    Raises:
        ConfigError: The settings cannot work.
    """

    async def run() -> Report:
        findings = await check_database(
            config.database_url, data_dir=config.data_dir, connections=config.database_connections
        )
        findings.append(await _check_blobs(config))
        failed = any(finding.state is State.FAILED for finding in findings)
        return Report(ok=not failed, findings=tuple(findings))

    return _run(run)


def run_migrate(config: ServerConfig, *, to: str | None, metrics_to: str | None, force: bool) -> list[SchemaChange]:
    """Brings the schema of a server with these settings to the newest revision, or to others.

    Args:
        config: The settings.
        to: Another revision of the main tables.
        metrics_to: Another revision of the tables of metrics.
        force: Go back although servers use the database, or data are lost.

    Raises:
        ConfigError: The schema or a revision is unknown, or going back was not confirmed.
        ServerBusy: The database is away.
        StorageError: Anything else.
    """

    async def run() -> list[SchemaChange]:
        return await change_schema(
            config.database_url,
            data_dir=config.data_dir,
            to=to,
            metrics_to=metrics_to,
            force=force,
            connect_timeout_s=config.database_connect_timeout_s,
        )

    return _run(run)


def run_admin_token(config: ServerConfig) -> CreatedToken:
    """Makes another token of an admin everywhere in the database of a server with these settings.

    Raises:
        ConfigError: A server runs over the same data directory.
        ServerBusy: The database is away.
        StorageError: Anything else.
    """

    async def run() -> CreatedToken:
        async with open_database(
            config.database_url,
            data_dir=config.data_dir,
            connections=1,
            connect_timeout_s=config.database_connect_timeout_s,
        ) as database:
            return await recover_admin(SqlAccessStore(database))

    return _run(run)


async def _check_blobs(config: ServerConfig) -> Finding:
    where = config.blobs_url or f"directory {config.data_dir.absolute()}"
    if not config.blobs_url and not config.data_dir.exists():
        return Finding(check="files", state=State.WARNING, detail=f"{where}: not there yet; a start makes it")
    options = S3Options(endpoint=config.s3_endpoint, region=config.s3_region, path_style=config.s3_path_style)
    probe = f"check_{secrets.token_hex(12)}"
    try:
        with anyio.fail_after(_BLOBS_TIMEOUT_S):
            async with open_blobs(
                config.blobs_url, data_dir=config.data_dir, s3=options, connect_timeout_s=_BLOBS_TIMEOUT_S / 2
            ) as blobs:
                async with blobs.open_upload(probe) as writer:
                    await writer.write(secrets.token_bytes(_PROBE_BYTES))
                    await writer.flush()
                await blobs.discard_upload(probe)
    except ModelBoxError as exc:
        return Finding(check="files", state=State.FAILED, detail=f"{where}: {exc}")
    except TimeoutError:
        return Finding(check="files", state=State.FAILED, detail=f"{where}: no answer within {_BLOBS_TIMEOUT_S:g} s")
    return Finding(check="files", state=State.OK, detail=f"{where}: can be written to")


def _run(work: Callable[[], Awaitable[T]]) -> T:
    # Of migrations, what plugins Alembic loads is nobody's business.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Passes on that MySQL has its own name for primary keys.
    logging.getLogger("asyncmy").setLevel(logging.ERROR)
    # What is written is for this user alone, whatever the shell's default is.
    before = os.umask(0o077)
    try:
        return anyio.run(work)
    finally:
        os.umask(before)

"""Rules and protected aliases over SQLite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelbox.runtime.store.sqlite import SqliteDatabase
from tests.integration.server_core import write_databases

from .alias_stores import ApprovalContract, ProtectionContract
from .alias_walk import AliasWalkContract
from .rule_stores import PromotionContract, PublicationContract


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    write_databases(tmp_path)
    async with SqliteDatabase(tmp_path) as opened:
        yield opened


class TestPublications(PublicationContract):
    pass


class TestPromotions(PromotionContract):
    pass


class TestProtections(ProtectionContract):
    pass


class TestApprovals(ApprovalContract):
    pass


class TestWalk(AliasWalkContract):
    pass

"""Rules and protected aliases over MariaDB."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelbox.runtime.store.database import MainDatabase
from modelbox.runtime.store.opening import open_database

from .alias_stores import ApprovalContract, ProtectionContract
from .alias_walk import AliasWalkContract
from .rule_stores import PromotionContract, PublicationContract


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def database(mariadb_migrated_url: str, tmp_path: Path) -> AsyncIterator[MainDatabase]:
    async with open_database(mariadb_migrated_url, data_dir=tmp_path) as opened:
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

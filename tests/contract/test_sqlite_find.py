"""Finding over SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine

from modelbox.runtime.store import metric_schema, schema

from .find_stores import FindStoreContract


class TestFind(FindStoreContract):
    @pytest.fixture
    def connection(self, tmp_path: Path) -> Iterator[Connection]:
        engine = create_engine(f"sqlite:///{tmp_path / 'all.db'}")
        schema.metadata.create_all(engine)
        metric_schema.metadata.create_all(engine)
        with engine.connect() as opened:
            yield opened
        engine.dispose()

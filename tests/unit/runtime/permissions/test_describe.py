"""The documentation says what the server goes by."""

from __future__ import annotations

from pathlib import Path

from modelbox.runtime.permissions.describe import permissions_tables

ROOT = Path(__file__).parents[4]


def test_the_documented_tables_are_those_of_the_server() -> None:
    assert permissions_tables() in (ROOT / "docs/permissions.md").read_text(), (
        "put modelbox.runtime.permissions.describe.permissions_tables() into docs/permissions.md"
    )

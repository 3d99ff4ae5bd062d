"""Statements are compiled once for all dialects that write them alike, and for no other."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects import mysql, postgresql, sqlite

from modelbox.runtime.store.prepared import spelling_of
from modelbox.runtime.store.prepared_rows import PreparedRows
from modelbox.runtime.store.schema import attributes


def test_sessions_of_mysql_that_quote_otherwise_have_statements_of_their_own() -> None:
    plain: Any = mysql.dialect()
    ansi: Any = mysql.dialect()
    ansi._server_ansiquotes = True
    ansi.identifier_preparer = ansi.preparer(ansi, server_ansiquotes=True)
    rows = PreparedRows(attributes, ["object_id", "kind", "key"])
    assert '"key"' in rows._form(ansi, 1)[0]
    assert "`key`" in rows._form(plain, 1)[0]
    other: Any = mysql.dialect()
    assert rows._form(other, 1) is rows._form(plain, 1)
    assert len({spelling_of(one) for one in _all(plain, ansi)}) == 4


def _all(*dialects: Any) -> tuple[Any, ...]:
    more: tuple[Any, Any] = (postgresql.dialect(), sqlite.dialect())  # type: ignore[no-untyped-call]
    return (*dialects, *more)

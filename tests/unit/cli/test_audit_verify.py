"""An export of the audit log against what a server says of the same changes later."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from modelbox.audit import AuditEntry
from modelbox.cli.audit_verify import Compared, compare, read_export
from modelbox.errors import InvalidError
from modelbox.objects import to_json

AT = datetime(2026, 5, 3, 12, tzinfo=UTC)


def entry(rev: int, idx: int = 0, *, owner: str = "ann", chain: str = "") -> AuditEntry:
    return AuditEntry(
        rev=rev,
        idx=idx,
        at=AT,
        actor=owner,
        namespace="ns",
        object="ns/m",
        kind="model",
        action="updated",
        before={"rev": rev - 1},
        after={"rev": rev},
        chain=chain or f"{rev:064x}",
    )


HISTORY = [entry(1), entry(1, 1), entry(2), entry(3), entry(5)]


async def given(entries: Iterable[AuditEntry]) -> AsyncGenerator[AuditEntry, None]:
    for one in entries:
        yield one


async def compared(exported: Iterable[AuditEntry], now: Iterable[AuditEntry], oldest_rev: int = 1) -> Compared:
    async with aclosing(given(now)) as entries:
        return await compare(iter(exported), entries, oldest_rev=oldest_rev)


async def test_more_than_what_was_exported_is_no_fault() -> None:
    found = await compared([HISTORY[2], HISTORY[4]], [*HISTORY, entry(6)])
    assert (found.same, found.forgotten, found.wrong) == (2, 0, 0)


async def test_what_the_server_has_forgotten_is_no_fault() -> None:
    now = [replace(HISTORY[3], before=None), HISTORY[4]]
    found = await compared(HISTORY, now, oldest_rev=3)
    assert (found.same, found.forgotten, found.wrong) == (2, 3, 0)


@pytest.mark.parametrize(
    ("now", "fault"),
    [
        ([entry(1), entry(1, 1), entry(3), entry(5)], "revision 2, change 0: .* is gone"),
        ([*HISTORY[:3], entry(3, owner="eve"), entry(5)], "revision 3, change 0: .* is now .* by eve"),
        ([*HISTORY[:3], replace(entry(3), before={"rev": 9}), entry(5)], "revision 3, change 0"),
        ([*HISTORY[:3], replace(entry(3), after=None), entry(5)], "revision 3, change 0"),
        ([*HISTORY[:4], entry(5, chain="ff" * 32)], "revision 5, change 0: .* something before it is not what it was"),
        (HISTORY[:4], "revision 5, change 0: .* is gone"),
    ],
)
async def test_what_is_not_as_it_was_is_told(now: list[AuditEntry], fault: str) -> None:
    found = await compared(HISTORY, now)
    assert (found.same, found.wrong, len(found.faults)) == (4, 1, 1)
    assert re.search(fault, found.faults[0])


async def test_only_the_first_faults_are_shown_and_all_are_counted() -> None:
    found = await compared([entry(rev) for rev in range(1, 101)], [])
    assert (found.wrong, len(found.faults)) == (100, 20)


def test_an_export_is_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    lines = [json.dumps(to_json(one)) for one in HISTORY]
    file.write_text("\n".join(lines) + "\n\n")
    assert list(read_export(file)) == HISTORY
    file.write_text("\n".join([lines[1], lines[0]]))
    with pytest.raises(InvalidError, match=r"line 2: entry 1\.0 follows 1\.1"):
        list(read_export(file))
    for text in ("{", "[]", '{"rev": "one"}'):
        file.write_text(text)
        with pytest.raises(InvalidError, match="line 1 is no entry"):
            list(read_export(file))

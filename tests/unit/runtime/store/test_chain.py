"""The chain of the change feed: what it binds of a row, with and without a caller."""

from __future__ import annotations

import hashlib
import json
from itertools import product
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from modelbox.feed import next_chain
from modelbox.runtime.store.chain import CALLER_COLUMNS, change_body, follow

ROW: dict[str, Any] = {
    "idx": 0,
    "namespace": "ns",
    "object": "ns/m",
    "kind": "model",
    "action": "created",
    "actor": "ann",
    "at_us": 1777809600000000,
    "state": '{"name":"m"}',
    "token_id": "",
    "address": "",
    "request_id": "",
}


def history(length: int) -> dict[int, list[dict[str, Any]]]:
    """Revisions with one to three changes each, every other one with a caller."""
    rows: dict[int, list[dict[str, Any]]] = {}
    chain = bytes(32)
    for rev in range(1, length + 1):
        who = {"token_id": "kid", "address": "::1", "request_id": f"r{rev}"} if rev % 2 else {}
        some = [{**ROW, **who, "rev": rev, "idx": idx, "state": f'{{"rev":{rev}}}'} for idx in range(rev % 3 + 1)]
        chain = next_chain(chain, rev, [change_body(row) for row in some])
        rows[rev] = [{**row, "chain": chain} for row in some]
    return rows


def test_a_change_without_a_caller_is_bound_as_before_there_were_callers() -> None:
    # The bytes of a change that a release without callers wrote.
    body = b'[0,"ns","ns/m","model","created","ann",1777809600000000,"{\\"name\\":\\"m\\"}"]'
    assert change_body(ROW) == body
    expected = hashlib.sha256(bytes(32) + (1).to_bytes(8, "big") + len(body).to_bytes(8, "big") + body).digest()
    assert next_chain(bytes(32), 1, [change_body(ROW)]) == expected


def test_no_two_callers_are_bound_alike() -> None:
    bodies = {
        change_body({**ROW, **dict(zip(CALLER_COLUMNS, values, strict=True))})
        for values in product(("", "a"), repeat=3)
    }
    assert len(bodies) == 8
    assert all(len(json.loads(body)) in (8, 11) for body in bodies)


@given(
    rev=st.integers(1, 12),
    column=st.sampled_from([name for name in ROW if name != "idx"]),
    cut=st.integers(0, 11),
)
def test_whatever_is_altered_is_found_where_it_is_and_nowhere_else(rev: int, column: str, cut: int) -> None:
    rows = history(12)
    whole = follow(rows, rev=0, chains=(bytes(32),), end=12)
    assert (whole.faults, whole.verified) == ((), 12)
    value = rows[rev][0][column]
    rows[rev][0][column] = value + 1 if isinstance(value, int) else f"{value}x"
    # In two parts, wherever the first ends.
    first = follow(rows, rev=0, chains=(bytes(32),), end=cut)
    second = follow(rows, rev=cut, chains=first.chains, end=12)
    assert [number for number, _ in (*first.faults, *second.faults)] == [rev]
    assert first.verified + second.verified == 11


@given(st.sets(st.integers(1, 12), min_size=1))
def test_what_is_missing_is_told_in_spans(gone: set[int]) -> None:
    rows = {rev: some for rev, some in history(12).items() if rev not in gone}
    found = follow(rows, rev=0, chains=(bytes(32),), end=12)
    begins = sorted(rev for rev in gone if rev - 1 not in gone)
    assert [rev for rev, _ in found.faults] == begins
    assert all(text.endswith("missing") for _, text in found.faults)

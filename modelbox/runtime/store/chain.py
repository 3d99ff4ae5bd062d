"""What the chain of the change feed binds, and what was done to rows that do not fit it.

Pure: works on rows that somebody has read. Each revision's rows hold the chain behind it, so one that was tampered with
does not hide the next: it is told, and verification goes on from what its rows say.

What it cannot see: whoever may change every row may also compute the chain anew, up to the head. That shows where a
place of the old chain is kept elsewhere: in the resume tokens of watchers (`DIVERGED`), exports and audit exports.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from modelbox.feed import next_chain

__all__ = ("CALLER_COLUMNS", "Followed", "Row", "change_body", "follow")

Row = Mapping[str, Any]

CALLER_COLUMNS = ("token_id", "address", "request_id")
_BOUND = ("idx", "namespace", "object", "kind", "action", "actor", "at_us", "state")
_TRIED_ROWS = 64
"""Rows of one revision that are tried for what was inserted or exchanged."""
_TRIED_REVISIONS = 32
"""Revisions that are tried for having been exchanged."""


def change_body(row: Row) -> bytes:
    """What the chain binds of a change: every column, in a form that the row gives back.

    Without a caller, as of changes from before callers were kept, these three are left out.
    """
    parts = [row[name] for name in _BOUND]
    caller = [row[name] for name in CALLER_COLUMNS]
    if any(caller):
        parts += caller
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What came of following the chain over some revisions.

    Attributes:
        chains: What the chain may be at the last one: more than one value where that was tampered with, none where it
            is missing.
        faults: What is wrong: revision and text.
        verified: Revisions that are as they were written.
    """

    chains: tuple[bytes, ...]
    faults: tuple[tuple[int, str], ...]
    verified: int


@dataclass(slots=True, kw_only=True)
class _Broken:
    rev: int
    before: tuple[bytes, ...]
    rows: list[Row]
    stored: tuple[bytes, ...]


def follow(rows: Mapping[int, Sequence[Row]], *, rev: int, chains: tuple[bytes, ...], end: int) -> Followed:
    """Recomputes the chain over the revisions after ``rev`` up to ``end``.

    Args:
        rows: Those of each revision, in whichever order.
        rev: Where to begin.
        chains: The chain there: one value, or see `Followed`.
        end: The last revision that there should be.
    """
    missing: list[int] = []
    broken: list[_Broken] = []
    verified = 0
    for number in range(rev + 1, end + 1):
        found = sorted(rows.get(number, ()), key=lambda row: row["idx"])
        if not found:
            missing.append(number)
            chains = ()
            continue
        stored = tuple(dict.fromkeys(bytes(row["chain"]) for row in found))
        bodies = [change_body(row) for row in found]
        expected = tuple(next_chain(chain, number, bodies) for chain in chains)
        if len(stored) == 1 and (not chains or stored[0] in expected):
            chains = stored
            # What comes behind a hole fits nothing that is known; the next one has to fit it.
            verified += bool(expected)
            continue
        broken.append(_Broken(rev=number, before=chains, rows=found, stored=stored))
        chains = tuple(dict.fromkeys((*stored, *expected)))
    faults = [(first, _missing(first, last)) for first, last in _spans(missing)]
    faults += _judge(broken)
    return Followed(chains=chains, faults=tuple(sorted(faults)), verified=verified)


def _spans(numbers: Sequence[int]) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    return spans


def _missing(first: int, last: int) -> str:
    if first == last:
        return f"revision {first} of the change feed is missing"
    return f"revisions {first} to {last} of the change feed are missing"


def _judge(broken: list[_Broken]) -> list[tuple[int, str]]:
    faults = []
    settled: set[int] = set()
    for one, other in combinations(broken[:_TRIED_REVISIONS], 2):
        if one.rev in settled or other.rev in settled or not _fits(other.rows, at=one):
            continue
        faults.append((one.rev, f"revisions {one.rev} and {other.rev} of the change feed were exchanged"))
        settled |= {one.rev, other.rev}
        # What comes behind one of them fits the other.
        for place, moved in ((one, other), (other, one)):
            for behind in broken:
                if behind.rev == place.rev + 1 and _fits(behind.rows, at=behind, before=moved.stored):
                    settled.add(behind.rev)
    return faults + [(one.rev, _what_happened(one)) for one in broken if one.rev not in settled]


def _fits(rows: Sequence[Row], *, at: _Broken, before: tuple[bytes, ...] = ()) -> bool:
    bodies = [change_body(row) for row in rows]
    stored = {bytes(row["chain"]) for row in rows}
    return any(stored == {next_chain(chain, at.rev, bodies)} for chain in before or at.before)


def _what_happened(one: _Broken) -> str:
    if len(one.rows) <= _TRIED_ROWS:
        for row in one.rows:
            if _fits([other for other in one.rows if other is not row], at=one):
                return f"revision {one.rev} of the change feed was altered: change {_shown(row)} was inserted"
        for left, right in combinations(one.rows, 2):
            exchanged = {left["idx"]: {**right, "idx": left["idx"]}, right["idx"]: {**left, "idx": right["idx"]}}
            if _fits([exchanged.get(row["idx"], row) for row in one.rows], at=one):
                return (
                    f"revision {one.rev} of the change feed was altered: its changes {left['idx']} and {right['idx']}"
                    " were exchanged"
                )
    indexes = [row["idx"] for row in one.rows]
    if indexes != list(range(len(indexes))):
        there = set(indexes)
        gone = [index for index in range(max(indexes) + 1) if index not in there]
        return f"revision {one.rev} of the change feed was altered: its change {gone[0]} is missing"
    return f"revision {one.rev} of the change feed was altered: it says {_shown(one.rows[0])}"


def _shown(row: Row) -> str:
    text = f"{row['idx']} ({row['kind']} {row['object']} {row['action']} by {row['actor'] or 'nobody'})"
    return text if len(text) <= 200 else f"{text[:199]}…"

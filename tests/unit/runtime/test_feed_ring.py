"""The ring's index finds what a filter lets through, whatever comes and goes, and wakes nobody else."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.access import ALL, Scope
from modelbox.feed import Change, Filter
from modelbox.runtime.ports import StoredRevision
from modelbox.runtime.services.feed_ring import Interest, Ring

RUN = "run_0123456789abcdef01234567"
PATHS = ["a", "a/m", "a/m@1", "a/m@prod", "a/m2@prod", "b/m@prod", RUN, f"{RUN}/param", "art_0123456789abcdef01234567"]
KINDS = ["model", "alias", "run", "attributes"]
FILTERS = st.builds(
    Filter,
    namespace=st.sampled_from(["", "a", "b"]),
    objects=st.lists(st.sampled_from(["a", "a/m", "a/m@prod", "b/m", RUN]), max_size=3).map(tuple),
    kinds=st.lists(st.sampled_from(KINDS), max_size=2).map(tuple),
)
SCOPES = st.sampled_from(
    [
        ALL,
        Scope(),
        Scope(namespaces=frozenset({"a"})),
        Scope(namespaces=frozenset({"a"}), models=frozenset({("b", "m")})),
        Scope(namespaces=frozenset(f"n{number}" for number in range(60)) | {"b"}),
    ]
)
REVISIONS = st.lists(
    st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from(KINDS)), min_size=1, max_size=3), max_size=30
)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def revision(rev: int, what: list[tuple[str, str]]) -> StoredRevision:
    changes = tuple(
        Change(
            rev=rev,
            idx=idx,
            namespace="b" if path.startswith("b") else "a",
            object=path,
            kind=kind,
            action="updated",
            actor="",
            at=datetime(2026, 1, 1, tzinfo=UTC),
            state={},
        )
        for idx, (path, kind) in enumerate(what)
    )
    return StoredRevision(rev=rev, chain=bytes([rev % 256]) * 32, changes=changes, size_bytes=10)


def matches(one: StoredRevision, wanted: Filter, scope: Scope) -> bool:
    return any(wanted.matches(change) and scope.shows_namespace(change.namespace) for change in one.changes)


@given(script=REVISIONS, wanted=FILTERS, scope=SCOPES, size=st.integers(1, 12), start=st.integers(0, 5))
def test_nothing_that_matches_is_passed_over(
    script: list[list[tuple[str, str]]], wanted: Filter, scope: Scope, size: int, start: int
) -> None:
    ring = Ring(max_changes=size, max_bytes=1 << 30)
    ring.start(start, b"")
    interest = Interest(wanted, scope)
    revisions = [revision(start + 1 + number, what) for number, what in enumerate(script)]
    for one in revisions:
        ring.append(one)
    for cursor in range(start, ring.last):
        if not ring.holds(cursor + 1):
            continue
        found = ring.next_for(interest, cursor)
        passed = [one for one in revisions if cursor < one.rev < (found.rev if found else ring.last + 1)]
        assert not any(matches(one, wanted, scope) for one in passed)
        assert found is None or found in revisions
    kept = [one for one in revisions if ring.holds(one.rev)]
    assert sum(len(one.changes) for one in kept) <= size
    if ring.last > start:
        assert ring.last_chain == revisions[-1].chain


@given(script=REVISIONS, wanted=FILTERS, scope=SCOPES)
async def test_a_watcher_is_woken_by_what_may_be_for_it(
    script: list[list[tuple[str, str]]], wanted: Filter, scope: Scope
) -> None:
    ring = Ring(max_changes=1000, max_bytes=1 << 30)
    interest = Interest(wanted, scope)
    ring.add(interest)
    ring.caught_up(interest)
    for number, what in enumerate(script):
        interest.rearm()
        one = revision(number + 1, what)
        ring.append(one)
        if matches(one, wanted, scope):
            assert interest.woken
        elif wanted.objects and not any(path.startswith(tuple(wanted.objects)) for path, _ in what):
            assert not interest.woken
        elif scope.namespaces == {"a"} and wanted == Filter() and all(path.startswith("b") for path, _ in what):
            assert scope.models or not interest.woken
    ring.remove(interest)
    interest.rearm()
    ring.append(revision(ring.last + 1, [("a", "model"), ("a/m@prod", "alias"), (RUN, "run"), ("b/m@prod", "alias")]))
    assert not interest.woken


async def test_one_that_catches_up_is_woken_by_everything() -> None:
    ring = Ring(max_changes=1000, max_bytes=1 << 30)
    interest = Interest(Filter(objects=("a/m",)))
    ring.add(interest)
    ring.append(revision(1, [("b/m@prod", "alias")]))
    assert interest.woken
    ring.caught_up(interest)
    interest.rearm()
    ring.append(revision(2, [("b/m@prod", "alias")]))
    assert not interest.woken
    ring.start(7, b"chain")
    assert interest.woken

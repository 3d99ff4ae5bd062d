"""The rule of retention: whatever the policy and the versions are, these hold."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.errors import InvalidError
from modelbox.retention import (
    Best,
    BestMode,
    Candidate,
    Retained,
    RetentionPolicy,
    check_policy,
    check_scope,
    decide,
)

NOW = datetime(2026, 5, 3, 12, tzinfo=UTC)

ages = st.integers(min_value=-3600, max_value=10**7)
metrics = st.dictionaries(
    st.sampled_from(["wer", "acc"]), st.sampled_from([0.1, 0.2, 0.2, 3.0, -1.0, math.nan, math.inf]), max_size=2
)
holds = st.lists(st.sampled_from(["alias prod", "locked by ann", "lineage: 1 object made from it"]), max_size=2)


@st.composite
def candidate_lists(draw: st.DrawFn) -> list[Candidate]:
    orders = draw(st.lists(st.integers(min_value=1, max_value=60), unique=True, max_size=25))
    return [
        Candidate(
            id=f"ver_{order}",
            order=order,
            created_at=NOW - timedelta(seconds=draw(ages)),
            metrics=draw(metrics),
            holds=tuple(draw(holds)),
        )
        for order in orders
    ]


bests = st.builds(
    Best, metric=st.sampled_from(["wer", "acc"]), count=st.integers(1, 6), mode=st.sampled_from(list(BestMode))
)
policies = st.builds(
    RetentionPolicy,
    scope=st.just("ns"),
    keep_last=st.none() | st.integers(1, 12),
    keep_younger_s=st.none() | st.floats(1.0, 1e7),
    keep_best=st.lists(bests, max_size=2).map(tuple),
).filter(lambda one: one.keep_last is not None or one.keep_younger_s is not None or bool(one.keep_best))


@given(policies, candidate_lists())
def test_every_candidate_gets_one_decision_that_says_why_newest_first(
    policy: RetentionPolicy, candidates: list[Candidate]
) -> None:
    decisions = decide(check_policy(policy), candidates, now=NOW)
    assert [one.order for one in decisions] == sorted((one.order for one in candidates), reverse=True)
    assert {one.id for one in decisions} == {one.id for one in candidates}
    assert all(one.reasons and all(one.reasons) for one in decisions)


@given(policies, candidate_lists())
def test_nothing_that_is_held_ever_goes(policy: RetentionPolicy, candidates: list[Candidate]) -> None:
    held = {one.id: one.holds for one in candidates if one.holds}
    for one in decide(policy, candidates, now=NOW):
        if one.id in held:
            assert one.keep
            assert all(f"held: {hold}" in one.reasons for hold in held[one.id])


@given(st.integers(1, 12), candidate_lists())
def test_keep_last_keeps_exactly_the_newest_of_what_nothing_holds(count: int, candidates: list[Candidate]) -> None:
    free = [Candidate(id=one.id, order=one.order, created_at=one.created_at) for one in candidates]
    decisions = decide(RetentionPolicy(scope="ns", keep_last=count), free, now=NOW)
    assert [one.keep for one in decisions] == [place < count for place in range(len(free))]


@given(st.integers(1, 12), candidate_lists())
def test_holds_take_no_place_away_from_the_newest(count: int, candidates: list[Candidate]) -> None:
    newest = {one.id for one in sorted(candidates, key=lambda one: -one.order)[:count]}
    kept = {one.id for one in decide(RetentionPolicy(scope="ns", keep_last=count), candidates, now=NOW) if one.keep}
    assert kept == newest | {one.id for one in candidates if one.holds}


@given(bests, candidate_lists())
def test_keep_best_keeps_the_best_and_nothing_without_the_metric(best: Best, candidates: list[Candidate]) -> None:
    free = [Candidate(id=one.id, order=one.order, created_at=one.created_at, metrics=one.metrics) for one in candidates]
    measured = [one for one in free if not math.isnan(one.metrics.get(best.metric, math.nan))]
    decisions = decide(RetentionPolicy(scope="ns", keep_best=(best,)), free, now=NOW)
    kept = {one.id for one in decisions if one.keep}
    assert len(kept) == min(best.count, len(measured))
    assert kept <= {one.id for one in measured}
    value = {one.id: one.metrics[best.metric] for one in measured}
    for good in kept:
        for other in value.keys() - kept:
            if best.mode is BestMode.MAX:
                assert value[good] >= value[other]
            else:
                assert value[good] <= value[other]


@given(st.floats(1.0, 1e7), candidate_lists())
def test_age_keeps_what_is_younger(limit_s: float, candidates: list[Candidate]) -> None:
    free = [Candidate(id=one.id, order=one.order, created_at=one.created_at) for one in candidates]
    decisions = decide(RetentionPolicy(scope="ns", keep_younger_s=limit_s), free, now=NOW)
    young = {one.id for one in free if (NOW - one.created_at).total_seconds() < limit_s}
    assert {one.id for one in decisions if one.keep} == young


@given(policies, policies, candidate_lists())
def test_more_rules_never_keep_less(
    first: RetentionPolicy, second: RetentionPolicy, candidates: list[Candidate]
) -> None:
    both = RetentionPolicy(
        scope="ns",
        keep_last=max((one.keep_last for one in (first, second) if one.keep_last is not None), default=None),
        keep_younger_s=max(
            (one.keep_younger_s for one in (first, second) if one.keep_younger_s is not None), default=None
        ),
        keep_best=(*first.keep_best, *second.keep_best),
    )
    kept = {one.id for one in decide(both, candidates, now=NOW) if one.keep}
    for policy in (first, second):
        assert {one.id for one in decide(policy, candidates, now=NOW) if one.keep} <= kept


@given(candidate_lists())
def test_without_a_policy_everything_stays(candidates: list[Candidate]) -> None:
    for policy in (None, RetentionPolicy(scope="ns/m", keep_all=True)):
        decisions = decide(policy, candidates, now=NOW)
        assert all(one.keep for one in decisions)
        assert len(decisions) == len(candidates)


def test_reasons_are_for_people() -> None:
    def version(number: int, *, days: float, acc: float | None = None, holds: tuple[str, ...] = ()) -> Candidate:
        return Candidate(
            id=f"ver_{number}",
            order=number,
            created_at=NOW - timedelta(days=days),
            metrics={} if acc is None else {"acc": acc},
            holds=holds,
        )

    policy = RetentionPolicy(
        scope="ns", keep_last=1, keep_younger_s=30 * 86400, keep_best=(Best(metric="acc", count=1),)
    )
    versions = [
        version(1, days=90, acc=0.5),
        version(2, days=60, acc=0.93, holds=("alias prod",)),
        version(3, days=40),
        version(4, days=10),
        version(5, days=0.1),
    ]
    assert {one.order: (one.keep, one.reasons) for one in decide(policy, versions, now=NOW)} == {
        5: (True, ("one of the newest 1", "younger than 30 days")),
        4: (True, ("younger than 30 days",)),
        3: (
            False,
            ("not one of the newest 1 (number 3)", "has no acc", "40 days old, not younger than 30 days"),
        ),
        2: (True, ("held: alias prod", "one of the 1 best by acc (0.93)")),
        1: (
            False,
            (
                "not one of the newest 1 (number 5)",
                "not one of the 1 best by acc (0.5, number 2)",
                "90 days old, not younger than 30 days",
            ),
        ),
    }


@pytest.mark.parametrize(
    "policy",
    [
        RetentionPolicy(scope="ns"),
        RetentionPolicy(scope="ns", keep_last=0),
        RetentionPolicy(scope="ns", keep_last=-1),
        RetentionPolicy(scope="ns", keep_last=True),
        RetentionPolicy(scope="ns", keep_last=10**9),
        RetentionPolicy(scope="ns", keep_younger_s=0.0),
        RetentionPolicy(scope="ns", keep_younger_s=math.nan),
        RetentionPolicy(scope="ns", keep_younger_s=math.inf),
        RetentionPolicy(scope="ns", keep_all=True, keep_last=1),
        RetentionPolicy(scope="ns", keep_best=(Best(metric="", count=1),)),
        RetentionPolicy(scope="ns", keep_best=(Best(metric="a", count=0),)),
        RetentionPolicy(scope="ns", keep_best=(Best(metric="a", count=1),) * 17),
        RetentionPolicy(scope="ns/m", kind=Retained.RUNS, keep_last=1),
        RetentionPolicy(scope="ns", kind=Retained.RUNS, keep_best=(Best(metric="a", count=1),)),
        RetentionPolicy(scope="ns", kind=Retained.BIN, keep_last=1),
        RetentionPolicy(scope="../x", keep_last=1),
        RetentionPolicy(scope="ns/m@1", keep_last=1),
    ],
)
def test_a_policy_that_cannot_be_followed_is_refused(policy: RetentionPolicy) -> None:
    with pytest.raises(InvalidError):
        check_policy(policy)


@pytest.mark.parametrize("scope", ["ns", "ns/m"])
def test_scopes(scope: str) -> None:
    assert check_scope(scope) == scope

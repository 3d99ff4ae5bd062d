"""What is kept and what may go: policies, and the rule that decides by them.

Pure: `decide` looks at what it is given and at nothing else, so that a dry run and the deletion say the same.

Invariants of `decide`, whatever the policy says:

* What is held is kept: by an alias (`latest` is one), a lock, something that was made from it, an instance that serves
  it, or a run that still goes on.
* What any one rule keeps is kept; rules never take away from each other.
* Every candidate gets exactly one decision, and every decision says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from modelbox.errors import InvalidError
from modelbox.refs import check_name, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = (
    "Best",
    "BestMode",
    "Candidate",
    "Decision",
    "Planned",
    "Retained",
    "RetentionPolicy",
    "RetentionRun",
    "VersionLock",
    "check_kind",
    "check_policy",
    "check_scope",
    "decide",
)

_MAX_COUNT = 1_000_000
_MAX_AGE_S = 100 * 366 * 86400.0
_MAX_RULES = 16
_MAX_KEY = 250


class Retained(StrEnum):
    """What a policy is about.

    ``versions`` are those of a model and are deleted; ``checkpoints`` are those of a run, ``runs`` those of an
    experiment, and both go into the bin; ``bin`` is what lies there, and is removed for good.
    """

    VERSIONS = "versions"
    CHECKPOINTS = "checkpoints"
    RUNS = "runs"
    BIN = "bin"


class BestMode(StrEnum):
    """Which values of a metric are the better ones."""

    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """Keeps the ``count`` best by a metric. What lacks it, or has a NaN, is not among them; of equals the newer is."""

    metric: str
    count: int
    mode: BestMode = BestMode.MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """What is kept of a namespace or model; the rest goes, but what is held.

    Attributes:
        scope: ``namespace``, for all in it that have no policy of their own, or ``namespace/model``.
        kind: What it is about.
        keep_all: Everything: for a model that the policy of its namespace is not for.
        keep_last: The newest so many.
        keep_younger_s: What is younger than this, in seconds.
        keep_best: The best by metrics.
    """

    scope: str
    kind: Retained = Retained.VERSIONS
    keep_all: bool = False
    keep_last: int | None = None
    keep_younger_s: float | None = None
    keep_best: tuple[Best, ...] = ()
    updated_at: datetime | None = None
    updated_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Something that a policy may let go.

    Attributes:
        id: What it is known by.
        order: Greater for what is newer; unique among those that are decided together.
        created_at: Its age counts from here.
        metrics: What `Best` looks at.
        holds: Why it must stay, for people: ``alias prod``. Empty for nothing that holds it.
    """

    id: str
    order: int
    created_at: datetime
    metrics: Mapping[str, float] = field(default_factory=dict)
    holds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of a candidate, and why: all that keeps it, or all that does not."""

    id: str
    order: int
    keep: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One line of a dry run.

    Attributes:
        policy: Scope of the policy that decided; empty where there is none, and everything is kept.
        name: For people: ``ns/model@7``, or an id.
        size_bytes: Of its files, which it may share with others; 0 where it has none of its own.
    """

    kind: Retained
    policy: str
    id: str
    name: str
    keep: bool
    reasons: tuple[str, ...]
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRun:
    """What a run of the policies has done.

    Attributes:
        versions: Versions that were deleted.
        binned: Runs and checkpoints that went into the bin, with what is below them.
        purged: Objects that were removed from the bin for good.
        more: There is more to do: time was up. Run it again.
    """

    versions: int = 0
    binned: int = 0
    purged: int = 0
    more: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionLock:
    """A version that nobody deletes, neither by hand nor by a policy, until it is unlocked."""

    namespace: str
    model: str
    version: int
    reason: str
    locked_at: datetime
    locked_by: str


def check_kind(kind: str) -> Retained:
    """What ``kind`` says that a policy is about.

    Raises:
        InvalidError: There is no such kind.
    """
    try:
        return Retained(kind)
    except ValueError as exc:
        raise InvalidError(f"{shown(kind)} is no kind of policy: expected {', '.join(Retained)}", what="kind") from exc


def check_scope(scope: str) -> str:
    """Returns ``scope`` if it may be one: ``namespace`` or ``namespace/model``.

    Raises:
        InvalidError: It is neither.
    """
    if not isinstance(scope, str):
        raise InvalidError(f"{shown(scope)} is not a scope: expected namespace or namespace/model", what="scope")
    namespace, slash, model = scope.partition("/")
    check_name(namespace, "namespace")
    if slash:
        check_name(model, "model")
    return scope


def check_policy(policy: RetentionPolicy) -> RetentionPolicy:
    """Returns ``policy`` if it can be followed.

    Raises:
        InvalidError: A rule is out of range, or does not fit what the policy is about; or there is no rule at all,
            which would delete everything.
    """
    check_scope(policy.scope)
    kind = check_kind(policy.kind)
    if kind is not Retained.VERSIONS and "/" in policy.scope:
        raise InvalidError(f"a policy for {kind} is of a namespace, not of {shown(policy.scope)}", what="scope")
    rules = [
        name
        for name, given in (
            ("keep_all", policy.keep_all),
            ("keep_last", policy.keep_last is not None),
            ("keep_younger_s", policy.keep_younger_s is not None),
            ("keep_best", bool(policy.keep_best)),
        )
        if given
    ]
    if not rules:
        raise InvalidError("a policy needs a rule that keeps something; without one, everything would go", what="rules")
    if policy.keep_all and len(rules) > 1:
        raise InvalidError("keep_all keeps everything: leave the other rules out", what="keep_all")
    if kind is Retained.BIN and rules != ["keep_younger_s"]:
        raise InvalidError("a policy for the bin says how long things stay there, by keep_younger_s only", what="rules")
    if kind is Retained.RUNS and policy.keep_best:
        raise InvalidError("runs are not kept by metrics: use keep_last or keep_younger_s", what="keep_best")
    if policy.keep_last is not None:
        _check_count(policy.keep_last, "keep_last")
    if policy.keep_younger_s is not None:
        _check_age(policy.keep_younger_s)
    if len(policy.keep_best) > _MAX_RULES:
        raise InvalidError(f"{len(policy.keep_best)} rules by metrics, more than the {_MAX_RULES} allowed")
    for best in policy.keep_best:
        _check_count(best.count, "keep_best")
        if not isinstance(best.metric, str) or not 1 <= len(best.metric) <= _MAX_KEY:
            raise InvalidError(f"{shown(best.metric)} is not the name of a metric", what="keep_best")
        if not isinstance(best.mode, BestMode):
            raise InvalidError(f"{shown(best.mode)} is neither max nor min", what="keep_best")
    return policy


def _check_count(count: int, what: str) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _MAX_COUNT:
        raise InvalidError(f"{what} is {shown(count)}: expected 1 to {_MAX_COUNT}", what=what)


def _check_age(age_s: float) -> None:
    if isinstance(age_s, bool) or not isinstance(age_s, int | float) or not 0 < age_s <= _MAX_AGE_S:
        raise InvalidError(
            f"keep_younger_s is {shown(age_s)}: expected seconds, up to 100 years", what="keep_younger_s"
        )


def decide(policy: RetentionPolicy | None, candidates: Sequence[Candidate], *, now: datetime) -> tuple[Decision, ...]:
    """What becomes of each candidate, newest first.

    Args:
        policy: None keeps everything.
        candidates: All that belong together, such as all versions of a model: the newest and best are found among them.
        now: Ages are counted up to here.
    """
    newest_first = sorted(candidates, key=lambda one: one.order, reverse=True)
    if policy is None or policy.keep_all:
        why = "no policy is set" if policy is None else f"the policy of {policy.scope} keeps all"
        return tuple(_kept(one, [why]) for one in newest_first)
    ranks = [_ranks(best, newest_first) for best in policy.keep_best]
    decisions = []
    for place, one in enumerate(newest_first, start=1):
        keeps, lets_go = [], []
        if policy.keep_last is not None:
            newest = f"the newest {policy.keep_last}"
            if place <= policy.keep_last:
                keeps.append(f"one of {newest}")
            else:
                lets_go.append(f"not one of {newest} (number {place})")
        for best, rank in zip(policy.keep_best, ranks, strict=True):
            if one.id in rank and rank[one.id] <= best.count:
                keeps.append(f"one of the {_best_text(best)} ({one.metrics[best.metric]:.6g})")
            elif one.id in rank:
                value = f"{one.metrics[best.metric]:.6g}, number {rank[one.id]}"
                lets_go.append(f"not one of the {_best_text(best)} ({value})")
            else:
                lets_go.append(f"has no {best.metric}")
        if policy.keep_younger_s is not None:
            age = now - one.created_at
            if age.total_seconds() < policy.keep_younger_s:
                keeps.append(f"younger than {_age_text(policy.keep_younger_s)}")
            else:
                lets_go.append(
                    f"{_age_text(age.total_seconds())} old, not younger than {_age_text(policy.keep_younger_s)}"
                )
        if keeps or one.holds:
            decisions.append(_kept(one, keeps))
        else:
            decisions.append(Decision(id=one.id, order=one.order, keep=False, reasons=tuple(lets_go)))
    return tuple(decisions)


def _kept(one: Candidate, reasons: Sequence[str]) -> Decision:
    return Decision(id=one.id, order=one.order, keep=True, reasons=(*(f"held: {hold}" for hold in one.holds), *reasons))


def _ranks(best: Best, newest_first: Sequence[Candidate]) -> Mapping[str, int]:
    measured = [one for one in newest_first if not math.isnan(one.metrics.get(best.metric, math.nan))]
    sign = -1.0 if best.mode is BestMode.MAX else 1.0
    # Sorting is stable: of equals the newer stays in front.
    measured.sort(key=lambda one: sign * one.metrics[best.metric])
    return {one.id: rank for rank, one in enumerate(measured, start=1)}


def _best_text(best: Best) -> str:
    return (
        f"{best.count} best by {best.metric}" if best.mode is BestMode.MAX else f"{best.count} least by {best.metric}"
    )


def _age_text(seconds: float) -> str:
    age = timedelta(seconds=round(seconds))
    if age >= timedelta(days=2):
        return f"{age.days} days"
    return f"{age.total_seconds() / 3600:.3g} hours" if age >= timedelta(hours=1) else f"{age.total_seconds():g} s"

"""Deliveries of spools: many operations in one message, each judged like a call of its own.

What the caller may not see is refused by itself, as what is not there is, and holds up nothing. What the caller may see
and not change fails the whole delivery: the program keeps it, and nothing is lost that somebody still grants.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import betterproto2

from modelbox.access import Caller, Permission
from modelbox.errors import AuthError, InvalidError, ModelBoxError
from modelbox.refs import shown
from modelbox.runtime.permissions.gate import Gate, reads_all
from modelbox.runtime.permissions.rules import Need, Rule, things
from modelbox.runtime.permissions.table import CALLS
from modelbox.runtime.permissions.targets import Place, Target
from modelbox.tracking import Rejection

__all__ = ("OPERATIONS", "refused_operations", "screen")

OPERATIONS: Mapping[str, Rule] = {
    "create_experiment": CALLS["TrackingService/CreateExperiment"],
    "create_run": CALLS["TrackingService/CreateRun"],
    "update_run": CALLS["TrackingService/UpdateRun"],
    "create_checkpoint": CALLS["TrackingService/CreateCheckpoint"],
    "set_attributes": CALLS["TrackingService/SetAttributes"],
    "log_event": CALLS["NoteService/LogEvent"],
    "log_metrics": Rule(needs=(Need(permission=Permission.WRITE, on=things("object")),)),
    "add_comment": CALLS["NoteService/AddComment"],
    "add_edges": CALLS["LineageService/AddEdges"],
    "create_dataset_version": CALLS["DatasetService/CreateDatasetVersion"],
    "set_readme": CALLS["NoteService/SetReadme"],
}
"""The row of each kind of operation."""

_REFUSED: ContextVar[tuple[Rejection, ...]] = ContextVar("modelbox_refused_operations", default=())


def refused_operations() -> tuple[Rejection, ...]:
    """What `screen` has taken out of the delivery that is being handled."""
    return _REFUSED.get()


class _Step:
    """An operation that is to be judged."""

    __slots__ = ("asked", "error", "fresh", "index", "seq")

    def __init__(self, index: int, seq: int) -> None:
        self.index = index
        self.seq = seq
        self.asked: list[tuple[Need, Target]] = []
        self.fresh: list[Target] = []
        self.error: ModelBoxError | None = None


async def screen(gate: Gate, call: str, caller: Caller, message: Any) -> None:
    """Takes the operations out of a delivery that are refused for good; `refused_operations` says which.

    Args:
        gate: Judges.
        call: For errors.
        caller: Who delivers.
        message: The delivery, of either codec; it is changed.

    Raises:
        AuthError: Something may be read and not changed.
    """
    _REFUSED.set(())
    if caller.may(Permission.WRITE):
        return
    steps = [step for index, one in enumerate(message.operations) if (step := _read(gate, caller, index, one))]
    ids = [target.text for step in steps for _, target in step.asked if target.place is None]
    ids += [target.text for step in steps for target in step.fresh]
    found = await gate.find(ids)
    # What earlier operations of the delivery make, for the later ones.
    made: dict[str, Place] = {}
    refused: dict[int, Rejection] = {}
    for step in steps:
        try:
            _judge(gate, call, caller, step, found, made)
        except AuthError:
            raise
        except ModelBoxError as exc:
            refused[step.index] = Rejection(seq=step.seq, code=exc.code, message=exc.message)
    for index in sorted(refused, reverse=True):
        del message.operations[index]
    _REFUSED.set(tuple(refused.values()))


def _read(gate: Gate, caller: Caller, index: int, operation: Any) -> _Step | None:
    kind, payload = _payload(operation)
    if not kind:
        # The adapter refuses what is no operation.
        return None
    step = _Step(index, operation.seq)
    rule = OPERATIONS.get(kind)
    if rule is None:
        step.error = InvalidError(f"{shown(kind)} is no operation that may be delivered", what="operation")
        return step
    try:
        step.asked = list(gate.pending(rule, caller, payload))
        step.fresh = list(rule.fresh.find(payload)) if rule.fresh is not None else []
    except ModelBoxError as exc:
        step.error = exc
    return step


def _judge(
    gate: Gate, call: str, caller: Caller, step: _Step, found: Mapping[str, Place], made: dict[str, Place]
) -> None:
    if step.error is not None:
        raise step.error
    places = [target.place or found.get(target.text) or made.get(target.text) for _, target in step.asked]
    for (need, target), place in zip(step.asked, places, strict=True):
        gate.judge(call, caller, need, target, place)
    for target in step.fresh:
        there = found.get(target.text)
        if not reads_all(caller):
            gate.judge_fresh(caller, target, there)
        if there is None and places[0] is not None:
            made.setdefault(target.text, places[0])


def _payload(operation: Any) -> tuple[str, Any]:
    if isinstance(operation, betterproto2.Message):
        return betterproto2.which_one_of(operation, "operation")
    kind = operation.WhichOneof("operation") or ""
    return kind, getattr(operation, kind) if kind else None

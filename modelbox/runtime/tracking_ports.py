"""What the service of experiments, runs, checkpoints and attributes needs of a database, as protocols.

The rules of `modelbox.runtime.ports` hold here too. Objects are named as callers name them: by id, as a namespace,
``namespace/model`` or ``namespace/model@7``. The bin hides, it does not refuse: what is in it can be read by its id,
and a program whose run was put there goes on recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from modelbox.access import ALL, Scope
from modelbox.errors import ModelBoxError
from modelbox.objects import Created
from modelbox.runtime.metric_ports import LoggedPoints
from modelbox.runtime.ports import Key, Listed
from modelbox.tracking import (
    Attribute,
    AttributeChange,
    AttributeKind,
    AttributesEdit,
    Checkpoint,
    Experiment,
    ExperimentPatch,
    MetricColumns,
    NewCheckpoint,
    NewExperiment,
    NewRun,
    Operation,
    Rejection,
    Run,
    RunPatch,
)

__all__ = ("MetricSink", "ObjectLookup", "Purged", "TrackingStore")


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """Ids of what a batch removed for good, and whether there may be more."""

    ids: tuple[str, ...]
    more: bool


class ObjectLookup(Protocol):
    """Which objects there are."""

    async def find_objects(self, names: Sequence[str]) -> dict[str, str]:
        """The id of each object that is named so, in the bin or not; those that are not there are left out.

        What was found may be remembered: an id never comes to mean another object, and a path of a version neither
        (once it is deleted, its number is not given again). A purged object is gone, which is what a later use finds.
        """


class MetricSink(Protocol):
    """Where points of metrics go; `modelbox.runtime.services.metrics` is one."""

    async def log_each(self, columns: Sequence[MetricColumns]) -> Sequence[LoggedPoints | ModelBoxError]:
        """Keeps points; returns what came of each of ``columns``. Errors that may pass are raised."""

    async def delete_series(self, objects: Sequence[str]) -> None:
        """Removes all series of objects, by their ids."""


class TrackingStore(ObjectLookup, Protocol):
    """Experiments, runs, checkpoints and attributes; the service says what each method means."""

    async def create_experiment(self, new: NewExperiment, *, actor: str, at: datetime) -> Created[Experiment]:
        """Makes an experiment and, if need be, its namespace; idempotent by id and by name."""

    async def get_experiment(self, text: str) -> Experiment:
        """An experiment by id or ``namespace/name``."""

    async def update_experiment(self, text: str, patch: ExperimentPatch, *, actor: str, at: datetime) -> Experiment:
        """Applies a patch; one that changes nothing makes no revision."""

    async def list_experiments(
        self, *, namespace: str, include_deleted: bool, limit: int, after: Key | None, scope: Scope = ALL
    ) -> Listed[Experiment]:
        """Experiments by namespace and name; of all namespaces for an empty one. Key: (namespace, name)."""

    async def create_run(self, new: NewRun, *, actor: str, at: datetime) -> Created[Run]:
        """Makes a run with its first attributes, and its experiment if need be; idempotent by id."""

    async def get_run(self, uid: str) -> Run:
        """A run."""

    async def update_run(self, uid: str, patch: RunPatch, *, actor: str, at: datetime) -> Run:
        """Applies a patch; one that changes nothing makes no revision."""

    async def list_runs(
        self, parent: str, *, include_deleted: bool, limit: int, after: Key | None, scope: Scope = ALL
    ) -> Listed[Run]:
        """Runs of an experiment or namespace, or child runs of a run, newest first; all runs for an empty parent.

        Key: (internal number,).
        """

    async def clone_run(self, source_id: str, uid: str, name: str, *, actor: str, at: datetime) -> Created[Run]:
        """Makes a scheduled run with another one's params, tags, labels and metadata; idempotent by id."""

    async def create_checkpoint(self, new: NewCheckpoint, *, actor: str, at: datetime) -> Created[Checkpoint]:
        """Makes a checkpoint; idempotent by id, and by parent and epoch."""

    async def get_checkpoint(self, uid: str) -> Checkpoint:
        """A checkpoint."""

    async def list_checkpoints(
        self, parent_id: str, *, include_deleted: bool, limit: int, after: Key | None, scope: Scope = ALL
    ) -> Listed[Checkpoint]:
        """Checkpoints of a run or experiment by epoch. Key: (epoch,)."""

    async def delete_objects(self, uids: Sequence[str], *, actor: str, at: datetime) -> int:
        """Puts objects and all below them into the bin, all or none; returns how many were not in it.

        Where they are many, those below follow in further transactions; `finish_deletions` goes on with what is broken
        off.
        """

    async def finish_deletions(self) -> int:
        """Puts what is below something in the bin there, too, where a deletion did not come to its end."""

    async def restore_objects(self, uids: Sequence[str], *, actor: str, at: datetime) -> int:
        """Takes objects out of the bin with all that went there with them, all or none; returns how many."""

    async def count_purgeable(self, namespace: str, before: datetime) -> int:
        """How many objects were put into the bin before a time."""

    async def purge(self, namespace: str, before: datetime, *, batch: int, actor: str, at: datetime) -> Purged:
        """Removes about ``batch`` of them for good, with everything that belongs to them but series of metrics."""

    async def set_attributes(self, edit: AttributesEdit, *, actor: str, at: datetime) -> int:
        """Makes an edit; returns its revision, 0 if it changes nothing."""

    async def get_attributes(self, names: Sequence[str], kinds: Sequence[AttributeKind]) -> tuple[Attribute, ...]:
        """All values of these kinds (all, if none is named) of some objects, in the order of the objects."""

    async def list_attribute_history(
        self, name: str, kind: AttributeKind, *, key: str, limit: int, after: Key | None
    ) -> Listed[AttributeChange]:
        """Sets and removals, newest first; of all keys for an empty one. Key: (internal number,)."""

    async def deliver(
        self,
        spool: str,
        first: int,
        upto: int,
        operations: Sequence[Operation],
        *,
        actor: str,
        at: datetime,
        scope: Scope = ALL,
    ) -> tuple[Rejection, ...]:
        """Carries out those operations (none of metrics) that the spool has not had yet; it has ``upto`` afterwards.

        They are a part of a delivery that begins with the number ``first``. Of those that came before, what was refused
        is told again, if it was of the last delivery.

        One transaction. An operation that can never succeed is undone by itself and told as a rejection; what may
        succeed later (a full disk, a lock) fails the whole.
        """

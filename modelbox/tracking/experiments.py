"""Experiments, runs and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from modelbox.objects import JsonValue
from modelbox.tracking.ids import ObjectKind, new_id

__all__ = (
    "Checkpoint",
    "Experiment",
    "ExperimentPatch",
    "NewCheckpoint",
    "NewExperiment",
    "NewRun",
    "Run",
    "RunPatch",
    "RunStatus",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A question that runs answer; unique by namespace and name.

    Attributes:
        external_id: What another system calls it.
        deleted_at: When it was put into the bin; None while it is in use. The same in every object here.
    """

    id: str
    namespace: str
    name: str
    owner: str = ""
    framework: str = ""
    task: str = ""
    external_id: str = ""
    description: str = ""
    created_at: datetime
    created_by: str = ""
    deleted_at: datetime | None = None
    mod_rev: int

    @property
    def path(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    def _repr_html_(self) -> str:
        import modelbox.display as display

        return display.card(
            f"Experiment {self.path}",
            {
                "id": self.id,
                "owner": self.owner,
                "framework": self.framework,
                "task": self.task,
                "external id": self.external_id,
                "description": self.description,
                "created": self.created_at,
                "by": self.created_by,
                "deleted": self.deleted_at,
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewExperiment:
    """What a caller says of an experiment; ``id`` is used if it is new."""

    id: str = field(default_factory=lambda: new_id(ObjectKind.EXPERIMENT))
    namespace: str
    name: str
    owner: str = ""
    framework: str = ""
    task: str = ""
    external_id: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentPatch:
    """Edits of an experiment: None leaves a field as it is."""

    owner: str | None = None
    framework: str | None = None
    task: str | None = None
    external_id: str | None = None
    description: str | None = None


class RunStatus(StrEnum):
    """How far a run is."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    SCHEDULED = "scheduled"

    @property
    def ended(self) -> bool:
        """Whether nothing more is expected."""
        return self in (RunStatus.FINISHED, RunStatus.FAILED, RunStatus.INTERRUPTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One execution inside an experiment.

    Attributes:
        experiment_id: Id of its experiment.
        experiment: Name of its experiment.
        started_at: By the clock of the program that ran.
        ended_at: None until it ends.
        parent_id: The run that it is a part of, such as a search over hyperparameters; empty for none.
        cloned_from: The run that it repeats; empty for none.
        reason: Why it failed: one line, such as the exception.
    """

    id: str
    namespace: str
    experiment_id: str
    experiment: str
    name: str
    status: RunStatus
    started_at: datetime
    ended_at: datetime | None = None
    parent_id: str = ""
    cloned_from: str = ""
    reason: str = ""
    created_at: datetime
    created_by: str = ""
    deleted_at: datetime | None = None
    mod_rev: int

    def _repr_html_(self) -> str:
        import modelbox.display as display

        return display.card(
            f"Run {self.name}",
            {
                "id": self.id,
                "experiment": f"{self.namespace}/{self.experiment}",
                "status": f"{self.status}: {self.reason}" if self.reason else self.status,
                "started": self.started_at,
                "ended": self.ended_at,
                "duration": None if self.ended_at is None else self.ended_at - self.started_at,
                "by": self.created_by,
                "parent": self.parent_id,
                "cloned from": self.cloned_from,
                "deleted": self.deleted_at,
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """What a caller says of a run that it begins.

    Attributes:
        experiment: An experiment's id, or ``namespace/name``, which is made where it is new.
        name: Empty: the server takes the id's digits.
        params: Hyperparameters: JSON by key.
        tags: Text by key.
    """

    id: str = field(default_factory=lambda: new_id(ObjectKind.RUN))
    experiment: str
    name: str = ""
    status: RunStatus = RunStatus.RUNNING
    started_at: datetime
    parent_id: str = ""
    cloned_from: str = ""
    params: Mapping[str, JsonValue] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPatch:
    """Edits of a run: None leaves a field as it is.

    A run that ended may be resumed by setting ``status`` back to ``running``, which clears ``ended_at``.
    """

    name: str | None = None
    status: RunStatus | None = None
    ended_at: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state of training at one epoch; unique by parent and epoch. Its files are artifacts, its metrics metrics.

    Attributes:
        parent_id: The run or experiment that it belongs to.
        metrics: Metrics at this epoch, as they were given when it was made.
    """

    id: str
    namespace: str
    parent_id: str
    epoch: int
    step: int | None = None
    path: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    created_at: datetime
    created_by: str = ""
    deleted_at: datetime | None = None
    mod_rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCheckpoint:
    """What a caller says of a checkpoint; ``path`` is where its file lies if it is not uploaded."""

    id: str = field(default_factory=lambda: new_id(ObjectKind.CHECKPOINT))
    parent_id: str
    epoch: int
    step: int | None = None
    path: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

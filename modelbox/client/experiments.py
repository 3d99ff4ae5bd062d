"""Experiments, runs, checkpoints, and the bin, as methods of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime

from modelbox.client.connection import ClientConnection
from modelbox.objects import Created, JsonValue
from modelbox.refs import parse_path
from modelbox.tracking import (
    Checkpoint,
    Experiment,
    ExperimentPatch,
    NewCheckpoint,
    NewExperiment,
    NewRun,
    ObjectKind,
    Run,
    RunPatch,
    RunStatus,
    new_id,
)

__all__ = ("ExperimentCalls",)


class ExperimentCalls(ClientConnection):
    """The part of `Client` about experiments, runs and checkpoints.

    What a training program records goes through `Client.start_run`, which never waits for the server; these calls do,
    and return what it said.
    """

    async def create_experiment(
        self,
        path: str,
        *,
        owner: str = "",
        framework: str = "",
        task: str = "",
        external_id: str = "",
        description: str = "",
    ) -> Created[Experiment]:
        """Makes an experiment, and its namespace where it is new; an existing one is returned unchanged.

        Args:
            path: ``namespace/name``.
            owner: Who answers for it.
            framework: What trains in it, such as ``pytorch``.
            task: What it is for, such as ``asr``.
            external_id: What another system calls it.
            description: Free text.

        Raises:
            InvalidError: The name or a value breaks a rule.
        """
        namespace, name = parse_path(path, "experiment")
        new = NewExperiment(
            namespace=namespace,
            name=name,
            owner=owner,
            framework=framework,
            task=task,
            external_id=external_id,
            description=description,
        )
        return await self._call(lambda source: source.tracking.create_experiment(new))

    async def get_experiment(self, experiment: str) -> Experiment:
        """An experiment by its id, or as ``namespace/name``.

        Raises:
            NotFoundError: It does not exist; says what does.
        """
        return await self._call(lambda source: source.tracking.get_experiment(experiment))

    def iter_experiments(self, namespace: str = "", *, include_deleted: bool = False) -> AsyncIterator[Experiment]:
        """All experiments, or those of one namespace; fetched page by page."""
        return self._pages(
            lambda source, token: source.tracking.list_experiments(
                namespace, include_deleted=include_deleted, page_token=token
            )
        )

    async def update_experiment(
        self,
        experiment: str,
        *,
        owner: str | None = None,
        framework: str | None = None,
        task: str | None = None,
        external_id: str | None = None,
        description: str | None = None,
    ) -> Experiment:
        """Edits an experiment; None leaves a field as it is.

        Raises:
            NotFoundError: It does not exist.
            InvalidError: A value breaks a rule.
        """
        patch = ExperimentPatch(
            owner=owner, framework=framework, task=task, external_id=external_id, description=description
        )
        return await self._call(lambda source: source.tracking.update_experiment(experiment, patch))

    # --- runs ----------------------------------------------------------------------------------------------------

    async def create_run(
        self,
        experiment: str,
        *,
        name: str = "",
        id: str = "",
        status: RunStatus = RunStatus.RUNNING,
        started_at: datetime | None = None,
        parent: str = "",
        params: Mapping[str, JsonValue] | None = None,
        tags: Mapping[str, str] | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
    ) -> Created[Run]:
        """Makes a run on the server and leaves the rest to the caller; programs that train use `start_run`.

        Args:
            experiment: Its id, or ``namespace/name``, which is made where it is new.
            name: How people know it; empty: made of its id.
            id: One from `modelbox.tracking.new_id`: created again with it, the run is there once. Empty: a new one.
            status: Where it stands.
            started_at: When it began; None for now.
            parent: Id of the run that it is a part of.
            params: Hyperparameters, JSON by key.
            tags: Text by key.
            metadata: JSON by key.

        Raises:
            NotFoundError: The experiment's id or the parent does not exist.
            InvalidError: A value breaks a rule.
        """
        new = NewRun(
            id=id or new_id(ObjectKind.RUN),
            experiment=experiment,
            name=name,
            status=status,
            started_at=started_at or datetime.now(UTC),
            parent_id=parent,
            params=params or {},
            tags=tags or {},
            metadata=metadata or {},
        )
        return await self._call(lambda source: source.tracking.create_run(new))

    async def get_run(self, run: str) -> Run:
        """A run by its id.

        Raises:
            NotFoundError: It does not exist.
        """
        return await self._call(lambda source: source.tracking.get_run(run))

    def iter_runs(self, parent: str, *, include_deleted: bool = False) -> AsyncIterator[Run]:
        """The runs of an experiment (its id or ``namespace/name``) or of a namespace, newest first."""
        return self._pages(
            lambda source, token: source.tracking.list_runs(parent, include_deleted=include_deleted, page_token=token)
        )

    async def update_run(
        self,
        run: str,
        *,
        name: str | None = None,
        status: RunStatus | None = None,
        ended_at: datetime | None = None,
        reason: str | None = None,
    ) -> Run:
        """Edits a run; None leaves a field as it is.

        Raises:
            NotFoundError: It does not exist.
            InvalidError: A value breaks a rule.
        """
        patch = RunPatch(name=name, status=status, ended_at=ended_at, reason=reason)
        return await self._call(lambda source: source.tracking.update_run(run, patch))

    async def clone_run(self, run: str, *, name: str = "") -> Created[Run]:
        """Makes a run with the parameters, tags, labels and metadata of another; its metrics stay where they are.

        Raises:
            NotFoundError: The run does not exist.
        """
        cloned = new_id(ObjectKind.RUN)
        return await self._call(lambda source: source.tracking.clone_run(run, id=cloned, name=name))

    # --- checkpoints ---------------------------------------------------------------------------------------------

    async def create_checkpoint(
        self,
        parent: str,
        epoch: int,
        *,
        step: int | None = None,
        path: str = "",
        metrics: Mapping[str, float] | None = None,
    ) -> Created[Checkpoint]:
        """Records the state of training at an epoch; one that is there is returned unchanged.

        Its files are attached with `upload_artifact` or `track_artifact`, with the checkpoint's id as the parent.

        Args:
            parent: Id of a run or experiment.
            epoch: From 0; there is one checkpoint for each.
            step: The optimiser's step.
            path: Where its file lies, if it is not uploaded.
            metrics: Numbers at this epoch.

        Raises:
            NotFoundError: The parent does not exist.
            InvalidError: A value breaks a rule.
        """
        new = NewCheckpoint(parent_id=parent, epoch=epoch, step=step, path=path, metrics=metrics or {})
        return await self._call(lambda source: source.tracking.create_checkpoint(new))

    async def get_checkpoint(self, checkpoint: str) -> Checkpoint:
        """A checkpoint by its id.

        Raises:
            NotFoundError: It does not exist.
        """
        return await self._call(lambda source: source.tracking.get_checkpoint(checkpoint))

    def iter_checkpoints(self, parent: str, *, include_deleted: bool = False) -> AsyncIterator[Checkpoint]:
        """The checkpoints of a run or experiment, by epoch."""
        return self._pages(
            lambda source, token: source.tracking.list_checkpoints(
                parent, include_deleted=include_deleted, page_token=token
            )
        )

    # --- the bin -------------------------------------------------------------------------------------------------

    async def delete_objects(self, *ids: str) -> int:
        """Puts experiments, runs, checkpoints, datasets, their versions or comments into the bin, with all below them.

        Lists and `find` leave them out; `restore_objects` brings them back until `purge` removes them for good.

        Returns:
            How many objects went, those below included.

        Raises:
            NotFoundError: One does not exist; then none is deleted.
        """
        return await self._call(lambda source: source.tracking.delete_objects(ids))

    async def restore_objects(self, *ids: str) -> int:
        """Takes objects out of the bin, with what went in with them; returns how many.

        Raises:
            NotFoundError: One does not exist, or was purged.
        """
        return await self._call(lambda source: source.tracking.restore_objects(ids))

    async def purge(self, before: datetime, *, namespace: str = "", dry_run: bool = False) -> int:
        """Removes for good what was put into the bin before a time, with everything attached to it.

        Args:
            before: Aware; later ones stay.
            namespace: Only of this one.
            dry_run: Only counts.
        """
        return await self._call(
            lambda source: source.tracking.purge(before=before, namespace=namespace, dry_run=dry_run)
        )

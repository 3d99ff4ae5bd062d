"""The client's methods, blocking. Generated from `modelbox.client` by `make sync`: do not edit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy.typing as npt

from modelbox._blocking import BlockingClient, finish, iterate
from modelbox._local_files import FilesArgument, Progress
from modelbox.accounts import Account, AccountGrant, CreatedToken, TokenInfo, WhoAmI
from modelbox.audit import AuditEntry
from modelbox.frames import FindPage
from modelbox.objects import (
    Alias,
    AliasMove,
    Artifact,
    ArtifactFile,
    Created,
    Instance,
    JsonValue,
    Member,
    Model,
    ModelVersion,
    Namespace,
    Resolved,
)
from modelbox.refs import ModelRef
from modelbox.retention import Best, Planned, RetentionPolicy, RetentionRun, VersionLock
from modelbox.rules import AliasProtection, AliasRequest, Missing, Rule
from modelbox.series import MetricValue, Sample, Series
from modelbox.signature import Signature
from modelbox.signing.keys import SigningKey
from modelbox.signing.trust import SignedBy, Trust
from modelbox.space import Collected, Quota, SpaceCheck, SpaceReport, SpaceTotals, Usage
from modelbox.spool.delivery import PushedSpool
from modelbox.tracking import (
    Attribute,
    AttributeChange,
    AttributeKind,
    Checkpoint,
    Comment,
    Dataset,
    DatasetComponent,
    DatasetVersion,
    Event,
    Experiment,
    Lineage,
    MetricSummary,
    NewEdge,
    Readme,
    Run,
    RunStatus,
)

__all__ = ("SyncCalls",)


class SyncCalls:
    """Every call of `modelbox.Client` that waits for an answer."""

    _client: BlockingClient

    def whoami(self) -> WhoAmI:
        """What the server knows of this client: its account, its token and what it may do."""
        return finish(self._client.whoami())

    def create_account(
        self, name: str, *, description: str = "", certificate_names: Sequence[str] = ()
    ) -> Created[Account]:
        """Makes an account, of a person or a program, without any role; idempotent by name.

        Args:
            name: As of a model.
            description: For people.
            certificate_names: Names in client certificates that mean this account.

        Raises:
            AuthError: The caller is not an admin everywhere, or the server has no access control.
            ConflictError: A certificate name is another account's.
        """
        return finish(self._client.create_account(name, description=description, certificate_names=certificate_names))

    def iter_accounts(self) -> Iterator[Account]:
        """Accounts by name, as far as the caller may see them."""
        return iterate(self._client.iter_accounts())

    def update_account(
        self,
        name: str,
        *,
        description: str | None = None,
        certificate_names: Sequence[str] | None = None,
        disabled: bool | None = None,
    ) -> Account:
        """Changes an account; what is None stays.

        Args:
            name: Of the account.
            description: For people.
            certificate_names: Names in client certificates that mean this account, all of them.
            disabled: Whether nothing that it has is taken.

        Raises:
            AuthError: The caller is not an admin everywhere.
            NotFoundError: There is no such account.
            ConflictError: A certificate name is another account's, or it is the last admin and would be disabled.
        """
        return finish(
            self._client.update_account(
                name, description=description, certificate_names=certificate_names, disabled=disabled
            )
        )

    def delete_account(self, name: str) -> None:
        """Removes an account with its roles and tokens.

        Raises:
            AuthError: The caller is not an admin everywhere.
            NotFoundError: There is no such account.
            ConflictError: It is the last admin.
        """
        return finish(self._client.delete_account(name))

    def grant_role(self, account: str, role: str, *, namespace: str = "", model: str = "") -> AccountGrant:
        """Gives an account a role, in the place of the one that it has there.

        Args:
            account: Of whom.
            role: ``reader``, ``writer``, ``promoter`` or ``admin``.
            namespace: Where; empty for everywhere.
            model: Of this model of the namespace only.

        Raises:
            AuthError: The caller is not an admin there.
            NotFoundError: There is no such account.
            ConflictError: It is the last admin, and would be less.
        """
        return finish(self._client.grant_role(account, role, namespace=namespace, model=model))

    def revoke_role(self, account: str, *, namespace: str = "", model: str = "") -> bool:
        """Takes an account's role in a place away; returns whether it had one.

        Raises:
            AuthError: The caller is not an admin there.
            NotFoundError: There is no such account.
            ConflictError: It is the last admin.
        """
        return finish(self._client.revoke_role(account, namespace=namespace, model=model))

    def iter_grants(self, *, account: str = "", namespace: str = "") -> Iterator[AccountGrant]:
        """Roles by account and place: the caller's own, and those where they are an admin."""
        return iterate(self._client.iter_grants(account=account, namespace=namespace))

    def create_token(
        self,
        account: str = "",
        *,
        role: str = "",
        namespaces: Sequence[str] = (),
        expires_in_s: float | None = None,
        description: str = "",
        create_account: bool = False,
    ) -> CreatedToken:
        """Makes a token; its text is in the answer and nowhere else.

        Args:
            account: Whose; empty for the caller's own.
            role: The most that it lets do; empty for all that its account may.
            namespaces: Where alone it holds; empty for wherever its account has a role.
            expires_in_s: How long it holds, in seconds; None for 90 days, at most a year.
            description: For people.
            create_account: Make the account, with just this role in just these namespaces, if there is none.

        Raises:
            AuthError: The caller may not make it: it would be wider than what they call with, or hold elsewhere than
                where they are an admin.
            NotFoundError: There is no such account, and it is not to be made.
        """
        return finish(
            self._client.create_token(
                account,
                role=role,
                namespaces=namespaces,
                expires_in_s=expires_in_s,
                description=description,
                create_account=create_account,
            )
        )

    def iter_tokens(self, *, account: str = "", include_ended: bool = False) -> Iterator[TokenInfo]:
        """Tokens, newest first: of the caller's account, and those that they may revoke.

        Args:
            account: Whose; empty for all.
            include_ended: Revoked and expired ones, too.
        """
        return iterate(self._client.iter_tokens(account=account, include_ended=include_ended))

    def revoke_token(self, token_id: str) -> TokenInfo:
        """Ends a token, with the watches that it opened; one that was revoked stays as it is.

        Args:
            token_id: Its public part, as lists show it.

        Raises:
            NotFoundError: There is none that the caller may see.
            AuthError: It lets do more than the one that the caller has.
        """
        return finish(self._client.revoke_token(token_id))

    def set_params(self, object: str, values: Mapping[str, JsonValue], *, overwrite: bool = False) -> None:
        """Sets hyperparameters, JSON by key.

        Args:
            object: What they belong to, usually a run.
            values: By key.
            overwrite: Whether one that is there may take another value.

        Raises:
            ConflictError: One has another value and ``overwrite`` is not set; then none is set.
        """
        return finish(self._client.set_params(object, values, overwrite=overwrite))

    def set_tags(self, object: str, values: Mapping[str, str]) -> None:
        """Sets tags: what people and programs call an object, text by key, which may be empty."""
        return finish(self._client.set_tags(object, values))

    def set_labels(self, object: str, values: Mapping[str, str]) -> None:
        """Sets labels: text by key that programs select by."""
        return finish(self._client.set_labels(object, values))

    def set_metadata(self, object: str, values: Mapping[str, JsonValue]) -> None:
        """Sets metadata, any JSON by key."""
        return finish(self._client.set_metadata(object, values))

    def remove_attributes(self, object: str, kind: AttributeKind, keys: Sequence[str]) -> None:
        """Removes values of one kind; their history stays. Keys that are not there change nothing."""
        return finish(self._client.remove_attributes(object, kind, keys))

    def get_attributes(self, *objects: str, kinds: Sequence[AttributeKind] = ()) -> tuple[Attribute, ...]:
        """The values of objects, of these kinds or of all."""
        return finish(self._client.get_attributes(*objects, kinds=kinds))

    def get_params(self, object: str) -> dict[str, JsonValue]:
        """The hyperparameters of an object."""
        return finish(self._client.get_params(object))

    def get_tags(self, object: str) -> dict[str, str]:
        """The tags of an object."""
        return finish(self._client.get_tags(object))

    def get_labels(self, object: str) -> dict[str, str]:
        """The labels of an object."""
        return finish(self._client.get_labels(object))

    def get_metadata(self, object: str) -> dict[str, JsonValue]:
        """The metadata of an object."""
        return finish(self._client.get_metadata(object))

    def iter_attribute_history(self, object: str, kind: AttributeKind, key: str = "") -> Iterator[AttributeChange]:
        """Who set what when, newest first; of all keys for an empty one."""
        return iterate(self._client.iter_attribute_history(object, kind, key))

    def iter_audit(
        self,
        *,
        actor: str = "",
        namespace: str = "",
        object: str = "",
        kinds: Sequence[str] = (),
        actions: Sequence[str] = (),
        denials: bool = False,
        token_id: str = "",
        address: str = "",
        request_id: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        oldest_first: bool = False,
    ) -> Iterator[AuditEntry]:
        """Who did what to which object, from where, with before and after; the newest first.

        Admins see all of it, those of a namespace what happened there. Nothing that is left empty narrows it.

        Args:
            actor: Only by this account.
            namespace: Only there.
            object: Only to this path or id; a model's path takes in its versions and aliases.
            kinds: Only changes of these kinds of objects, as in the change feed.
            actions: Only these: created, updated, moved, deleted, restored, denied.
            denials: Only calls that were refused, instead of ``kinds``.
            token_id: Only with this token, by its public part.
            address: Only from there.
            request_id: Only by this call, as its error or the server's log names it.
            since: Not before; aware.
            until: Only before; aware.
            oldest_first: The oldest first.

        Raises:
            AuthError: You administer nothing.
            InvalidError: A kind, an action or a name is not valid.
        """
        return iterate(
            self._client.iter_audit(
                actor=actor,
                namespace=namespace,
                object=object,
                kinds=kinds,
                actions=actions,
                denials=denials,
                token_id=token_id,
                address=address,
                request_id=request_id,
                since=since,
                until=until,
                oldest_first=oldest_first,
            )
        )

    def create_experiment(
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
        return finish(
            self._client.create_experiment(
                path, owner=owner, framework=framework, task=task, external_id=external_id, description=description
            )
        )

    def get_experiment(self, experiment: str) -> Experiment:
        """An experiment by its id, or as ``namespace/name``.

        Raises:
            NotFoundError: It does not exist; says what does.
        """
        return finish(self._client.get_experiment(experiment))

    def iter_experiments(self, namespace: str = "", *, include_deleted: bool = False) -> Iterator[Experiment]:
        """All experiments, or those of one namespace; fetched page by page."""
        return iterate(self._client.iter_experiments(namespace, include_deleted=include_deleted))

    def update_experiment(
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
        return finish(
            self._client.update_experiment(
                experiment,
                owner=owner,
                framework=framework,
                task=task,
                external_id=external_id,
                description=description,
            )
        )

    def create_run(
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
        return finish(
            self._client.create_run(
                experiment,
                name=name,
                id=id,
                status=status,
                started_at=started_at,
                parent=parent,
                params=params,
                tags=tags,
                metadata=metadata,
            )
        )

    def get_run(self, run: str) -> Run:
        """A run by its id.

        Raises:
            NotFoundError: It does not exist.
        """
        return finish(self._client.get_run(run))

    def iter_runs(self, parent: str, *, include_deleted: bool = False) -> Iterator[Run]:
        """The runs of an experiment (its id or ``namespace/name``) or of a namespace, newest first."""
        return iterate(self._client.iter_runs(parent, include_deleted=include_deleted))

    def update_run(
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
        return finish(self._client.update_run(run, name=name, status=status, ended_at=ended_at, reason=reason))

    def clone_run(self, run: str, *, name: str = "") -> Created[Run]:
        """Makes a run with the parameters, tags, labels and metadata of another; its metrics stay where they are.

        Raises:
            NotFoundError: The run does not exist.
        """
        return finish(self._client.clone_run(run, name=name))

    def create_checkpoint(
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
        return finish(self._client.create_checkpoint(parent, epoch, step=step, path=path, metrics=metrics))

    def get_checkpoint(self, checkpoint: str) -> Checkpoint:
        """A checkpoint by its id.

        Raises:
            NotFoundError: It does not exist.
        """
        return finish(self._client.get_checkpoint(checkpoint))

    def iter_checkpoints(self, parent: str, *, include_deleted: bool = False) -> Iterator[Checkpoint]:
        """The checkpoints of a run or experiment, by epoch."""
        return iterate(self._client.iter_checkpoints(parent, include_deleted=include_deleted))

    def delete_objects(self, *ids: str) -> int:
        """Puts experiments, runs, checkpoints, datasets, their versions or comments into the bin, with all below them.

        Lists and `find` leave them out; `restore_objects` brings them back until `purge` removes them for good.

        Returns:
            How many objects went, those below included.

        Raises:
            NotFoundError: One does not exist; then none is deleted.
        """
        return finish(self._client.delete_objects(*ids))

    def restore_objects(self, *ids: str) -> int:
        """Takes objects out of the bin, with what went in with them; returns how many.

        Raises:
            NotFoundError: One does not exist, or was purged.
        """
        return finish(self._client.restore_objects(*ids))

    def purge(self, before: datetime, *, namespace: str = "", dry_run: bool = False) -> int:
        """Removes for good what was put into the bin before a time, with everything attached to it.

        Args:
            before: Aware; later ones stay.
            namespace: Only of this one.
            dry_run: Only counts.
        """
        return finish(self._client.purge(before, namespace=namespace, dry_run=dry_run))

    def download(
        self, ref: str | ModelRef, directory: str | os.PathLike[str], *, on_progress: Progress | None = None
    ) -> Path:
        """Writes the files of a version below ``directory``.

        A directory that does not exist yet appears with all files at once; in one that exists, files of the same names
        are replaced after all were downloaded and verified. Broken connections are resumed where they broke.

        Args:
            ref: Which version.
            directory: Where to.
            on_progress: Called with bytes here and all bytes, on the engine's thread; must return at once.

        Returns:
            The absolute path of ``directory``.

        Raises:
            NotFoundError: Model, alias or version do not exist.
            IntegrityError: What came is not what the manifest says.
            SignatureRefused: The settings ask for a signature, and it has none that counts; nothing was downloaded.
            CacheError: The directory cannot be written.

        Cancellation: no file appears; what was downloaded is removed.
        """
        return finish(self._client.download(ref, directory, on_progress=on_progress))

    def upload_artifact(
        self,
        parent: str,
        name: str,
        files: FilesArgument,
        *,
        labels: Mapping[str, str] | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
        on_progress: Progress | None = None,
    ) -> Created[Artifact]:
        """Uploads files and attaches them to an object under a name.

        Args:
            parent: An id, a namespace, ``namespace/model`` or ``namespace/model@7``.
            name: Of the artifact, unique below its parent; the same files again return it with ``existed``.
            files: As in `publish`.
            labels: Text by key.
            metadata: JSON by key.
            on_progress: As in `publish`.

        Raises:
            ConflictError: The name is taken by other files.
            NotFoundError: The parent does not exist.
        """
        return finish(
            self._client.upload_artifact(parent, name, files, labels=labels, metadata=metadata, on_progress=on_progress)
        )

    def track_artifact(
        self,
        parent: str,
        name: str,
        files: Iterable[ArtifactFile | str | os.PathLike[str]],
        *,
        labels: Mapping[str, str] | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
    ) -> Created[Artifact]:
        """Attaches files to an object that stay where they lie: recorded are address, size and checksum.

        Args:
            parent: As in `upload_artifact`.
            name: Of the artifact.
            files: Local files (their checksum is computed here), or an `ArtifactFile` with ``uri``, size and digest for
                anything else.
            labels: Text by key.
            metadata: JSON by key.
        """
        return finish(self._client.track_artifact(parent, name, files, labels=labels, metadata=metadata))

    def iter_artifacts(self, parent: str) -> Iterator[Artifact]:
        """The artifacts of an object (its id or path), or all those of a namespace (named by its name)."""
        return iterate(self._client.iter_artifacts(parent))

    def get_artifact(self, artifact_id: str) -> Artifact:
        """One artifact by its id."""
        return finish(self._client.get_artifact(artifact_id))

    def delete_artifact(self, artifact_id: str) -> None:
        """Deletes an artifact."""
        return finish(self._client.delete_artifact(artifact_id))

    def download_artifact(
        self, artifact_id: str, directory: str | os.PathLike[str], *, on_progress: Progress | None = None
    ) -> Path:
        """Writes the stored files of an artifact below ``directory``; otherwise as `download`.

        Raises:
            InvalidError: A file of it is only tracked; says where it lies.
        """
        return finish(self._client.download_artifact(artifact_id, directory, on_progress=on_progress))

    def find(
        self,
        collection: str,
        where: str = "",
        *,
        order_by: str | Sequence[str] = (),
        within: str = "",
        columns: Sequence[str] = (),
        limit: int | None = 100,
        include_deleted: bool = False,
        page_token: str = "",
    ) -> FindPage:
        """The objects of a collection that a query lets through, as columns; ``docs/find.md`` has the language.

        ::

            best = await client.find(
                "runs", "metrics.accuracy > 0.9 and params.lr <= 1e-3", order_by="metrics.accuracy desc", limit=10
            )
            best.to_pandas()

        Args:
            collection: ``experiments``, ``runs``, ``checkpoints``, ``models``, ``versions``, ``datasets``,
                ``dataset_versions``, ``artifacts`` or ``events``.
            where: The query; empty for everything.
            order_by: ``"metrics.loss"``, ``"metrics.loss desc"``, or several of them; then by id. What an object does
                not have comes last.
            within: Only of this namespace, or below the object with this id, such as an experiment.
            columns: ``attributes``, ``metrics``, ``params``, ``tags``, ``labels``, ``metadata``, or single ones such as
                ``metrics.loss``; empty for all. ``["id"]`` for ids only.
            limit: How many at most; None for all there are, fetched by thousands.
            include_deleted: Also what is in the bin.
            page_token: Goes on behind a page: its ``next_token``, with the same query.

        Raises:
            FindError: The query is wrong; shows where, and what was expected there.
            InvalidError: The collection, an order or a column is none.
        """
        return finish(
            self._client.find(
                collection,
                where,
                order_by=order_by,
                within=within,
                columns=columns,
                limit=limit,
                include_deleted=include_deleted,
                page_token=page_token,
            )
        )

    def log_metrics(
        self, object: str, values: Mapping[str, MetricValue], *, step: int = 0, at: datetime | None = None
    ) -> None:
        """Appends one point to each of some metrics, and waits until they are on the server's disk.

        Args:
            object: Id of what is measured, a namespace, ``namespace/model`` or ``namespace/model@7``.
            values: Numbers (NaN and infinities are kept), text or bytes by key.
            step: int64.
            at: Aware time; None for now.

        Raises:
            NotFoundError: There is no such object.
            InvalidError: A key, step or value cannot be kept.
        """
        return finish(self._client.log_metrics(object, values, step=step, at=at))

    def log_series(
        self,
        object: str,
        key: str,
        steps: Sequence[int] | npt.ArrayLike,
        values: npt.ArrayLike,
        *,
        times_us: npt.ArrayLike | None = None,
    ) -> None:
        """Appends many numbers to one metric.

        Args:
            object: As in `log_metrics`.
            key: The metric.
            steps: (points,) int64.
            values: (points,) float64.
            times_us: (points,) int64 or one number, microseconds since 1970 in UTC; None for now.

        Raises:
            NotFoundError: There is no such object.
            InvalidError: Lengths differ, or they are no numbers.

        Cancellation: some points may be there; the same call again adds the rest if ``times_us`` is given.
        """
        return finish(self._client.log_series(object, key, steps, values, times_us=times_us))

    def metric_summaries(self, *objects: str, keys: Sequence[str] = ()) -> tuple[MetricSummary, ...]:
        """Latest value, minimum, maximum and count of the metrics of objects, without reading the series."""
        return finish(self._client.metric_summaries(*objects, keys=keys))

    def read_series(self, object: str, key: str, *, from_step: int | None = None, to_step: int | None = None) -> Series:
        """One series by step and time, or its part with ``from_step`` <= step <= ``to_step``.

        Raises:
            NotFoundError: There is no such object, or it has no such metric; says which there are.
        """
        return finish(self._client.read_series(object, key, from_step=from_step, to_step=to_step))

    def sample_series(
        self, object: str, key: str, *, buckets: int = 500, from_step: int | None = None, to_step: int | None = None
    ) -> Sample:
        """One series in at most ``buckets`` buckets of equal width (1 to 10,000), made where the points are: for plots.

        Raises:
            NotFoundError: There is no such object, or it has no such metric; says which there are.
        """
        return finish(self._client.sample_series(object, key, buckets=buckets, from_step=from_step, to_step=to_step))

    def create_model(
        self,
        path: str,
        *,
        owner: str = "",
        task: str = "",
        description: str = "",
        labels: Mapping[str, str] | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
    ) -> Created[Model]:
        """Makes a model, and its namespace where it is new; an existing one is returned unchanged.

        Args:
            path: ``namespace/model``.
            owner: Who answers for it.
            task: What it is for, such as ``asr``.
            description: Free text.
            labels: Text by key, to select by.
            metadata: JSON by key.

        Raises:
            InvalidError: The name or a value breaks a rule.
        """
        return finish(
            self._client.create_model(
                path, owner=owner, task=task, description=description, labels=labels, metadata=metadata
            )
        )

    def get_model(self, path: str) -> Model:
        """The model ``namespace/model``.

        Raises:
            NotFoundError: It does not exist; says what does.
        """
        return finish(self._client.get_model(path))

    def iter_models(self, namespace: str = "") -> Iterator[Model]:
        """All models, or those of one namespace, by name; fetched page by page."""
        return iterate(self._client.iter_models(namespace))

    def iter_namespaces(self) -> Iterator[Namespace]:
        """All namespaces, by name; fetched page by page."""
        return iterate(self._client.iter_namespaces())

    def update_model(
        self,
        path: str,
        *,
        owner: str | None = None,
        task: str | None = None,
        description: str | None = None,
        labels: Mapping[str, str] | None = None,
        remove_labels: Sequence[str] = (),
        metadata: Mapping[str, JsonValue] | None = None,
        remove_metadata: Sequence[str] = (),
    ) -> Model:
        """Edits a model: None leaves a field as it is, given keys are set, keys in ``remove_…`` go.

        Raises:
            NotFoundError: The model does not exist.
            InvalidError: A value breaks a rule.
        """
        return finish(
            self._client.update_model(
                path,
                owner=owner,
                task=task,
                description=description,
                labels=labels,
                remove_labels=remove_labels,
                metadata=metadata,
                remove_metadata=remove_metadata,
            )
        )

    def delete_model(self, path: str) -> None:
        """Deletes a model with its versions.

        Raises:
            InUseError: An alias other than ``latest`` points to one of its versions.
            NotFoundError: The model does not exist.
        """
        return finish(self._client.delete_model(path))

    def promote(
        self, ref: str | ModelRef, version: int, *, expected_mod_rev: int | None = None, reason: str = ""
    ) -> Alias:
        """Points an alias (``namespace/model@prod``) to a version.

        Args:
            ref: The alias; it is made where it is new.
            version: The version's number.
            expected_mod_rev: Move only if the alias's ``mod_rev`` is still this one; 0: only if it does not exist.
            reason: Why, for its history.

        Raises:
            ConflictError: Somebody else moved it first; ``fields["current"]`` is its state now.
            NotFoundError: Model or version do not exist.
            RuleError: The version lacks what a rule asks for; ``missing`` lists what, with the commands that add it.
            AuthError: The alias is protected, and the caller is no promoter.
            ApprovalNeeded: A second person has to approve it; ``request`` is what waits for them. Asking again finds
                the same request.
            InvalidError: ``ref`` names no alias, or ``latest``, which moves by itself.
        """
        return finish(self._client.promote(ref, version, expected_mod_rev=expected_mod_rev, reason=reason))

    def rollback(self, ref: str | ModelRef, *, expected_mod_rev: int | None = None, reason: str = "") -> Alias:
        """Points an alias back to what it pointed to before its last move.

        Of a protected alias a promoter may always do that, without anybody's approval; history says so.

        Raises:
            ConflictError: As in `promote`, or there is nothing to go back to.
            AuthError: As in `promote`.
            NotFoundError: Model or alias do not exist.
        """
        return finish(self._client.rollback(ref, expected_mod_rev=expected_mod_rev, reason=reason))

    def delete_alias(self, ref: str | ModelRef, *, expected_mod_rev: int | None = None, reason: str = "") -> None:
        """Deletes an alias; its history stays.

        Raises:
            ConflictError: As in `promote`.
            AuthError: As in `promote`.
            ApprovalNeeded: As in `promote`.
            NotFoundError: Model or alias do not exist.
        """
        return finish(self._client.delete_alias(ref, expected_mod_rev=expected_mod_rev, reason=reason))

    def list_aliases(self, path: str) -> tuple[Alias, ...]:
        """All aliases of a model, ``latest`` among them."""
        return finish(self._client.list_aliases(path))

    def iter_alias_moves(self, path: str, alias: str = "", *, at: datetime | None = None) -> Iterator[AliasMove]:
        """Who moved a model's aliases when and why, newest first.

        Args:
            path: ``namespace/model``.
            alias: Only this one; empty for all.
            at: Only moves up to this time: the first one answers "what did it point to then?".
        """
        return iterate(self._client.iter_alias_moves(path, alias, at=at))

    def log_event(
        self,
        object: str,
        name: str,
        *,
        source: str = "",
        at: datetime | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
    ) -> Event:
        """Records something that an outside system reports.

        Args:
            object: What it is about.
            name: What happened, such as ``gpu.lost``.
            source: Who says so.
            at: When it happened, by the reporter's clock; aware, None for now.
            metadata: JSON by key.
        """
        return finish(self._client.log_event(object, name, source=source, at=at, metadata=metadata))

    def iter_events(
        self,
        object: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        name: str = "",
        source: str = "",
    ) -> Iterator[Event]:
        """Events of an object, or of a whole namespace, newest first.

        Args:
            object: An object; for a namespace, all events in it.
            since: Only what happened then or later; aware, by the reporters' clocks.
            until: Only what happened before.
            name: Only of this name.
            source: Only from this source.
        """
        return iterate(self._client.iter_events(object, since=since, until=until, name=name, source=source))

    def add_comment(self, object: str, text: str) -> Comment:
        """Says something about an object, in Markdown."""
        return finish(self._client.add_comment(object, text))

    def edit_comment(self, comment: str, text: str) -> Comment:
        """Says it better; `delete_objects` takes a comment's id, too."""
        return finish(self._client.edit_comment(comment, text))

    def iter_comments(self, object: str) -> Iterator[Comment]:
        """The comments on an object, oldest first."""
        return iterate(self._client.iter_comments(object))

    def set_readme(self, object: str, text: str) -> Readme:
        """Writes the page of an object, in Markdown; an empty text removes it."""
        return finish(self._client.set_readme(object, text))

    def get_readme(self, object: str) -> Readme:
        """The page of an object.

        Raises:
            NotFoundError: It has none.
        """
        return finish(self._client.get_readme(object))

    def create_dataset(self, path: str, *, owner: str = "", description: str = "") -> Created[Dataset]:
        """Makes a dataset ``namespace/name``; an existing one is returned unchanged."""
        return finish(self._client.create_dataset(path, owner=owner, description=description))

    def get_dataset(self, dataset: str) -> Dataset:
        """A dataset by its id, or as ``namespace/name``."""
        return finish(self._client.get_dataset(dataset))

    def iter_datasets(self, namespace: str = "", *, include_deleted: bool = False) -> Iterator[Dataset]:
        """All datasets, or those of one namespace."""
        return iterate(self._client.iter_datasets(namespace, include_deleted=include_deleted))

    def create_dataset_version(
        self, path: str, components: Iterable[DatasetComponent], *, description: str = ""
    ) -> Created[DatasetVersion]:
        """Records data as they are now as the next version; the same components as the newest return that one.

        Args:
            path: ``namespace/name``; the dataset is made where it is new.
            components: Paths, S3 objects, queries; see `modelbox.tracking.DatasetComponent`.
            description: What changed.
        """
        return finish(self._client.create_dataset_version(path, components, description=description))

    def get_dataset_version(self, version: str) -> DatasetVersion:
        """A version by its id, as ``namespace/name@3``, or ``namespace/name`` for the newest."""
        return finish(self._client.get_dataset_version(version))

    def iter_dataset_versions(self, dataset: str, *, include_deleted: bool = False) -> Iterator[DatasetVersion]:
        """The versions of a dataset, newest first."""
        return iterate(self._client.iter_dataset_versions(dataset, include_deleted=include_deleted))

    def add_edge(self, source: str, target: str, type: str) -> None:
        """Records that ``target`` was made from ``source``, such as a version ``produced`` by a run.

        Args:
            source: An object.
            target: An object.
            type: ``used``, ``produced``, ``derived``, or a word of your own.

        Raises:
            ConflictError: ``source`` came from ``target`` already: an edge would close a cycle; says which way.
        """
        return finish(self._client.add_edge(source, target, type))

    def add_edges(self, edges: Sequence[NewEdge]) -> int:
        """Records several at once, all or none; returns how many were new. Errors as `add_edge`."""
        return finish(self._client.add_edges(edges))

    def remove_edges(self, edges: Sequence[NewEdge]) -> int:
        """Removes edges; returns how many were there."""
        return finish(self._client.remove_edges(edges))

    def get_lineage(
        self, *objects: str, direction: Literal["ancestors", "descendants", "both"] = "both", max_depth: int = 0
    ) -> Lineage:
        """What objects were made from, and what was made from them.

        Args:
            *objects: Where to begin.
            direction: Which way to go.
            max_depth: Edges from there at most; 0 for no bound. An answer ends at 10,000 objects and says so.
        """
        return finish(self._client.get_lineage(*objects, direction=direction, max_depth=max_depth))

    def set_rule(
        self,
        scope: str,
        *,
        alias: str = "",
        labels: Sequence[str] = (),
        metadata: Sequence[str] = (),
        owner: bool = False,
        description: bool = False,
        dataset: bool = False,
        signed: bool = False,
    ) -> Rule:
        """Says what versions must have; replaces the rule of the same scope and alias.

        A version that lacks something cannot be published, or cannot be what the alias points to; the error lists what
        is missing. What was published or promoted before stays.

        Args:
            scope: ``namespace``, or ``namespace/model``, whose rules add to its namespace's.
            alias: Which aliases must point to such versions only: a name, or a pattern such as ``prod*``. Empty: every
                version that is published must be so.
            labels: Keys of labels that must have a value.
            metadata: Keys of metadata that must have a value.
            owner: The model must say who answers for it.
            description: The version must be described.
            dataset: It must be made from a version of a dataset, by lineage or by its metadata ``dataset``.
            signed: Somebody must have signed it; by whom is not asked here.

        Raises:
            InvalidError: The rule asks for nothing, or for what cannot be.
            AuthError: The caller is no admin there.
        """
        return finish(
            self._client.set_rule(
                scope,
                alias=alias,
                labels=labels,
                metadata=metadata,
                owner=owner,
                description=description,
                dataset=dataset,
                signed=signed,
            )
        )

    def list_rules(self, scope: str = "") -> tuple[Rule, ...]:
        """Rules: of a namespace and its models, those that hold for ``namespace/model``, or all."""
        return finish(self._client.list_rules(scope))

    def delete_rule(self, scope: str, *, alias: str = "") -> None:
        """Removes a rule.

        Raises:
            NotFoundError: There is none; says what there is.
        """
        return finish(self._client.delete_rule(scope, alias=alias))

    def check_rules(self, ref: str | ModelRef, *, alias: str = "") -> tuple[Missing, ...]:
        """What a version (``namespace/model@7``) lacks for having an alias; empty if that may point to it.

        Args:
            ref: The version.
            alias: Empty: what it would lack if it were published now.

        Raises:
            NotFoundError: The version does not exist.
        """
        return finish(self._client.check_rules(ref, alias=alias))

    def protect_alias(self, scope: str, alias: str, *, approval: bool = False) -> AliasProtection:
        """Lets only promoters move some aliases.

        Args:
            scope: ``namespace`` or ``namespace/model``.
            alias: A name, or a pattern such as ``prod*``.
            approval: A move waits until a second promoter approves it: `promote` then raises `ApprovalNeeded`.

        Raises:
            AuthError: The caller is no admin there.
        """
        return finish(self._client.protect_alias(scope, alias, approval=approval))

    def list_protections(self, scope: str = "") -> tuple[AliasProtection, ...]:
        """Protected aliases, as `list_rules`; what the server's settings protect everywhere has an empty scope."""
        return finish(self._client.list_protections(scope))

    def unprotect_alias(self, scope: str, alias: str) -> None:
        """Removes a protection.

        Raises:
            NotFoundError: There is none; says what there is.
            ConflictError: The server's settings protect it.
        """
        return finish(self._client.unprotect_alias(scope, alias))

    def iter_alias_requests(self, path: str, alias: str = "", *, everything: bool = False) -> Iterator[AliasRequest]:
        """Moves of a model's aliases that wait for a second person, newest first.

        Args:
            path: ``namespace/model``.
            alias: Only this one; empty for all.
            everything: Also those that wait for nobody any more.
        """
        return iterate(self._client.iter_alias_requests(path, alias, everything=everything))

    def approve_alias(self, path: str, request: str, *, comment: str = "") -> AliasRequest:
        """Moves an alias as somebody else asked for.

        Args:
            path: ``namespace/model``.
            request: Its id, from `iter_alias_requests` or from the error of who asked.
            comment: For its history.

        Raises:
            AuthError: The caller is no promoter, or the one who asked.
            ConflictError: It was decided already, has expired, or the alias moved meanwhile.
            RuleError: The version lacks what a rule asks for by now.
            NotFoundError: There is no such request, or the version is gone.
        """
        return finish(self._client.approve_alias(path, request, comment=comment))

    def reject_alias(self, path: str, request: str, *, comment: str = "") -> AliasRequest:
        """Refuses a move, or takes back one's own request; arguments and errors as in `approve_alias`."""
        return finish(self._client.reject_alias(path, request, comment=comment))

    def push_spools(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        any_url: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> tuple[PushedSpool, ...]:
        """Delivers what programs that are gone have left in their spools; those of programs that live are passed over.

        Args:
            directory: Where spools lie; None: the setting ``spool_dir``.
            any_url: Also those that are for a server of another address.
            on_progress: Called with the number of records of each delivered batch, on the engine's thread.

        Returns:
            One entry for each spool that was delivered, in part or whole, or failed.

        Cancellation: what was delivered stays so; the rest is kept.
        """
        return finish(self._client.push_spools(directory, any_url=any_url, on_progress=on_progress))

    def set_retention(
        self,
        scope: str,
        *,
        kind: str = "versions",
        keep_last: int | None = None,
        keep_younger_s: float | None = None,
        keep_best: Sequence[Best] = (),
        keep_all: bool = False,
    ) -> RetentionPolicy:
        """Says what is kept of a namespace or model; the server lets the rest go, within an hour.

        What any one rule keeps stays, and whatever the rules: what is held by an alias, a lock, something made from it,
        an instance that serves it, or a run that goes on.

        Args:
            scope: ``namespace``, or ``namespace/model``, whose policy is stronger.
            kind: ``versions`` (deleted), ``checkpoints`` of ended runs or ``runs`` (both go into the bin), or ``bin``.
            keep_last: The newest so many: of each model, run or experiment.
            keep_younger_s: What is younger, in seconds.
            keep_best: The best by metrics.
            keep_all: Everything, instead of all other rules.

        Raises:
            InvalidError: There is no rule, or one that is out of range.
        """
        return finish(
            self._client.set_retention(
                scope,
                kind=kind,
                keep_last=keep_last,
                keep_younger_s=keep_younger_s,
                keep_best=keep_best,
                keep_all=keep_all,
            )
        )

    def get_retention(self, scope: str, *, kind: str = "versions") -> RetentionPolicy:
        """The policy of exactly this scope.

        Raises:
            NotFoundError: There is none.
        """
        return finish(self._client.get_retention(scope, kind=kind))

    def list_retention(self, namespace: str = "") -> tuple[RetentionPolicy, ...]:
        """All policies, or those of a namespace and its models."""
        return finish(self._client.list_retention(namespace))

    def delete_retention(self, scope: str, *, kind: str = "versions") -> None:
        """Removes a policy.

        Raises:
            NotFoundError: There is none.
        """
        return finish(self._client.delete_retention(scope, kind=kind))

    def iter_retention_plan(
        self, scope: str = "", *, kind: str = "versions", policy: RetentionPolicy | None = None
    ) -> Iterator[Planned]:
        """What would become of everything in a scope, and why; changes nothing.

        Args:
            scope: ``namespace``, ``namespace/model``, or empty for everything.
            kind: As in `set_retention`.
            policy: Instead of the one that is set: what would it do?
        """
        return iterate(self._client.iter_retention_plan(scope, kind=kind, policy=policy))

    def run_retention(self, scope: str = "") -> RetentionRun:
        """Follows the policies now, to the end.

        Cancellation: what was deleted stays deleted.
        """
        return finish(self._client.run_retention(scope))

    def lock_version(self, ref: str | ModelRef, *, reason: str = "") -> VersionLock:
        """Locks a version (``namespace/model@7``): nobody deletes it, nor its model, until it is unlocked.

        Raises:
            NotFoundError: The version does not exist.
            InvalidError: ``ref`` names no number.
        """
        return finish(self._client.lock_version(ref, reason=reason))

    def unlock_version(self, ref: str | ModelRef) -> bool:
        """Unlocks a version; returns whether it was locked.

        Raises:
            NotFoundError: The version does not exist.
            InvalidError: ``ref`` names no number.
        """
        return finish(self._client.unlock_version(ref))

    def list_locks(self, scope: str = "") -> tuple[VersionLock, ...]:
        """Locked versions: all, or those of a namespace or model."""
        return finish(self._client.list_locks(scope))

    def set_quota(self, namespace: str, limit_bytes: int) -> Quota:
        """Limits how many bytes a namespace may hold; a limit below what it holds refuses new bytes only."""
        return finish(self._client.set_quota(namespace, limit_bytes))

    def delete_quota(self, namespace: str) -> None:
        """Lets a namespace hold as much as there is room for."""
        return finish(self._client.delete_quota(namespace))

    def list_quotas(self, namespace: str = "") -> tuple[Quota, ...]:
        """All quotas, or that of a namespace."""
        return finish(self._client.list_quotas(namespace))

    def iter_usage(self, namespace: str = "") -> Iterator[Usage]:
        """The space of each namespace, or of each model of one, by name."""
        return iterate(self._client.iter_usage(namespace))

    def space_totals(self) -> SpaceTotals:
        """The space of everything."""
        return finish(self._client.space_totals())

    def collect_garbage(
        self, *, dry_run: bool = False, on_progress: Callable[[Collected], None] | None = None
    ) -> Collected:
        """Removes bytes that nobody has used for the server's grace time; the server does so by itself every hour.

        Args:
            dry_run: Only say what would go.
            on_progress: Called now and then, on the engine's thread; must return at once.

        Cancellation: what is removed stays removed.
        """
        return finish(self._client.collect_garbage(dry_run=dry_run, on_progress=on_progress))

    def check_space(
        self, *, checksums: bool = False, repair: bool = False, on_progress: Callable[[SpaceCheck], None] | None = None
    ) -> SpaceReport:
        """Compares what the server knows with the bytes that it has.

        Args:
            checksums: Read every byte, and every point of metrics.
            repair: Put right what can be put right for sure: files that do not count as in use, counters of quotas.
            on_progress: Called about every second, on the engine's thread; must return at once.
        """
        return finish(self._client.check_space(checksums=checksums, repair=repair, on_progress=on_progress))

    def publish(
        self,
        path: str,
        files: FilesArgument,
        *,
        framework: str | None = None,
        signature: Signature | Literal["auto"] | None = None,
        entrypoint: str | None = None,
        description: str = "",
        labels: Mapping[str, str] | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
        metrics: Mapping[str, float] | None = None,
        aliases: Sequence[str] = (),
        reason: str = "",
        run: str = "",
        checkpoint: str = "",
        sign: SigningKey | str | os.PathLike[str] | None = None,
        on_progress: Progress | None = None,
    ) -> Created[ModelVersion]:
        """Publishes files as the next version of a model, and moves ``latest`` and ``aliases`` to it at once.

        Nobody sees the version before all its files are on the server and verified. Publishing the files of the newest
        version again returns that one with ``existed``. Broken connections are resumed where they broke.

        Args:
            path: ``namespace/model``; both are made where they are new.
            files: A file, a directory (with everything below it), a mapping of path in the version to local path, or a
                list of files and directories.
            framework: What opens it: ``onnx`` is served, ``safetensors`` read, everything else stored. None:
                ``safetensors`` where there are such files and no ONNX ones, else ``onnx``.
            signature: Inputs and outputs. None: read from an ONNX file where that is possible; ``"auto"``: it must be.
            entrypoint: Path of the file to open; needed when several would do.
            description: Free text.
            labels: Text by key.
            metadata: JSON by key.
            metrics: Numbers by key.
            aliases: Moved to the new version in the same transaction.
            reason: Why they move, for their history.
            run: Id of the run that made it: an edge of lineage, in the same transaction.
            checkpoint: Id of the checkpoint that it was made from; its run follows from it.
            sign: Key that signs the version, or the file of one without a password: nobody sees it unsigned.
            on_progress: Called with bytes on the server and all bytes, on the engine's thread; must return at once.

        Raises:
            InvalidError: A name, path or value cannot be, or a file is missing or changes meanwhile.
            RuleError: The version lacks what a rule asks for; ``missing`` lists what, with the commands that add it.
            AuthError: An alias is protected, and the caller is no promoter.
            ApprovalNeeded: A second person has to approve the move of an alias: publish without it, then `promote`.
            ModelInvalid: ``signature="auto"`` and the file is not ONNX.
            IntegrityError: Bytes were damaged on their way.
            LimitError: Too large, or the server's disk is full.

        Cancellation: nothing is published; bytes that arrived are kept for a while, and the next attempt goes on there.
        """
        return finish(
            self._client.publish(
                path,
                files,
                framework=framework,
                signature=signature,
                entrypoint=entrypoint,
                description=description,
                labels=labels,
                metadata=metadata,
                metrics=metrics,
                aliases=aliases,
                reason=reason,
                run=run,
                checkpoint=checkpoint,
                sign=sign,
                on_progress=on_progress,
            )
        )

    def get_version(self, ref: str | ModelRef) -> ModelVersion:
        """The version that ``ref`` points to now.

        Raises:
            NotFoundError: Model, alias or version do not exist; says what does.
        """
        return finish(self._client.get_version(ref))

    def iter_versions(self, path: str) -> Iterator[ModelVersion]:
        """All versions of a model, newest first; fetched page by page."""
        return iterate(self._client.iter_versions(path))

    def update_version(
        self,
        ref: str | ModelRef,
        *,
        description: str | None = None,
        labels: Mapping[str, str] | None = None,
        remove_labels: Sequence[str] = (),
        metadata: Mapping[str, JsonValue] | None = None,
        remove_metadata: Sequence[str] = (),
        metrics: Mapping[str, float] | None = None,
        remove_metrics: Sequence[str] = (),
    ) -> ModelVersion:
        """Edits what may change of a version; ``ref`` names it by number (``namespace/model@7``).

        Raises:
            NotFoundError: The version does not exist.
            InvalidError: A value breaks a rule, or ``ref`` names no number.
        """
        return finish(
            self._client.update_version(
                ref,
                description=description,
                labels=labels,
                remove_labels=remove_labels,
                metadata=metadata,
                remove_metadata=remove_metadata,
                metrics=metrics,
                remove_metrics=remove_metrics,
            )
        )

    def delete_version(self, ref: str | ModelRef) -> None:
        """Deletes a version, named by its number (``namespace/model@7``).

        Raises:
            InUseError: An alias other than ``latest`` points to it; says which.
            NotFoundError: The version does not exist.
            InvalidError: ``ref`` names no number.
        """
        return finish(self._client.delete_version(ref))

    def sign(
        self, ref: str | ModelRef, key: SigningKey | str | os.PathLike[str], *, files: FilesArgument | None = None
    ) -> ModelVersion:
        """Signs a version that is published, in place of the signature it had.

        What is signed is what the server says of it, unless ``files`` are given or ``ref`` names the digest
        (``namespace/model@sha256:…``): sign what you know.

        Args:
            ref: Which version.
            key: Key that signs it, or the file of one without a password.
            files: Its files as they are here, as in `publish`; they are compared before anything is signed.

        Raises:
            NotFoundError: Model, alias or version do not exist.
            IntegrityError: It has other files.
            ConfigError: The key cannot be used.
        """
        return finish(self._client.sign(ref, key, files=files))

    def verify(self, ref: str | ModelRef, *, trust: Trust | None = None) -> SignedBy:
        """Finds out who signed a version; needs nothing but its manifest.

        Args:
            ref: Which version.
            trust: Whom to believe; None for the settings ``trusted_keys`` and ``trusted_roots``.

        Raises:
            SignatureRefused: It is not signed, or by nobody who is trusted; ``reason`` says which.
            NotFoundError: Model, alias or version do not exist.
            ConfigError: A trusted file cannot be used.
        """
        return finish(self._client.verify(ref, trust=trust))

    def resolve(self, ref: str | ModelRef) -> Resolved:
        """What ``ref`` points to now, with the alias's state and the resume token of the same snapshot.

        Raises:
            NotFoundError: Model, alias or version do not exist; says what does.
        """
        return finish(self._client.resolve(ref))

    def iter_instances(self, path: str = "", *, include_lost: bool = False) -> Iterator[Instance]:
        """Which process serves which version now.

        Args:
            path: A namespace or ``namespace/model``; empty for all.
            include_lost: Also processes that have been silent for too long.
        """
        return iterate(self._client.iter_instances(path, include_lost=include_lost))

    def list_members(self) -> tuple[Member, ...]:
        """The servers that share the database of the one that answers, with those that were lost within the last hour.

        One server alone is its only member.
        """
        return finish(self._client.list_members())

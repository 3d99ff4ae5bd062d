"""The registry's use cases: namespaces, models, versions, aliases.

Owns the checks of everything that callers send. Rules that need stored state are the store's, inside its transaction;
whoever calls (`modelbox.runtime.caller`) is asked there for the role that a protected alias needs.

Every method may be called by many tasks at once. A cancelled change was either not begun or is carried out unseen: the
caller finds out by reading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from modelbox.access import ALL, Scope
from modelbox.errors import ApprovalNeeded, InvalidError, NotFoundError
from modelbox.objects import (
    Alias,
    AliasMove,
    Created,
    JsonValue,
    Model,
    ModelPatch,
    ModelVersion,
    Namespace,
    NewModel,
    NewVersion,
    Page,
    Resolved,
    VersionPatch,
    to_json,
)
from modelbox.refs import LATEST, ModelRef, check_alias, check_name, shown
from modelbox.rules import AliasRequest
from modelbox.runtime.caller import current_caller
from modelbox.runtime.limits import check_labels, check_metadata, check_metrics, check_text
from modelbox.runtime.ports import BlobStore, RegistryStore
from modelbox.runtime.services.paging import decode_key, page_of, page_size_of
from modelbox.runtime.tracking_ports import MetricSink
from modelbox.signing.bundle import check_bundle
from modelbox.signing.statement import subject_of
from modelbox.tracking import ObjectKind, check_id

__all__ = ("RegistryService",)


def _now() -> datetime:
    return datetime.now(UTC)


class RegistryService:
    """Models, versions and aliases.

    Args:
        store: Where they are kept.
        blobs: Where the files must be before they can be published.
        metrics: Where series of what is deleted are removed.
        clock: Gives the time of a change, aware and in UTC.

    Every method raises `InvalidError` for names and values that can never be right, `LimitError` for what is too large
    or when the disk is full, `ServerBusy` and `StorageError` when the database cannot answer.
    """

    def __init__(
        self,
        store: RegistryStore,
        blobs: BlobStore,
        *,
        metrics: MetricSink | None = None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._blobs = blobs
        self._clock = clock

    # -- models ----------------------------------------------------------------------------------------------------

    async def create_model(self, new: NewModel, *, actor: str) -> Created[Model]:
        """Makes a model, and its namespace if need be. An existing one is returned unchanged with ``existed``."""
        _check_path(new.namespace, new.name)
        _check_model_text(new.owner, new.task, new.description)
        check_labels(new.labels)
        check_metadata(new.metadata)
        return await self._store.create_model(new, actor=_actor(actor), at=self._clock())

    async def get_model(self, namespace: str, name: str) -> Model:
        """Reads a model.

        Raises:
            NotFoundError: There is none; ``exists`` lists the models of the namespace.
        """
        _check_path(namespace, name)
        return await self._store.get_model(namespace, name)

    async def update_model(self, namespace: str, name: str, patch: ModelPatch, *, actor: str) -> Model:
        """Edits a model. A patch that changes nothing makes no change in the feed.

        Raises:
            NotFoundError: There is no such model.
            LimitError: Labels or metadata would become too large.
        """
        _check_path(namespace, name)
        _check_model_text(patch.owner, patch.task, patch.description)
        _check_edits(patch.labels, patch.metadata)
        return await self._store.update_model(namespace, name, patch, actor=_actor(actor), at=self._clock())

    async def delete_model(self, namespace: str, name: str, *, actor: str) -> None:
        """Deletes a model with its versions, history and artifacts.

        Raises:
            NotFoundError: There is no such model.
            InUseError: An alias other than ``latest`` points to one of its versions; ``held_by`` lists them.
        """
        _check_path(namespace, name)
        await self._forget(await self._store.delete_model(namespace, name, actor=_actor(actor), at=self._clock()))

    async def list_models(
        self, *, namespace: str = "", page_size: int = 0, page_token: str = "", scope: Scope = ALL
    ) -> Page[Model]:
        """Models by namespace and name; of all namespaces for an empty one."""
        if namespace:
            check_name(namespace, "namespace")
        listing = f"models:{namespace}"
        return page_of(
            listing,
            await self._store.list_models(
                namespace=namespace,
                limit=page_size_of(page_size),
                after=decode_key(listing, page_token, str, str),
                scope=scope,
            ),
        )

    async def list_namespaces(self, *, page_size: int = 0, page_token: str = "", scope: Scope = ALL) -> Page[Namespace]:
        """Namespaces by name: those with something in them that the caller may see."""
        listing = "namespaces"
        return page_of(
            listing,
            await self._store.list_namespaces(
                limit=page_size_of(page_size), after=decode_key(listing, page_token, str), scope=scope
            ),
        )

    async def _forget(self, gone: Sequence[str]) -> None:
        # Behind the deletion, so that nobody reads a series that is half gone.
        if self._metrics is not None:
            await self._metrics.delete_series(gone)

    # -- versions --------------------------------------------------------------------------------------------------

    async def publish_version(self, new: NewVersion, *, actor: str) -> Created[ModelVersion]:
        """Makes the next version of a model, and namespace and model if need be.

        The version, ``latest`` and the given aliases move in one transaction and one revision of the feed. The manifest
        of the newest version again returns that one with ``existed``; the aliases move all the same. A named run or
        checkpoint becomes an ancestor of the version, in the same revision. With a signature, which names the version,
        comes the number that it must get; a signed version that is there already keeps the signature it has.

        Raises:
            ConflictError: It would get another number than the expected one; ``current`` says which.
            NotFoundError: Files of the manifest were not uploaded to this namespace; ``missing`` lists their paths. Or
                there is no such run or checkpoint.
            InvalidError: A file's size is not that of its bytes, or the checkpoint is of another run. Or the signature
                is not one of this version.
            RuleError: The version lacks what a rule asks for; ``missing`` lists what. Nothing was published.
            AuthError: An alias is protected, and the caller is no promoter. Nothing was published.
            ApprovalNeeded: A second person has to approve the move of an alias. Nothing was published.
        """
        _check_path(new.namespace, new.model)
        check_text(new.description, "description", max_chars=16_384)
        check_labels(new.labels)
        check_metadata(new.metadata)
        check_metrics(new.metrics)
        check_text(new.reason, "reason", max_chars=1024)
        for alias in new.aliases:
            _check_movable(alias)
        if new.run:
            check_id(new.run, ObjectKind.RUN)
        if new.checkpoint:
            check_id(new.checkpoint, ObjectKind.CHECKPOINT)
        if new.expected_version is not None:
            _check_version(new.expected_version)
        if new.bundle:
            if new.expected_version is None:
                raise InvalidError("a signature names a version: publish it with the number that it names")
            check_bundle(new.bundle, subject_of(new.namespace, new.model, new.expected_version), new.manifest)
        sizes = await self._blobs.find_sizes([file.digest for file in new.manifest.files])
        missing = [file.path for file in new.manifest.files if file.digest not in sizes]
        if missing:
            raise NotFoundError(
                f"{len(missing)} of the manifest's files are not here, such as {shown(missing[0])}: upload them first",
                what="file",
                missing=missing[:10],
            )
        return await self._store.publish_version(new, actor=_actor(actor), at=self._clock(), caller=current_caller())

    async def get_version(self, ref: ModelRef) -> ModelVersion:
        """Reads the version that a reference names.

        Raises:
            NotFoundError: No such model, alias or version; ``exists`` lists what there is instead.
        """
        return await self._store.get_version(ref)

    async def update_version(
        self, namespace: str, model: str, version: int, patch: VersionPatch, *, actor: str
    ) -> ModelVersion:
        """Edits what may change of a version. A patch that changes nothing makes no change in the feed.

        Raises:
            NotFoundError: There is no such version.
            LimitError: Labels, metadata or metrics would become too large.
        """
        _check_path(namespace, model)
        _check_version(version)
        if patch.description is not None:
            check_text(patch.description, "description", max_chars=16_384)
        _check_edits(patch.labels, patch.metadata)
        check_metrics(patch.metrics)
        if patch.bundle:
            # Neither number nor manifest of a version ever change.
            ref = ModelRef(namespace=namespace, model=model, version=version)
            signed = await self._store.get_version(ref)
            check_bundle(patch.bundle, str(ref), signed.manifest)
        return await self._store.update_version(namespace, model, version, patch, actor=_actor(actor), at=self._clock())

    async def delete_version(self, namespace: str, model: str, version: int, *, actor: str) -> None:
        """Deletes a version with its artifacts; its number is never given again. ``latest`` moves to the next newest.

        Raises:
            NotFoundError: There is no such version.
            InUseError: An alias other than ``latest`` points to it; ``held_by`` lists them.
        """
        _check_path(namespace, model)
        _check_version(version)
        await self._forget(
            await self._store.delete_version(namespace, model, version, actor=_actor(actor), at=self._clock())
        )

    async def list_versions(
        self, namespace: str, model: str, *, page_size: int = 0, page_token: str = ""
    ) -> Page[ModelVersion]:
        """Versions, newest first.

        Raises:
            NotFoundError: There is no such model.
        """
        _check_path(namespace, model)
        scope = f"versions:{namespace}/{model}"
        return page_of(
            scope,
            await self._store.list_versions(
                namespace, model, limit=page_size_of(page_size), after=decode_key(scope, page_token, int)
            ),
        )

    async def resolve(self, ref: ModelRef, *, scope: Scope = ALL) -> Resolved:
        """What a reference points to, with the alias's state and the feed's token of the same snapshot.

        Args:
            ref: What is asked.
            scope: What the caller may read; whoever watches from the token is told if that is another one by then.

        Raises:
            NotFoundError: No such model, alias or version; ``exists`` lists what there is instead.
        """
        return await self._store.resolve(ref, scope=scope)

    # -- aliases ---------------------------------------------------------------------------------------------------

    async def move_alias(
        self,
        namespace: str,
        model: str,
        alias: str,
        version: int,
        *,
        expected_mod_rev: int | None = None,
        reason: str = "",
        actor: str,
    ) -> Alias:
        """Moves an alias, or makes it. Where it points there already, nothing changes.

        Args:
            namespace: Of the model.
            model: The model's name.
            alias: Any name but ``latest``, which moves by itself.
            version: Where it is to point.
            expected_mod_rev: The alias's ``mod_rev`` that the caller saw; 0 for "it must not exist"; None for whatever.
            reason: Why, for the history.
            actor: Who.

        Raises:
            NotFoundError: No such model or version.
            ConflictError: The alias is not in the expected state; ``current`` is its state now, or None.
            RuleError: The version lacks what a rule asks for; ``missing`` lists what.
            AuthError: The alias is protected, and the caller is no promoter.
            ApprovalNeeded: A second person has to approve it; ``request`` is the id of what waits for them. Asking
                again for the same finds the same request.
        """
        _check_path(namespace, model)
        _check_movable(alias)
        _check_version(version)
        moved = await self._store.move_alias(
            namespace,
            model,
            alias,
            version,
            expected_mod_rev=_expected(expected_mod_rev),
            reason=check_text(reason, "reason", max_chars=1024),
            actor=_actor(actor),
            at=self._clock(),
            caller=current_caller(),
        )
        if isinstance(moved, AliasRequest):
            raise _waits(moved)
        return moved

    async def rollback_alias(
        self,
        namespace: str,
        model: str,
        alias: str,
        *,
        expected_mod_rev: int | None = None,
        reason: str = "",
        actor: str,
    ) -> Alias:
        """Moves an alias back to where it pointed before its last move; twice is forth again.

        A promoter may always do that, whatever a version must have and whoever has to approve a move: the way out when
        something is wrong. History says that nobody approved it.

        Raises:
            NotFoundError: No such model or alias, or the earlier version was deleted.
            ConflictError: The alias is not in the expected state (see `move_alias`), or never pointed elsewhere.
            AuthError: The alias is protected, and the caller is no promoter.
        """
        _check_path(namespace, model)
        _check_movable(alias)
        return await self._store.rollback_alias(
            namespace,
            model,
            alias,
            expected_mod_rev=_expected(expected_mod_rev),
            reason=check_text(reason, "reason", max_chars=1024),
            actor=_actor(actor),
            at=self._clock(),
            caller=current_caller(),
        )

    async def delete_alias(
        self,
        namespace: str,
        model: str,
        alias: str,
        *,
        expected_mod_rev: int | None = None,
        reason: str = "",
        actor: str,
    ) -> None:
        """Deletes an alias; its history stays and says who, when and why.

        Raises:
            NotFoundError: No such model or alias.
            ConflictError: The alias is not in the expected state; see `move_alias`.
            AuthError: As in `move_alias`.
            ApprovalNeeded: As in `move_alias`.
        """
        _check_path(namespace, model)
        _check_movable(alias)
        request = await self._store.delete_alias(
            namespace,
            model,
            alias,
            expected_mod_rev=_expected(expected_mod_rev),
            reason=check_text(reason, "reason", max_chars=1024),
            actor=_actor(actor),
            at=self._clock(),
            caller=current_caller(),
        )
        if request is not None:
            raise _waits(request)

    async def list_aliases(self, namespace: str, model: str) -> tuple[Alias, ...]:
        """All aliases of a model by name, ``latest`` among them.

        Raises:
            NotFoundError: There is no such model.
        """
        _check_path(namespace, model)
        return await self._store.list_aliases(namespace, model)

    async def list_alias_moves(
        self,
        namespace: str,
        model: str,
        *,
        alias: str = "",
        at: datetime | None = None,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[AliasMove]:
        """Moves, newest first; of all aliases for an empty one.

        With ``at``, only moves at or before that time: the first one says where the alias pointed then.

        Raises:
            NotFoundError: There is no such model.
        """
        _check_path(namespace, model)
        if alias:
            check_alias(alias)
        if at is not None and at.tzinfo is None:
            raise InvalidError("the time has no time zone: pass an aware datetime")
        scope = f"moves:{namespace}/{model}@{alias}"
        return page_of(
            scope,
            await self._store.list_alias_moves(
                namespace,
                model,
                alias=alias,
                at=at,
                limit=page_size_of(page_size),
                after=decode_key(scope, page_token, int),
            ),
        )


def _waits(request: AliasRequest) -> ApprovalNeeded:
    path = f"{request.namespace}/{request.model}"
    what = "its deletion" if request.to_version is None else f"version {request.to_version}"
    return ApprovalNeeded(
        f"{path}@{request.alias} waits for a second person: {what} is asked for as {request.id}, and a promoter who is "
        f"not {request.requested_by or 'its author'} can approve it until {request.expires_at:%Y-%m-%d %H:%M} UTC by "
        f"modelbox aliases approve {path} {request.id}",
        what="alias",
        name=f"{path}@{request.alias}",
        request=request.id,
        expires_at=to_json(request.expires_at),
    )


def _check_path(namespace: str, model: str) -> None:
    check_name(namespace, "namespace")
    check_name(model, "model")


def _check_movable(alias: str) -> None:
    if check_alias(alias) == LATEST:
        raise InvalidError("'latest' moves by itself to the newest version: choose another alias", what="alias")


def _check_version(version: int) -> None:
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version < 2**63:
        raise InvalidError(f"{shown(version)} is not a version: versions count from 1", what="version")


def _expected(mod_rev: int | None) -> int | None:
    if mod_rev is not None and (isinstance(mod_rev, bool) or not isinstance(mod_rev, int) or mod_rev < 0):
        raise InvalidError(f"{shown(mod_rev)} is not a revision: expected 0 or more", what="expected_mod_rev")
    return mod_rev


def _actor(actor: str) -> str:
    return check_text(actor, "actor", max_chars=256)


def _check_model_text(owner: str | None, task: str | None, description: str | None) -> None:
    for text, what, max_chars in ((owner, "owner", 256), (task, "task", 128), (description, "description", 16_384)):
        if text is not None:
            check_text(text, what, max_chars=max_chars)


def _check_edits(labels: Mapping[str, str], metadata: Mapping[str, JsonValue]) -> None:
    check_labels(labels)
    check_metadata(metadata)

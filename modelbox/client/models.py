"""Models, namespaces and aliases, as methods of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime

from modelbox.client.arguments import alias_of, model_of
from modelbox.client.connection import ClientConnection
from modelbox.objects import (
    Alias,
    AliasMove,
    Created,
    JsonValue,
    Model,
    ModelPatch,
    Namespace,
    NewModel,
)
from modelbox.refs import ModelRef

__all__ = ("ModelCalls",)


class ModelCalls(ClientConnection):
    """The part of `Client` about models and aliases."""

    async def create_model(
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
        namespace, name = model_of(path)
        new = NewModel(
            namespace=namespace,
            name=name,
            owner=owner,
            task=task,
            description=description,
            labels=labels or {},
            metadata=metadata or {},
        )
        return await self._call(lambda source: source.grpc.create_model(new))

    async def get_model(self, path: str) -> Model:
        """The model ``namespace/model``.

        Raises:
            NotFoundError: It does not exist; says what does.
        """
        namespace, name = model_of(path)
        return await self._call(lambda source: source.grpc.get_model(namespace, name))

    def iter_models(self, namespace: str = "") -> AsyncIterator[Model]:
        """All models, or those of one namespace, by name; fetched page by page."""
        return self._pages(lambda source, token: source.grpc.list_models(namespace, page_token=token))

    def iter_namespaces(self) -> AsyncIterator[Namespace]:
        """All namespaces, by name; fetched page by page."""
        return self._pages(lambda source, token: source.grpc.list_namespaces(page_token=token))

    async def update_model(
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
        namespace, name = model_of(path)
        patch = ModelPatch(
            owner=owner,
            task=task,
            description=description,
            labels=labels or {},
            remove_labels=tuple(remove_labels),
            metadata=metadata or {},
            remove_metadata=tuple(remove_metadata),
        )
        return await self._call(lambda source: source.grpc.update_model(namespace, name, patch))

    async def delete_model(self, path: str) -> None:
        """Deletes a model with its versions.

        Raises:
            InUseError: An alias other than ``latest`` points to one of its versions.
            NotFoundError: The model does not exist.
        """
        namespace, name = model_of(path)
        await self._call(lambda source: source.grpc.delete_model(namespace, name))

    async def promote(
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
        namespace, name, alias = alias_of(ref)
        return await self._call(
            lambda source: source.grpc.move_alias(
                namespace, name, alias, version, expected_mod_rev=expected_mod_rev, reason=reason
            )
        )

    async def rollback(self, ref: str | ModelRef, *, expected_mod_rev: int | None = None, reason: str = "") -> Alias:
        """Points an alias back to what it pointed to before its last move.

        Of a protected alias a promoter may always do that, without anybody's approval; history says so.

        Raises:
            ConflictError: As in `promote`, or there is nothing to go back to.
            AuthError: As in `promote`.
            NotFoundError: Model or alias do not exist.
        """
        namespace, name, alias = alias_of(ref)
        return await self._call(
            lambda source: source.grpc.rollback_alias(
                namespace, name, alias, expected_mod_rev=expected_mod_rev, reason=reason
            )
        )

    async def delete_alias(self, ref: str | ModelRef, *, expected_mod_rev: int | None = None, reason: str = "") -> None:
        """Deletes an alias; its history stays.

        Raises:
            ConflictError: As in `promote`.
            AuthError: As in `promote`.
            ApprovalNeeded: As in `promote`.
            NotFoundError: Model or alias do not exist.
        """
        namespace, name, alias = alias_of(ref)
        await self._call(
            lambda source: source.grpc.delete_alias(
                namespace, name, alias, expected_mod_rev=expected_mod_rev, reason=reason
            )
        )

    async def list_aliases(self, path: str) -> tuple[Alias, ...]:
        """All aliases of a model, ``latest`` among them."""
        namespace, name = model_of(path)
        return await self._call(lambda source: source.grpc.list_aliases(namespace, name))

    def iter_alias_moves(self, path: str, alias: str = "", *, at: datetime | None = None) -> AsyncIterator[AliasMove]:
        """Who moved a model's aliases when and why, newest first.

        Args:
            path: ``namespace/model``.
            alias: Only this one; empty for all.
            at: Only moves up to this time: the first one answers "what did it point to then?".
        """
        namespace, name = model_of(path)
        return self._pages(
            lambda source, token: source.grpc.list_alias_moves(namespace, name, alias=alias, at=at, page_token=token)
        )

"""The client's methods, blocking. Generated from `modelbox.client` by `make sync`: do not edit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelbox._blocking import BlockingClient, finish, iterate

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path
    from typing import Literal

    from modelbox._local_files import FilesArgument, Progress
    from modelbox.objects import (
        Alias,
        AliasMove,
        Artifact,
        ArtifactFile,
        Created,
        Instance,
        JsonValue,
        Model,
        ModelVersion,
        Namespace,
        Resolved,
    )
    from modelbox.refs import ModelRef
    from modelbox.signature import Signature


__all__ = ("SyncCalls",)


class SyncCalls:
    """Every call of `modelbox.Client` that waits for an answer."""

    _client: BlockingClient

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
            parent: ``namespace``, ``namespace/model`` or ``namespace/model@7``.
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
        """The artifacts of an object, or all those of a namespace (``parent`` without a slash)."""
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
            InvalidError: ``ref`` names no alias, or ``latest``, which moves by itself.
        """
        return finish(self._client.promote(ref, version, expected_mod_rev=expected_mod_rev, reason=reason))

    def rollback(self, ref: str | ModelRef, *, expected_mod_rev: int | None = None, reason: str = "") -> Alias:
        """Points an alias back to what it pointed to before its last move.

        Raises:
            ConflictError: As in `promote`, or there is nothing to go back to.
            NotFoundError: Model or alias do not exist.
        """
        return finish(self._client.rollback(ref, expected_mod_rev=expected_mod_rev, reason=reason))

    def delete_alias(self, ref: str | ModelRef, *, expected_mod_rev: int | None = None, reason: str = "") -> None:
        """Deletes an alias; its history stays.

        Raises:
            ConflictError: As in `promote`.
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

    def publish(
        self,
        path: str,
        files: FilesArgument,
        *,
        framework: str = "onnx",
        signature: Signature | Literal["auto"] | None = None,
        entrypoint: str | None = None,
        description: str = "",
        labels: Mapping[str, str] | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
        metrics: Mapping[str, float] | None = None,
        aliases: Sequence[str] = (),
        reason: str = "",
        on_progress: Progress | None = None,
    ) -> Created[ModelVersion]:
        """Publishes files as the next version of a model, and moves ``latest`` and ``aliases`` to it at once.

        Nobody sees the version before all its files are on the server and verified. Publishing the files of the newest
        version again returns that one with ``existed``. Broken connections are resumed where they broke.

        Args:
            path: ``namespace/model``; both are made where they are new.
            files: A file, a directory (with everything below it), a mapping of path in the version to local path, or a
                list of files and directories.
            framework: What opens it: ``onnx`` is served, everything else is stored.
            signature: Inputs and outputs. None: read from an ONNX file where that is possible; ``"auto"``: it must be.
            entrypoint: Path of the file to open; needed when several would do.
            description: Free text.
            labels: Text by key.
            metadata: JSON by key.
            metrics: Numbers by key.
            aliases: Moved to the new version in the same transaction.
            reason: Why they move, for their history.
            on_progress: Called with bytes on the server and all bytes, on the engine's thread; must return at once.

        Raises:
            InvalidError: A name, path or value breaks a rule, or a file is missing or changes meanwhile.
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

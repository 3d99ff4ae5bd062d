"""Files: downloads and artifacts, as methods of the client."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

from modelbox._local_files import FilesArgument, Progress
from modelbox.client.arguments import path_of
from modelbox.client.connection import ClientConnection
from modelbox.objects import (
    Artifact,
    ArtifactFile,
    Created,
    JsonValue,
)
from modelbox.refs import ModelRef
from modelbox.tracking import kind_of_id

__all__ = ("FileCalls",)


class FileCalls(ClientConnection):
    """The part of `Client` about files."""

    async def download(
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
        from modelbox._transport.transfer import download_version

        parsed, target = ModelRef.parse(ref), path_of(directory)
        policy = self.config.signature_policy()
        return await self._call(lambda source: download_version(source, parsed, target, on_progress, policy))

    async def upload_artifact(
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
        from modelbox._transport.transfer import upload_artifact

        return await self._call(
            lambda source: upload_artifact(
                source, parent, name, files, labels=labels or {}, metadata=metadata or {}, on_progress=on_progress
            )
        )

    async def track_artifact(
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
        from modelbox._transport.transfer import track_artifact

        listed = tuple(files)
        return await self._call(
            lambda source: track_artifact(source, parent, name, listed, labels=labels or {}, metadata=metadata or {})
        )

    def iter_artifacts(self, parent: str) -> AsyncIterator[Artifact]:
        """The artifacts of an object (its id or path), or all those of a namespace (named by its name)."""
        is_namespace = "/" not in parent and kind_of_id(parent) is None
        exact, namespace = ("", parent) if is_namespace else (parent, "")
        return self._pages(
            lambda source, token: source.grpc.list_artifacts(parent=exact, namespace=namespace, page_token=token)
        )

    async def get_artifact(self, artifact_id: str) -> Artifact:
        """One artifact by its id."""
        return await self._call(lambda source: source.grpc.get_artifact(artifact_id))

    async def delete_artifact(self, artifact_id: str) -> None:
        """Deletes an artifact."""
        await self._call(lambda source: source.grpc.delete_artifact(artifact_id))

    async def download_artifact(
        self, artifact_id: str, directory: str | os.PathLike[str], *, on_progress: Progress | None = None
    ) -> Path:
        """Writes the stored files of an artifact below ``directory``; otherwise as `download`.

        Raises:
            InvalidError: A file of it is only tracked; says where it lies.
        """
        from modelbox._transport.transfer import download_artifact

        target = path_of(directory)
        return await self._call(lambda source: download_artifact(source, artifact_id, target, on_progress))

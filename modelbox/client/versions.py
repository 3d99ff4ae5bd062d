"""Versions of models, as methods of the client."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Literal

import anyio.to_thread

from modelbox._local_files import FilesArgument, Progress
from modelbox.client.arguments import model_of, numbered
from modelbox.client.connection import ClientConnection
from modelbox.objects import (
    Created,
    JsonValue,
    ModelVersion,
    Resolved,
    VersionPatch,
)
from modelbox.refs import ModelRef
from modelbox.signature import Signature
from modelbox.signing.keys import SigningKey
from modelbox.signing.policy import Mode, ModeRule, SignaturePolicy
from modelbox.signing.trust import SignedBy, Trust

__all__ = ("VersionCalls",)


async def _key_of(key: SigningKey | str | os.PathLike[str] | None) -> SigningKey | None:
    if key is None or isinstance(key, SigningKey):
        return key
    return await anyio.to_thread.run_sync(SigningKey.load, key)


class VersionCalls(ClientConnection):
    """The part of `Client` about versions."""

    async def publish(
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
        from modelbox._transport.transfer import Publication

        namespace, name = model_of(path)
        publication = Publication(
            namespace=namespace,
            model=name,
            files=files,
            framework=framework,
            signature=signature,
            entrypoint=entrypoint,
            description=description,
            labels=labels or {},
            metadata=metadata or {},
            metrics=metrics or {},
            aliases=tuple(aliases),
            reason=reason,
            run_id=run,
            checkpoint_id=checkpoint,
            sign=await _key_of(sign),
        )
        return await self._call(lambda source: publication.run(source, on_progress))

    async def get_version(self, ref: str | ModelRef) -> ModelVersion:
        """The version that ``ref`` points to now.

        Raises:
            NotFoundError: Model, alias or version do not exist; says what does.
        """
        parsed = ModelRef.parse(ref)
        return await self._call(lambda source: source.grpc.get_version(parsed))

    def iter_versions(self, path: str) -> AsyncIterator[ModelVersion]:
        """All versions of a model, newest first; fetched page by page."""
        namespace, name = model_of(path)
        return self._pages(lambda source, token: source.grpc.list_versions(namespace, name, page_token=token))

    async def update_version(
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
        namespace, name, version = numbered(ref)
        patch = VersionPatch(
            description=description,
            labels=labels or {},
            remove_labels=tuple(remove_labels),
            metadata=metadata or {},
            remove_metadata=tuple(remove_metadata),
            metrics=metrics or {},
            remove_metrics=tuple(remove_metrics),
        )
        return await self._call(lambda source: source.grpc.update_version(namespace, name, version, patch))

    async def delete_version(self, ref: str | ModelRef) -> None:
        """Deletes a version, named by its number (``namespace/model@7``).

        Raises:
            InUseError: An alias other than ``latest`` points to it; says which.
            NotFoundError: The version does not exist.
            InvalidError: ``ref`` names no number.
        """
        namespace, name, version = numbered(ref)
        await self._call(lambda source: source.grpc.delete_version(namespace, name, version))

    async def sign(
        self,
        ref: str | ModelRef,
        key: SigningKey | str | os.PathLike[str],
        *,
        files: FilesArgument | None = None,
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
        from modelbox._transport.transfer import sign_version

        parsed, signer = ModelRef.parse(ref), await _key_of(key)
        assert signer is not None
        return await self._call(lambda source: sign_version(source, parsed, signer, files))

    async def verify(self, ref: str | ModelRef, *, trust: Trust | None = None) -> SignedBy:
        """Finds out who signed a version; needs nothing but its manifest.

        Args:
            ref: Which version.
            trust: Whom to believe; None for the settings ``trusted_keys`` and ``trusted_roots``.

        Raises:
            SignatureRefused: It is not signed, or by nobody who is trusted; ``reason`` says which.
            NotFoundError: Model, alias or version do not exist.
            ConfigError: A trusted file cannot be used.
        """
        parsed = ModelRef.parse(ref)
        policy = SignaturePolicy([ModeRule(mode=Mode.REQUIRE)], trust or self.config.signature_policy().trust)
        await anyio.to_thread.run_sync(policy.open)
        version = await self.get_version(parsed)
        signer = await anyio.to_thread.run_sync(policy.check, parsed, version)
        assert signer is not None
        return signer

    async def resolve(self, ref: str | ModelRef) -> Resolved:
        """What ``ref`` points to now, with the alias's state and the resume token of the same snapshot.

        Raises:
            NotFoundError: Model, alias or version do not exist; says what does.
        """
        parsed = ModelRef.parse(ref)
        return await self._call(lambda source: source.resolve(parsed))

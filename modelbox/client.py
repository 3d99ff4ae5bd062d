"""The client: everything that the central server offers, as methods.

Owns `Client`. The work itself happens in the engine (a background asyncio loop), so
that one client serves tasks under asyncio, uvloop and trio alike, from any thread, and after a fork. Refuses to retry
(the transports do) and to keep state about objects: what a method returns is what the server said.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import anyio.to_thread

from modelbox._local_files import FilesArgument, Progress
from modelbox.changes import ChangeFeed
from modelbox.config import ClientConfig, load_client_config
from modelbox.engine import Engine
from modelbox.errors import ClientClosed, InvalidError
from modelbox.feed import Filter
from modelbox.objects import (
    Alias,
    AliasMove,
    Artifact,
    ArtifactFile,
    Created,
    Instance,
    JsonValue,
    Model,
    ModelPatch,
    ModelVersion,
    Namespace,
    NewModel,
    Page,
    Resolved,
    VersionPatch,
)
from modelbox.refs import ModelRef, shown
from modelbox.signature import Signature

if TYPE_CHECKING:
    from modelbox._transport.sidecar import SidecarHost
    from modelbox._transport.source import RemoteSource
    from modelbox.loader.settings import LoadOptions
    from modelbox.loading import LoaderHost
    from modelbox.model import LiveModel

__all__ = ("Client",)

T = TypeVar("T")
_CLOSE_S = 5.0


class Client:
    """A connection to a central server.

    ::

        async with modelbox.Client("http://127.0.0.1:8080") as client:
            await client.publish("langtech/wav2vec", "model.onnx", aliases=["staging"])
            await client.promote("langtech/wav2vec@prod", 1, reason="passed review")

    Models are named ``namespace/model``; versions by a reference such as ``langtech/wav2vec@prod``, ``…@7`` or
    ``…@sha256:…``. Nothing is connected before the first call. Without ``async with``, call `aclose` at the end.

    Args:
        url: HTTP address of the server; None: ``MODELBOX_URL``, the settings file, or ``http://127.0.0.1:8080``.
        config: Settings read before; then neither environment nor file is looked at.
        engine: Shares this engine, which its owner closes; None: the client has one of its own.
        **settings: Any setting of `ClientConfig`, stronger than environment and file.

    Raises:
        ConfigError: From ``async with`` or the first call: settings that cannot be used.

    Concurrency: any number of tasks, threads and event loops may share one client.
    Cancellation: a cancelled call ends its work in the engine before it returns. A change that was on its way to the
        server may or may not have been made.
    Errors: every method raises `Unavailable` where the server cannot be reached, `DeadlineExceeded` where it does not
        answer within ``request_timeout_s``, `ProtocolError` where it is no ModelBox server, and `ClientClosed` after
        `aclose`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        config: ClientConfig | None = None,
        engine: Engine | None = None,
        **settings: Any,
    ) -> None:
        if config is not None and (url is not None or settings):
            raise TypeError("Client takes either a config or single settings")
        self._settings = {**settings, "url": url}
        self._config = config
        self._owns_engine = engine is None
        self._engine = Engine() if engine is None else engine
        self._source: RemoteSource | None = None
        self._source_pid = 0
        self._of_parent: list[RemoteSource] = []
        self._closed = False
        self._host: LoaderHost | SidecarHost | None = None

    @property
    def config(self) -> ClientConfig:
        """The settings in force; reads them on first use.

        Raises:
            ConfigError: They cannot be used; names every problem.
        """
        if self._config is None:
            self._config = load_client_config(**self._settings)
        return self._config

    @property
    def engine(self) -> Engine:
        """The engine that this client's work runs in."""
        return self._engine

    async def __aenter__(self) -> Self:
        self._check_open()
        await anyio.to_thread.run_sync(lambda: self.config)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes connections, and the engine where it is the client's own. Idempotent.

        Cancellation: closing goes on, for at most 5 s.
        """
        if self._closed:
            return
        self._closed = True
        with anyio.move_on_after(_CLOSE_S, shield=True):
            if self._host is not None:
                with suppress(ClientClosed):
                    await self._engine.call(self._host.aclose)
            if self._source is not None and self._source_pid == os.getpid():
                with suppress(ClientClosed):
                    await self._engine.call(self._source.aclose)
            if self._owns_engine:
                await anyio.to_thread.run_sync(self._engine.close)

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosed("this client is closed: make a new modelbox.Client")

    async def source(self) -> RemoteSource:
        """The transport, for a loader on the same engine; call it there only."""
        self._check_open()
        if self._source is None or self._source_pid != os.getpid():
            from modelbox._transport.source import RemoteSource

            if self._source is not None:
                # Its sockets belong to the process that we were forked from: never use, close or collect them here.
                self._of_parent.append(self._source)
            self._source = RemoteSource(self.config)
            self._source_pid = os.getpid()
        return self._source

    async def _call(self, fn: Callable[[RemoteSource], Awaitable[T]]) -> T:
        """Runs ``fn`` on the engine's loop."""
        self._check_open()
        return await self._engine.call(self._run, fn)

    async def _run(self, fn: Callable[[RemoteSource], Awaitable[T]]) -> T:
        return await fn(await self.source())

    async def _pages(self, fetch: Callable[[RemoteSource, str], Awaitable[Page[T]]]) -> AsyncIterator[T]:
        token = ""
        while True:

            async def next_page(source: RemoteSource, token: str = token) -> Page[T]:
                return await fetch(source, token)

            page = await self._call(next_page)
            for item in page.items:
                yield item
            token = page.next_token
            if not token:
                return

    # --- loading -------------------------------------------------------------------------------------------------

    async def load(
        self, ref: str | ModelRef, *, options: LoadOptions | None = None, timeout: float | None = None
    ) -> LiveModel:
        """Brings a model into service, and keeps it at what ``ref`` points to for as long as the handle lives.

        The version is streamed into the local cache, verified, opened with onnxruntime and warmed up before this
        returns. When an alias moves, the new version goes through the same and replaces the old one without a failed
        call; one that does not pass is refused, and the old version goes on. With the server out of reach, the last
        version that served on this machine is opened from the cache and marked stale.

        Args:
            ref: ``namespace/model@prod``, ``…@7``, ``…@sha256:…``; without a suffix, ``@latest``.
            options: How to open and run it; handles of one reference share the options of the first. A sidecar goes by
                its own.
            timeout: Seconds until the first version has to be ready; None for the transports' own timeouts.

        Raises:
            RefError: ``ref`` is not a reference.
            NotFoundError: The model, alias or version does not exist; says what does.
            LoadError: It cannot be served (format, broken file, unknown operator, warm-up).
            IntegrityError: Its bytes are not what the manifest says.
            CacheError: The cache cannot be used: disk full, read-only, not ours.
            Unavailable: The server cannot be reached and the cache holds nothing for ``ref``; or no sidecar answers.
            DeadlineExceeded: It was not ready within ``timeout``.
            ConfigError: onnxruntime is not installed.

        Cancellation: the work ends when nobody else waits for the same reference; verified files stay in the cache.
        """
        parsed = ModelRef.parse(ref)
        if self._config is None:
            await anyio.to_thread.run_sync(lambda: self.config)
        return await self._loading().load(parsed, options, timeout=timeout)

    def load_sync(
        self, ref: str | ModelRef, *, options: LoadOptions | None = None, timeout: float | None = None
    ) -> LiveModel:
        """`load` for code that is not async; see `modelbox.sync`."""
        return self._loading().load_sync(ModelRef.parse(ref), options, timeout=timeout)

    def _loading(self) -> LoaderHost | SidecarHost:
        self._check_open()
        if self._host is None:
            if self.config.sidecar:
                from modelbox._transport.sidecar import SidecarHost

                self._host = SidecarHost(self._engine, self.config)
            else:
                from modelbox.loading import LoaderHost

                self._host = LoaderHost(self._engine, config=lambda: self.config, source=self.source)
        return self._host

    # --- models --------------------------------------------------------------------------------------------------

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
        namespace, name = _model(path)
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
        namespace, name = _model(path)
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
        namespace, name = _model(path)
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
        namespace, name = _model(path)
        await self._call(lambda source: source.grpc.delete_model(namespace, name))

    # --- versions ------------------------------------------------------------------------------------------------

    async def publish(
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
        from modelbox._transport.transfer import Publication

        namespace, name = _model(path)
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
        namespace, name = _model(path)
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
        namespace, name, version = _numbered(ref)
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
        namespace, name, version = _numbered(ref)
        await self._call(lambda source: source.grpc.delete_version(namespace, name, version))

    async def resolve(self, ref: str | ModelRef) -> Resolved:
        """What ``ref`` points to now, with the alias's state and the resume token of the same snapshot.

        Raises:
            NotFoundError: Model, alias or version do not exist; says what does.
        """
        parsed = ModelRef.parse(ref)
        return await self._call(lambda source: source.resolve(parsed))

    # --- aliases -------------------------------------------------------------------------------------------------

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
            InvalidError: ``ref`` names no alias, or ``latest``, which moves by itself.
        """
        namespace, name, alias = _alias(ref)
        return await self._call(
            lambda source: source.grpc.move_alias(
                namespace, name, alias, version, expected_mod_rev=expected_mod_rev, reason=reason
            )
        )

    async def rollback(self, ref: str | ModelRef, *, expected_mod_rev: int | None = None, reason: str = "") -> Alias:
        """Points an alias back to what it pointed to before its last move.

        Raises:
            ConflictError: As in `promote`, or there is nothing to go back to.
            NotFoundError: Model or alias do not exist.
        """
        namespace, name, alias = _alias(ref)
        return await self._call(
            lambda source: source.grpc.rollback_alias(
                namespace, name, alias, expected_mod_rev=expected_mod_rev, reason=reason
            )
        )

    async def delete_alias(self, ref: str | ModelRef, *, expected_mod_rev: int | None = None, reason: str = "") -> None:
        """Deletes an alias; its history stays.

        Raises:
            ConflictError: As in `promote`.
            NotFoundError: Model or alias do not exist.
        """
        namespace, name, alias = _alias(ref)
        await self._call(
            lambda source: source.grpc.delete_alias(
                namespace, name, alias, expected_mod_rev=expected_mod_rev, reason=reason
            )
        )

    async def list_aliases(self, path: str) -> tuple[Alias, ...]:
        """All aliases of a model, ``latest`` among them."""
        namespace, name = _model(path)
        return await self._call(lambda source: source.grpc.list_aliases(namespace, name))

    def iter_alias_moves(self, path: str, alias: str = "", *, at: datetime | None = None) -> AsyncIterator[AliasMove]:
        """Who moved a model's aliases when and why, newest first.

        Args:
            path: ``namespace/model``.
            alias: Only this one; empty for all.
            at: Only moves up to this time: the first one answers "what did it point to then?".
        """
        namespace, name = _model(path)
        return self._pages(
            lambda source, token: source.grpc.list_alias_moves(namespace, name, alias=alias, at=at, page_token=token)
        )

    # --- files ---------------------------------------------------------------------------------------------------

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
            CacheError: The directory cannot be written.

        Cancellation: no file appears; what was downloaded is removed.
        """
        from modelbox._transport.transfer import download_version

        parsed, target = ModelRef.parse(ref), _path(directory)
        return await self._call(lambda source: download_version(source, parsed, target, on_progress))

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
        """The artifacts of an object, or all those of a namespace (``parent`` without a slash)."""
        exact, namespace = ("", parent) if "/" not in parent else (parent, "")
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

        target = _path(directory)
        return await self._call(lambda source: download_artifact(source, artifact_id, target, on_progress))

    # --- changes and the fleet -----------------------------------------------------------------------------------

    def changes(
        self,
        token: str = "",
        *,
        namespace: str = "",
        objects: Sequence[str] = (),
        kinds: Sequence[str] = (),
        list_first: bool = False,
    ) -> ChangeFeed:
        """Follows what ModelBox does, across broken connections and restarts of the server.

        Args:
            token: Go on after this place: a `ChangeFeed.token` kept before. Empty: from now on.
            namespace: Only of this namespace.
            objects: Only of these: ``namespace/model`` takes in its versions, aliases and downloads.
            kinds: Only of these kinds, see `modelbox.feed.Kind`.
            list_first: Begin with the current state of everything. Not with a ``token``.
        """
        if token and list_first:
            raise InvalidError("changes() begins either at a token or with a list, not both")
        wanted = Filter(namespace=namespace, objects=tuple(objects), kinds=tuple(kinds))
        return ChangeFeed(self, wanted, token=token, list_first=list_first)

    def iter_instances(self, path: str = "", *, include_lost: bool = False) -> AsyncIterator[Instance]:
        """Which process serves which version now.

        Args:
            path: A namespace or ``namespace/model``; empty for all.
            include_lost: Also processes that have been silent for too long.
        """
        return self._pages(
            lambda source, token: source.grpc.list_instances(path, include_lost=include_lost, page_token=token)
        )


def _model(path: str) -> tuple[str, str]:
    """Namespace and name out of ``namespace/model``."""
    if isinstance(path, str) and "@" in path:
        raise InvalidError(f"{shown(path)} names a version: expected namespace/model")
    ref = ModelRef.parse(path)
    return ref.namespace, ref.model


def _alias(ref: str | ModelRef) -> tuple[str, str, str]:
    parsed = ModelRef.parse(ref)
    if parsed.alias is None or (isinstance(ref, str) and "@" not in ref):
        raise InvalidError(f"{shown(str(ref))} names no alias: expected namespace/model@alias")
    return parsed.namespace, parsed.model, parsed.alias


def _numbered(ref: str | ModelRef) -> tuple[str, str, int]:
    parsed = ModelRef.parse(ref)
    if parsed.version is None:
        raise InvalidError(f"{shown(str(ref))} names no version by its number: expected namespace/model@7")
    return parsed.namespace, parsed.model, parsed.version


def _path(directory: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(os.fspath(directory)))

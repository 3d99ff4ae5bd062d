"""Events, comments, readmes, datasets and lineage, as methods of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from modelbox.client.connection import ClientConnection
from modelbox.objects import Created, JsonValue
from modelbox.refs import parse_path
from modelbox.tracking import (
    Comment,
    Dataset,
    DatasetComponent,
    DatasetVersion,
    Event,
    Lineage,
    NewComment,
    NewDataset,
    NewDatasetVersion,
    NewEdge,
    NewEdges,
    NewEvent,
    Readme,
    ReadmeEdit,
)

__all__ = ("RecordCalls",)


class RecordCalls(ClientConnection):
    """The part of `Client` about what people and outside systems say of objects.

    ``object`` is an id, a namespace, ``namespace/model`` or ``namespace/model@7``. Every method raises `NotFoundError`
    where there is no such object, `InvalidError` and `LimitError` for values that cannot be kept.
    """

    async def log_event(
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
        new = NewEvent(object=object, name=name, source=source, at=at or datetime.now(UTC), metadata=metadata or {})
        return await self._call(lambda remote: remote.tracking.log_event(new))

    def iter_events(
        self,
        object: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        name: str = "",
        source: str = "",
    ) -> AsyncIterator[Event]:
        """Events of an object, or of a whole namespace, newest first.

        Args:
            object: An object; for a namespace, all events in it.
            since: Only what happened then or later; aware, by the reporters' clocks.
            until: Only what happened before.
            name: Only of this name.
            source: Only from this source.
        """
        return self._pages(
            lambda remote, token: remote.tracking.list_events(
                object, since=since, until=until, name=name, source=source, page_token=token
            )
        )

    async def add_comment(self, object: str, text: str) -> Comment:
        """Says something about an object, in Markdown."""
        new = NewComment(object=object, text=text)
        return await self._call(lambda source: source.tracking.add_comment(new))

    async def edit_comment(self, comment: str, text: str) -> Comment:
        """Says it better; `delete_objects` takes a comment's id, too."""
        return await self._call(lambda source: source.tracking.edit_comment(comment, text))

    def iter_comments(self, object: str) -> AsyncIterator[Comment]:
        """The comments on an object, oldest first."""
        return self._pages(lambda source, token: source.tracking.list_comments(object, page_token=token))

    async def set_readme(self, object: str, text: str) -> Readme:
        """Writes the page of an object, in Markdown; an empty text removes it."""
        edit = ReadmeEdit(object=object, text=text)
        return await self._call(lambda source: source.tracking.set_readme(edit))

    async def get_readme(self, object: str) -> Readme:
        """The page of an object.

        Raises:
            NotFoundError: It has none.
        """
        return await self._call(lambda source: source.tracking.get_readme(object))

    # --- datasets ------------------------------------------------------------------------------------------------

    async def create_dataset(self, path: str, *, owner: str = "", description: str = "") -> Created[Dataset]:
        """Makes a dataset ``namespace/name``; an existing one is returned unchanged."""
        namespace, name = parse_path(path, "dataset")
        new = NewDataset(namespace=namespace, name=name, owner=owner, description=description)
        return await self._call(lambda source: source.tracking.create_dataset(new))

    async def get_dataset(self, dataset: str) -> Dataset:
        """A dataset by its id, or as ``namespace/name``."""
        return await self._call(lambda source: source.tracking.get_dataset(dataset))

    def iter_datasets(self, namespace: str = "", *, include_deleted: bool = False) -> AsyncIterator[Dataset]:
        """All datasets, or those of one namespace."""
        return self._pages(
            lambda source, token: source.tracking.list_datasets(
                namespace, include_deleted=include_deleted, page_token=token
            )
        )

    async def create_dataset_version(
        self, path: str, components: Iterable[DatasetComponent], *, description: str = ""
    ) -> Created[DatasetVersion]:
        """Records data as they are now as the next version; the same components as the newest return that one.

        Args:
            path: ``namespace/name``; the dataset is made where it is new.
            components: Paths, S3 objects, queries; see `modelbox.tracking.DatasetComponent`.
            description: What changed.
        """
        namespace, name = parse_path(path, "dataset")
        new = NewDatasetVersion(
            namespace=namespace, dataset=name, components=tuple(components), description=description
        )
        return await self._call(lambda source: source.tracking.create_dataset_version(new))

    async def get_dataset_version(self, version: str) -> DatasetVersion:
        """A version by its id, as ``namespace/name@3``, or ``namespace/name`` for the newest."""
        return await self._call(lambda source: source.tracking.get_dataset_version(version))

    def iter_dataset_versions(self, dataset: str, *, include_deleted: bool = False) -> AsyncIterator[DatasetVersion]:
        """The versions of a dataset, newest first."""
        return self._pages(
            lambda source, token: source.tracking.list_dataset_versions(
                dataset, include_deleted=include_deleted, page_token=token
            )
        )

    # --- lineage -------------------------------------------------------------------------------------------------

    async def add_edge(self, source: str, target: str, type: str) -> None:
        """Records that ``target`` was made from ``source``, such as a version ``produced`` by a run.

        Args:
            source: An object.
            target: An object.
            type: ``used``, ``produced``, ``derived``, or a word of your own.

        Raises:
            ConflictError: ``source`` came from ``target`` already: an edge would close a cycle; says which way.
        """
        await self.add_edges([NewEdge(source=source, target=target, type=type)])

    async def add_edges(self, edges: Sequence[NewEdge]) -> int:
        """Records several at once, all or none; returns how many were new. Errors as `add_edge`."""
        new = NewEdges(edges=tuple(edges))
        return await self._call(lambda remote: remote.tracking.add_edges(new))

    async def remove_edges(self, edges: Sequence[NewEdge]) -> int:
        """Removes edges; returns how many were there."""
        return await self._call(lambda remote: remote.tracking.remove_edges(edges))

    async def get_lineage(
        self,
        *objects: str,
        direction: Literal["ancestors", "descendants", "both"] = "both",
        max_depth: int = 0,
    ) -> Lineage:
        """What objects were made from, and what was made from them.

        Args:
            *objects: Where to begin.
            direction: Which way to go.
            max_depth: Edges from there at most; 0 for no bound. An answer ends at 10,000 objects and says so.
        """
        return await self._call(lambda remote: remote.tracking.get_lineage(objects, direction, max_depth=max_depth))

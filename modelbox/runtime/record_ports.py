"""What the services of events, comments, readmes, datasets and lineage need of a database, as protocols.

The rules of `modelbox.runtime.ports` hold here too. An object is named as callers name it: by id, as a namespace,
``namespace/model`` or ``namespace/model@7``; where there is none, a method raises `NotFoundError`. What is in the bin
is still read and still takes what is new: a program that runs must not lose what it says because somebody tidied up.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from modelbox.access import ALL, Scope
from modelbox.objects import Created
from modelbox.runtime.ports import Key, Listed
from modelbox.tracking import (
    Comment,
    Dataset,
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

__all__ = ("DatasetStore", "LineageStore", "NoteStore")


class NoteStore(Protocol):
    """Events, comments and readmes of any object."""

    async def log_event(self, new: NewEvent, *, actor: str, at: datetime) -> Created[Event]:
        """Keeps an event; idempotent by id."""

    async def list_events(
        self,
        object_text: str,
        *,
        since: datetime | None,
        until: datetime | None,
        name: str,
        source: str,
        limit: int,
        after: Key | None,
        scope: Scope = ALL,
    ) -> Listed[Event]:
        """Events of an object, or of everything in a namespace, newest first by the reporter's clock.

        ``since`` is included, ``until`` is not; an empty name or source lets all through. Key: (time in microseconds,
        internal number).
        """

    async def add_comment(self, new: NewComment, *, actor: str, at: datetime) -> Created[Comment]:
        """Keeps a comment; idempotent by id."""

    async def edit_comment(self, comment_id: str, text: str, *, actor: str, at: datetime) -> Comment:
        """Gives a comment another text; the same one makes no revision."""

    async def delete_comment(self, comment_id: str, *, actor: str, at: datetime) -> Comment:
        """Puts a comment into the bin; one that is there already makes no revision."""

    async def restore_comment(self, comment_id: str, *, actor: str, at: datetime) -> Comment:
        """Takes a comment out of the bin; one that is not in it makes no revision."""

    async def list_comments(
        self, object_text: str, *, include_deleted: bool, limit: int, after: Key | None, scope: Scope = ALL
    ) -> Listed[Comment]:
        """Comments of an object, oldest first. Key: (internal number,)."""

    async def set_readme(self, edit: ReadmeEdit, *, actor: str, at: datetime) -> Readme:
        """Sets the page of an object, or removes it; what changes nothing makes no revision."""

    async def get_readme(self, object_text: str) -> Readme:
        """The page of an object.

        Raises:
            NotFoundError: It has none, or there is no such object.
        """


class DatasetStore(Protocol):
    """Datasets and their versions."""

    async def create_dataset(self, new: NewDataset, *, actor: str, at: datetime) -> Created[Dataset]:
        """Makes a dataset and, if need be, its namespace; idempotent by namespace and name."""

    async def get_dataset(self, text: str) -> Dataset:
        """A dataset by id or ``namespace/name``."""

    async def list_datasets(
        self, *, namespace: str, include_deleted: bool, limit: int, after: Key | None, scope: Scope = ALL
    ) -> Listed[Dataset]:
        """Datasets by namespace and name; of all namespaces for an empty one. Key: (namespace, name)."""

    async def create_version(self, new: NewDatasetVersion, *, actor: str, at: datetime) -> Created[DatasetVersion]:
        """Makes the next version, and the dataset if need be; idempotent by id and by the newest one's components."""

    async def get_version(self, text: str) -> DatasetVersion:
        """A version by id or ``namespace/name@3``; ``namespace/name`` is the newest that is not in the bin."""

    async def list_versions(
        self, dataset: str, *, include_deleted: bool, limit: int, after: Key | None, scope: Scope = ALL
    ) -> Listed[DatasetVersion]:
        """Versions of a dataset (id or ``namespace/name``), newest first. Key: (version,)."""


class LineageStore(Protocol):
    """Typed edges between objects, which never close a cycle."""

    async def add_edges(self, new: NewEdges, *, actor: str, at: datetime, scope: Scope = ALL) -> int:
        """Adds edges, all or none, and returns how many were not there before.

        Raises:
            ConflictError: They would close a cycle; ``cycle`` lists the ids along it, of what ``scope`` shows.
        """

    async def remove_edges(self, edges: Sequence[NewEdge], *, actor: str, at: datetime) -> int:
        """Removes edges and returns how many there were."""

    async def get_lineage(
        self,
        objects: Sequence[str],
        *,
        up: bool,
        down: bool,
        max_depth: int,
        max_nodes: int,
        scope: Scope = ALL,
    ) -> Lineage:
        """What the objects came of (``up``), what came of them (``down``), or both; ``max_depth`` 0 is no bound.

        What ``scope`` does not show is as if it were not there: what lies only behind it is not reached.
        """

"""What else a run records: events, checkpoints, files, comments, what went in and what came out."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping
from datetime import UTC, datetime

from modelbox._local_files import FilesArgument
from modelbox.errors import InvalidError
from modelbox.objects import JsonValue
from modelbox.refs import ModelRef, parse_path, shown
from modelbox.run.recording import Recording
from modelbox.spool.checks import (
    aware,
    check_key,
    check_labels,
    int64,
    json_text,
    metric_value,
    plain_json,
    unicode_text,
)
from modelbox.spool.operations import event_data
from modelbox.spool.push import DATASET
from modelbox.tracking import (
    NewCheckpoint,
    NewComment,
    NewEdge,
    NewEdges,
    ObjectKind,
    ReadmeEdit,
    check_id,
    kind_of_id,
    new_id,
)

__all__ = ("RunRecords",)


class RunRecords(Recording):
    """The part of `modelbox.run.LiveRun` that records events, checkpoints, files, comments and lineage."""

    def log_event(
        self,
        name: str,
        *,
        source: str = "",
        at: datetime | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
    ) -> str:
        """Records something that happened; returns the event's id.

        Args:
            name: Such as ``gpu.lost``.
            source: Who says so.
            at: Aware; None for now.
            metadata: JSON by key.
        """
        event = new_id(ObjectKind.EVENT)
        with self._guarded(name):
            texts = {key: json_text(check_key(key), value) for key, value in (metadata or {}).items()}
            when = datetime.now(UTC) if at is None else aware(at)
            self._put_data(event_data(event, self._id, check_key(name), unicode_text(source), when, texts))
        return event

    def log_checkpoint(
        self,
        epoch: int,
        *,
        step: int | None = None,
        metrics: Mapping[str, float] | None = None,
        files: FilesArgument | None = None,
        path: str = "",
    ) -> str:
        """Records the state of training at an epoch; returns the checkpoint's id, the same for an epoch of a run.

        Args:
            epoch: From 0; there is one checkpoint for each.
            step: The optimiser's step.
            metrics: Numbers at this epoch.
            files: To be uploaded, as the checkpoint's artifact ``files``; copied before the call returns.
            path: Where its file lies, if it is not uploaded.
        """
        digits = hashlib.sha256(f"{self._id}/{epoch}".encode()).hexdigest()[:24]
        checkpoint = f"ckp_{digits}"
        with self._guarded(f"checkpoint {epoch}"):
            number = operator.index(epoch)
            if not 0 <= number < 2**63:
                raise InvalidError(f"{shown(epoch)} is not an epoch: expected a number from 0 on")
            kept: dict[str, float] = {}
            for key, value in (metrics or {}).items():
                with self._guarded(key):
                    found = metric_value(check_key(key), value)
                    if not isinstance(found, float):
                        raise InvalidError(f"the metric {shown(key)} of a checkpoint is text: expected a number")
                    kept[key] = found
            self._put(
                NewCheckpoint(
                    id=checkpoint,
                    parent_id=self._id,
                    epoch=number,
                    step=None if step is None else int64(step),
                    path=str(path),
                    metrics=kept,
                )
            )
            self._ids.add(checkpoint)
            if files is not None:
                self._put_files(checkpoint, "files", files, {}, {})
        return checkpoint

    def log_artifact(
        self,
        name: str,
        files: FilesArgument,
        *,
        labels: Mapping[str, str] | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """Attaches files to the run: copies them into the spool, from where they are uploaded.

        Files for which the spool has no room are uploaded from where they lie, unless they have changed by then.

        Args:
            name: Of the artifact, unique in the run.
            files: A file, a directory, a mapping of path in the artifact to local path, or a list of files and
                directories.
            labels: Text by key.
            metadata: JSON by key.
        """
        with self._guarded(name):
            check_labels(labels or {})
            self._put_files(self._id, check_key(name), files, labels or {}, plain_json(metadata))

    def add_comment(self, text: str) -> str:
        """Says something about the run, in Markdown; returns the comment's id."""
        comment = new_id(ObjectKind.COMMENT)
        with self._guarded("comment"):
            self._put(NewComment(id=comment, object=self._id, text=unicode_text(text)))
        return comment

    def set_readme(self, text: str) -> None:
        """Writes the run's page, in Markdown; an empty text removes it."""
        with self._guarded("readme"):
            self._put(ReadmeEdit(object=self._id, text=unicode_text(text)))

    def use_dataset(self, version: str) -> None:
        """Records that the run reads a dataset version.

        Args:
            version: Its id, ``namespace/name@3``, or ``namespace/name`` for the newest when this reaches the server.
        """
        with self._guarded(version):
            if kind_of_id(version) is None:
                path, at, number = version.partition("@")
                parse_path(path, "dataset")
                if at and not (number.isascii() and number.isdigit()):
                    raise InvalidError(f"{shown(version)} is not a dataset version: expected namespace/name@3")
                version = f"{DATASET}{version}"
            else:
                check_id(version, ObjectKind.DATASET_VERSION)
            self._put(NewEdges(edges=(NewEdge(source=version, target=self._id, type="used"),)))

    def produced(self, version: str, *, type: str = "produced") -> None:
        """Records that something came of the run.

        Args:
            version: A model version (``namespace/model@7``), or the id of one, of an artifact, of a dataset version.
            type: Of the relation.
        """
        with self._guarded(version):
            if kind_of_id(version) is None:
                ModelRef.parse(version)
            self._put(NewEdges(edges=(NewEdge(source=self._id, target=version, type=type),)))

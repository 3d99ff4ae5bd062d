"""A run while it happens: what training code logs to.

Owns `LiveRun`: every call encodes what it was given, writes it to the spool of this process on disk, and returns. The
spool delivers it in the background, in order, when the server is there. Refuses to raise for a server that is away, and
by default for a bad value, too: a training run is never stopped by logging. A value that cannot be kept is left out,
counted (`LiveRun.skipped`) and said once for each key; ``strict=True`` raises instead.

Invariants: what a call recorded outlives the process, however it ends. One spool never speaks of a run that it has not
announced, so the spools of a program and of its forked children can be delivered in any order.
"""

from __future__ import annotations

import hashlib
import logging
import operator
import os
import struct
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread

from modelbox._fork import reset_in_child
from modelbox._local_files import FilesArgument
from modelbox.errors import DeadlineExceeded, InvalidError, ModelBoxError, UsageError
from modelbox.objects import JsonValue
from modelbox.refs import ModelRef, shown
from modelbox.series import MetricValue
from modelbox.spool.checks import (
    aware,
    check_key,
    check_labels,
    int64,
    json_text,
    metric_value,
    micros,
    plain_json,
    unicode_text,
)
from modelbox.spool.host import SpoolHost, open_host
from modelbox.spool.log import SpoolLog
from modelbox.spool.operations import attributes_data, event_data, operation_data
from modelbox.spool.outcome import one_line, outcome_of
from modelbox.spool.push import DATASET
from modelbox.tracking import (
    AttributeKind,
    NewCheckpoint,
    NewComment,
    NewEdge,
    NewEdges,
    NewRun,
    ObjectKind,
    OperationPayload,
    ReadmeEdit,
    Rejection,
    RunEdit,
    RunPatch,
    RunStatus,
    check_id,
    kind_of_id,
    new_id,
)

if TYPE_CHECKING:
    from modelbox.config import ClientConfig

__all__ = ("LiveRun",)

_log = logging.getLogger(__name__)

_ATTRIBUTES_BYTES = 256 << 10
"""Of values by key in one operation; more go into several."""
_CAPTURE_WAIT_S = 6.0
_AWAY_S = 2.0
"""How long the end of a run waits for a server that was away before."""
_SYSTEM_EVERY_S = 10.0
_MAX_WARNED_KEYS = 1000
_NUMBER, _TEXT, _BYTES = 0, 1, 2
_KIND_NAMES = ("numbers", "text", "bytes")
_time_ns = time.time_ns


class LiveRun:
    """A run that this program is in; made by `modelbox.Client.start_run`.

    ::

        with client.start_run("langtech/wav2vec-lid", params={"lr": 3e-4}) as run:
            for step, batch in enumerate(batches):
                run.log_metric("loss", train(batch), step=step)
            run.log_artifact("weights", "model.pt")

    Used with ``async with`` or ``with``, under any event loop or none; leaving the block records how the run ended
    (finished, failed with the exception, or interrupted) and waits a while until everything is delivered. In a
    notebook, `start` and `finish` do the same.

    Every ``log_…`` and ``set_…`` method returns at once (some microseconds; files are copied first) and raises nothing
    but `UsageError`, unless ``strict``: see `modelbox.Client.start_run`.

    Concurrency: any thread, and forked children, which record into spools of their own and do not end the run.
    """

    def __init__(
        self,
        experiment: str,
        config: ClientConfig | None,
        *,
        name: str = "",
        params: Mapping[str, JsonValue] | None = None,
        tags: Mapping[str, str] | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
        parent: LiveRun | str | None = None,
        resume: str | None = None,
        system_metrics: bool | float = False,
        capture: bool = True,
        strict: bool = False,
        flush_timeout_s: float = 10.0,
        host: SpoolHost | None = None,
    ) -> None:
        if resume is not None:
            check_id(resume, ObjectKind.RUN)
        if kind_of_id(experiment) is not ObjectKind.EXPERIMENT:
            ref = ModelRef.parse(experiment)
            if "@" in experiment:
                raise InvalidError(f"{shown(experiment)} is no experiment: expected namespace/name")
            experiment = f"{ref.namespace}/{ref.model}"
        if name:
            check_key(name)
        self._config = config
        self._parent = parent if isinstance(parent, LiveRun) else None
        parent_id = parent.id if isinstance(parent, LiveRun) else parent or ""
        if parent_id:
            check_id(parent_id, ObjectKind.RUN)
        self._new = NewRun(
            id=resume or new_id(ObjectKind.RUN),
            experiment=experiment,
            name=name,
            started_at=datetime.now(UTC),
            parent_id=parent_id,
        )
        self._id = self._new.id
        self._resumed = resume is not None
        self._first = (dict(params or {}), dict(tags or {}), dict(metadata or {}))
        self._system_every_s = 0.0 if not system_metrics else _SYSTEM_EVERY_S
        if system_metrics and system_metrics is not True:
            self._system_every_s = float(system_metrics)
        self._capture = capture
        self._strict = strict
        self._flush_timeout_s = flush_timeout_s
        self._host = host
        self._log: SpoolLog | None = None
        self._lock = threading.RLock()
        self._kinds: dict[str, int] = {}
        self._steps: dict[str, int] = {}
        self._params: dict[str, str] = {}
        self._ids = {self._id}
        self._warned: set[str] = set()
        self._skipped = 0
        self._dropped = 0
        self._pid = 0
        self._ended = False
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    # --- what it is ------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Its id, known before the server has heard of it."""
        return self._id

    @property
    def experiment(self) -> str:
        """``namespace/name``, or the id, as it was given."""
        return self._new.experiment

    @property
    def name(self) -> str:
        """As it was given; where that is empty, the server makes one of the id."""
        return self._new.name

    @property
    def skipped(self) -> int:
        """How many values were left out because they cannot be kept."""
        return self._skipped

    @property
    def dropped(self) -> int:
        """How many points of metrics found no room in the spool."""
        return self._dropped

    @property
    def rejections(self) -> tuple[Rejection, ...]:
        """What the server refused for good, so far; the rest of the run is not touched by it."""
        host = self._host
        if host is None:
            return ()
        return tuple(refusal.rejection for refusal in list(host.refusals) if refusal.object in self._ids)

    def __repr__(self) -> str:
        state = "ended" if self._ended else "not started" if not self._pid else "running"
        return f"<LiveRun {self._new.experiment} {self._new.name or self._id} {state}>"

    def _repr_html_(self) -> str:
        import modelbox.display as display

        host = self._host
        return display.card(
            f"Run {self._new.name or self._id}",
            {
                "id": self._id,
                "experiment": self._new.experiment,
                "status": "ended" if self._ended else "running" if self._pid else "not started",
                "parent": self._new.parent_id,
                "not delivered yet": f"about {host.left} log calls" if host is not None and host.left else "",
                "refused by the server": len(self.rejections) or "",
                "left out, as it cannot be kept": self._skipped or "",
                "points without room in the spool": self._dropped or "",
            },
        )

    # --- beginning and end -----------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begins the run, as ``with`` does; to be ended by `finish`.

        Raises:
            UsageError: It was started before.
            ConfigError: Settings that cannot be used, or no directory for the spool that can be written.
        """
        with self._lock:
            if self._pid:
                raise UsageError("this run was started before: make another one")
            log = self._open()
            self._pid = os.getpid()
        reset_in_child(self)
        log.mark_open(self._id)
        if self._resumed:
            self._put(RunEdit(id=self._id, patch=RunPatch(status=RunStatus.RUNNING)))
        params, tags, metadata = self._first
        self.log_params(params)
        self.set_tags(tags)
        self.set_metadata(metadata)
        if self._capture:
            self._begin(self._capture_environment, "capture")
        if self._system_every_s:
            self._begin(self._sample_system, "system metrics")
        return self

    def finish(self, status: RunStatus = RunStatus.FINISHED, reason: str = "") -> None:
        """Records how the run ended; waits for nothing that has to do with the server. Idempotent.

        Args:
            status: Finished, failed or interrupted.
            reason: One line that says why.
        """
        if self._ended or self._pid != os.getpid():
            return
        self._ended = True
        self._stop.set()
        deadline = time.monotonic() + _CAPTURE_WAIT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._dropped or self._skipped:
            self.log_event(
                "modelbox.incomplete",
                source="modelbox",
                metadata={"dropped_points": self._dropped, "skipped_values": self._skipped},
            )
        patch = RunPatch(status=RunStatus(status), ended_at=datetime.now(UTC), reason=one_line(reason))
        self._put(RunEdit(id=self._id, patch=patch))
        self._spool().mark_ended(self._id)

    def flush(self, timeout: float | None = None) -> None:
        """Waits until everything that was logged so far is on the server; blocks the thread (`aflush` does not).

        Args:
            timeout: Seconds; None for as long as it takes.

        Raises:
            DeadlineExceeded: It did not get there in time; says how much is left, and why.
        """
        log = self._spool()
        host = self._host
        assert host is not None
        if not host.wait(log.last_seq, timeout):
            raise self._late(host, timeout)

    async def aflush(self, timeout: float | None = None) -> None:
        """`flush` for coroutines.

        Cancellation: delivery goes on.
        """
        log = self._spool()
        host = self._host
        assert host is not None
        seq, left = log.last_seq, False
        try:
            done = await anyio.to_thread.run_sync(lambda: host.wait(seq, timeout, lambda: left), abandon_on_cancel=True)
        finally:
            left = True
        if not done:
            raise self._late(host, timeout)

    def _late(self, host: SpoolHost, timeout: float | None) -> DeadlineExceeded:
        why = f": {host.error}" if host.error is not None else ""
        return DeadlineExceeded(
            f"about {host.left} log calls are not on the server after {timeout} s{why}; they are kept in"
            f" {host.directory} and delivered when it is there",
            left=host.left,
            timeout_s=timeout,
        )

    def _leave(self, error: BaseException | None) -> None:
        """What the end of the block does; blocks."""
        if self._pid != os.getpid():
            return
        self.finish(*outcome_of(error))
        host = self._host
        if host is None or self._flush_timeout_s <= 0:
            return
        timeout_s = self._flush_timeout_s
        if host.error is not None:
            # It was away before. It may be back, but a program should not wait for that at the end of every run.
            timeout_s = min(timeout_s, _AWAY_S)
        if not host.wait(self._spool().last_seq, timeout_s):
            _log.warning("%s", self._late(host, timeout_s))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(error)

    async def __aenter__(self) -> Self:
        return await anyio.to_thread.run_sync(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Bounded by what _leave waits for.
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._leave, error)

    # --- metrics ---------------------------------------------------------------------------------------------------

    def log_metric(self, key: str, value: MetricValue, step: int | None = None, *, at: datetime | None = None) -> None:
        """Appends a point to a metric.

        Args:
            key: Of the metric: at most 250 printable characters. Its values are all numbers, all text, or all bytes.
            value: A number of any library (NaN and infinities are kept), text such as a serialized tensor, or bytes;
                the latter up to 1 MiB.
            step: int64; None counts on from this metric's last one here.
            at: Aware; None for now.
        """
        try:
            kind = self._kinds.get(key)
            if type(value) is not float or kind != _NUMBER:
                value = self._checked(key, value, kind)
            if step is None:
                with self._lock:
                    self._steps[key] = step = self._steps.get(key, -1) + 1
            else:
                self._steps[key] = step
            time_us = _time_ns() // 1000 if at is None else micros(at)
            log = self._log or self._spool()
            if type(value) is float:
                kept = log.append_point(self._id, key, step, time_us, value)
            else:
                kept = _append_payload(log, self._id, key, step, time_us, value)
            if not kept:
                self._dropped += 1
        except (InvalidError, ModelBoxError, TypeError, ValueError, struct.error) as exc:
            self._bad(key, exc)

    def log_metrics(
        self, values: Mapping[str, MetricValue], step: int | None = None, *, at: datetime | None = None
    ) -> None:
        """Appends one point to each of several metrics, all at one step; see `log_metric`.

        Args:
            values: By key.
            step: int64; None counts on from the greatest of these metrics' last ones here.
            at: Aware; None for now.
        """
        numbers: dict[str, float] = {}
        others: dict[str, MetricValue] = {}
        for key, value in values.items():
            try:
                kind = self._kinds.get(key)
                if type(value) is not float or kind != _NUMBER:
                    value = self._checked(key, value, kind)
            except (InvalidError, ModelBoxError, TypeError, ValueError) as exc:
                self._bad(key, exc)
                continue
            if type(value) is float:
                numbers[key] = value
            else:
                others[key] = value
        try:
            with self._lock:
                steps = self._steps
                if step is None:
                    step = max((steps.get(key, -1) for key in values), default=-1) + 1
                steps.update(dict.fromkeys(numbers, step))
                steps.update(dict.fromkeys(others, step))
            time_us = _time_ns() // 1000 if at is None else micros(at)
            log = self._log or self._spool()
            if numbers and not log.append_points(self._id, step, time_us, numbers):
                self._dropped += len(numbers)
            for key, value in others.items():
                if not _append_payload(log, self._id, key, step, time_us, value):
                    self._dropped += 1
        except (InvalidError, ModelBoxError, TypeError, ValueError, struct.error) as exc:
            self._bad(next(iter(values), ""), exc, count=len(numbers) + len(others))

    def _checked(self, key: str, value: Any, kind: int | None) -> MetricValue:
        """A value as it is kept; knows of each key what it holds."""
        kept: MetricValue = value if type(value) is float else metric_value(key, value)
        of_value = _NUMBER if type(kept) is float else _TEXT if isinstance(kept, str) else _BYTES
        if kind is None:
            check_key(key)
            self._kinds[key] = of_value
        elif kind != of_value:
            raise InvalidError(
                f"the metric {shown(key)} holds {_KIND_NAMES[kind]}: expected them, got {_KIND_NAMES[of_value]}"
            )
        return kept

    # --- values by key ---------------------------------------------------------------------------------------------

    def log_params(self, values: Mapping[str, JsonValue], *, overwrite: bool = False) -> None:
        """Records hyperparameters: any JSON by key; numpy and torch scalars, paths and enums count as what they say.

        Args:
            values: By key.
            overwrite: Whether one that has another value already may take this one.
        """
        texts: dict[str, str] = {}
        for key, value in values.items():
            with self._guarded(key):
                text = json_text(check_key(key), value)
                before = self._params.get(key)
                if before is not None and before != text and not overwrite:
                    raise InvalidError(
                        f"the parameter {shown(key)} is {before[:100]}: overwrite=True gives it another value"
                    )
                if before != text:
                    texts[key] = text
        self._params.update(texts)
        self._put_attributes(AttributeKind.PARAM, texts, overwrite=overwrite)

    def set_tags(self, values: Mapping[str, str] | Iterable[str]) -> None:
        """Sets tags: text by key, or only keys."""
        if not isinstance(values, Mapping):
            values = dict.fromkeys([values] if isinstance(values, str) else values, "")
        self._set_texts(AttributeKind.TAG, values)

    def set_labels(self, values: Mapping[str, str]) -> None:
        """Sets labels: text by key."""
        self._set_texts(AttributeKind.LABEL, values)

    def set_metadata(self, values: Mapping[str, JsonValue]) -> None:
        """Sets metadata: any JSON by key."""
        texts: dict[str, str] = {}
        for key, value in values.items():
            with self._guarded(key):
                texts[key] = json_text(check_key(key), value)
        self._put_attributes(AttributeKind.METADATA, texts)

    def _set_texts(self, kind: AttributeKind, values: Mapping[str, str]) -> None:
        texts: dict[str, str] = {}
        for key, value in values.items():
            with self._guarded(key):
                if kind is AttributeKind.LABEL or not isinstance(value, str):
                    check_labels({key: value})
                texts[key] = json_text(check_key(key), value)
        self._put_attributes(kind, texts)

    def _put_attributes(self, kind: AttributeKind, texts: Mapping[str, str], *, overwrite: bool = False) -> None:
        part: dict[str, str] = {}
        size = 0
        for key, text in texts.items():
            part[key] = text
            size += len(text)
            if size > _ATTRIBUTES_BYTES:
                self._put_data(attributes_data(self._id, kind, part, (), overwrite=overwrite))
                part, size = {}, 0
        if part:
            self._put_data(attributes_data(self._id, kind, part, (), overwrite=overwrite))

    # --- things ----------------------------------------------------------------------------------------------------

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
                ModelRef.parse(version)
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

    def child(
        self,
        name: str = "",
        *,
        params: Mapping[str, JsonValue] | None = None,
        tags: Mapping[str, str] | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
    ) -> LiveRun:
        """A run that is a part of this one, such as one trial of a search; to be used with ``with`` itself."""
        return LiveRun(
            self._new.experiment,
            self._config,
            name=name,
            params=params,
            tags=tags,
            metadata=metadata,
            parent=self,
            capture=False,
            strict=self._strict,
            flush_timeout_s=self._flush_timeout_s,
            host=self._host,
        )

    # --- the spool -------------------------------------------------------------------------------------------------

    def _spool(self) -> SpoolLog:
        log = self._log
        if log is None:
            if not self._pid:
                raise UsageError("this run has not begun: use it in `with client.start_run(…) as run`, or call start()")
            with self._lock:
                log = self._log or self._open()
        return log

    def _open(self) -> SpoolLog:
        """Opens this process's spool, and announces the run in it."""
        if self._host is None:
            from modelbox.config import load_client_config

            if self._config is None:
                self._config = load_client_config()
            self._host = open_host(self._config)
        log = self._host.log
        self._announce(log)
        self._log = log
        return log

    def _announce(self, log: SpoolLog) -> None:
        if self._parent is not None and self._parent._log is not log:
            self._parent._announce(log)
        if not self._resumed:
            log.append_operation(operation_data(self._new))

    def _put(self, payload: OperationPayload) -> None:
        self._put_data(operation_data(payload))

    def _put_data(self, data: bytes) -> None:
        log = self._log or self._spool()
        if not log.append_operation(data):
            self._skipped += 1

    def _put_files(
        self,
        parent: str,
        name: str,
        files: FilesArgument,
        labels: Mapping[str, str],
        metadata: Mapping[str, JsonValue],
    ) -> None:
        log = self._log or self._spool()
        if not log.append_files(parent, name, files, labels=labels, metadata=metadata):
            self._skipped += 1

    def _after_fork_in_child(self) -> None:
        # The child's spool is opened with its first call. The run stays its parent's to end.
        self._host = self._log = None
        self._lock = threading.RLock()
        self._threads = []
        self._stop = threading.Event()

    # --- bad values ------------------------------------------------------------------------------------------------

    @contextmanager
    def _guarded(self, key: str) -> Iterator[None]:
        try:
            yield
        except UsageError:
            raise
        except (ModelBoxError, TypeError, ValueError, RecursionError, OSError) as exc:
            self._bad(key, exc)

    def _bad(self, key: object, error: Exception, *, count: int = 1) -> None:
        if isinstance(error, TypeError | ValueError | struct.error) and not isinstance(error, ModelBoxError):
            error = InvalidError(f"what was logged as {shown(key)} cannot be kept: {error}")
        self._skipped += count
        if self._strict:
            raise error
        name = str(key)[:300]
        if name not in self._warned and len(self._warned) < _MAX_WARNED_KEYS:
            self._warned.add(name)
            _log.warning("the run %s goes on without this: %s", self._id, error)

    # --- in threads of their own -----------------------------------------------------------------------------------

    def _begin(self, target: Any, name: str) -> None:
        thread = threading.Thread(target=target, name=f"modelbox {name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _capture_environment(self) -> None:
        try:
            from modelbox.capture import capture_diff, capture_environment

            self.set_metadata(capture_environment())
            diff = capture_diff()
            if diff is not None:
                with tempfile.TemporaryDirectory() as directory:
                    path = Path(directory, "uncommitted.diff")
                    path.write_text(diff.text, encoding="utf-8")
                    self.log_artifact("uncommitted.diff", path, metadata={"truncated": diff.truncated})
        except Exception:
            _log.warning("code and environment of the run %s could not be captured", self._id, exc_info=True)

    def _sample_system(self) -> None:
        try:
            from modelbox.system_metrics import SystemSampler

            with SystemSampler() as sampler:
                sampler.sample()
                number = 0
                while not self._stop.wait(self._system_every_s):
                    self.log_metrics(sampler.sample(), step=number)
                    number += 1
        except Exception:
            _log.warning("metrics of the system end for the run %s", self._id, exc_info=True)


def _append_payload(log: SpoolLog, object_id: str, key: str, step: int, time_us: int, value: MetricValue) -> bool:
    kind, payload = (_TEXT, value.encode()) if isinstance(value, str) else (_BYTES, value)
    assert isinstance(payload, bytes)
    return log.append_payload(object_id, key, int64(step), time_us, kind, payload)

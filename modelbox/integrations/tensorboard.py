"""From TensorBoard's event files to runs, and back.

Owns the reading and writing of event files by the tensorboard package; TensorFlow is not needed. A directory with event
files is a run, as in TensorBoard. What both sides know is carried over: scalars, text and hyperparameters. Histograms,
images, audio and graphs have no place in a series; they are counted and left out, as are bytes on the way back.

Importing a directory again adds what is new: the run's id is made of where it goes and of its first event, and a point
that is there changes nothing. Memory stays small however large the files are.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import anyio.to_thread

from modelbox import sync
from modelbox._blocking import finish
from modelbox.client import Client
from modelbox.errors import InvalidError, LimitError
from modelbox.integrations._missing import not_installed
from modelbox.objects import JsonValue
from modelbox.series import Series, step_ranges
from modelbox.spool.checks import check_key
from modelbox.tracking import MetricKind, Run, RunStatus

try:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata as hparams_metadata
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.plugins.scalar import metadata as scalar_metadata
    from tensorboard.plugins.text import metadata as text_metadata
    from tensorboard.summary.writer.record_writer import RecordWriter
    from tensorboard.util import tensor_util
except ImportError as exc:
    raise not_installed("reading and writing TensorBoard's event files", "tensorboard", exc) from exc

__all__ = ("ExportedRun", "ImportedRun", "export_run", "import_directory")

T = TypeVar("T")

_POINTS_PER_BATCH = 100_000
_TEXT_CHARS_PER_BATCH = 8 << 20
_MAX_TEXT_BYTES = 1 << 20
_TORCH_TEXT = re.compile(r"/text_summary$")
_MAX_EXACT = 2.0**53


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedRun:
    """What became of a directory.

    Attributes:
        run: As it is on the server now.
        directory: Where it came from.
        existed: Whether an earlier import made it.
        points: How many points of numbers and texts were read.
        skipped: How many values were left out, by what they are (``histogram``, ``image``, ``graph`` …).
    """

    run: Run
    directory: Path
    existed: bool
    points: int
    skipped: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedRun:
    """What was written.

    Attributes:
        path: The event file.
        points: How many points are in it.
        skipped: How many points were left out, by what they are.
    """

    path: Path
    points: int
    skipped: Mapping[str, int]


@overload
def import_directory(
    client: sync.Client, directory: str | os.PathLike[str], experiment: str
) -> tuple[ImportedRun, ...]: ...


@overload
def import_directory(
    client: Client, directory: str | os.PathLike[str], experiment: str
) -> Coroutine[Any, Any, tuple[ImportedRun, ...]]: ...


def import_directory(
    client: Client | sync.Client, directory: str | os.PathLike[str], experiment: str
) -> tuple[ImportedRun, ...] | Coroutine[Any, Any, tuple[ImportedRun, ...]]:
    """Makes a run of every directory with event files, here or below; to be awaited with `modelbox.Client`.

    Names are the paths below ``directory``. A run ends with its last event: its status is ``finished``. What a
    half-written file holds up to its end is taken; the rest comes with the next import.

    Args:
        client: Where to.
        directory: What ``tensorboard --logdir`` is given.
        experiment: ``namespace/name``, made where it is new.

    Raises:
        InvalidError: There are no event files.
        ConflictError: A hyperparameter has another value on the server.

    Cancellation: what was imported stays; importing again adds the rest.
    """
    root = Path(os.path.abspath(os.fspath(directory)))
    if isinstance(client, Client):
        return _import(client, root, experiment, anyio.to_thread.run_sync)
    return finish(_import(client._client, root, experiment, _at_once))


@overload
def export_run(
    client: sync.Client, run: str, directory: str | os.PathLike[str], *, double_precision: bool = False
) -> ExportedRun: ...


@overload
def export_run(
    client: Client, run: str, directory: str | os.PathLike[str], *, double_precision: bool = False
) -> Coroutine[Any, Any, ExportedRun]: ...


def export_run(
    client: Client | sync.Client, run: str, directory: str | os.PathLike[str], *, double_precision: bool = False
) -> ExportedRun | Coroutine[Any, Any, ExportedRun]:
    """Writes a run's metrics and hyperparameters as an event file; to be awaited with `modelbox.Client`.

    Args:
        client: Where from.
        run: The run's id.
        directory: Where to; made where it is missing. The file appears there when it is complete.
        double_precision: Whether numbers keep all 64 bits. TensorBoard reads both; other programs often read only the
            usual form, which has 32.

    Raises:
        NotFoundError: There is no such run.
        InvalidError: The directory has an event file of the run already, or cannot be written.
    """
    target = Path(os.path.abspath(os.fspath(directory)))
    if isinstance(client, Client):
        return _export(client, run, target, anyio.to_thread.run_sync, double=double_precision)
    return finish(_export(client._client, run, target, _at_once, double=double_precision))


class _Offload(Protocol):
    """Runs what blocks: in a thread, or at once for the blocking client."""

    def __call__(self, fn: Callable[[], T], /) -> Awaitable[T]: ...


async def _at_once(fn: Callable[[], T]) -> T:
    return fn()


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Batch:
    """Points as they came, by tag."""

    numbers: dict[str, tuple[list[int], list[int], list[float]]] = field(default_factory=dict)
    texts: list[tuple[str, int, int, str]] = field(default_factory=list)
    points: int = 0
    text_chars: int = 0

    @property
    def full(self) -> bool:
        return self.points >= _POINTS_PER_BATCH or self.text_chars >= _TEXT_CHARS_PER_BATCH


class _EventFiles:
    """The event files of one directory, read once; blocks."""

    def __init__(self, name: str, files: list[Path]) -> None:
        self.name = name
        self.files = files
        self.skipped: Counter[str] = Counter()
        self.params: dict[str, JsonValue] = {}
        self.points = 0
        self.first_us = self.last_us = self.identity_us = 0
        self._kinds: dict[str, MetricKind | None] = {}
        self._plugins: dict[str, str] = {}
        self._batches = self._read()

    def begin(self) -> bool:
        """Looks at the first event; False where there is none."""
        for file in self.files:
            for event in LegacyEventFileLoader(str(file)).Load():
                self.identity_us = self.first_us = self.last_us = _micros(event.wall_time)
                return True
        return False

    def next_batch(self) -> _Batch | None:
        return next(self._batches, None)

    def _read(self) -> Iterator[_Batch]:
        batch = _Batch()
        for file in self.files:
            for event in LegacyEventFileLoader(str(file)).Load():
                at = _micros(event.wall_time)
                self.first_us, self.last_us = min(self.first_us, at), max(self.last_us, at)
                what = event.WhichOneof("what")
                if what == "summary":
                    for value in event.summary.value:
                        self._take(value, event.step, at, batch)
                elif what in ("graph_def", "meta_graph_def"):
                    self.skipped["graph"] += 1
                if batch.full:
                    yield batch
                    batch = _Batch()
        yield batch

    def _take(self, value: Any, step: int, at: int, batch: _Batch) -> None:
        """One value of an event: a point, hyperparameters, or something to count."""
        plugin = value.metadata.plugin_data.plugin_name
        if plugin:
            # Only the first value of a tag says what it is.
            self._plugins.setdefault(value.tag, plugin)
        plugin = self._plugins.get(value.tag, "")
        kind = value.WhichOneof("value")
        if plugin == hparams_metadata.PLUGIN_NAME:
            self._take_params(value)
        elif kind == "simple_value":
            self._number(value.tag, step, at, value.simple_value, batch)
        elif kind == "tensor" and plugin == scalar_metadata.PLUGIN_NAME:
            array = tensor_util.make_ndarray(value.tensor)
            if array.size == 1:
                self._number(value.tag, step, at, float(array.reshape(())), batch)
            else:
                self.skipped["tensor"] += 1
        elif kind == "tensor" and plugin == text_metadata.PLUGIN_NAME:
            parts = tensor_util.make_ndarray(value.tensor).reshape(-1).tolist()
            text = "\n".join(part.decode(errors="replace") if isinstance(part, bytes) else str(part) for part in parts)
            self._text(_TORCH_TEXT.sub("", value.tag), step, at, text, batch)
        else:
            named = {"histo": "histogram", "histograms": "histogram", "images": "image", "graphs": "graph"}
            what = plugin or kind or "value"
            self.skipped[named.get(what, what)] += 1

    def _number(self, tag: str, step: int, at: int, number: float, batch: _Batch) -> None:
        if not self._is(tag, MetricKind.NUMBER):
            self.skipped["name"] += 1
            return
        steps, times, values = batch.numbers.setdefault(tag, ([], [], []))
        steps.append(step)
        times.append(at)
        values.append(number)
        batch.points += 1
        self.points += 1

    def _text(self, tag: str, step: int, at: int, text: str, batch: _Batch) -> None:
        if not self._is(tag, MetricKind.TEXT):
            self.skipped["name"] += 1
        elif len(text.encode()) > _MAX_TEXT_BYTES:
            self.skipped["large text"] += 1
        else:
            batch.texts.append((tag, step, at, text))
            batch.points += 1
            batch.text_chars += len(text)
            self.points += 1

    def _is(self, tag: str, kind: MetricKind) -> bool:
        """Whether a tag can be the name of a metric, and holds nothing else already."""
        if tag not in self._kinds:
            try:
                check_key(tag)
                self._kinds[tag] = kind
            except (InvalidError, LimitError):
                self._kinds[tag] = None
        return self._kinds[tag] is kind

    def _take_params(self, value: Any) -> None:
        if value.tag != hparams_metadata.SESSION_START_INFO_TAG:
            return
        content = value.metadata.plugin_data.content
        for key, found in hparams_metadata.parse_session_start_info_plugin_data(content).hparams.items():
            param = getattr(found, found.WhichOneof("kind") or "null_value")
            if isinstance(param, float):
                if not math.isfinite(param):
                    self.skipped["hyperparameter"] += 1
                    continue
                # All numbers are floats there.
                param = int(param) if param.is_integer() and abs(param) < _MAX_EXACT else param
            self.params[key] = param


def _micros(seconds: float) -> int:
    return round(seconds * 1e6) if math.isfinite(seconds) and abs(seconds) < 1e11 else 0


def _time(micros: int) -> datetime:
    return datetime.fromtimestamp(micros / 1e6, UTC)


def _directories(root: Path) -> list[_EventFiles]:
    found = []
    for directory, _, names in os.walk(root):
        files = [Path(directory, name) for name in sorted(names) if "tfevents" in name]
        if files:
            below = Path(directory).relative_to(root).as_posix()
            found.append(_EventFiles(root.name if below == "." else below, files))
    if not found:
        raise InvalidError(f"there are no event files in {root} or below", path=str(root))
    return sorted(found, key=lambda one: one.name)


async def _import(client: Client, root: Path, experiment: str, offload: _Offload) -> tuple[ImportedRun, ...]:
    imported = []
    directories = await offload(lambda: _directories(root))
    target = (await client.create_experiment(experiment)).item
    for files in directories:
        if await offload(files.begin):
            imported.append(await _import_run(client, target.id, files, offload))
    return tuple(imported)


async def _import_run(client: Client, experiment: str, files: _EventFiles, offload: _Offload) -> ImportedRun:
    directory = files.files[0].parent
    identity = hashlib.sha256(f"{experiment}\0{files.name}\0{files.identity_us}".encode()).hexdigest()
    created = await client.create_run(
        experiment,
        id=f"run_{identity[:24]}",
        name=files.name,
        started_at=_time(files.first_us),
        metadata={"tensorboard": {"directory": str(directory)}},
    )
    run = created.item.id
    while (batch := await offload(files.next_batch)) is not None:
        for tag, (steps, times, values) in batch.numbers.items():
            await client.log_series(run, tag, steps, values, times_us=times)
        for tag, step, at, text in batch.texts:
            await client.log_metrics(run, {tag: text}, step=step, at=_time(at))
    if files.params:
        await client.set_params(run, files.params)
    ended = await client.update_run(run, status=RunStatus.FINISHED, ended_at=_time(files.last_us))
    return ImportedRun(
        run=ended, directory=directory, existed=created.existed, points=files.points, skipped=dict(files.skipped)
    )


# --- writing ---------------------------------------------------------------------------------------------------------


async def _export(client: Client, run_id: str, directory: Path, offload: _Offload, *, double: bool) -> ExportedRun:
    run = await client.get_run(run_id)
    params = await client.get_params(run_id)
    summaries = await client.metric_summaries(run_id)
    # The name that TensorBoard looks for, with when it began and whose it is.
    path = directory / f"events.out.tfevents.{int(run.started_at.timestamp()):010d}.{run.id}"
    writer = await offload(lambda: _Writer(path))
    skipped: Counter[str] = Counter()
    points = 0
    try:
        await offload(lambda: writer.begin(run, params))
        for summary in summaries:
            if summary.kind is MetricKind.BYTES:
                skipped["bytes"] += summary.count
                continue
            for first, last in step_ranges(summary):
                series = await client.read_series(run_id, summary.key, from_step=first, to_step=last)
                await offload(lambda series=series: writer.series(series, double=double))  # type: ignore[misc]
                points += len(series)
        await offload(writer.commit)
    finally:
        writer.abort()
    return ExportedRun(path=path, points=points, skipped=dict(skipped))


class _Writer:
    """An event file that appears when it is complete; blocks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise InvalidError(f"{path} exists already: the run was exported there before", path=str(path))
            # A name that TensorBoard does not take for an event file.
            self._file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=".export-", delete=False)  # noqa: SIM115
        except OSError as exc:
            raise InvalidError(f"{path.parent} cannot be written: {exc.strerror}", path=str(path)) from exc
        self._records = RecordWriter(self._file)

    def begin(self, run: Run, params: Mapping[str, JsonValue]) -> None:
        started = run.started_at.timestamp()
        self._write(Event(wall_time=started, file_version="brain.Event:2"))
        if params:
            plain = {
                key: value if isinstance(value, bool | int | float | str) else json.dumps(value, ensure_ascii=False)
                for key, value in params.items()
            }
            summary = hparams_pb(plain, trial_id=run.id, start_time_secs=started)
            self._write(Event(wall_time=started, summary=summary))

    def series(self, series: Series, *, double: bool) -> None:
        values = series.payloads or series.values.tolist()
        for step, time_us, value in zip(series.steps.tolist(), series.times_us.tolist(), values, strict=True):
            self._write(Event(wall_time=time_us / 1e6, step=step, summary=_summary(series.key, value, double)))

    def commit(self) -> None:
        self._records.flush()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.chmod(self._file.name, 0o644)
        os.replace(self._file.name, self._path)

    def abort(self) -> None:
        """Removes what is not complete; nothing once it is."""
        self._file.close()
        Path(self._file.name).unlink(missing_ok=True)

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


def _summary(key: str, value: float | str | bytes, double: bool) -> Any:
    if isinstance(value, str):
        metadata = text_metadata.create_summary_metadata(display_name="", description="")
        tensor = tensor_util.make_tensor_proto([value.encode()])
        return Summary(value=[Summary.Value(tag=key, metadata=metadata, tensor=tensor)])
    if not double:
        return Summary(value=[Summary.Value(tag=key, simple_value=value)])
    metadata = scalar_metadata.create_summary_metadata(display_name="", description="")
    # As the library's own tensor_util makes it, a hundred times slower.
    tensor = {"dtype": "DT_DOUBLE", "tensor_shape": {}, "double_val": [value]}
    return Summary(value=[Summary.Value(tag=key, metadata=metadata, tensor=tensor)])

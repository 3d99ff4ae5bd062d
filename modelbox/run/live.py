"""A run as programs hold it: its beginning, its end, and what goes on beside it."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import anyio
import anyio.to_thread

from modelbox._fork import reset_in_child
from modelbox.errors import DeadlineExceeded, InvalidError, UsageError
from modelbox.objects import JsonValue
from modelbox.refs import parse_path, shown
from modelbox.run.metrics import RunMetrics
from modelbox.run.records import RunRecords
from modelbox.run.values import RunValues
from modelbox.spool.checks import check_key
from modelbox.spool.host import SpoolHost
from modelbox.spool.operations import operation_data
from modelbox.spool.outcome import one_line, outcome_of
from modelbox.tracking import (
    AttributeKind,
    NewRun,
    ObjectKind,
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

T = TypeVar("T")

_CAPTURE_WAIT_S = 6.0
_AWAY_S = 2.0
"""How long the end of a run waits for a server that was away before."""
_RESUME_WAIT_S = 2.0
"""How long the beginning of a resumed run waits for the server to say how far its metrics are."""
_SYSTEM_EVERY_S = 10.0


class LiveRun(RunMetrics, RunValues, RunRecords):
    """A run that this program is in; made by `modelbox.Client.start_run`.

    ::

        with client.start_run("langtech/wav2vec-lid", params={"lr": 3e-4}) as run:
            for step, batch in enumerate(batches):
                run.log_metric("loss", train(batch), step=step)
            run.log_artifact("weights", "model.pt")

    Used with ``async with`` or ``with``, under any event loop or none; leaving the block records how the run ended
    (finished, failed with the exception, or interrupted) and waits a while until everything is delivered; a child run
    leaves the waiting to its parent. In a notebook, `start` and `finish` do the same.

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
            parse_path(experiment, "experiment")
        if name:
            check_key(name)
        parent_id = parent.id if isinstance(parent, LiveRun) else parent or ""
        if parent_id:
            check_id(parent_id, ObjectKind.RUN)
        new = NewRun(
            id=resume or new_id(ObjectKind.RUN),
            experiment=experiment,
            name=name,
            started_at=datetime.now(UTC),
            parent_id=parent_id,
        )
        super().__init__(
            new,
            config,
            host,
            parent=parent if isinstance(parent, LiveRun) else None,
            resumed=resume is not None,
            strict=strict,
        )
        self._first = (_by_key(params, "params"), _by_key(tags, "tags"), _by_key(metadata, "metadata"))
        self._system_every_s = 0.0 if not system_metrics else _SYSTEM_EVERY_S
        if system_metrics and system_metrics is not True:
            self._system_every_s = float(system_metrics)
        self._capture = capture
        self._flush_timeout_s = flush_timeout_s
        self._kinds = {}
        self._steps = {}
        self._params = {}
        self._keys = {kind: set() for kind in AttributeKind}
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
            host = self._opened_host()
            self._pid = os.getpid()
            reset_in_child(self)
            # Before the run can be known: one that is never ended must not seem to go on.
            host.log.mark_open(self._id)
            with self._guarded("the run"):
                self._spool()
        if self._resumed:
            with self._guarded("status"):
                self._put(RunEdit(id=self._id, patch=RunPatch(status=RunStatus.RUNNING)))
            self._count_on(host)
        params, tags, metadata = self._first
        self.log_params(params)
        self.set_tags(tags)
        self.set_metadata(metadata)
        if self._capture:
            self._begin(self._capture_environment, "capture")
        if self._system_every_s:
            self._begin(self._sample_system, "system metrics")
        return self

    def _count_on(self, host: SpoolHost) -> None:
        """Has steps that are left out go on from the last ones that the server knows, if it answers soon."""
        steps = host.last_steps(self._id, _RESUME_WAIT_S)
        if steps is None:
            _log.warning(
                "the server did not say how far the metrics of the run %s are: steps left out count from 0 again",
                self._id,
            )
            return
        with self._lock:
            self._steps = {**steps, **self._steps}

    def finish(self, status: RunStatus = RunStatus.FINISHED, reason: str = "") -> None:
        """Records how the run ended; waits for nothing that has to do with the server. Idempotent.

        Args:
            status: Finished, failed or interrupted.
            reason: One line that says why.
        """
        with self._lock:
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
        data = operation_data(RunEdit(id=self._id, patch=patch))
        with self._guarded("the end"):
            log = self._spool()
            log.mark_ending(self._id, data)
            # Without room the note stays: whoever delivers what this program leaves tells the server.
            if self._put_data(data):
                log.mark_ended(self._id)

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
        parent = self._parent
        if parent is not None and parent._pid == os.getpid() and not parent._ended:
            # The parent waits for all of it: a search of many trials must not stand still behind each of them.
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

    def _after_fork_in_child(self) -> None:
        super()._after_fork_in_child()
        self._threads = []
        self._stop = threading.Event()

    # --- in threads of their own -----------------------------------------------------------------------------------

    def _begin(self, target: Callable[[], None], name: str) -> None:
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


def _by_key(values: Mapping[str, T] | None, what: str) -> dict[str, T]:
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise InvalidError(
            f"{what} are {shown(values)}: expected values by key, as in {what}={{'key': 'value'}}", what=what
        )
    return dict(values)

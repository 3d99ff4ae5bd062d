"""The run of a callback: one that the program has begun, or the callback's own.

Owns who begins and ends it: a run that was handed in is its owner's to end.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from modelbox.config import load_client_config
from modelbox.errors import ModelBoxError, UsageError
from modelbox.objects import JsonValue
from modelbox.resume import ResumeFile
from modelbox.run import LiveRun
from modelbox.tracking import RunStatus

__all__ = ("CallbackRun",)

_FLUSH_S = 10.0


class CallbackRun:
    """A run, from the first call of `begin` to `end`.

    Args:
        experiment: ``namespace/name`` of a run of its own.
        run: One that has begun.
        url: Of the server.
        resume_file: Remembers an own run until it has ended; None for nothing.
        **settings: For `LiveRun`.

    Raises:
        UsageError: Neither an experiment nor a run, or both.
    """

    def __init__(
        self,
        experiment: str,
        run: LiveRun | None,
        url: str | None,
        *,
        resume_file: str | os.PathLike[str] | ResumeFile | None,
        **settings: Any,
    ) -> None:
        if (run is None) == (not experiment):
            raise UsageError("name the experiment of a new run, or hand in a run that has begun: one of them")
        self._own = run is None
        self._began = False
        self._resume = resume_file if isinstance(resume_file, ResumeFile | None) else ResumeFile(resume_file)
        self.live = run or LiveRun(
            experiment,
            None if url is None else load_client_config(url=url),
            resume=self._resume.run_id if self._resume is not None else None,
            **settings,
        )

    def begin(self, params: Mapping[str, JsonValue]) -> LiveRun:
        """Begins the run where it has not begun, and records hyperparameters."""
        if self._own and not self._began:
            self._began = True
            self.live.start()
            if self._resume is not None:
                self._resume.begin(self.live)
        if params:
            self.live.log_params(params)
        return self.live

    def log(self, values: Mapping[str, float], step: int, group: str = "") -> None:
        """Appends a point to each metric; a step that is trained again after a kill keeps its first time."""
        at = None if self._resume is None else self._resume.at(step, group)
        self.begin({}).log_metrics(dict(values), step, at=at)

    def end(self) -> str:
        """Ends an own run; returns why not everything is on the server yet, empty if it is."""
        if not self._own or not self._began:
            return ""
        self.live.finish(RunStatus.FINISHED)
        if self._resume is not None:
            self._resume.done()
        try:
            self.live.flush(timeout=_FLUSH_S)
        except ModelBoxError as exc:
            return str(exc)
        return ""

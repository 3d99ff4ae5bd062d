"""A callback for the Trainer of Hugging Face's transformers that records to a ModelBox run.

Owns the run unless one is handed in. Only the main process of a distributed training records; a server that is away
stops nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelbox.integrations._missing import not_installed
from modelbox.integrations._run import CallbackRun
from modelbox.integrations._values import numbers, parameters
from modelbox.objects import JsonValue
from modelbox.resume import ResumeFile
from modelbox.run import LiveRun

try:
    from transformers import TrainerCallback
except ImportError as exc:
    raise not_installed("ModelBoxCallback", "transformers", exc) from exc

__all__ = ("ModelBoxCallback",)

_log = logging.getLogger(__name__)


class ModelBoxCallback(TrainerCallback):
    """Records what a ``Trainer`` logs.

    ::

        Trainer(model, args, train_dataset=data, callbacks=[ModelBoxCallback("langtech/tagger")]).train()

    Metrics are logged at the trainer's global step; those of evaluations as ``eval/…``. The training arguments become
    hyperparameters, without tokens; the model's configuration becomes metadata. Each checkpoint that the trainer saves
    is recorded, numbered by its step.

    Args:
        experiment: ``namespace/name`` of a new run.
        run: A run that has begun, instead.
        name: How people know the run.
        params: Hyperparameters beside the training arguments.
        tags: Text by key.
        upload_checkpoints: Whether the files of checkpoints are uploaded; they are copied into the spool first.
        system_metrics: Whether to log the machine's CPU, memory, disk, network and GPUs.
        capture: Whether to record git commit, packages, command line and machine.
        resume_file: A file that remembers the run until the training has ended, so that a program that was killed and
            is started again goes on with its run, and steps that are trained again are the same points. With ``run``: a
            `modelbox.resume.ResumeFile`, which the program begins and ends.
        url: Of the server; None: ``MODELBOX_URL`` or the settings file.

    Raises:
        ConfigError: transformers is not installed (on import), or settings that cannot be used.
        UsageError: Neither ``experiment`` nor ``run``, or both.
    """

    def __init__(
        self,
        experiment: str = "",
        *,
        run: LiveRun | None = None,
        name: str = "",
        params: Mapping[str, JsonValue] | None = None,
        tags: Mapping[str, str] | None = None,
        upload_checkpoints: bool = False,
        system_metrics: bool | float = False,
        capture: bool = True,
        resume_file: str | os.PathLike[str] | ResumeFile | None = None,
        url: str | None = None,
    ) -> None:
        self._params = dict(params or {})
        self._upload = upload_checkpoints
        self._run = CallbackRun(
            experiment,
            run,
            url,
            resume_file=resume_file,
            name=name,
            tags=tags,
            system_metrics=system_metrics,
            capture=capture,
        )

    @property
    def run(self) -> LiveRun:
        """The run, for whatever else is to be logged."""
        return self._run.live

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Begins the run, and records the training arguments."""
        if not state.is_world_process_zero:
            return
        run = self._run.begin(parameters(args.to_sanitized_dict()) | parameters(self._params))
        config = getattr(model, "config", None)
        if config is not None and hasattr(config, "to_dict"):
            run.set_metadata(parameters({"model": config.to_dict()}))

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Appends a point to each metric."""
        if state.is_world_process_zero:
            values = {_key(key): value for key, value in numbers(logs).items()}
            self._run.log(values, state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Records the checkpoint that was just saved."""
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir, f"checkpoint-{state.global_step}").resolve()
        last = next((entry for entry in reversed(state.log_history) if entry.get("step") == state.global_step), None)
        self.run.log_checkpoint(
            state.global_step,
            step=state.global_step,
            metrics={_key(key): value for key, value in numbers(last).items() if key != "step"},
            files=path if self._upload and path.is_dir() else None,
            path=str(path),
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the run if it is the callback's own."""
        if state.is_world_process_zero and (late := self._run.end()):
            _log.warning("%s", late)


def _key(key: str) -> str:
    for prefix in ("eval_", "test_"):
        if key.startswith(prefix):
            return f"{prefix[:-1]}/{key.removeprefix(prefix)}"
    return key

"""A logger for PyTorch Lightning that records to a ModelBox run.

Owns the run: it begins with the first thing that is logged and ends with the trainer. Logging goes to the spool on
disk, so that a server that is slow or away neither slows nor stops the training. Only the process of rank 0 records.
"""

from __future__ import annotations

import os
import sys
import weakref
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelbox.config import load_client_config
from modelbox.errors import ModelBoxError
from modelbox.integrations._missing import not_installed
from modelbox.integrations._values import numbers, parameters
from modelbox.objects import JsonValue
from modelbox.resume import ResumeFile
from modelbox.run import LiveRun
from modelbox.spool.outcome import outcome_of
from modelbox.tracking import RunStatus

try:
    from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
    from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
except ImportError as exc:
    raise not_installed("ModelBoxLogger", "lightning", exc) from exc

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.callbacks import ModelCheckpoint

__all__ = ("ModelBoxLogger",)

_FLUSH_S = 10.0
"""How long the end of a training waits for delivery, at most."""


class ModelBoxLogger(Logger):
    """Records what a Lightning trainer logs.

    ::

        logger = ModelBoxLogger("langtech/wav2vec-lid", upload_checkpoints=True)
        Trainer(logger=logger, max_epochs=10).fit(module, data)

    Metrics are logged at the trainer's step, hyperparameters under their names (nested ones joined by dots), and each
    checkpoint that `ModelCheckpoint` saves is recorded with its path and the trainer's metrics. Checkpoints are
    numbered by epoch; those of a callback that saves by steps or by time are numbered by step.

    Args:
        experiment: ``namespace/name``, made where it is new, or an experiment's id.
        run: A run that the program has begun itself, and ends itself, instead of one of the logger's own; only
            ``upload_checkpoints``, ``prefix`` and ``resume_file`` go with it.
        name: How people know the run.
        params: Hyperparameters beside those of the module.
        tags: Text by key.
        metadata: JSON by key.
        upload_checkpoints: Whether the files of checkpoints are uploaded; they are copied into the spool first.
        prefix: Put before the key of every metric.
        resume: Id of a run to go on with.
        resume_file: A file that remembers the run until the trainer has finished, so that a program that was killed and
            is started again goes on with its run; steps that are trained again (from a checkpoint,
            ``ckpt_path="last"``) are the same points. With ``run``: a `modelbox.resume.ResumeFile`, which the program
            begins and ends, too.
        system_metrics: Whether to log the machine's CPU, memory, disk, network and GPUs; a number: how often, in
            seconds.
        capture: Whether to record git commit, packages, command line and machine.
        url: Of the server; None: ``MODELBOX_URL`` or the settings file.

    Raises:
        ConfigError: Lightning is not installed (on import), or settings that cannot be used.
        InvalidError: The experiment or an id cannot be right.
    """

    LOGGER_JOIN_CHAR = "/"

    def __init__(
        self,
        experiment: str = "",
        *,
        run: LiveRun | None = None,
        name: str = "",
        params: Mapping[str, JsonValue] | None = None,
        tags: Mapping[str, str] | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
        upload_checkpoints: bool = False,
        prefix: str = "",
        resume: str | None = None,
        resume_file: str | os.PathLike[str] | ResumeFile | None = None,
        system_metrics: bool | float = False,
        capture: bool = True,
        url: str | None = None,
    ) -> None:
        super().__init__()
        self._own = run is None
        self._prefix = prefix
        self._upload = upload_checkpoints
        self._resume = resume_file if isinstance(resume_file, ResumeFile | None) else ResumeFile(resume_file)
        self._recorded: set[int] = set()
        self._module: weakref.ref[LightningModule] | None = None
        self._began = run is not None
        self._run = run or LiveRun(
            experiment,
            None if url is None else load_client_config(url=url),
            name=name,
            params=params,
            tags=tags,
            metadata=metadata,
            resume=resume or (self._resume.run_id if self._resume is not None else None),
            system_metrics=system_metrics,
            capture=capture,
        )

    @property
    @rank_zero_experiment
    def experiment(self) -> LiveRun:
        """The run, begun; for whatever else is to be logged."""
        if not self._began:
            self._began = True
            self._run.start()
            if self._resume is not None:
                self._resume.begin(self._run)
        return self._run

    @property
    def run(self) -> LiveRun:
        """The run, on every rank; only on rank 0 it is begun."""
        return self._run

    @property
    def name(self) -> str:
        """The experiment."""
        return self._run.experiment.replace("/", "-")

    @property
    def version(self) -> str:
        """The run's id."""
        return self._run.id

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Records hyperparameters; what is no JSON, as text."""
        self.experiment.log_params(parameters(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Appends a point to each metric."""
        at = None if self._resume is None or step is None else self._resume.at(step)
        self.experiment.log_metrics({f"{self._prefix}{key}": value for key, value in metrics.items()}, step, at=at)

    @rank_zero_only
    def log_graph(self, model: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Logs nothing: publish the model itself, with `modelbox.integrations.torch`."""
        # Lightning calls this as it begins, and tells loggers its trainer nowhere else.
        self._module = weakref.ref(model)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Records the checkpoint that was saved last, and uploads it where that was asked for."""
        path = _saved(checkpoint_callback)
        module = self._module() if self._module is not None else None
        if path is None or module is None:
            return
        trainer = module.trainer
        number = trainer.current_epoch if _by_epoch(checkpoint_callback, trainer) else trainer.global_step
        if number in self._recorded:
            # Such as last.ckpt beside the same epoch's best.
            return
        self._recorded.add(number)
        self.experiment.log_checkpoint(
            number,
            step=trainer.global_step,
            metrics=numbers(trainer.callback_metrics),
            files=path if self._upload else None,
            path=str(path),
        )

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the run; metrics that come later (of `Trainer.test`) are still recorded."""
        if not self._own or not self._began:
            return
        if status == "success":
            self._run.finish()
            if self._resume is not None:
                self._resume.done()
        else:
            # Called while the trainer handles what stopped it.
            error = sys.exc_info()[1]
            self._run.finish(*(outcome_of(error) if error else (RunStatus.FAILED, f"the trainer says {status!r}")))
        try:
            self._run.flush(timeout=_FLUSH_S)
        except ModelBoxError as exc:
            rank_zero_warn(f"ModelBox: {exc}")


def _saved(callback: ModelCheckpoint) -> Path | None:
    """What a callback saved last, a file or directory that is there."""
    for name in ("_last_checkpoint_saved", "last_model_path", "best_model_path"):
        text = getattr(callback, name, "")
        if text and Path(text).exists():
            return Path(text).resolve()
    return None


def _by_epoch(callback: ModelCheckpoint, trainer: Any) -> bool:
    """Whether a callback saves once in an epoch at most."""
    by_steps = getattr(callback, "_every_n_train_steps", 0) or getattr(callback, "_train_time_interval", None)
    check = getattr(trainer, "val_check_batch", None)
    within = check is not None and check < (trainer.num_training_batches or 0)
    return not by_steps and not within

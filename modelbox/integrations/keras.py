"""A callback for Keras 3, with any backend, that records to a ModelBox run.

Owns the run unless one is handed in. Logging goes to the spool on disk: a server that is away stops nothing.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelbox.errors import ConfigError
from modelbox.integrations._missing import not_installed
from modelbox.integrations._run import CallbackRun
from modelbox.integrations._values import numbers, parameters
from modelbox.objects import JsonValue
from modelbox.resume import ResumeFile
from modelbox.run import LiveRun

try:
    import keras
except ImportError as exc:
    if exc.name in ("keras", None):
        raise not_installed("ModelBoxCallback", "keras", exc) from exc
    raise ConfigError(
        f"Keras has no backend, since {exc.name} is not installed: set KERAS_BACKEND to one that is (torch, jax)",
        extra="keras",
    ) from exc

__all__ = ("ModelBoxCallback",)

_log = logging.getLogger(__name__)


class ModelBoxCallback(keras.callbacks.Callback):
    """Records what ``Model.fit`` reports.

    ::

        model.fit(x, y, epochs=5, callbacks=[ModelBoxCallback("langtech/digits")])

    The metrics of an epoch (``loss``, ``val_loss``, …) are logged with the epoch as step. Keras tells callbacks nothing
    about an exception in ``fit``: to record that a run failed, begin it yourself and hand it in::

        with modelbox.start_run("langtech/digits") as run:
            model.fit(x, y, callbacks=[ModelBoxCallback(run=run)])

    Args:
        experiment: ``namespace/name`` of a new run.
        run: A run that has begun, instead.
        name: How people know the run.
        params: Hyperparameters beside those of ``fit`` and the optimiser.
        tags: Text by key.
        checkpoints: Whether the model is saved and uploaded after each epoch; a number: after every so many.
        every_batches: Metrics of batches are logged, too, as ``batch/…``, for every so many; 0 for none.
        system_metrics: Whether to log the machine's CPU, memory, disk, network and GPUs.
        capture: Whether to record git commit, packages, command line and machine.
        resume_file: A file that remembers the run until the training has ended, so that a program that was killed and
            is started again goes on with its run, and steps that are trained again are the same points. With ``run``: a
            `modelbox.resume.ResumeFile`, which the program begins and ends.
        url: Of the server; None: ``MODELBOX_URL`` or the settings file.

    Raises:
        ConfigError: Keras is not installed (on import), or settings that cannot be used.
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
        checkpoints: bool | int = False,
        every_batches: int = 0,
        system_metrics: bool | float = False,
        capture: bool = True,
        resume_file: str | os.PathLike[str] | ResumeFile | None = None,
        url: str | None = None,
    ) -> None:
        super().__init__()
        self._checkpoints = int(checkpoints)
        self._every_batches = every_batches
        self._batches = 0
        self._params = dict(params or {})
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

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Begins the run, and records the hyperparameters that Keras knows."""
        known = {key: value for key, value in (self.params or {}).items() if key in ("epochs", "steps")}
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is not None:
            known["optimizer"] = optimizer.get_config()
        self._run.begin(parameters(known) | parameters(self._params))

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Logs the metrics of a batch where that was asked for."""
        if self._every_batches and self._batches % self._every_batches == 0:
            values = {f"batch/{key}": value for key, value in numbers(logs).items()}
            self._run.log(values, self._batches, "batch")
        self._batches += 1

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Logs the metrics of an epoch, and uploads the model where that was asked for."""
        values = numbers(logs)
        rate = getattr(getattr(self.model, "optimizer", None), "learning_rate", None)
        rates = {} if rate is None else numbers({"learning_rate": keras.ops.convert_to_numpy(rate)})
        self._run.log(rates | values, epoch)
        if self._checkpoints and (epoch + 1) % self._checkpoints == 0:
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory, "model.keras")
                self.model.save(path)
                self.run.log_checkpoint(epoch, step=self._batches, metrics=values, files=path)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Ends the run if it is the callback's own."""
        if late := self._run.end():
            _log.warning("%s", late)

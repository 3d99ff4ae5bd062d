"""ModelBox: machine-learning models, and how they reach the code that uses them.

::

    model = await modelbox.load("langtech/wav2vec@prod")
    outputs = await model.predict({"input": waveform})

`load` brings a model into service and keeps it up to date; `start_run` records what a training program does; `Client`
is everything else that the central server offers; `modelbox.sync` is for code that is not async; `modelbox.otel` is
telemetry; `modelbox.errors` draws the tree of everything that may be raised.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelbox import errors, otel, sync
    from modelbox._default import aclose, load, start_run
    from modelbox.client import Client
    from modelbox.config import ClientConfig
    from modelbox.errors import ModelBoxError
    from modelbox.events import (
        DownloadProgress,
        ModelEvent,
        ReloadFailed,
        ReloadStarted,
        ReloadSucceeded,
        SessionFreed,
        StaleChanged,
        StateConfirmed,
    )
    from modelbox.loader.runner import Lease, Mode, Prediction, RunnerOptions
    from modelbox.loader.session import SessionOptions
    from modelbox.loader.settings import LoadOptions
    from modelbox.manifest import Manifest, ManifestFile
    from modelbox.model import LiveModel, ModelState
    from modelbox.refs import Digest, ModelRef
    from modelbox.run import LiveRun
    from modelbox.signature import Compatibility, Signature, TensorSpec
    from modelbox.tracking import RunStatus

__all__ = (
    "Client",
    "ClientConfig",
    "Compatibility",
    "Digest",
    "DownloadProgress",
    "Lease",
    "LiveModel",
    "LiveRun",
    "LoadOptions",
    "Manifest",
    "ManifestFile",
    "Mode",
    "ModelBoxError",
    "ModelEvent",
    "ModelRef",
    "ModelState",
    "Prediction",
    "ReloadFailed",
    "ReloadStarted",
    "ReloadSucceeded",
    "RunStatus",
    "RunnerOptions",
    "SessionFreed",
    "SessionOptions",
    "Signature",
    "StaleChanged",
    "StateConfirmed",
    "TensorSpec",
    "__version__",
    "aclose",
    "errors",
    "load",
    "otel",
    "start_run",
    "sync",
)

__version__ = "0.1.0"

# Each name is imported when it is first used, so that ``import modelbox`` and the command line start at once.
_HOME = {
    "Client": "modelbox.client",
    "ClientConfig": "modelbox.config",
    "Compatibility": "modelbox.signature",
    "Digest": "modelbox.refs",
    "DownloadProgress": "modelbox.events",
    "Lease": "modelbox.loader.runner",
    "LiveModel": "modelbox.model",
    "LiveRun": "modelbox.run",
    "LoadOptions": "modelbox.loader.settings",
    "Manifest": "modelbox.manifest",
    "ManifestFile": "modelbox.manifest",
    "Mode": "modelbox.loader.runner",
    "ModelBoxError": "modelbox.errors",
    "ModelEvent": "modelbox.events",
    "ModelRef": "modelbox.refs",
    "ModelState": "modelbox.model",
    "Prediction": "modelbox.loader.runner",
    "ReloadFailed": "modelbox.events",
    "ReloadStarted": "modelbox.events",
    "ReloadSucceeded": "modelbox.events",
    "RunStatus": "modelbox.tracking",
    "RunnerOptions": "modelbox.loader.runner",
    "SessionFreed": "modelbox.events",
    "SessionOptions": "modelbox.loader.session",
    "Signature": "modelbox.signature",
    "StaleChanged": "modelbox.events",
    "StateConfirmed": "modelbox.events",
    "TensorSpec": "modelbox.signature",
    "aclose": "modelbox._default",
    "load": "modelbox._default",
    "start_run": "modelbox._default",
}
_SUBMODULES = ("errors", "otel", "sync")


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"modelbox.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'modelbox' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

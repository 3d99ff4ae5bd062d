"""ModelBox: machine-learning models, and how they reach the code that uses them.

::

    model = await modelbox.load("langtech/wav2vec@prod")
    outputs = await model.predict({"input": waveform})

`load` brings a model into service and keeps it up to date; `Client` is everything else that the central server offers;
`modelbox.sync` is for code that is not async; `modelbox.otel` exports telemetry; `modelbox.errors` draws the tree of
everything that may be raised.
"""

from modelbox import errors, otel, sync
from modelbox._default import aclose, load
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
)
from modelbox.loader.runner import Lease, Mode, Prediction, RunnerOptions
from modelbox.loader.session import SessionOptions
from modelbox.loader.settings import LoadOptions
from modelbox.manifest import Manifest, ManifestFile
from modelbox.model import LiveModel, ModelState
from modelbox.refs import Digest, ModelRef
from modelbox.signature import Compatibility, Signature, TensorSpec

__all__ = (
    "Client",
    "ClientConfig",
    "Compatibility",
    "Digest",
    "DownloadProgress",
    "Lease",
    "LiveModel",
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
    "RunnerOptions",
    "SessionFreed",
    "SessionOptions",
    "Signature",
    "StaleChanged",
    "TensorSpec",
    "__version__",
    "aclose",
    "errors",
    "load",
    "otel",
    "sync",
)

__version__ = "0.1.0"

"""The one ambient object of the package: a client made on first use and shared by the whole process.

``await modelbox.load(ref)`` needs no set-up but ``MODELBOX_URL`` because of it. `aclose` ends it; the next `load`
makes a new one.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from modelbox.client import Client
from modelbox.loader.settings import LoadOptions
from modelbox.model import LiveModel
from modelbox.refs import ModelRef

__all__ = ("aclose", "default_client", "load", "start_run")

P = ParamSpec("P")
T = TypeVar("T")

_lock = threading.Lock()
_client: Client | None = None


def default_client() -> Client:
    """The process's client, configured by environment and settings file."""
    global _client
    with _lock:
        if _client is None:
            _client = Client()
        return _client


async def load(ref: str | ModelRef, *, options: LoadOptions | None = None, timeout: float | None = None) -> LiveModel:
    """Loads a model and keeps it up to date for as long as the handle lives.

    ::

        model = await modelbox.load("langtech/wav2vec@prod")
        outputs = await model.predict({"input": waveform})

    Works under asyncio, uvloop and trio, with no set-up but ``MODELBOX_URL``. See `Client.load` for arguments and
    errors.
    """
    return await default_client().load(ref, options=options, timeout=timeout)


def _on_default(method: Callable[Concatenate[Client, P], T]) -> Callable[P, T]:
    """A method of the client as a function on the process's client."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return method(default_client(), *args, **kwargs)

    return call


start_run = _on_default(Client.start_run)


async def aclose() -> None:
    """Takes all models of the default client out of service and closes it. Idempotent."""
    global _client
    with _lock:
        client, _client = _client, None
    if client is not None:
        await client.aclose()

"""The client: everything that the central server offers, as methods.

`Client` is put together of parts, one module for each kind of thing. The work itself happens in the engine (a
background asyncio loop), so that one client serves tasks under asyncio, uvloop and trio alike, from any thread, and
after a fork. Refuses to retry (the transports do) and to keep state about objects: what a method returns is what the
server said. `modelbox.sync.Client` has the same methods, blocking; it is generated from these parts.
"""

from __future__ import annotations

from modelbox.client.access import AccessCalls
from modelbox.client.attributes import AttributeCalls
from modelbox.client.auditing import AuditCalls
from modelbox.client.experiments import ExperimentCalls
from modelbox.client.files import FileCalls
from modelbox.client.finding import FindCalls
from modelbox.client.loading import LoadCalls
from modelbox.client.metrics import MetricCalls
from modelbox.client.models import ModelCalls
from modelbox.client.records import RecordCalls
from modelbox.client.rules import RuleCalls
from modelbox.client.runs import RunCalls
from modelbox.client.space import SpaceCalls
from modelbox.client.versions import VersionCalls
from modelbox.client.watching import WatchCalls

__all__ = ("Client",)


class Client(
    LoadCalls,
    ModelCalls,
    VersionCalls,
    FileCalls,
    ExperimentCalls,
    AttributeCalls,
    MetricCalls,
    RecordCalls,
    FindCalls,
    RunCalls,
    SpaceCalls,
    RuleCalls,
    AuditCalls,
    WatchCalls,
    AccessCalls,
):
    """A connection to a central server.

    ::

        async with modelbox.Client("http://127.0.0.1:8080") as client:
            await client.publish("langtech/wav2vec", "model.onnx", aliases=["staging"])
            await client.promote("langtech/wav2vec@prod", 1, reason="passed review")

    Models are named ``namespace/model``; versions by a reference such as ``langtech/wav2vec@prod``, ``…@7`` or
    ``…@sha256:…``. Nothing is connected before the first call. Without ``async with``, call `aclose` at the end.

    Args:
        url: HTTP address of the server; None: ``MODELBOX_URL``, the settings file, or ``http://127.0.0.1:8080``.
        config: Settings read before; then neither environment nor file is looked at.
        engine: Shares this engine, which its owner closes; None: the client has one of its own.
        **settings: Any setting of `ClientConfig`, stronger than environment and file.

    Raises:
        ConfigError: From ``async with`` or the first call: settings that cannot be used.

    Concurrency: any number of tasks, threads and event loops may share one client.
    Cancellation: a cancelled call ends its work in the engine before it returns. A change that was on its way to the
        server may or may not have been made.
    Errors: every method raises `Unavailable` where the server cannot be reached, `DeadlineExceeded` where it does not
        answer within ``request_timeout_s``, `ProtocolError` where it is no ModelBox server, and `ClientClosed` after
        `aclose`.
    """

"""One prediction on its way to the sidecar, and what is known of the versions that answer there.

Owns what a call carries from attempt to attempt. Sends nothing: `modelbox._transport.sidecar_connection` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from modelbox._loops import Waiter
from modelbox._tensors import Packer
from modelbox._transport.sidecar_segments import Segment
from modelbox.errors import ProtocolError
from modelbox.loader.inputs import InputChecker
from modelbox.loader.runner import Prediction
from modelbox.loader.stats import CallStats
from modelbox.objects import ModelVersion, from_json
from modelbox.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from modelbox._transport.sidecar_connection import Connection

__all__ = ("Call", "Caller", "LeaseHolder", "Opener", "Question", "RemoteVersion")

_NO_TENSORS = Packer(())


class RemoteVersion:
    """A version that the sidecar has told of; what a runner calls active.

    Attributes:
        version: What the registry says of it.
        signature: Its inputs and outputs.
        check: Checks inputs before they are sent.
        packer: Makes their layouts.
        stats: Where its calls are counted; None before the first.
    """

    __slots__ = ("check", "packer", "signature", "stats", "version")

    def __init__(self, version: ModelVersion, signature: Signature) -> None:
        self.version = version
        self.signature = signature
        self.check = InputChecker(signature).check
        self.packer = Packer(signature.inputs)
        self.stats: CallStats | None = None

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> RemoteVersion:
        """What a VERSION frame says."""
        try:
            return cls(from_json(ModelVersion, body["version"]), _signature(body["signature"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise ProtocolError(f"the sidecar told of a version in a form that is not understood: {exc}") from exc


class LeaseHolder(Protocol):
    """The lease of a call, see `modelbox._transport.sidecar_runner.SidecarLease`."""

    def number_on(self, connection: Connection, call: Call) -> int | None:
        """The lease's number; None when it has to be taken anew first, which sends the call later."""


class Caller(Protocol):
    """Whose call it is.

    Attributes:
        ref: The reference, as it is opened on a connection.
        answer_bytes: How large the last large answer was; 0 for small ones.
    """

    @property
    def ref_text(self) -> str:
        """The reference as it is opened."""

    answer_bytes: int


class Call:
    """One prediction.

    Attributes:
        waiter: Gets the `Prediction`, or the error.
        timeout_ms: What the sidecar is told; 0 for none.
        give_up_at: When waiting for a connection ends, on the clock of `time.monotonic`; None before it began.
        version: What answered.
    """

    __slots__ = (
        "attempts",
        "caller",
        "feed",
        "give_up_at",
        "held",
        "id",
        "into",
        "lease",
        "packer",
        "patience_s",
        "timeout_ms",
        "version",
        "waiter",
    )

    def __init__(
        self,
        caller: Caller,
        feed: dict[str, Any],
        packer: Packer,
        waiter: Waiter[Prediction],
        patience_s: float,
        timeout_ms: int = 0,
        lease: LeaseHolder | None = None,
    ) -> None:
        self.caller = caller
        self.feed = feed
        self.packer = packer
        self.waiter = waiter
        self.patience_s = patience_s
        self.timeout_ms = timeout_ms
        self.lease = lease
        self.attempts = 0
        self.give_up_at: float | None = None
        self.id = 0
        self.held: Segment | None = None
        self.into: Segment | None = None
        self.version: RemoteVersion | None = None

    def fail(self, error: Exception) -> None:
        """Ends it with an error."""
        if not self.waiter.done():
            self.waiter.set_exception(error)


class Opener(Call):
    """Wants a connection on which a reference is open, and nothing else.

    Args:
        then: Called with it.
    """

    __slots__ = ("then",)

    def __init__(
        self, caller: Caller, waiter: Waiter[Any], patience_s: float, then: Callable[[Connection], None]
    ) -> None:
        super().__init__(caller, {}, _NO_TENSORS, waiter, patience_s)
        self.then = then


class Question:
    """Anything else that is answered: OPEN, LEASE.

    Args:
        then: Hears the answer's target and body at the moment it arrives, before any frame behind it is read.
        failed: Hears of an error.
    """

    __slots__ = ("failed", "then")

    def __init__(self, then: Callable[[int, dict[str, Any]], None], failed: Callable[[Exception], None]) -> None:
        self.then = then
        self.failed = failed


def _signature(body: Mapping[str, Any]) -> Signature:
    def specs(items: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=item["name"], dtype=item["dtype"], shape=tuple(item["shape"])) for item in items)

    return Signature(inputs=specs(body["inputs"]), outputs=specs(body["outputs"]))

"""How a model is loaded and served: the options of one `load` call, and the settings of a loader."""

from __future__ import annotations

from dataclasses import dataclass, field

from modelbox.loader.probe import ProbeMode
from modelbox.loader.runner import RunnerOptions
from modelbox.loader.session import SessionOptions
from modelbox.loader.slower import Slower
from modelbox.loader.watch import InformerSettings
from modelbox.signature import Compatibility

__all__ = ("LoadOptions", "LoaderSettings")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Options of one reference; every handle of a reference in one process shares those of the first `load`.

    Attributes:
        session: Threads, execution providers and graph optimisation of onnxruntime.
        runner: Where calls run (``auto``, ``inline``, ``pool``) and how they are batched.
        batching: True joins calls of one loop tick whatever the warm-up says, False never does; None lets the
            version's metadata (``batching``) decide, or the warm-up (rows alone give what rows together give).
        compatibility: Which interface a new version must have to replace the running one.
        golden: Whether ``golden/inputs.npz`` and ``golden/outputs.npz`` of a version must reproduce.
        tensors: Whether versions of safetensors are opened, which have nothing to run; a sidecar refuses them.
        warm_up_timeout_s: As in `LoaderSettings`, for this reference alone; None for the loader's.
    """

    session: SessionOptions = field(default_factory=SessionOptions)
    runner: RunnerOptions = field(default_factory=RunnerOptions)
    batching: bool | None = None
    compatibility: Compatibility = Compatibility.WIDENING
    golden: bool = True
    tensors: bool = True
    warm_up_timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSettings:
    """Settings of a loader, the same for all its references.

    Attributes:
        offline_after_s: With a last-known-good version on disk, how long a first `load` waits for the server before
            it serves that one, marked stale.
        warm_up_timeout_s: A warm-up run that takes longer is terminated and the version refused.
        probe: Which versions are tried in a process of their own before they are opened here. What served here before,
            and what the cache keeps in its optimised form, is not tried again.
        probe_timeout_s: How long that process may take to start and to open the model; first runs have
            `warm_up_timeout_s` besides.
        probe_max_bytes: Memory that it may take beyond the runtime's own; 0 for an allowance by the size of the files.
        slower: What becomes of a version whose runs take more than `slower_factor` times as long as those of the one
            that serves. One that served before is never refused for it.
        slower_factor: How many times as long they may take.
        swap_interval_s: How long a reference keeps a version before the next one replaces it; of those that arrive
            meanwhile, the newest counts. A way back does not wait, nor does the first change after a load.
        drain_timeout_s: Calls that still run on a replaced version after this are terminated.
        retry_base_s: First pause after a failure that may pass (network, disk, memory); doubles up to `retry_max_s`.
        heartbeat_s: The instance reports to the server this often, and at once when something changed.
        keep_optimised: Whether the cache keeps what onnxruntime made of a model, to open it faster next time.
        optimise_after_s: How long after a swap that form is made, so that it does not compete with the first calls.
    """

    offline_after_s: float = 1.0
    warm_up_timeout_s: float = 60.0
    probe: ProbeMode = ProbeMode.OFF
    probe_timeout_s: float = 60.0
    probe_max_bytes: int = 0
    slower: Slower = Slower.WARN
    slower_factor: float = 10.0
    swap_interval_s: float = 0.0
    drain_timeout_s: float = 30.0
    retry_base_s: float = 1.0
    retry_max_s: float = 300.0
    heartbeat_s: float = 30.0
    keep_optimised: bool = True
    optimise_after_s: float = 1.0
    informer: InformerSettings = field(default_factory=InformerSettings)

"""One opened ONNX model: the only module that touches onnxruntime.

Owns opening (by path), running, stopping and freeing a session, and the translation of what onnxruntime raises. Refuses
to open anything that was not verified before: that external data stays inside the version's directory is the caller's
check. Warming up is in `warmup.py`, the runtime's own optimised form of a model in `optimise.py`.

Invariants: everything but `Session.run` and `Session.terminate` blocks and belongs to a loader thread. Importing this
module does not import onnxruntime.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any

from modelbox.errors import (
    ConfigError,
    LeaseReleased,
    LoadError,
    ModelBoxError,
    ModelInvalid,
    NotEnoughMemory,
    PredictError,
    RunTerminated,
    UnsupportedOperator,
)
from modelbox.loader.inputs import Feed
from modelbox.loader.ort_values import check_element, needs_values, value_run
from modelbox.loader.stall import LOCAL, WATCH, RunStalled, slot_of_thread
from modelbox.signature import Dim, Signature, TensorSpec

__all__ = ("Session", "SessionOptions", "WarmReport", "read_signature", "runtime", "runtime_version")

_log = logging.getLogger(__name__)

_FATAL_ONLY = 4
# Names of mallopt's parameters in the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How models are opened.

    Attributes:
        providers: onnxruntime's execution providers, in order of preference; all have to be there.
        intra_op_threads: Threads inside one run. More than 1 pays only on an otherwise idle machine.
        prepack: Rearrange weights for speed while opening. Without it a model with external data opens in a fraction
            of the time and memory, and runs batches slower.
    """

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    intra_op_threads: int = 1
    prepack: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmReport:
    """What the warm-up found.

    Attributes:
        rows_independent: Rows give the same alone and together, so that calls may share a run.
        run_s: Seconds of one run; None when no run was possible.
        ran: A run succeeded. False only for a model without golden inputs that refuses made-up ones.
        golden: Golden inputs were there and gave the golden outputs.
        finite: No output had NaN or infinity in it.
        times_s: Seconds of each run that was timed.
        feed: What they ran on.
    """

    rows_independent: bool
    run_s: float | None
    ran: bool
    golden: bool
    finite: bool
    times_s: tuple[float, ...] = ()
    feed: Feed | None = field(default=None, repr=False, compare=False)


def runtime() -> ModuleType:
    """The onnxruntime package, imported on first use.

    Raises:
        ConfigError: It is not installed.
    """
    # From 1.31 on, importing it starts a thread that reports usage to its maker, and that thread's destructor aborts a
    # forked child at exit. The switch is read at import only; whoever wants the reports sets it to 0.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as exc:
        raise ConfigError(
            "running models in this process needs onnxruntime: install the extra with pip install 'modelbox[onnx]'",
            extra="onnx",
        ) from exc
    return onnxruntime  # type: ignore[no-any-return,unused-ignore]


def runtime_version() -> str:
    """Version of the installed onnxruntime."""
    return str(runtime().__version__)


class Session:
    """An opened model.

    Made by `open`. `run` and `terminate` may be called from any thread, the rest from one at a time.

    Attributes:
        signature: Inputs and outputs as the runtime sees them.
        run_s: Seconds of one run as measured by `warm`; None before, or when no run was possible.
        clock_ns: The clock that measures a run in a worker thread: processor time where the run happens in the calling
            thread alone, because wall time would count the wait for the interpreter too.
    """

    __slots__ = (
        "_inference",
        "_live",
        "_names",
        "_options",
        "_run",
        "_run_options",
        "_terminated",
        "clock_ns",
        "run_s",
        "signature",
    )

    def __init__(self, inference: Any, options: SessionOptions) -> None:
        self._inference = inference
        self._options = options
        self.signature = read_signature(inference)
        self._names = [spec.name for spec in self.signature.outputs]
        # The runtime's own object: `InferenceSession.run` around it only repeats the checks of `InputChecker`.
        self._run: Callable[..., list[Any]] = inference._sess.run
        if needs_values(self.signature):
            self._run = value_run(inference._sess, runtime().OrtValue, self.signature)
        self._run_options = new_run_options()
        self._live: set[Any] = set()
        self._terminated = False
        self.run_s: float | None = None
        cpu_only = options.providers == ("CPUExecutionProvider",) and options.intra_op_threads == 1
        self.clock_ns: Callable[[], int] = time.thread_time_ns if cpu_only else time.perf_counter_ns

    @classmethod
    def open(cls, path: Path, *, options: SessionOptions, optimised: Path | None = None) -> Session:
        """Opens the model at ``path``; blocks for milliseconds to seconds, without the interpreter's lock.

        Args:
            path: The model file; its external data lies beside it.
            options: How to open it.
            optimised: What `write_optimised` made of the same model under the same options. It is opened instead; when
                that fails, ``path`` is.

        Raises:
            ModelInvalid: The file is no model, or a broken one.
            UnsupportedOperator: It needs an operator or opset that the runtime lacks.
            LoadError: It does not open for another reason, such as memory, or has tensors that no array can hold.
            ConfigError: onnxruntime, a provider, or the type of a bfloat16 tensor is not installed.
        """
        ort = runtime()
        missing = [name for name in options.providers if name not in ort.get_available_providers()]
        if missing:
            raise ConfigError(
                f"onnxruntime {ort.__version__} has no {', '.join(missing)}: "
                f"it has {', '.join(ort.get_available_providers())}"
            )
        if optimised is not None:
            try:
                return cls(open_native(optimised, runtime_options(options, optimised=True), options), options)
            except LoadError as exc:
                _log.warning("the optimised form of a model does not open, its original is used: %s", exc)
        return cls(open_native(path, runtime_options(options), options), options)

    @property
    def options(self) -> SessionOptions:
        """What it was opened with."""
        return self._options

    @property
    def raw(self) -> Any:
        """The ``onnxruntime.InferenceSession``.

        Raises:
            LeaseReleased: The session is closed.
        """
        if self._inference is None:
            raise LeaseReleased("the session is closed")
        return self._inference

    def run(self, feed: Feed) -> list[Any]:
        """Runs the model on checked inputs and returns its outputs in the order of the signature.

        Raises:
            PredictError: The model failed on these inputs.
            RunTerminated: `terminate` was called.
        """
        try:
            return self._run(self._names, feed, self._run_options)
        except Exception as exc:
            raise self._mapped(exc) from exc

    def run_here(self, feed: Feed) -> list[Any]:
        """The same on an event loop, which it must not hold up.

        Raises:
            RunStalled: It took too long, and was stopped: run it in a thread.
        """
        slot = LOCAL.slot or slot_of_thread(new_run_options)
        if self._terminated:
            return self.run(feed)
        slot.session = self
        slot.since = monotonic()
        try:
            outputs = self._run(self._names, feed, slot.options)
        except Exception as exc:
            slot.since = 0.0
            if not slot.options.terminate:
                raise self._mapped(exc) from exc
            if slot.renew() and not self._terminated:
                raise RunStalled from exc
            raise self._mapped(exc, self._run_options) from exc
        slot.since = 0.0
        if slot.stalled:
            # It ended just when it was to be stopped.
            slot.renew()
        return outputs

    def run_within(self, feed: Feed, run_options: Any) -> list[Any]:
        """The same under run options of the caller's own, made by `new_run_options`, which can stop this run alone."""
        live = self._live
        live.add(run_options)
        if self._terminated:
            run_options.terminate = True
        try:
            return self._run(self._names, feed, run_options)
        except Exception as exc:
            raise self._mapped(exc, run_options) from exc
        finally:
            live.discard(run_options)

    def warm(self, deadline_s: float, golden: Path | None = None) -> WarmReport:
        """Makes the first runs and finds out what they tell; sets `run_s`.

        Args:
            deadline_s: Seconds for all of it; runs that take longer are stopped.
            golden: A directory with ``inputs.npz`` and, optionally, ``outputs.npz``.

        Raises:
            WarmupFailed: A run did not end in time, failed on golden inputs (or on zeros, for a model that admits only
                one shape), or gave other outputs than the golden ones.
        """
        from modelbox.loader.warmup import warm

        report = warm(self, deadline_s, golden)
        self.run_s = report.run_s
        return report

    def terminate(self) -> None:
        """Stops all runs in flight and every later one; returns at once."""
        self._terminated = True
        self._run_options.terminate = True
        for run_options in tuple(self._live):
            run_options.terminate = True
        WATCH.stop(self)

    def close(self) -> None:
        """Frees the model and returns its memory to the system; idempotent.

        Only once no run is in flight. A raw session that somebody kept stays alive.
        """
        if self._inference is None:
            return
        self._inference = None
        self._run = _closed
        trim_memory()

    def _mapped(self, exc: Exception, run_options: Any = None) -> Exception:
        if isinstance(exc, ModelBoxError | LeaseReleased):
            return exc
        if (run_options or self._run_options).terminate:
            return RunTerminated(
                "the run was stopped before its end: nobody waited for it any more, or the model's version was "
                "replaced or closed"
            )
        return PredictError(f"the model failed: {reason_of(exc)}")


def _closed(*_: object) -> list[Any]:
    raise LeaseReleased("the session is closed")


def read_signature(inference: Any) -> Signature:
    """Inputs and outputs of an ``onnxruntime.InferenceSession``.

    Raises:
        LoadError: There is a tensor whose elements no array can hold.
    """
    return Signature(
        inputs=tuple(_spec(node, "input") for node in inference.get_inputs()),
        outputs=tuple(_spec(node, "output") for node in inference.get_outputs()),
    )


_DTYPES = {"float": "float32", "double": "float64"}


def _spec(node: Any, side: str) -> TensorSpec:
    match = re.fullmatch(r"tensor\((\w+)\)", node.type)
    if match is None:
        return TensorSpec(name=node.name, dtype=node.type, shape=())
    dims: list[Dim] = [
        (dim if dim >= 0 else -1) if isinstance(dim, int) else (str(dim) if dim else -1) for dim in node.shape or ()
    ]
    dtype = _DTYPES.get(match[1], match[1])
    check_element(side, node.name, dtype)
    return TensorSpec(name=node.name, dtype=dtype, shape=tuple(dims))


def runtime_options(options: SessionOptions, *, optimised: bool = False) -> Any:
    """The runtime's own options; ``optimised`` for a file that went through the optimiser already."""
    ort = runtime()
    native = ort.SessionOptions()
    native.intra_op_num_threads = options.intra_op_threads
    native.inter_op_num_threads = 1
    # What fails is reported as an error, not on the standard error stream.
    native.log_severity_level = _FATAL_ONLY
    native.add_session_config_entry("session.intra_op.allow_spinning", "0")
    native.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if not options.prepack:
        native.add_session_config_entry("session.disable_prepacking", "1")
    if optimised:
        native.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return native


def new_run_options() -> Any:
    """Run options whose ``terminate`` stops the runs that use them."""
    options = runtime().RunOptions()
    options.log_severity_level = _FATAL_ONLY
    return options


def open_native(path: Path, native: Any, options: SessionOptions) -> Any:
    """An ``onnxruntime.InferenceSession`` on a file, or our error."""
    with map_open_errors():
        # By path: opening from bytes copies them under the interpreter's lock.
        return runtime().InferenceSession(os.fspath(path), native, providers=list(options.providers), enable_fallback=0)


class map_open_errors:
    """Translates what onnxruntime raises while it opens a model."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, exc: BaseException | None, _: object) -> None:
        if isinstance(exc, Exception) and not isinstance(exc, ModelBoxError):
            raise _open_error(exc) from exc


_OPERATOR = re.compile(
    r"Could not find an implementation for ([\w.:]+)"
    r"|(?:No Op registered for|No opset import for domain|Fatal error:) '?([\w.:]+)"
    r"|([\w.:-]+)\(-?\d+\) is not a registered function/op"
)
_OPSET = re.compile(
    r"opset \d+ is under development|ONNX Runtime only \*guarantees\* support|Unsupported model IR version"
)


def _open_error(exc: Exception) -> LoadError:
    text = reason_of(exc)
    kind = type(exc).__name__
    if match := _OPERATOR.search(str(exc)):
        operator = next(group for group in match.groups() if group)
        return UnsupportedOperator(
            f"the model needs the operator {operator}, which onnxruntime {runtime().__version__} does not have: {text}",
            operator=operator,
            stage="open",
        )
    if _OPSET.search(str(exc)):
        return UnsupportedOperator(f"the model is newer than onnxruntime {runtime().__version__}: {text}", stage="open")
    if isinstance(exc, MemoryError) or "bad_alloc" in str(exc) or "Failed to allocate memory" in str(exc):
        return NotEnoughMemory(f"there is not enough memory to open the model: {text}", stage="open")
    if kind in _INVALID:
        return ModelInvalid(f"the model does not open: {text}", stage="open")
    return LoadError(f"the model does not open: {kind}: {text}", stage="open")


_INVALID = frozenset(
    [
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoModel",
        "NoSuchFile",
        "NotFound",
        "NotImplemented",
        "RuntimeException",
    ]
)


def reason_of(exc: BaseException) -> str:
    """What the runtime says, on one line, without its prefix, addresses in its sources, and directories."""
    text = " ".join(str(exc).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"(?:/[\w.+@-]+)+/([\w.+@-]+)", r"\1", text)
    return text[:500] or type(exc).__name__


def keep_memory() -> None:
    """Has the C library keep what is freed, up to 64 MiB, until `trim_memory`: for a program that does nothing else.

    Otherwise it returns the memory of each large output to the system, and the next one is slower by the time in which
    the kernel clears as many pages: a third of a millisecond for 640 KB.
    """
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(_M_MMAP_THRESHOLD, 32 << 20)
            set_option(_M_TRIM_THRESHOLD, 64 << 20)


def trim_memory() -> None:
    """Gives freed memory back to the system, where the C library can."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

"""The first runs of a model: that it runs at all, how long it takes, and whether its rows are independent.

Owns the made-up inputs and the comparison with golden ones. Refuses to judge a model by inputs that it may rightly
reject: only golden inputs, or a signature without free dimensions, make a failed run a reason to refuse the model.

Invariants: everything ends by the deadline; a run that does not is stopped.
"""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelbox.errors import InputError, PredictError, WarmupFailed
from modelbox.loader.inputs import Feed, InputChecker
from modelbox.loader.ort_values import bfloat16
from modelbox.refs import shown
from modelbox.signature import TensorSpec

if TYPE_CHECKING:
    from modelbox.loader.session import Session, WarmReport

__all__ = ("warm",)

_MAX_GOLDEN_BYTES = 64 << 20
_RTOL, _ATOL = 1e-3, 1e-4
"""How far a golden output may be off: sums in another order, on another processor."""

_ROW_RTOL, _ROW_ATOL = 1e-3, 1e-5
_HALF_RTOL = 2e-2
"""For bfloat16."""

_TIMED_RUNS = 5
_TIMED_BUDGET_S = 0.25


class _Deadline:
    """Stops the runs of a session when the time is over."""

    def __init__(self, session: Session, deadline_s: float) -> None:
        from modelbox.loader.session import new_run_options

        self._session = session
        self._deadline_s = deadline_s
        self._options = new_run_options()
        self._timer = threading.Timer(deadline_s, self._stop)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _stop(self) -> None:
        self._options.terminate = True

    def run(self, feed: Feed) -> list[Any]:
        """One run.

        Raises:
            WarmupFailed: The time is over.
            PredictError: The model failed.
        """
        try:
            return self._session.run_within(feed, self._options)
        except PredictError as exc:
            if self._options.terminate:
                raise WarmupFailed(
                    f"the warm-up did not end within {self._deadline_s:g} s", stage="warm", deadline_s=self._deadline_s
                ) from exc
            raise


def warm(session: Session, deadline_s: float, golden: Path | None) -> WarmReport:
    """See `Session.warm`."""
    from modelbox.loader.session import WarmReport

    checker = InputChecker(session.signature)
    with _Deadline(session, deadline_s) as deadline:
        feed: Feed | None
        if golden is not None and (golden / "inputs.npz").is_file():
            feed, outputs = _run_golden(session, checker, deadline, golden)
            checked = True
        else:
            checked = False
            feed, outputs = _run_zeros(session, deadline)
        if feed is None:
            return WarmReport(rows_independent=False, run_s=None, ran=False, golden=False, finite=True)
        times_s = _timed(deadline, feed)
        return WarmReport(
            # The best of them, because the first ones allocate.
            run_s=min(times_s),
            times_s=times_s,
            feed=feed,
            rows_independent=checker.has_rows and _rows_independent(session, deadline, feed),
            ran=True,
            golden=checked,
            finite=_finite(outputs),
        )


def _run_zeros(session: Session, deadline: _Deadline) -> tuple[Feed | None, list[Any]]:
    """A run on zeros, free dimensions 1; no feed when the model does not take such inputs, as it may."""
    inputs = session.signature.inputs
    if any("(" in spec.dtype for spec in inputs):
        return None, []
    feed = {spec.name: _zeros(spec) for spec in inputs}
    try:
        return feed, deadline.run(feed)
    except PredictError as exc:
        if any(_free(spec) for spec in inputs):
            return None, []
        raise WarmupFailed(
            f"the model fails on zeros of its only input shape (publish golden/inputs.npz with it if it has to): {exc}",
            stage="warm",
        ) from exc


def _run_golden(session: Session, checker: InputChecker, deadline: _Deadline, golden: Path) -> tuple[Feed, list[Any]]:
    """A run on the golden inputs, compared with the golden outputs where there are any."""
    try:
        feed = checker.check(_named_types(session, _read(golden / "inputs.npz")))
        outputs = deadline.run(feed)
    except (InputError, PredictError) as exc:
        raise WarmupFailed(f"the model fails on its golden inputs: {exc}", stage="warm") from exc
    names = [spec.name for spec in session.signature.outputs]
    given = dict(zip(names, outputs, strict=True))
    expected = _read(golden / "outputs.npz") if (golden / "outputs.npz").is_file() else {}
    for name, want in expected.items():
        if name not in given:
            raise WarmupFailed(
                f"the golden outputs name {shown(name)}, the model gives {', '.join(names)}", stage="warm"
            )
        if not _close(given[name], want, _RTOL, _ATOL):
            raise WarmupFailed(f"output {shown(name)} is not the golden one", stage="warm", output=name)
    if not _finite(outputs):
        raise WarmupFailed("the model gives NaN or infinity for its golden inputs", stage="warm")
    return feed, outputs


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > _MAX_GOLDEN_BYTES:
            raise WarmupFailed(f"{path.name} has {size} bytes, more than the {_MAX_GOLDEN_BYTES} allowed", stage="warm")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as exc:
        raise WarmupFailed(
            f"{path.name} is no readable npz file without pickles: {type(exc).__name__}", stage="warm"
        ) from exc


def _named_types(session: Session, arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arrays of an ``npz`` file, which keeps bfloat16 as elements of two bytes without a meaning."""
    half = {spec.name for spec in session.signature.inputs if spec.dtype == "bfloat16"}
    return {
        name: array.view(bfloat16()) if name in half and array.dtype.str == "|V2" else array
        for name, array in arrays.items()
    }


def _timed(deadline: _Deadline, feed: Feed) -> tuple[float, ...]:
    """Seconds of a few runs."""
    found: list[float] = []
    end = time.perf_counter() + _TIMED_BUDGET_S
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        deadline.run(feed)
        now = time.perf_counter()
        found.append(now - start)
        if now > end:
            break
    return tuple(found)


def _rows_independent(session: Session, deadline: _Deadline, feed: Feed) -> bool:
    """Whether rows give the same alone as together.

    Made-up rows that differ, in the shape of an input that the model is known to take: zeros would hide what one row
    does to another.
    """
    rng = np.random.default_rng(0)
    first = {spec.name: _random(spec, feed[spec.name], rng) for spec in session.signature.inputs}
    second = {spec.name: _random(spec, feed[spec.name], rng) for spec in session.signature.inputs}
    rows = [first, second, first]
    try:
        alone = [deadline.run(row) for row in rows[:2]]
        together = deadline.run({name: np.concatenate([row[name] for row in rows]) for name in first})
    except PredictError:
        return False
    for i, whole in enumerate(together):
        parts = [alone[0][i], alone[1][i], alone[0][i]]
        n = len(parts[0])
        if n != len(first[session.signature.inputs[0].name]) or len(parts[1]) != n or len(whole) != 3 * n:
            return False
        if not _close(whole, np.concatenate(parts), _ROW_RTOL, _ROW_ATOL):
            return False
    return True


def _zeros(spec: TensorSpec) -> Any:
    shape = [dim if isinstance(dim, int) and dim >= 0 else 1 for dim in spec.shape]
    if spec.dtype == "string":
        return np.full(shape, "", dtype=object)
    return np.zeros(shape, dtype=bfloat16() if spec.dtype == "bfloat16" else spec.dtype)


def _random(spec: TensorSpec, like: Any, rng: np.random.Generator) -> Any:
    """One row in the shape of ``like``; integers stay 0 or 1, which most vocabularies have."""
    shape = (1, *like.shape[1:])
    kind = like.dtype.kind
    if _is_real(like):
        return rng.standard_normal(shape).astype(like.dtype)
    if kind in "iub":
        return rng.integers(0, 2, shape).astype(like.dtype)
    return np.where(rng.integers(0, 2, shape) > 0, "a", "b").astype(like.dtype)


def _free(spec: TensorSpec) -> bool:
    return any(isinstance(dim, str) or dim == -1 for dim in spec.shape)


def _finite(outputs: list[Any]) -> bool:
    return all(bool(np.isfinite(out).all()) for out in outputs if isinstance(out, np.ndarray) and _is_real(out))


def _close(got: Any, want: Any, rtol: float, atol: float) -> bool:
    if not isinstance(got, np.ndarray) or got.shape != want.shape:
        return False
    if got.dtype.name == "bfloat16":
        # Its elements have three digits; `npz` files keep them as plain bits.
        bits = want.view(got.dtype) if want.dtype.itemsize == 2 and want.dtype.kind in "Vu" else want
        return bool(np.allclose(got.astype("f4"), bits.astype("f4"), rtol=_HALF_RTOL, atol=atol, equal_nan=True))
    if got.dtype.kind in "fc":
        return bool(np.allclose(got, want, rtol=rtol, atol=atol, equal_nan=True))
    return bool(np.array_equal(got, want))


def _is_real(array: Any) -> bool:
    """Whether the elements are floats, or complex."""
    return array.dtype.kind in "fc" or array.dtype.name == "bfloat16"

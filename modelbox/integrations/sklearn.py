"""From a scikit-learn estimator to a published ONNX model.

Owns the export by skl2onnx and the proof that what was exported answers as the estimator does. Refuses a model for
which it does not, instead of publishing it.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from modelbox import sync
from modelbox.client import Client
from modelbox.errors import InvalidError, ModelInvalid
from modelbox.integrations._missing import not_installed
from modelbox.integrations._publishing import Export, Published, publish_export
from modelbox.integrations._values import parameters
from modelbox.objects import JsonValue
from modelbox.run import LiveRun

try:
    import onnxruntime
    import sklearn.base
    from skl2onnx import to_onnx
except ImportError as exc:
    raise not_installed("publishing scikit-learn models", "sklearn", exc) from exc

__all__ = ("export", "publish")

_CHECKED_ROWS = 1000


def export(estimator: Any, file: Path | str, X_sample: Any, *, check: bool = True) -> Path:
    """Writes a fitted estimator or pipeline as an ONNX file.

    Its inputs are what ``X_sample`` is: one tensor ``X`` for an array, one for each column of a pandas frame. The rows
    are free. Classifiers give ``label`` and ``probabilities`` (one column for each class) as plain tensors.

    Args:
        estimator: Fitted.
        file: Where to write.
        X_sample: Some rows, of the dtype that callers will send; float32 is what most clients have.
        check: Whether the file must answer for up to 1000 of these rows as the estimator does.

    Raises:
        InvalidError: The estimator is not fitted, or skl2onnx cannot convert it.
        ModelInvalid: The file answers something else.
    """
    X_sample = X_sample[:_CHECKED_ROWS]
    is_classifier = sklearn.base.is_classifier(estimator)
    options = {id(estimator): {"zipmap": False}} if is_classifier else None
    try:
        onnx_model = to_onnx(estimator, X_sample[:1], options=options)
    except Exception as exc:
        # Of skl2onnx's own classes, which share no base, and of scikit-learn's.
        raise InvalidError(f"{type(estimator).__name__} cannot be exported to ONNX: {exc}") from exc
    if is_classifier:
        _rename(onnx_model, {"output_label": "label", "output_probability": "probabilities"})
    path = Path(file)
    path.write_bytes(onnx_model.SerializeToString())
    if check:
        _check(estimator, path, X_sample, is_classifier=is_classifier)
    return path


@overload
def publish(
    client: sync.Client,
    estimator: Any,
    path: str,
    X_sample: Any,
    *,
    run: LiveRun | str | None = None,
    metrics: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    metadata: Mapping[str, JsonValue] | None = None,
    description: str = "",
    aliases: Sequence[str] = (),
    reason: str = "",
    check: bool = True,
) -> Published: ...


@overload
def publish(
    client: Client,
    estimator: Any,
    path: str,
    X_sample: Any,
    *,
    run: LiveRun | str | None = None,
    metrics: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    metadata: Mapping[str, JsonValue] | None = None,
    description: str = "",
    aliases: Sequence[str] = (),
    reason: str = "",
    check: bool = True,
) -> Coroutine[Any, Any, Published]: ...


def publish(
    client: Client | sync.Client,
    estimator: Any,
    path: str,
    X_sample: Any,
    *,
    run: LiveRun | str | None = None,
    metrics: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    metadata: Mapping[str, JsonValue] | None = None,
    description: str = "",
    aliases: Sequence[str] = (),
    reason: str = "",
    check: bool = True,
) -> Published | Coroutine[Any, Any, Published]:
    """Exports a fitted estimator and publishes it, with its signature, as the next version of a model.

    ::

        created = publish(client, pipeline, "langtech/digits", X_train.astype(np.float32), aliases=["staging"])

    With `modelbox.Client` the result is awaited; with `modelbox.sync.Client` it is there at once.

    Args:
        client: Either client.
        estimator: Fitted; a pipeline, too.
        path: ``namespace/model``.
        X_sample: Some rows, of the dtype that callers will send.
        run: The run that made it, or its id: an edge of lineage; the run gets the estimator's parameters, and, where it
            is live, the metrics.
        metrics: Of the version.
        labels: Text by key.
        metadata: JSON by key, beside the estimator's class and the classes that it tells apart.
        description: Free text.
        aliases: Moved to the new version in the same transaction.
        reason: Why they move.
        check: See `export`.

    Raises:
        InvalidError: The estimator cannot be exported, or a name breaks a rule.
        ModelInvalid: What was exported answers something else than the estimator.
        Unavailable: The server is away: publishing, unlike logging, is not put off.
    """
    about: dict[str, JsonValue] = {"estimator": f"{type(estimator).__module__}.{type(estimator).__qualname__}"}
    classes = getattr(estimator, "classes_", None)
    if isinstance(classes, np.ndarray):
        about["classes"] = classes.tolist()
    found = Export(
        path=path,
        write=lambda directory: export(estimator, directory / "model.onnx", X_sample, check=check),
        run=run,
        params=parameters(estimator.get_params()),
        metrics=metrics or {},
        options={
            "labels": labels,
            "metadata": about | dict(metadata or {}),
            "description": description,
            "aliases": aliases,
            "reason": reason,
        },
    )
    return publish_export(client, found)


def _rename(model: Any, names: Mapping[str, str]) -> None:
    taken = {output.name for output in model.graph.output}
    names = {old: new for old, new in names.items() if old in taken and new not in taken}
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = names.get(name, name)
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    for output in model.graph.output:
        output.name = names.get(output.name, output.name)


def _check(estimator: Any, path: Path, X_sample: Any, *, is_classifier: bool) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = session.run(None, _inputs(session, X_sample))
    if is_classifier:
        expected = [estimator.predict(X_sample)]
        if hasattr(estimator, "predict_proba"):
            expected.append(estimator.predict_proba(X_sample))
    elif hasattr(estimator, "predict"):
        expected = [estimator.predict(X_sample)]
    else:
        expected = [estimator.transform(X_sample)]
    for spec, one, other in zip(session.get_outputs(), expected, got, strict=False):
        ours, theirs = np.asarray(one), np.asarray(other)
        if theirs.ndim == ours.ndim + 1 and theirs.shape[-1] == 1:
            theirs = theirs[..., 0]
        if ours.dtype.kind == "f":
            same = np.allclose(theirs, ours, rtol=1e-3, atol=1e-4)
        else:
            same = np.array_equal(theirs.astype(ours.dtype), ours)
        if not same:
            raise ModelInvalid(
                f"as ONNX, {type(estimator).__name__} gives another {spec.name} for these rows: send X_sample with the"
                " dtype that it was fitted with, or check=False to publish it nevertheless"
            )


def _inputs(session: Any, X_sample: Any) -> dict[str, np.ndarray]:
    specs = session.get_inputs()
    if not hasattr(X_sample, "columns"):
        return {specs[0].name: np.asarray(X_sample)}
    columns = {}
    for spec in specs:
        values = X_sample[spec.name].to_numpy().reshape(-1, 1)
        columns[spec.name] = values.astype(str).astype(object) if spec.type == "tensor(string)" else values
    return columns

"""From a PyTorch module to a published ONNX model.

Owns the export by `torch.onnx.export` with free batch dimensions, and the proof that onnxruntime gives what PyTorch
gives, for another batch size than the one that was exported, too. Refuses a model for which it does not.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from modelbox import sync
from modelbox.client import Client
from modelbox.errors import InvalidError, ModelInvalid
from modelbox.integrations._missing import not_installed
from modelbox.integrations._publishing import Export, Published, publish_export
from modelbox.objects import JsonValue
from modelbox.run import LiveRun

try:
    import onnxruntime
    import onnxscript  # noqa: F401 - what torch.onnx.export needs, and imports late
    import torch
except ImportError as exc:
    raise not_installed("publishing PyTorch models", "torch", exc) from exc

__all__ = ("export", "publish")

_EXTERNAL_BYTES = 1 << 30
"""Weights beyond this go into a file of their own: an ONNX file ends at 2 GiB."""


def export(
    module: Any,
    example_inputs: Any,
    file: Path | str,
    *,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    dynamic_batch: bool = True,
    opset: int | None = None,
    check: bool = True,
    rtol: float = 1e-3,
    atol: float = 1e-4,
) -> Path:
    """Writes a module as an ONNX file; it is in evaluation mode meanwhile, and afterwards as before.

    Args:
        module: An `torch.nn.Module`, on any device.
        example_inputs: One tensor, or a tuple of them in the order of ``forward``.
        file: Where to write.
        input_names: Of the tensors; () for the names of ``forward``'s arguments.
        output_names: Of the results; () for PyTorch's choice.
        dynamic_batch: Whether the first dimension of every input is free, named ``batch``.
        opset: Version of ONNX's operators; None for PyTorch's choice.
        check: Whether onnxruntime must give what PyTorch gives.
        rtol: Relative difference that the check allows.
        atol: Absolute difference that it allows.

    Raises:
        InvalidError: An input is no tensor or has no batch dimension, or PyTorch cannot export the module.
        ModelInvalid: onnxruntime gives something else.
    """
    inputs = _tensors(example_inputs, dynamic_batch=dynamic_batch)
    path = Path(file)
    with _evaluating(module):
        try:
            with _quiet():
                torch.onnx.export(
                    module,
                    inputs,
                    str(path),
                    input_names=list(input_names) or None,
                    output_names=list(output_names) or None,
                    opset_version=opset,
                    dynamic_shapes=_free_batch(inputs) if dynamic_batch else None,
                    dynamo=True,
                    external_data=_size(module) > _EXTERNAL_BYTES,
                    verbose=False,
                )
        except Exception as exc:
            # What PyTorch raises has no common class, and its own text is pages long.
            first = next((line for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
            raise InvalidError(f"{type(module).__name__} cannot be exported to ONNX: {first}") from exc
        if check:
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            _check(module, session, inputs, rtol, atol)
            if dynamic_batch:
                _check(module, session, tuple(torch.cat([one, one, one]) for one in inputs), rtol, atol)
    return path


@overload
def publish(
    client: sync.Client,
    module: Any,
    example_inputs: Any,
    path: str,
    *,
    run: LiveRun | str | None = None,
    params: Mapping[str, JsonValue] | None = None,
    metrics: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    metadata: Mapping[str, JsonValue] | None = None,
    description: str = "",
    aliases: Sequence[str] = (),
    reason: str = "",
    checkpoint: str = "",
    **options: Any,
) -> Published: ...


@overload
def publish(
    client: Client,
    module: Any,
    example_inputs: Any,
    path: str,
    *,
    run: LiveRun | str | None = None,
    params: Mapping[str, JsonValue] | None = None,
    metrics: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    metadata: Mapping[str, JsonValue] | None = None,
    description: str = "",
    aliases: Sequence[str] = (),
    reason: str = "",
    checkpoint: str = "",
    **options: Any,
) -> Coroutine[Any, Any, Published]: ...


def publish(
    client: Client | sync.Client,
    module: Any,
    example_inputs: Any,
    path: str,
    *,
    run: LiveRun | str | None = None,
    params: Mapping[str, JsonValue] | None = None,
    metrics: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    metadata: Mapping[str, JsonValue] | None = None,
    description: str = "",
    aliases: Sequence[str] = (),
    reason: str = "",
    checkpoint: str = "",
    **options: Any,
) -> Published | Coroutine[Any, Any, Published]:
    """Exports a module and publishes it, with its signature, as the next version of a model.

    ::

        created = publish(client, net, torch.zeros(1, 64), "langtech/digits", run=run, metrics={"accuracy": 0.98})

    With `modelbox.Client` the result is awaited; with `modelbox.sync.Client` it is there at once.

    Args:
        client: Either client.
        module: An `torch.nn.Module`.
        example_inputs: One tensor, or a tuple of them.
        path: ``namespace/model``.
        run: The run that made it, or its id: an edge of lineage. Its metrics are those that the training logged.
        params: Hyperparameters that the run gets.
        metrics: Of the version.
        labels: Text by key.
        metadata: JSON by key, beside the class of the module.
        description: Free text.
        aliases: Moved to the new version in the same transaction.
        reason: Why they move.
        checkpoint: Id of the checkpoint that it was made from, instead of the run.
        **options: For `export`.

    Raises:
        InvalidError: The module cannot be exported, or a name breaks a rule.
        ModelInvalid: What was exported gives something else than the module.
        Unavailable: The server is away: publishing, unlike logging, is not put off.
    """
    about: dict[str, JsonValue] = {
        "module": f"{type(module).__module__}.{type(module).__qualname__}",
        "parameters": sum(one.numel() for one in module.parameters()),
    }
    found = Export(
        path=path,
        write=lambda directory: export(module, example_inputs, directory / "model.onnx", **options),
        run=run,
        params=params or {},
        options={
            "metrics": metrics,
            "labels": labels,
            "metadata": about | dict(metadata or {}),
            "description": description,
            "aliases": aliases,
            "reason": reason,
            "checkpoint": checkpoint,
            "entrypoint": "model.onnx",
        },
    )
    return publish_export(client, found)


def _tensors(example_inputs: Any, *, dynamic_batch: bool) -> tuple[Any, ...]:
    inputs = example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,)
    for one in inputs:
        if not isinstance(one, torch.Tensor):
            raise InvalidError(f"an example input is a {type(one).__name__}: expected a tensor, or a tuple of tensors")
        if dynamic_batch and (one.ndim == 0 or one.shape[0] == 0):
            raise InvalidError("an example input has no row: expected a batch, or dynamic_batch=False")
    # A batch of one would be taken for a constant.
    return tuple(torch.cat([one, one]) if dynamic_batch and one.shape[0] == 1 else one for one in inputs)


def _free_batch(inputs: tuple[Any, ...]) -> tuple[dict[int, Any], ...]:
    batch = torch.export.Dim("batch")
    return tuple({0: batch} for _ in inputs)


def _size(module: Any) -> int:
    return sum(one.numel() * one.element_size() for one in (*module.parameters(), *module.buffers()))


@contextlib.contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    modes = [(one, one.training) for one in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for one, training in modes:
            one.training = training


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress on stdout, its notes on packages, and its warnings about itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check(module: Any, session: Any, inputs: tuple[Any, ...], rtol: float, atol: float) -> None:
    said = module(*inputs)
    expected = said if isinstance(said, tuple | list) else list(said.values()) if isinstance(said, dict) else [said]
    names = [spec.name for spec in session.get_inputs()]
    got = session.run(None, dict(zip(names, [one.detach().cpu().numpy() for one in inputs], strict=True)))
    for spec, one, theirs in zip(session.get_outputs(), expected, got, strict=True):
        ours = one.detach().cpu().numpy()
        if ours.shape != theirs.shape or not np.allclose(theirs, ours, rtol=rtol, atol=atol, equal_nan=True):
            far = f"{np.abs(theirs - ours).max():.3g} apart" if ours.shape == theirs.shape else f"{theirs.shape}"
            raise ModelInvalid(
                f"as ONNX, {type(module).__name__} gives another {spec.name} (expected {ours.shape}, got {far}):"
                " rtol and atol say what is close enough"
            )

"""A served model in the words of Triton's ``ModelConfig``, as far as they fit."""

from __future__ import annotations

from typing import Any

from modelbox.loader.runner import RunnerOptions
from modelbox.loader.session import SessionOptions
from modelbox.refs import ModelRef
from modelbox.sidecar.serving import DEFAULT_PRIORITY
from modelbox.signature import Signature, TensorSpec

__all__ = ("model_config",)

_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "string": "TYPE_STRING",
}


def model_config(
    name: str,
    signature: Signature,
    *,
    version: int,
    digest: str,
    ref: ModelRef,
    joins: bool,
    runner: RunnerOptions,
    session: SessionOptions,
    max_queue: int,
    caches: bool,
) -> dict[str, Any]:
    """The configuration as JSON.

    ``max_batch_size`` is above 0 where calls may share a run; dimensions leave the batch's out then, as Triton's do.
    """
    gpu = any("CUDA" in provider or "Tensorrt" in provider for provider in session.providers)
    config: dict[str, Any] = {
        "name": name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [version]}},
        "max_batch_size": runner.max_batch if joins else 0,
        "input": [_tensor(spec, batched=joins) for spec in signature.inputs],
        "output": [_tensor(spec, batched=joins) for spec in signature.outputs],
        "instance_group": [{"name": name, "kind": "KIND_GPU" if gpu else "KIND_CPU", "count": 1}],
        "default_model_filename": "model.onnx",
        "response_cache": {"enable": caches},
        "parameters": {
            "modelbox_ref": {"string_value": str(ref)},
            "modelbox_digest": {"string_value": digest},
            "execution_providers": {"string_value": ",".join(session.providers)},
        },
    }
    if joins:
        config["dynamic_batching"] = {
            "max_queue_delay_microseconds": round(runner.max_delay_s * 1e6),
            "preserve_ordering": False,
            "default_priority_level": DEFAULT_PRIORITY,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": 0,
                "allow_timeout_override": True,
                "max_queue_size": max_queue,
            },
        }
    return config


def _tensor(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    dims = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    return {
        "name": spec.name,
        "data_type": _TYPES.get(spec.dtype, "TYPE_INVALID"),
        "dims": dims[1:] if batched else dims,
    }

"""A served model in the words of Triton's ``ModelConfig``, as far as they fit."""

from __future__ import annotations

from typing import Any

from modelbox.refs import ModelRef
from modelbox.sidecar.model_settings import ModelServing
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
    serving: ModelServing,
    caches: bool,
) -> dict[str, Any]:
    """The configuration as JSON.

    ``max_batch_size`` is above 0 where calls may share a run; dimensions leave the batch's out then, as Triton's do.
    """
    runner, session = serving.options.runner, serving.options.session
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
            "mode": {"string_value": runner.mode.value},
            "threads": {"string_value": str(runner.threads)},
            "intra_op_threads": {"string_value": str(session.intra_op_threads)},
            # Said below, too, where calls are joined; they count in any case.
            "max_queue": {"string_value": str(serving.max_queue)},
            "default_timeout_s": {"string_value": f"{serving.default_timeout_s or 0:g}"},
            "priority": {"string_value": str(serving.priority or DEFAULT_PRIORITY)},
            "golden": {"string_value": str(serving.options.golden).lower()},
        },
    }
    if joins:
        config["dynamic_batching"] = {
            "max_queue_delay_microseconds": round(runner.max_delay_s * 1e6),
            "preserve_ordering": False,
            "default_priority_level": serving.priority or DEFAULT_PRIORITY,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": round((serving.default_timeout_s or 0) * 1e6),
                "allow_timeout_override": True,
                "max_queue_size": serving.max_queue,
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

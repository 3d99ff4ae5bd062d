"""A model of Triton's Python backend that runs ``model.onnx`` beside it; becomes ``model.py`` in Triton's repository.

The ONNX backend, which is written in C++, is in no package of PyPI.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import os
import sys
from typing import Any

# The backend's interpreter is the system's, and does not read it by itself.
sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)

import onnxruntime  # noqa: E402
import triton_python_backend_utils as triton  # noqa: E402


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        inputs = {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}
        outputs = self._session.run(None, inputs)
        return triton.InferenceResponse(
            [triton.Tensor(name, array) for name, array in zip(self._outputs, outputs, strict=True)]
        )

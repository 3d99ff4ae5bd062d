"""``python kserve_onnx.py HTTP_PORT GRPC_PORT NAME=FILE …``: KServe's server with ONNX models.

Runs in KServe's environment, not in ours.
"""

# mypy: disable-error-code="import-not-found, misc"
from __future__ import annotations

import sys

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class OnnxModel(Model):
    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.ready = True

    async def predict(
        self,
        payload: InferRequest,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> InferResponse:
        outputs = self._session.run(None, {tensor.name: tensor.as_numpy() for tensor in payload.inputs})
        # Raw bytes where they were asked for; gRPC carries nothing else.
        raw = bool(payload.from_grpc or payload.use_binary_outputs)
        tensors = []
        for name, array in zip(self._outputs, outputs, strict=True):
            tensor = InferOutput(name, list(array.shape), "FP32")
            tensor.set_data_from_numpy(array, binary_data=raw)
            tensors.append(tensor)
        return InferResponse(
            payload.id or "none",
            self.name,
            tensors,
            from_grpc=payload.from_grpc,
            use_binary_outputs=payload.use_binary_outputs,
        )


if __name__ == "__main__":
    http_port, grpc_port, *models = sys.argv[1:]
    server = ModelServer(http_port=int(http_port), grpc_port=int(grpc_port), workers=1, enable_latency_logging=False)
    server.start([OnnxModel(*model.split("=", 1)) for model in models])

"""Marks the root of this project, so that its tests find `speech_service` from wherever they are started."""

import os

# Tests report to nobody; onnxruntime looks at this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

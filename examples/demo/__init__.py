"""`make demo`: the main job of ModelBox end to end, on real processes, with every claim checked."""

import os

# From 1.29 on, onnxruntime reports the models that it opens to its maker, unless this is set before it is imported.
# The programs that the demo starts inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

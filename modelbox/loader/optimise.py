"""What onnxruntime makes of a model while it opens it, written down so that the next opening need not do it again.

Owns the form (``.ort`` for small models, a graph with its weights beside it for large ones) and the key under which it
may be reused. Refuses to decide where it is kept: that is the cache's.

Invariants: the form depends on the runtime, the options and the processor that made it, and the key names all three. It
is only ever opened in place of the original, never needed.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from pathlib import Path

from modelbox.errors import LoadError
from modelbox.loader.session import SessionOptions, open_native, runtime_options, runtime_version

__all__ = ("find_optimised", "optimised_key", "write_optimised")

_LARGE_BYTES = 64 << 20
"""Above it, weights are read from a file of their own: that maps them into memory instead of copying them."""

_SMALLEST_EXTERNAL_BYTES = "1024"
_GRAPH = "model.onnx"
_WEIGHTS = "model.weights"
_SINGLE = "model.ort"


def optimised_key(options: SessionOptions) -> str:
    """Names the form that this process would make under ``options``; letters, digits, dots and dashes.

    Raises:
        ConfigError: onnxruntime is not installed.
    """
    # Whether weights are prepacked is decided at each opening anew.
    made_for = "|".join([*options.providers, _processor()])
    return f"ort-{runtime_version()}-{hashlib.sha256(made_for.encode()).hexdigest()[:16]}"


def find_optimised(directory: Path) -> Path | None:
    """The file to open in a directory that `write_optimised` filled; None when there is none."""
    for name in (_SINGLE, _GRAPH):
        if (directory / name).is_file():
            return directory / name
    return None


def write_optimised(source: Path, directory: Path, *, options: SessionOptions) -> Path:
    """Writes the optimised form of the model at ``source`` into the empty ``directory``; blocks as opening does.

    Returns:
        The file to open.

    Raises:
        LoadError: The model does not open, or runs on something else than the processor, for which there is no such
            form.
    """
    if options.providers != ("CPUExecutionProvider",):
        raise LoadError(f"there is no optimised form for {', '.join(options.providers)}", stage="optimise")
    native = runtime_options(options)
    if _size_beside(source) > _LARGE_BYTES:
        target = directory / _GRAPH
        native.add_session_config_entry("session.optimized_model_external_initializers_file_name", _WEIGHTS)
        native.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", _SMALLEST_EXTERNAL_BYTES
        )
    else:
        target = directory / _SINGLE
        native.add_session_config_entry("session.save_model_format", "ORT")
    # Nobody runs this session.
    native.add_session_config_entry("session.disable_prepacking", "1")
    native.optimized_model_filepath = os.fspath(target)
    open_native(source, native, options)
    if not target.is_file():
        raise LoadError("onnxruntime wrote no optimised form", stage="optimise")
    return target


def _size_beside(source: Path) -> int:
    """Bytes of the model and of everything beside and below it, where its external data is."""
    return sum(path.stat().st_size for path in source.parent.rglob("*") if path.is_file())


@functools.cache
def _processor() -> str:
    """The machine and its instruction sets, for which onnxruntime lays out weights and picks kernels."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.processor()
    return f"{platform.machine()}|{' '.join(sorted(flags.partition(':')[2].split()))}"

"""What the tests of the cache among processes write, in this process or in another one that imports little else.

Run as ``python -m tests.integration.cache_writer DIRECTORY``; prints a line when the version is stored.
"""

from __future__ import annotations

import sys
from pathlib import Path

from modelbox.loader.cache import Cache, RefState
from tests.model_source import manifest_of, version_of

FILES = {"model.onnx": b"graph" * 1000, "data/weights.bin": b"weights" * 300_000}
SMALL = {"model.onnx": b"graph", "weights.bin": b"weights" * 100}


def store(directory: Path) -> None:
    """Stores a version without an event loop or threads: every system call comes in the same order each time."""
    cache = Cache(directory)
    cache.open()
    manifest = manifest_of(SMALL)
    with cache.lease(manifest.digest):
        for file in manifest.files:
            writer = cache.new_blob(file)
            writer.write(SMALL[file.path])
            writer.commit()
        cache.materialise(manifest)
        cache.save_ref(
            "key", RefState(ref="ns/model@prod", server_id="s", version=version_of(manifest), alias_mod_rev=1)
        )


if __name__ == "__main__":
    store(Path(sys.argv[1]))
    print("stored", flush=True)

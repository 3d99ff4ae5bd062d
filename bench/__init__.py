"""The speed of ModelBox beside the floors of this machine: ``python -m bench``. See ``docs/benchmarks.md``."""

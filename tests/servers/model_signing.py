"""OpenSSF's own tool, in a virtual environment of its own: what we sign it has to verify, and the other way round.

Installed once per machine, below the user's cache directory. Where it cannot be installed, its tests are skipped.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.servers.debian import cache_dir

__all__ = ("ModelSigning", "model_signing")

# It does not name all that it imports.
_PACKAGES = ("model-signing==1.1.1", "pyOpenSSL>=25", "certifi")
_TIMEOUT_S = 300


class ModelSigning:
    """The command ``model_signing``."""

    def __init__(self, python: Path) -> None:
        self._python = python

    def __call__(self, *argv: str | Path, ok: bool = True) -> str:
        done = subprocess.run(
            [self._python, "-m", "model_signing", *map(str, argv)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        assert (done.returncode == 0) is ok, done.stdout + done.stderr
        return done.stdout + done.stderr


def model_signing() -> ModelSigning:
    """The tool; skips the test where it cannot be had."""
    base = cache_dir()
    root = base / f"model-signing-1.1.1-{sys.version_info.major}.{sys.version_info.minor}"
    try:
        base.mkdir(parents=True, exist_ok=True, mode=0o755)
        with (base / f"{root.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (root / "whole").exists():
                _install(root)
    except (OSError, subprocess.SubprocessError) as exc:
        pytest.skip(f"model-signing cannot be installed here: {exc}")
    return ModelSigning(root / "bin" / "python")


def _install(root: Path) -> None:
    # A virtual environment cannot be moved, so that a mark says whether it is whole.
    shutil.rmtree(root, ignore_errors=True)
    with tempfile.TemporaryFile() as output:
        for command in (
            [sys.executable, "-m", "venv", str(root)],
            [str(root / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input", *_PACKAGES],
        ):
            subprocess.run(command, check=True, stdout=output, stderr=output, timeout=_TIMEOUT_S)
    (root / "whole").touch()

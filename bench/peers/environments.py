"""Virtual environments of the peers, one each, below ``bench/peers/.venv``: nothing of theirs comes into ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

__all__ = ("DIRECTORY", "Environment", "NotInstalled", "install")

DIRECTORY = Path(__file__).parent / ".venv"


class NotInstalled(Exception):
    """A peer cannot be installed here; says why."""


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment.

    Attributes:
        root: Its directory.
    """

    root: Path

    @property
    def programs(self) -> Path:
        """Where its commands are."""
        return self.root / "bin"

    @property
    def packages(self) -> Path:
        """Where its packages are."""
        return self.root / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def install(name: str, packages: Sequence[str]) -> Environment:
    """Makes the environment of a peer, with the onnxruntime that we run on; quick when it is there already.

    Raises:
        NotInstalled: A package is not to be had, or not for this Python.
    """
    environment = Environment(DIRECTORY / name)
    if not (environment.programs / "python").exists():
        _run("-m", "venv", "--without-pip", str(environment.root))
    python = str(environment.programs / "python")
    _run("-m", "uv", "pip", "install", "--quiet", "--python", python, *packages, f"onnxruntime=={_ORT}")
    return environment


_ORT = version("onnxruntime")


def _run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotInstalled(" ".join((done.stderr or done.stdout).split())[-400:])

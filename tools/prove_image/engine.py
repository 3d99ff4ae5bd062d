"""buildah and podman over a storage directory of their own, and the list of what was checked.

Nothing of the machine's own containers is touched. Works as root on machines where podman has a hard time: control
groups in hybrid mode, no systemd, limits that root may not raise.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TOOLS = ("buildah", "crun", "debootstrap", "podman", "unshare")


class ProofError(Exception):
    """The proof cannot go on; the text says why."""


class Engine:
    """The two programs, bound to one storage directory.

    Args:
        work: The directory of the proof.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self._storage = ["--root", str(work / "storage"), "--runroot", str(work / "run"), "--storage-driver", "overlay"]

    def podman(self, *args: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Runs podman; its output is in the result."""
        return self._run(["podman", *self._storage, "--log-level", "fatal", *args], check, timeout)

    def buildah(self, *args: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Runs buildah; its output is in the result."""
        return self._run(["buildah", *self._storage, *args], check, timeout)

    def has_image(self, name: str) -> bool:
        """Whether the image is in the storage."""
        return self.podman("image", "exists", name, check=False).returncode == 0

    def inspect_image(self, name: str) -> dict[str, Any]:
        """What the image says about itself."""
        found: list[dict[str, Any]] = json.loads(self.podman("image", "inspect", name).stdout)
        return found[0]

    def logs(self, container: str) -> str:
        """What the container printed."""
        done = self.podman("logs", container, check=False)
        return done.stdout + done.stderr

    def _run(self, command: Sequence[str], check: bool, timeout: float) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode:
            raise ProofError(f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        return done


class Report:
    """What was checked, printed as it happens."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.count = 0

    def section(self, title: str) -> None:
        """Begins a group of checks."""
        print(f"\n{title}", flush=True)

    def check(self, what: str, holds: bool, found: object = "") -> bool:
        """Notes one check; returns whether it holds."""
        self.count += 1
        detail = " ".join(str(found).split())
        print(f"  {'ok    ' if holds else 'FAILED'} {what}{f': {detail[:160]}' if detail else ''}", flush=True)
        if not holds:
            self.failed.append(what)
        return holds

    def same(self, what: str, got: object, wanted: object) -> bool:
        """Notes whether ``got`` is what it has to be."""
        return self.check(what, got == wanted, got if got == wanted else f"{got!r}, not {wanted!r}")


def missing_tools() -> list[str]:
    """What is not installed of the programs that the proof needs."""
    return [name for name in TOOLS if shutil.which(name) is None]


def option_list(flag: str, values: Mapping[str, str]) -> list[str]:
    """``flag key=value`` for each entry."""
    return [part for key, value in values.items() for part in (flag, f"{key}={value}")]


def note(text: str) -> None:
    """Says on stderr what takes time now."""
    print(text, file=sys.stderr, flush=True)

"""Programs of Debian packages without installing them.

Packages are downloaded and unpacked once per machine, below the user's cache directory; programs start from there with
`Packages.env`. Workers that need the same packages at once wait for each other, and a directory appears only whole.
Needs ``apt-get`` and ``dpkg-deb``, and the network the first time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ("CannotHave", "Packages", "cache_dir", "unpacked")

_TIMEOUT_S = 300


class CannotHave(Exception):
    """What a test server is made of cannot be had on this machine; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """Unpacked packages: what would be ``/`` is ``root``."""

    root: Path

    @property
    def libraries(self) -> tuple[Path, ...]:
        """Where shared libraries are."""
        return tuple(path for base in ("usr/lib", "lib") for path in self.root.glob(f"{base}/*-linux-gnu*"))

    def env(self) -> dict[str, str]:
        """The environment in which their programs find their libraries."""
        paths = [str(path) for path in self.libraries]
        return {**os.environ, "LD_LIBRARY_PATH": ":".join([*paths, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])}


def cache_dir() -> Path:
    """Where downloads are kept between runs; every user can read it, as servers may run as another one."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "modelbox-tests"
    if os.geteuid() == 0:
        return Path("/var/cache/modelbox-tests")
    return Path.home() / ".cache" / "modelbox-tests"


def unpacked(name: str, packages: Sequence[str]) -> Packages:
    """The unpacked packages, downloaded if they are not here yet.

    Args:
        name: Of the server, for the directory.
        packages: What to unpack; nothing is added to it but what is named here. ``a|b``: whichever there is.

    Raises:
        CannotHave: They cannot be downloaded.
    """
    if sys.platform != "linux" or shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise CannotHave(f"{name} comes from Debian packages, and this machine has no apt-get")
    key = hashlib.sha256("\n".join(sorted(packages)).encode()).hexdigest()[:12]
    base = cache_dir()
    root = base / f"{name}-{key}"
    try:
        base.mkdir(parents=True, exist_ok=True, mode=0o755)
        with (base / f"{name}-{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not root.is_dir():
                _fill(root, packages)
    except OSError as exc:
        raise CannotHave(f"{base} cannot hold the packages of {name}: {exc}") from exc
    return Packages(root=root)


def _fill(root: Path, packages: Sequence[str]) -> None:
    staging = Path(tempfile.mkdtemp(prefix=f"{root.name}.", dir=root.parent))
    try:
        archives, tree = staging / "archives", staging / "root"
        archives.mkdir()
        tree.mkdir()
        options = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
        try:
            _download(options, packages, archives)
        except CannotHave:
            # The lists are old or missing. Lists of our own need no rights and no lock of the system's.
            state = root.parent / "apt"
            for name in ("lists/partial", "cache/archives/partial"):
                (state / name).mkdir(parents=True, exist_ok=True)
            options += ["-o", f"Dir::State::Lists={state / 'lists'}", "-o", f"Dir::Cache={state / 'cache'}"]
            _run("apt-get", *options, "update", cwd=archives)
            _download(options, packages, archives)
        for archive in archives.glob("*.deb"):
            _run("dpkg-deb", "-x", str(archive), str(tree), cwd=archives)
        tree.chmod(0o755)
        tree.rename(root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _download(options: Sequence[str], packages: Sequence[str], archives: Path) -> None:
    _run("apt-get", *options, "download", *(name for name in packages if "|" not in name), cwd=archives)
    for names in (name.split("|") for name in packages if "|" in name):
        for name in names[:-1]:
            with contextlib.suppress(CannotHave):
                _run("apt-get", *options, "download", name, cwd=archives)
                break
        else:
            _run("apt-get", *options, "download", names[-1], cwd=archives)


def _run(*command: str, cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as exc:
        raise CannotHave(f"{command[0]} did not end within {_TIMEOUT_S} s") from exc
    if done.returncode:
        raise CannotHave(f"{' '.join(command[:6])} failed: {done.stderr.strip()[-500:]}")

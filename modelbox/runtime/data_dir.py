"""Whether the data directory is for the server alone: what is in it is as good as every secret and every model."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from modelbox.errors import ConfigError

__all__ = ("check_data_dir",)

_OTHERS = stat.S_IRWXO


def check_data_dir(path: Path) -> None:
    """Refuses a directory that other users can look into; makes none. One that is empty and ours is closed instead.

    Groups may: volumes of containers are often shared with one.

    Raises:
        ConfigError: Others can; says what to do.
    """
    try:
        found = path.stat()
    except OSError:
        # Whoever makes or opens it says what is wrong.
        return
    if not stat.S_ISDIR(found.st_mode) or not found.st_mode & _OTHERS:
        return
    try:
        if found.st_uid == os.geteuid() and not any(path.iterdir()):
            path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
            return
    except OSError:
        pass
    raise ConfigError(
        f"other users of this machine can look into data_dir = {path} (mode {stat.S_IMODE(found.st_mode):o}): "
        f"chmod o-rwx {path}, or name a directory inside of it, which the server makes for itself"
    )

"""Directories and files of spools that have to outlive the machine. All of it blocks for as long as a disk takes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ("make_private", "replace_file", "sync_directory", "sync_file")


def make_private(directory: Path) -> None:
    """Makes a directory that only this user can look into."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)


def sync_directory(directory: Path) -> None:
    """Waits until the names in a directory are on disk.

    Raises:
        OSError: The disk fails.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(file: Path, top: Path) -> None:
    """Waits until a file is on disk, and the names that lead to it below ``top``; one that is gone is passed over.

    Raises:
        OSError: The disk fails.
    """
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        for directory in file.parents:
            sync_directory(directory)
            if directory == top:
                break


def replace_file(file: Path, data: bytes) -> None:
    """Puts ``data`` in the place of a file, whole or not at all, and waits until that is on disk.

    Raises:
        OSError: The disk fails or is full; the file is what it was.
    """
    staged = file.with_name(f"{file.name}.part")
    try:
        with staged.open("wb") as output:
            output.write(data)
            output.flush()
            os.fsync(output.fileno())
        os.replace(staged, file)
    except BaseException:
        with contextlib.suppress(OSError):
            staged.unlink()
        raise
    sync_directory(file.parent)

"""A network of this machine's own, that can be taken apart: what is lost in it is lost without a word."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ("Network", "network")

_HERE = "10.213.{}.1"
_THERE = "10.213.{}.2"


class Network:
    """A network namespace, and the only cable to it.

    Attributes:
        address: What a program inside is reached by.
        prefix: Runs a program inside.
    """

    def __init__(self, name: str, number: int) -> None:
        self._name = name
        self._cable = f"{name}h"
        self.address = _THERE.format(number)
        self.prefix = ("ip", "netns", "exec", name)

    def part(self) -> None:
        """Pulls the cable: packets vanish, both ways."""
        _ip("link", "set", self._cable, "down")

    def join(self) -> None:
        """Puts the cable in again."""
        _ip("link", "set", self._cable, "up")


@contextmanager
def network() -> Iterator[Network]:
    """Makes a network; skips the test where this user may not."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("there is no ip command (iproute2)")
    name = f"mbx{os.getpid()}"
    try:
        _ip("netns", "add", name)
    except OSError as exc:
        pytest.skip(f"no network namespaces here: {exc}")
    try:
        number = _free_number()
        _ip("link", "add", f"{name}h", "type", "veth", "peer", "name", f"{name}g", "netns", name)
        _ip("addr", "add", f"{_HERE.format(number)}/30", "dev", f"{name}h")
        _ip("link", "set", f"{name}h", "up")
        _ip("-n", name, "addr", "add", f"{_THERE.format(number)}/30", "dev", f"{name}g")
        _ip("-n", name, "link", "set", f"{name}g", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        yield Network(name, number)
    finally:
        # The cable goes with it.
        _ip("netns", "del", name)


def _free_number() -> int:
    """Of addresses that nobody has here: not another run of these tests, nor what one left behind that was killed."""
    taken = subprocess.run(["ip", "-4", "addr"], capture_output=True, text=True, timeout=30, check=True).stdout
    for step in range(250):
        number = (os.getpid() + step) % 250
        if f" {_HERE.format(number)}/" not in taken:
            return number
    raise OSError("all networks for tests are in use")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

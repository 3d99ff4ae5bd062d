"""Settings as flags of a program's command line: a value each, but for switches, which mean true without one."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence

from modelbox._serving.settings import BOOLEANS

__all__ = ("add_flags", "complete_switches")


def add_flags(
    parser: argparse.ArgumentParser, help_texts: Sequence[tuple[str, str]], switches: Collection[str]
) -> None:
    """Gives ``parser`` a flag for every setting.

    Args:
        parser: Of a program; what it reads of a flag is text, and None where the flag is not given.
        help_texts: The settings, with what they are for.
        switches: Those that are true or false.
    """
    for name, text in help_texts:
        flag, told = _flag(name), text.replace("%", "%%")
        if name in switches:
            parser.add_argument(flag, nargs="?", const="true", metavar="true|false", help=told)
        else:
            parser.add_argument(flag, metavar="VALUE", help=told)


def complete_switches(argv: Sequence[str], switches: Collection[str]) -> list[str]:
    """Arguments with a value at every switch, so that none takes the argument after it for one.

    For programs that have arguments beside flags.
    """
    flags = {_flag(name) for name in switches}
    complete: list[str] = []
    for at, text in enumerate(argv):
        if text == "--":
            return [*complete, *argv[at:]]
        bare = text in flags and (at + 1 == len(argv) or argv[at + 1].lower() not in BOOLEANS)
        complete.append(f"{text}=true" if bare else text)
    return complete


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

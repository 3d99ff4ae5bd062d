"""Exit codes, the one table for the program and for ``docs/cli.md``."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from modelbox.errors import ModelBoxError

__all__ = ("MEANINGS", "Exit", "exit_code")


class Exit(IntEnum):
    """What a script can tell apart."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    UNAVAILABLE = 5
    INTEGRITY = 6
    REFUSED = 7
    MODEL = 8
    INTERRUPTED = 130


MEANINGS: Mapping[Exit, str] = {
    Exit.OK: "Done.",
    Exit.FAILED: "Failed for another reason: the server's storage, the local disk, an error in ModelBox.",
    Exit.USAGE: "The command cannot be right: arguments, names, inputs, settings, or a missing extra.",
    Exit.NOT_FOUND: "What was named does not exist; the error says what does.",
    Exit.CONFLICT: "Somebody else was faster, or the object is still in use.",
    Exit.UNAVAILABLE: "The server cannot be reached, is busy, or did not answer in time. Trying again may help.",
    Exit.INTEGRITY: "Bytes are not what their digest says.",
    Exit.REFUSED: "Not allowed, against a rule, or a limit is reached.",
    Exit.MODEL: "The model cannot be served: it does not open, run, or keep its interface.",
    Exit.INTERRUPTED: "Interrupted from the keyboard.",
}

_BY_CODE: Mapping[str, Exit] = {
    "auth": Exit.REFUSED,
    "busy": Exit.UNAVAILABLE,
    "cache": Exit.FAILED,
    "config": Exit.USAGE,
    "conflict": Exit.CONFLICT,
    "integrity": Exit.INTEGRITY,
    "invalid": Exit.USAGE,
    "invalid.rule": Exit.REFUSED,
    "limit": Exit.REFUSED,
    "load": Exit.MODEL,
    "load.trust": Exit.REFUSED,
    "not_found": Exit.NOT_FOUND,
    "storage": Exit.FAILED,
    "transport": Exit.FAILED,
    "transport.deadline": Exit.UNAVAILABLE,
    "transport.unavailable": Exit.UNAVAILABLE,
}


def exit_code(error: ModelBoxError) -> Exit:
    """The exit code of an error: that of its code, or of the nearest parent's."""
    code = error.code
    while code and code not in _BY_CODE:
        code = code.rpartition(".")[0]
    return _BY_CODE.get(code, Exit.FAILED)

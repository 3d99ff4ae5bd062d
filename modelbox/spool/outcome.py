"""How a run ended, told from what its block was left with. Pure."""

from __future__ import annotations

from modelbox.tracking import RunStatus

__all__ = ("one_line", "outcome_of")

_INTERRUPTED_CODES = frozenset([130, 143])
"""With which shells and programs say that a signal ended them: SIGINT, SIGTERM."""


def one_line(text: str) -> str:
    """Text as one line of at most 1000 characters."""
    line = " ".join(str(text).split())
    return line.encode(errors="replace").decode()[:1000]


def outcome_of(error: BaseException | None) -> tuple[RunStatus, str]:
    """How a run ended whose block was left with ``error``."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if error is None or isinstance(error, GeneratorExit):
        return RunStatus.FINISHED, ""
    if isinstance(error, SystemExit):
        code = error.code
        if code is None or code == 0:
            return RunStatus.FINISHED, ""
        if code in _INTERRUPTED_CODES:
            return RunStatus.INTERRUPTED, f"the program was told to end (exit code {code})"
        return RunStatus.FAILED, f"the program ended with {code!r}"
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, Exception):
        return RunStatus.FAILED, said
    # KeyboardInterrupt, and what the event loops cancel tasks with.
    return RunStatus.INTERRUPTED, said

"""Reading a text of the find language from left to right, and saying where it is wrong.

Owns words, names, quotations, values and the error with the caret; knows neither grammar nor collections.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from modelbox.errors import FindError

__all__ = ("MAX_QUERY_CHARS", "NAME", "OP", "Reader", "number_of", "refuse", "time_of")

MAX_QUERY_CHARS = 10_000

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OP = re.compile(r"!=|>=|<=|=|>|<|~")
_STRANGE = re.compile("[\0\ud800-\udfff]")
_SPACE = re.compile(r"\s*")
_SEGMENT = re.compile(r"[^\s.,()'\"`=!<>~]+")
_BARE = re.compile(r"[^\s,()'\"`=!<>~]+")
_WORD = re.compile(r"[A-Za-z]+(?![A-Za-z0-9_.])")
_QUOTED = {quote: re.compile(rf"{quote}((?:[^{quote}\\]|\\.)*){quote}", re.DOTALL) for quote in "'\"`"}
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "+inf": math.inf, "-inf": -math.inf, "infinity": math.inf}
_NOT_FINITE["-infinity"] = -math.inf
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?(?:Z|[+-]\d\d:\d\d)?)?", re.ASCII)
_NOW = re.compile(r"now(?:([+-])(\d{1,9})([smhdw]))?", re.ASCII)
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Reader:
    """A place in a text.

    Raises:
        FindError: The text cannot be a query.
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            refuse(str(text), 0, f"{type(text).__name__} is no query", ("text",))
        if len(text) > MAX_QUERY_CHARS:
            refuse(text, MAX_QUERY_CHARS, f"the query has {len(text)} characters", (f"at most {MAX_QUERY_CHARS}",))
        strange = _STRANGE.search(text)
        if strange is not None:
            refuse(text, strange.start(), "this character cannot be searched for", ("text without NUL",))
        self.text = text
        self.at = 0

    def fail(self, problem: str, expected: tuple[str, ...], *, at: int | None = None) -> NoReturn:
        """Raises the error that shows a place: this one, or ``at``."""
        refuse(self.text, self.at if at is None else at, problem, expected)

    def at_end(self) -> bool:
        """Whether nothing follows but space."""
        self.skip()
        return self.at == len(self.text)

    def skip(self) -> None:
        """Goes on behind space."""
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def next_is(self, text: str) -> bool:
        """Whether this is what comes."""
        return self.text.startswith(text, self.at)

    def take(self, pattern: re.Pattern[str]) -> str | None:
        """Takes what a pattern matches here."""
        match = pattern.match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        return match[0]

    def word(self, word: str) -> bool:
        """Takes this word, in any case, if it is next."""
        self.skip()
        match = _WORD.match(self.text, self.at)
        if match is None or match[0].lower() != word:
            return False
        self.at = match.end()
        return True

    def char(self, char: str) -> bool:
        """Takes this character if it is next."""
        self.skip()
        if not self.next_is(char):
            return False
        self.at += 1
        return True

    def segment(self) -> tuple[str, bool]:
        """Takes a part of a name, and says whether it was quoted."""
        for quote in '"`':
            if self.next_is(quote):
                return self._quoted(quote), True
        bare = self.take(_SEGMENT)
        if bare is None:
            self.fail("the name goes on behind a dot", ("a name", 'a name in "…" or `…`'))
        return bare, False

    def value(self) -> tuple[str, bool] | None:
        """Takes a value, and says whether it was quoted; None if there is none."""
        for quote in "'\"":
            if self.next_is(quote):
                return self._quoted(quote), True
        bare = self.take(_BARE)
        return None if bare is None else (bare, False)

    def _quoted(self, quote: str) -> str:
        start = self.at
        taken = self.take(_QUOTED[quote])
        if taken is None:
            self.fail("the quotation does not end", (quote,), at=start)
        return _ESCAPE.sub(r"\1", taken[1:-1])


def number_of(text: str) -> int | float | None:
    """The number that a bare value is; None if it is none."""
    if text.lower() in _NOT_FINITE:
        return _NOT_FINITE[text.lower()]
    if not _NUMBER.fullmatch(text):
        return None
    if text.lstrip("+-").isdigit() and len(text) < 19:
        return int(text)
    return float(text)


def time_of(text: str, now: datetime) -> int | None:
    """The time that a value is, in microseconds since 1970; None if it is none."""
    relative = _NOW.fullmatch(text.lower())
    try:
        if relative is not None:
            sign, count, unit = relative.groups()
            away = timedelta(seconds=int(count) * _UNITS_S[unit]) if sign else timedelta(0)
            at = now - away if sign == "-" else now + away
        elif _DATE.fullmatch(text):
            at = datetime.fromisoformat(text)
            at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
        else:
            return None
        return (at - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        return None


_BEFORE, _AFTER = 60, 40


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def refuse(text: Any, at: int, problem: str, expected: tuple[str, ...]) -> NoReturn:
    """Raises the error that shows the place."""
    shown, problem = _printable(str(text)), _printable(problem)
    start = max(0, at - _BEFORE)
    line = shown[start : at + _AFTER]
    before, after = ("…" if start else ""), ("…" if at + _AFTER < len(shown) else "")
    caret = " " * (len(before) + at - start) + "^"
    wanted = " or ".join(expected) if len(expected) < 3 else f"one of {', '.join(expected)}"
    raise FindError(
        f"{problem}: expected {wanted}\n  {before}{line}{after}\n  {caret}", position=at, expected=list(expected)
    )

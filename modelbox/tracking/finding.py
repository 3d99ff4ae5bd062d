"""What a search finds."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("Found",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A page of what was found, as columns.

    Attributes:
        columns_json: ``{"id": [...], "name": [...], "metrics.loss": [...], ...}`` in UTF-8; null where an object has no
            value, the texts ``NaN``, ``Infinity`` and ``-Infinity`` for numbers that JSON has not.
        time_columns: The columns whose values are times, in microseconds since 1970.
        number_columns: The columns whose values are numbers, or those texts.
        count: Objects in this page.
        next_token: For the next page; empty at the end.
    """

    columns_json: bytes
    time_columns: tuple[str, ...] = ()
    number_columns: tuple[str, ...] = ()
    count: int
    next_token: str = ""

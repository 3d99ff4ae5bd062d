"""What `find` found, as columns, rows, a pandas or polars frame, or CSV.

Owns the types of the cells: times are aware datetimes in UTC, numbers that JSON has not (NaN, infinities) are floats
again, and what an object does not have is None. pandas and polars are imported where they are asked for, and are not
needed otherwise.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

from modelbox.errors import ConfigError
from modelbox.objects import JsonValue
from modelbox.tracking import Found

__all__ = ("FindPage",)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FindPage:
    """Objects that were found, in order: one page, or several put together.

    Iterating gives one mapping from column to value for each object.

    Attributes:
        columns: Values by column, all of one length; ``id`` comes first. None where an object has no value.
        time_columns: The columns of datetimes.
        number_columns: The columns of numbers.
        next_token: For the page behind this one; empty at the end.
    """

    columns: Mapping[str, Sequence[JsonValue]]
    time_columns: tuple[str, ...] = ()
    number_columns: tuple[str, ...] = ()
    next_token: str = ""

    @classmethod
    def from_found(cls, *pages: Found) -> FindPage:
        """Reads pages of one query, in their order, as one; a column that some lack is None there."""
        columns: dict[str, list[JsonValue]] = {"id": []}
        times: dict[str, None] = {}
        numbers: dict[str, None] = {}
        count = 0
        for page in pages:
            for name, values in _cells(page).items():
                columns.setdefault(name, [None] * count).extend(values)
            count += page.count
            for column in columns.values():
                column.extend([None] * (count - len(column)))
            times |= dict.fromkeys(page.time_columns)
            numbers |= dict.fromkeys(page.number_columns)
        return cls(
            columns=columns,
            time_columns=tuple(times),
            number_columns=tuple(numbers),
            next_token=pages[-1].next_token if pages else "",
        )

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the objects."""
        return tuple(self.columns["id"])

    def __len__(self) -> int:
        return len(self.columns["id"])

    def __iter__(self) -> Iterator[dict[str, JsonValue]]:
        names = tuple(self.columns)
        for row in zip(*self.columns.values(), strict=True):
            yield dict(zip(names, row, strict=True))

    def __repr__(self) -> str:
        more = ", and more behind it" if self.next_token else ""
        return f"<FindPage: {len(self)} objects x {len(self.columns)} columns{more}>"

    def _repr_html_(self) -> str:
        import modelbox.display as display

        # What no object has is of no interest to a reader.
        names = [name for name, values in self.columns.items() if any(value is not None for value in values)]
        rows = zip(*(self.columns[name] for name in names), strict=True)
        shown = display.table(names, rows, numbers=self.number_columns)
        more = ", and more behind this page" if self.next_token else ""
        return display.card(f"{len(self)} objects{more}", {}, shown)

    def rows(self) -> list[dict[str, JsonValue]]:
        """All objects, each as a mapping from column to value."""
        return list(self)

    def to_pandas(self) -> Any:
        """A pandas frame: times as ``datetime64[us, UTC]``, numbers as float64 with NaN where there is none.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as exc:
            raise ConfigError("pandas is not installed: pip install pandas") from exc
        data: dict[str, Any] = {}
        for name, values in self.columns.items():
            if name in self.time_columns:
                data[name] = pd.Series(values, dtype="datetime64[us, UTC]")
            elif name in self.number_columns:
                data[name] = pd.Series(values, dtype="float64")
            else:
                data[name] = pd.Series(values, dtype="object").infer_objects()
        return pd.DataFrame(data)

    def to_polars(self) -> Any:
        """A polars frame: times as ``Datetime("us", "UTC")``, numbers as Float64 with null where there is none.

        A column whose values have no type in common, such as numbers and texts, becomes text: JSON.

        Raises:
            ConfigError: polars is not installed.
        """
        try:
            import polars as pl
        except ImportError as exc:
            raise ConfigError("polars is not installed: pip install polars") from exc
        columns = []
        for name, values in self.columns.items():
            if name in self.time_columns:
                columns.append(pl.Series(name, values, dtype=pl.Datetime("us", "UTC")))
            elif name in self.number_columns:
                columns.append(pl.Series(name, [_float(value) for value in values], dtype=pl.Float64))
            elif all(isinstance(value, str | None) for value in values):
                columns.append(pl.Series(name, values, dtype=pl.String))
            elif all(isinstance(value, bool | None) for value in values):
                columns.append(pl.Series(name, values, dtype=pl.Boolean))
            elif all(isinstance(value, int | float | None) and not isinstance(value, bool) for value in values):
                columns.append(pl.Series(name, [_float(value) for value in values], dtype=pl.Float64))
            else:
                texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
                columns.append(pl.Series(name, texts, dtype=pl.String))
        return pl.DataFrame(columns)

    def to_csv(self, target: str | os.PathLike[str] | TextIO) -> None:
        """Writes a line of names and a line for each object, in UTF-8.

        Times are ISO 8601, lists and objects JSON, what is missing is empty.

        Args:
            target: A path, or an open text file (opened with ``newline=""``).

        Raises:
            OSError: The file cannot be written.
        """
        if isinstance(target, str | os.PathLike):
            with Path(target).open("w", encoding="utf-8", newline="") as file:
                self._write(file)
        else:
            self._write(target)

    def _write(self, file: TextIO) -> None:
        writer = csv.writer(file)
        writer.writerow(self.columns)
        writer.writerows([_cell(value) for value in row] for row in zip(*self.columns.values(), strict=True))


def _cells(page: Found) -> dict[str, list[JsonValue]]:
    columns: dict[str, list[JsonValue]] = json.loads(page.columns_json)
    for name in page.time_columns:
        columns[name] = [None if us is None else _EPOCH + timedelta(microseconds=us) for us in columns.get(name, ())]
    if not any(f'"{text}"'.encode() in page.columns_json for text in _NOT_FINITE):
        return columns
    for name in page.number_columns:
        columns[name] = [_NOT_FINITE[value] if isinstance(value, str) else value for value in columns.get(name, ())]
    return columns


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _cell(value: JsonValue) -> object:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    return json.dumps(value, ensure_ascii=False)

"""Damaged inputs for parsers: valid samples with bits flipped, parts cut, repeated, inserted, values of other kinds.

Random bytes rarely pass the first check of a parser; what was valid and has one fault goes far into it. How many
inputs are tried is `EXAMPLES` (the environment variable ``MODELBOX_FUZZ_EXAMPLES``); a hunt takes 20,000.
"""

from __future__ import annotations

import contextlib
import copy
import os
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

__all__ = ("EXAMPLES", "damaged", "damaged_json", "fuzzed", "like", "little_memory", "nested", "odd_values")

EXAMPLES = int(os.environ.get("MODELBOX_FUZZ_EXAMPLES", "150"))

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""The settings of every test with damaged inputs; fixtures with a place on disk are fine there."""

AnyText = TypeVar("AnyText", str, bytes)

_PLACES = st.floats(0, 1, exclude_max=True)
_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "end", "repeat", "insert", "move"]), _PLACES, _PLACES, st.integers(0, 255)
    ),
    min_size=1,
    max_size=3,
)
_BYTES = [
    b"\0", b"\xff", b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x80" * 11, b"[" * 3000, b'{"a":' * 1500, b"9" * 400, b"\n",
    b"\xed\xa0\x80", b"-", b"..", b"/../", b'"', b"1e999", b"NaN", b" ", b"\r\n\r\n",
]  # fmt: skip
_TEXTS = [
    "\0", "\ud800", "\u0663", "\u00b2", "[" * 3000, "(" * 3000, "9" * 5000, "1e999", "nan", "..", "/../", '"', "\n",
    " ", "@", ":", "-", "ß", "\u202e", "%", "%00", "*", "not " * 2000, "~nobody-there/",
]  # fmt: skip


def damaged(samples: Sequence[AnyText]) -> st.SearchStrategy[AnyText]:
    """One of ``samples``, whole or with up to three faults."""
    return st.one_of(
        st.sampled_from(samples),
        st.builds(_damage, st.sampled_from(samples), _EDITS, st.sampled_from(samples)),
    )


def like(*samples: str) -> st.SearchStrategy[str]:
    """Text: any, a sample, or a damaged sample."""
    return st.one_of(st.text(max_size=60), damaged(samples))


def _damage(sample: AnyText, edits: list[tuple[str, float, float, int]], other: AnyText) -> AnyText:
    for kind, one, two, number in edits:
        size = len(sample)
        at, to = sorted((int(one * size), int(two * size)))
        odd: Any = _BYTES[number % len(_BYTES)] if isinstance(sample, bytes) else _TEXTS[number % len(_TEXTS)]
        if kind == "flip" and size:
            flipped: Any = (
                bytes((sample[at] ^ (1 << number % 8),))
                if isinstance(sample, bytes)
                else chr(ord(sample[at]) ^ (1 << number % 8))
            )
            sample = sample[:at] + flipped + sample[at + 1 :]
        elif kind == "cut":
            sample = sample[:at] + sample[to:]
        elif kind == "end":
            sample = sample[:at]
        elif kind == "repeat":
            sample = sample[:to] + sample[at:to] * (1 + number % 3) + sample[to:]
        elif kind == "insert":
            sample = sample[:at] + odd + sample[at:]
        else:
            sample = sample[:at] + other[int(two * len(other)) :]
    return sample


odd_values: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**400, 0.5, -0.0, 1e308]),
    st.sampled_from([float("inf"), float("-inf"), float("nan")]),
    st.sampled_from(
        ["", "x", "\0", "\ud800", "..", "../../x", "/etc/passwd", "9" * 5000, "NaN", "0001-01-01T00:00:00+23:59"]
    ),
    st.sampled_from(["9999-12-31T23:59:59-23:59", "0001-01-01", "lab/digits@prod", "sha256:" + "0" * 64]),
    st.sampled_from([[], {}, [[]], [None], [{}], {"": None}, {"a": {"a": []}}, ["a", 1, None]]).map(copy.deepcopy),
)
"""What a value of JSON may be where another was expected."""


@st.composite
def damaged_json(draw: st.DrawFn, samples: Sequence[Any]) -> Any:
    """One of ``samples``, whole or with values replaced, gone or added in any place; as Python's objects."""
    document = copy.deepcopy(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(0, 3))):
        places = list(_places(document))
        if not places:
            return draw(odd_values)
        holder, key = draw(st.sampled_from(places))
        what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if what == "replace":
            holder[key] = draw(odd_values)
        elif what == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.append(draw(odd_values))
        else:
            holder[draw(st.sampled_from(["", "x", "format", "type", "\ud800", "__class__"]))] = draw(odd_values)
    return document


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def nested(depth: int = 100_000) -> bytes:
    """JSON that is deeper than any stack."""
    return b"[" * depth + b"]" * depth


@contextlib.contextmanager
def little_memory(size_bytes: int) -> Iterator[None]:
    """Fails where what is done inside holds more at once, numpy's arrays included."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size_bytes, f"{peak} bytes were held"

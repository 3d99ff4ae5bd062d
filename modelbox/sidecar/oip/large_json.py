"""Large JSON requests, read so that whoever shares the interpreter hardly notices.

Python's JSON reader holds the interpreter for as long as a document takes: 50 ms for 160,000 numbers, and no other call
of the process moves meanwhile, whichever thread reads. Here the lists of numbers, which is what makes documents large,
are found in the text and read on their own, a slice at a time and straight into arrays; after each slice ``pause`` is
called, in which others may run. Everything else of the document is read as ever.

Sans-I/O. Owns the finding and the slicing; every number is still read by a whole JSON reader (orjson where it is
installed, Python's own otherwise), so that nothing is accepted that is not JSON. Refuses a document that is still large
without its lists: no inference request is.

Invariants: the outcome is that of reading the whole document at once, but that lists of numbers or booleans under
``"data"`` keys come as arrays. No step between two pauses takes more than a fixed number of bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from modelbox.errors import LimitError

__all__ = ("LARGE_BYTES", "MAX_REST_CHARS", "Pause", "read_document", "read_list")

LARGE_BYTES = 32 << 10
"""Documents below are quicker read at once: that takes less than a millisecond."""
MAX_REST_CHARS = 1 << 20
"""Of a document, without its lists."""

Pause = Callable[[], None]
Array = np.ndarray[Any, np.dtype[Any]]
ReadDocument = Callable[[str, Callable[[str], object]], object]


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


_plain_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


def _plain_loads(data: bytes) -> object:
    return _plain_decode(data.decode("ascii"))


_loads: Callable[[bytes], Any]
try:
    import orjson
except ImportError:
    _loads, _SLICE = _plain_loads, 16 << 10
else:
    _loads, _SLICE = orjson.loads, 64 << 10

_KEY = re.compile(r'"data"[ \t\r\n]*:[ \t\r\n]*\[')
_BLANKS = b" \t\r\n"
_TOKENS = b"+-.0123456789Eaeflrstu"
_FLAT = bytes.maketrans(_TOKENS, b"0" * len(_TOKENS))
"""Whatever makes a number or a boolean becomes ``0``."""
_MAX_DEPTH = 32
_MISPLACED = (b"0[", b"]0")
_scan_string = json.decoder.scanstring  # type: ignore[attr-defined]  # not in typeshed, but documented by its use
_TEXTS = 2048
"""Strings between two pauses."""
_BLANK = re.compile(r"[ \t\r\n]*")


def read_document(text: str, read: ReadDocument, pause: Pause) -> object:
    """The document in ``text``.

    Args:
        text: All of it.
        read: Reads what is left of it, with a function that is called for each ``NaN``, ``Infinity`` and ``-Infinity``.
        pause: Called between steps.

    Raises:
        LimitError: It is too large without its lists.
        ValueError: Of ``read``, for what is no JSON.
    """
    parts: list[str] = []
    lists: list[object] = []
    at = 0
    for start, end, found in _lists(text, pause):
        # NaN is not JSON, so that nothing else of the document can be taken for this place.
        parts += (text[at:start], "NaN")
        lists.append(found)
        at = end
    parts.append(text[at:])
    rest = "".join(parts)
    if len(rest) > MAX_REST_CHARS:
        raise LimitError(
            f"the request has {len(rest)} characters of JSON beside its lists of values, more than {MAX_REST_CHARS}: "
            "send large tensors as binary data"
        )
    lists.reverse()

    def take(constant: str) -> object:
        if constant != "NaN" or not lists:
            raise ValueError(f"{constant} is not JSON; send NaN and infinities as binary data")
        return lists.pop()

    return read(rest, take)


def _lists(text: str, pause: Pause) -> list[tuple[int, int, object]]:
    """Where lists are that were read, and what is in them."""
    found: list[tuple[int, int, object]] = []
    at = 0
    while (match := _KEY.search(text, at)) is not None:
        at = match.end()
        if match.start() and text[match.start() - 1] == "\\":
            # The end of a longer key, whose last quotation mark but one is escaped.
            continue
        start = at - 1
        first = _BLANK.match(text, at)
        assert first is not None
        if text[first.end() : first.end() + 1] == '"':
            texts = _read_texts(text, first.end(), pause)
            if texts is None:
                continue
            value: object
            value, end = texts
        else:
            # Behind the list of an object comes another key, or the end of the object.
            bound = text.find('"', at)
            bound = len(text) if bound < 0 else bound
            brace = text.find("}", at, bound)
            end = text.rfind("]", at, bound if brace < 0 else brace) + 1
            if not end:
                continue
            value = read_list(text[start:end], pause)
            if value is None:
                continue
        found.append((start, end, value))
        at = end
    return found


def read_list(text: str, pause: Pause) -> Array | None:
    """The numbers or booleans of a JSON list, flat or regularly nested; None for every other text.

    Args:
        text: From bracket to bracket.
        pause: Called between slices.
    """
    try:
        data = text.encode("ascii")
    except UnicodeEncodeError:
        return None
    nested = data.rfind(b"[") > 0
    shape: tuple[int, ...] | None = None
    if nested:
        shape = _shape(data, pause)
        if shape is None:
            return None
    content = data if nested else data[1:-1]
    arrays: list[Array] = []
    at = 0
    while at < len(content):
        end = content.find(b",", at + _SLICE)
        if end < 0:
            end = len(content)
        part = content[at:end]
        if nested:
            part = part.translate(None, b"[]")
        try:
            values = _loads(b"[%b]" % part)
            array = np.array(values)
            if array.dtype.kind == "f" and not any(sign in part for sign in (b".", b"e", b"E")):
                # Whole numbers on both sides of what 64 bits with a sign can hold: numpy takes them for floats.
                array = np.array(values, np.uint64)
        except (ValueError, OverflowError, RecursionError):
            return None
        # Objects: whole numbers of more than 64 bits, lists, null. Text has a kind of its own.
        if array.ndim != 1 or not array.size or array.dtype.kind not in "biuf":
            return None
        arrays.append(array)
        at = end + 1
        pause()
    if not arrays or content.endswith(b","):
        return None
    whole = _joined(arrays)
    if whole is None or shape is None:
        return whole
    return whole.reshape(shape) if whole.size == _product(shape) else None


def _joined(arrays: list[Array]) -> Array | None:
    """All slices as one, of the dtype that numpy gives the whole list."""
    kinds = {array.dtype.kind for array in arrays}
    if kinds <= {"i", "u"} and len(kinds) == 2:
        if any(array.dtype.kind == "i" and array.min() < 0 for array in arrays):
            return None
        return np.concatenate([array.astype(np.uint64) for array in arrays])
    if "u" in kinds and len(kinds) > 1:
        return None
    return np.concatenate(arrays)


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size


def _shape(data: bytes, pause: Pause) -> tuple[int, ...] | None:
    """The dimensions of a nested list, by its brackets and commas; None where they are not regular."""
    structure: list[bytes] = []
    before = b""
    for at in range(0, len(data), _SLICE):
        tokens = data[at : at + _SLICE].translate(_FLAT, _BLANKS)
        beside = before + tokens
        if any(pair in beside for pair in _MISPLACED) or tokens.translate(None, b"0[],"):
            return None
        before = tokens[-1:] or before
        structure.append(tokens.translate(None, b"0"))
        pause()
    skeleton = b"".join(structure)
    depth = len(skeleton) - len(skeleton.lstrip(b"["))
    if depth > _MAX_DEPTH:
        return None
    shape: list[int] = []
    block = b""
    for level in range(1, depth + 1):
        # The first place where this many lists end is the end of the first list of this level.
        end = skeleton.find(b"]" * level)
        if end < 0:
            return None
        end += level
        length = end - (depth - level)
        if level == 1:
            count = length - 1
            block = b"[%b]" % (b"," * (count - 1))
        else:
            count, rest = divmod(length - 1, len(block) + 1)
            if rest:
                return None
            block = b"[%b%b]" % ((block + b",") * (count - 1), block)
        if not skeleton.startswith(block, depth - level):
            return None
        shape.append(count)
        pause()
    if len(block) != len(skeleton):
        return None
    return tuple(reversed(shape))


def _read_texts(text: str, at: int, pause: Pause) -> tuple[list[str], int] | None:
    """The strings of a flat list from the first one's quotation mark on, and where the list ends."""
    texts: list[str] = []
    size = len(text)
    began = at
    try:
        while True:
            value, at = _scan_string(text, at + 1, True)
            texts.append(value)
            if text[at : at + 2] == ',"':
                at += 1
            elif text[at : at + 3] == ', "':
                at += 2
            else:
                blank = _BLANK.match(text, at)
                assert blank is not None
                at = blank.end()
                if text[at : at + 1] == "]":
                    return texts, at + 1
                if text[at : at + 1] != ",":
                    return None
                blank = _BLANK.match(text, at + 1)
                assert blank is not None
                at = blank.end()
                if at >= size or text[at] != '"':
                    return None
            if not len(texts) % _TEXTS or at - began > _SLICE:
                began = at
                pause()
    except ValueError:
        # What is no string; the reader of the whole will say where.
        return None

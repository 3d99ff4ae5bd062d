"""What the server takes of text, labels, metadata and metrics."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.errors import InvalidError, LimitError
from modelbox.objects import JsonValue
from modelbox.runtime.limits import (
    MAX_DEPTH,
    MAX_KEYS,
    MAX_OBJECT_BYTES,
    check_labels,
    check_metadata,
    check_metrics,
    check_text,
)
from tests.faults.registry import fault

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4))
def test_metadata_is_refused_or_survives_json(metadata: dict[str, JsonValue]) -> None:
    try:
        check_metadata(metadata)
    except (InvalidError, LimitError):
        return
    text = json.dumps(metadata, allow_nan=False)
    assert json.loads(text) == metadata
    text.encode()


@fault(67)
def test_depth_counts_the_metadata_itself() -> None:
    value: JsonValue = 1
    for _ in range(MAX_DEPTH - 1):
        value = {"k": value}
    check_metadata({"k": value})
    with pytest.raises(LimitError, match="levels"):
        check_metadata({"k": [value]})


@fault(67)
def test_size_is_that_of_the_json() -> None:
    overhead = len(json.dumps({"k": ""}))
    check_metadata({"k": "x" * (MAX_OBJECT_BYTES - overhead)})
    with pytest.raises(LimitError, match=str(MAX_OBJECT_BYTES + 1)):
        check_metadata({"k": "x" * (MAX_OBJECT_BYTES - overhead + 1)})
    # Two bytes each in UTF-8.
    with pytest.raises(LimitError):
        check_metadata({"k": "é" * (MAX_OBJECT_BYTES // 2)})


@fault(67)
def test_number_of_keys() -> None:
    check_labels({f"k{i}": "" for i in range(MAX_KEYS)})
    keys = [f"k{i}" for i in range(MAX_KEYS + 1)]
    with pytest.raises(LimitError, match="257 keys"):
        check_labels(dict.fromkeys(keys, ""))
    with pytest.raises(LimitError, match="257 keys"):
        check_metadata(dict.fromkeys(keys))
    with pytest.raises(LimitError, match="257 keys"):
        check_metrics(dict.fromkeys(keys, 1.0))


@pytest.mark.parametrize("text", ["a\0", "\ud800", 1, None, b"x"])
def test_what_is_no_text(text: object) -> None:
    with pytest.raises(InvalidError):
        check_text(text, "reason", max_chars=10)  # type: ignore[arg-type]


def test_length_is_in_characters() -> None:
    assert check_text("é" * 10, "reason", max_chars=10) == "é" * 10
    with pytest.raises(LimitError, match="11 characters"):
        check_text("é" * 11, "reason", max_chars=10)


@pytest.mark.parametrize("key", ["", "a\n", "\u202ea", "x" * 251, 1])
def test_keys_are_short_printable_text(key: str) -> None:
    with pytest.raises((InvalidError, LimitError)):
        check_labels({key: ""})
    with pytest.raises((InvalidError, LimitError)):
        check_metadata({key: None})
    with pytest.raises((InvalidError, LimitError)):
        check_metrics({key: 1.0})

"""What the server takes of attributes, steps, epochs and the metrics of checkpoints."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.errors import InvalidError, LimitError
from modelbox.objects import JsonValue
from modelbox.runtime.limits import (
    MAX_ATTRIBUTES,
    MAX_ATTRIBUTES_BYTES,
    MAX_DEPTH,
    MAX_VALUE_BYTES,
    check_attributes,
    check_checkpoint_metrics,
    check_epoch,
    check_key,
    check_step,
)
from modelbox.runtime.store.attributes import encode, same
from modelbox.tracking import AttributeKind
from tests.faults.registry import fault

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def nested(depth: int) -> JsonValue:
    """Lists in lists."""
    value: JsonValue = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("kind", AttributeKind)
def test_only_so_many_keys(kind: AttributeKind) -> None:
    allowed = {f"k{number}": "" for number in range(MAX_ATTRIBUTES[kind])}
    assert check_attributes(kind, allowed) == allowed
    with pytest.raises(LimitError, match=str(MAX_ATTRIBUTES[kind])):
        check_attributes(kind, allowed | {"one more": ""})


@pytest.mark.parametrize("kind", [AttributeKind.TAG, AttributeKind.LABEL])
@pytest.mark.parametrize("value", [1, None, True, ["x"], b"x"])
def test_tags_and_labels_are_texts(kind: AttributeKind, value: JsonValue) -> None:
    with pytest.raises(InvalidError):
        check_attributes(kind, {"k": value})


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}, {1: 2}, object(), b"x", {"a"}, 10**301])
def test_what_is_no_json_is_refused(value: JsonValue) -> None:
    for kind in (AttributeKind.PARAM, AttributeKind.METADATA):
        with pytest.raises(InvalidError):
            check_attributes(kind, {"k": value})


@fault(67)
@pytest.mark.parametrize("depth", [MAX_DEPTH, 10_000, 100_000])
def test_depth_is_a_limit_and_no_crash(depth: int) -> None:
    check_attributes(AttributeKind.METADATA, {"k": nested(MAX_DEPTH - 2)})
    with pytest.raises(LimitError, match="levels"):
        check_attributes(AttributeKind.METADATA, {"k": nested(depth)})


def test_a_value_has_a_size() -> None:
    longest = "x" * (MAX_VALUE_BYTES - 2)
    check_attributes(AttributeKind.PARAM, {"k": longest, "l": [longest[2:]]})
    for value in (
        longest + "x",
        [longest],
        {"a": longest},
        "\x01" * (MAX_VALUE_BYTES // 5),
        "é" * (MAX_VALUE_BYTES // 2),
    ):
        with pytest.raises(LimitError, match="bytes"):
            check_attributes(AttributeKind.PARAM, {"k": value})


def test_all_values_together_have_a_size() -> None:
    values = {f"k{number}": "x" * 60_000 for number in range(MAX_ATTRIBUTES_BYTES // 60_002)}
    check_attributes(AttributeKind.TAG, values)
    with pytest.raises(LimitError, match="have"):
        check_attributes(AttributeKind.TAG, values | {"one more": "x" * 60_000})


@pytest.mark.parametrize("key", ["", "a\nb", "a\0", "\ud800", 5, None])
def test_keys_are_printable_texts(key: str) -> None:
    with pytest.raises(InvalidError):
        check_key(key, "param")


def test_keys_have_a_length() -> None:
    assert check_key("é" * 250, "param")
    with pytest.raises(LimitError):
        check_key("k" * 251, "param")


@pytest.mark.parametrize("step", [2**63, -(2**63) - 1, 1.0, True, "1", None])
def test_steps_are_whole_numbers_of_64_bits(step: int) -> None:
    assert [check_step(one) for one in (2**63 - 1, -(2**63), 0)] == [2**63 - 1, -(2**63), 0]
    with pytest.raises(InvalidError):
        check_step(step)


def test_epochs_count_from_0() -> None:
    assert check_epoch(0) == 0
    for epoch in (-1, 2**63, False):
        with pytest.raises(InvalidError):
            check_epoch(epoch)


def test_checkpoints_keep_what_is_no_number() -> None:
    metrics = {"a": math.nan, "b": -math.inf, "c": 1, "d": 10**307}
    assert check_checkpoint_metrics(metrics) is metrics
    for value in (True, "1", None, 10**309):
        with pytest.raises(InvalidError):
            check_checkpoint_metrics({"a": value})  # type: ignore[dict-item]
    with pytest.raises(LimitError):
        check_checkpoint_metrics({f"m{number}": 0.0 for number in range(1001)})


@given(VALUES)
def test_what_is_allowed_survives(value: JsonValue) -> None:
    try:
        check_attributes(AttributeKind.PARAM, {"k": value})
    except (InvalidError, LimitError):
        return
    text = encode(value)
    text.encode()
    assert same(json.loads(text), value)


@given(SCALARS, SCALARS)
def test_the_same_is_what_json_readers_cannot_tell_apart(one: JsonValue, other: JsonValue) -> None:
    both_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    assert same(one, other) == (one == other if both_numbers else encode(one) == encode(other))

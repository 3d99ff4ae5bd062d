"""``KEY=VALUE`` arguments."""

from __future__ import annotations

import pytest

from modelbox.cli.run import json_pairs, number_pairs, text_pairs
from modelbox.errors import InvalidError


def test_pairs_keep_what_follows_the_first_equals_sign() -> None:
    assert text_pairs(["a=1", "b=x=y", "c="], "--label") == {"a": "1", "b": "x=y", "c": ""}


@pytest.mark.parametrize("value", ["a", "=b", ""])
def test_what_is_no_pair_is_refused(value: str) -> None:
    with pytest.raises(InvalidError, match=r"--label is .*: expected KEY=VALUE"):
        text_pairs([value], "--label")


def test_a_key_comes_once() -> None:
    with pytest.raises(InvalidError, match="names 'a' twice"):
        text_pairs(["a=1", "a=2"], "--label")


def test_metadata_is_json_or_text() -> None:
    assert json_pairs(['a=[1, {"b": null}]', "c=true", "d=plain text", "e="], "--metadata") == {
        "a": [1, {"b": None}],
        "c": True,
        "d": "plain text",
        "e": "",
    }


def test_metrics_are_finite_numbers() -> None:
    assert number_pairs(["wer=0.05", "n=3"], "--metric") == {"wer": 0.05, "n": 3.0}
    for value in ("wer=low", "wer=nan", "wer=inf", "wer="):
        with pytest.raises(InvalidError, match="--metric is"):
            number_pairs([value], "--metric")

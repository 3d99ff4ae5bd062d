"""Bundles and statements as text: what is written is read again, and no other text does more than be refused."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.errors import InvalidError
from modelbox.signing import Bundle, read_statement, statement_of
from tests.model_source import manifest_of

MANIFEST = manifest_of({"b.bin": b"2", "a/ä.onnx": b"1"})
PAYLOAD = statement_of("ns/model@7", MANIFEST)

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def test_a_statement_is_what_the_format_says() -> None:
    statement = read_statement(PAYLOAD)
    assert statement.subject == "ns/model@7"
    assert [path for path, _ in statement.resources] == ["a/ä.onnx", "b.bin"]
    assert not statement.differences("ns/model@7", MANIFEST)
    raw = json.loads(PAYLOAD)
    assert raw["_type"] == "https://in-toto.io/Statement/v1"
    assert raw["predicateType"] == "https://model_signing/signature/v1.0"


@given(payload=st.binary(max_size=200), signature=st.binary(max_size=80), key_id=st.text("0123456789abcdef"))
def test_a_bundle_reads_as_it_was_written(payload: bytes, signature: bytes, key_id: str) -> None:
    bundle = Bundle(payload=payload, signature=signature, key_id=key_id)
    assert Bundle.from_json(bundle.to_json()) == bundle
    certified = Bundle(payload=payload, signature=signature, certificates=(payload, signature))
    assert Bundle.from_json(certified.to_json()) == certified


@given(data=st.binary(max_size=400))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    with pytest.raises(InvalidError):
        read_statement(data)
    with pytest.raises(InvalidError):
        Bundle.from_json(data.decode("latin-1"))


def replaced(raw: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = raw.copy()
    copy[path[0]] = replaced(raw[path[0]], path[1:], value)
    return copy


def paths(raw: Any) -> list[tuple[Any, ...]]:
    inner = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    return [(), *((key, *rest) for key, value in inner for rest in paths(value))]


@given(data=st.data(), value=values)
def test_no_value_in_any_place_does_more_than_be_refused(data: st.DataObject, value: Any) -> None:
    for text, read in (
        (PAYLOAD.decode(), lambda text: read_statement(text.encode())),
        (Bundle(payload=PAYLOAD, signature=b"s", key_id="k").to_json(), Bundle.from_json),
        (Bundle(payload=PAYLOAD, signature=b"s", certificates=(b"c",)).to_json(), Bundle.from_json),
    ):
        raw = json.loads(text)
        path = data.draw(st.sampled_from(paths(raw)))
        with contextlib.suppress(InvalidError):
            read(json.dumps(replaced(raw, path, value)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("_type",), "https://in-toto.io/Statement/v0.1"),
        (("predicateType",), "https://slsa.dev/provenance/v1"),
        (("subject",), []),
        (("subject", 0, "digest", "sha256"), "0" * 64),
        (("predicate", "resources"), []),
        (("predicate", "resources", 0, "algorithm"), "sha1"),
        (("predicate", "resources", 0, "digest"), "A" * 64),
        (("predicate", "resources", 0, "name"), "b.bin"),
        (("predicate", "serialization", "method"), "shards"),
    ],
)
def test_a_statement_of_another_kind_or_at_odds_with_itself_is_refused(path: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(InvalidError):
        read_statement(json.dumps(replaced(json.loads(PAYLOAD), path, value)).encode())


def test_what_is_too_long_is_not_even_parsed() -> None:
    with pytest.raises(InvalidError, match="more than"):
        Bundle.from_json(" " * (9 << 20))

"""Texts that people and peers write: whatever they hold, they are read or refused with the error that is documented."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from modelbox.cli.retention import _best
from modelbox.cli.run import json_pairs, number_pairs, seconds_of, text_pairs, time_of
from modelbox.errors import InvalidError, RefError
from modelbox.find import COLLECTIONS, parse_columns, parse_order, parse_where
from modelbox.refs import ModelRef, check_alias, parse_digest, parse_path, shown
from modelbox.rules import check_pattern, check_rule_scope, parse_patterns
from modelbox.runtime.caller import given_request_id
from modelbox.runtime.rest.files import parse_range
from modelbox.runtime.services.paging import decode_key, encode_key
from modelbox.signing.policy import parse_modes, parse_trusted
from modelbox.tokens import Token, check_kid
from tests.fuzzing import damaged_json, fuzzed, like

NOW = datetime(2026, 5, 3, 12, tzinfo=UTC)
REFS = like("langtech/wav2vec@prod", "acme/ranker@17", "acme/ranker", "a.b/c-d@latest")
TOKENS = [Token(kid="a1b2c3d4", secret="Z" * 43).reveal(), Token.new().reveal()]
QUERIES = like(
    'metrics.loss < 0.5 and params.lr >= 1e-3 or not tags.kind in ("a", "b")',
    'name ~ "wav*" and (started_at > now-7d or status = finished) and tags."a b" exists',
    "metrics.acc.best > 0.9 and started_at < 2026-05-03T10:00:00Z",
)
PATTERNS = like("prod*", "prod*, canary, eu-?", "stag.ing")


def refused(read: Callable[[Any], Any], text: Any, error: type[Exception] = InvalidError) -> Any:
    """What is read; None for what is refused as documented, in few words and printable."""
    try:
        return read(text)
    except error as exc:
        said = str(exc)
    assert len(said) < 3000
    # Of several lines are those only that point to a place.
    assert all(line.isprintable() for line in said.split("\n"))
    return None


@fuzzed
@given(REFS)
def test_references(text: str) -> None:
    ref = refused(ModelRef.parse, text, RefError)
    if ref is not None:
        assert ModelRef.parse(str(ref)) == ref
        assert str(ref).isascii()
    for check in (check_alias, parse_digest, lambda path: parse_path(path, "model")):
        refused(check, text)
    assert len(shown(text)) < 200


@fuzzed
@given(like("sha256:" + "0af3" * 16))
def test_digests(text: str) -> None:
    assert refused(parse_digest, text) in (None, text)


@fuzzed
@given(like(*TOKENS))
def test_tokens(text: str) -> None:
    found = refused(Token.parse, text)
    assert found is None or found.reveal() == text
    refused(check_kid, text)


@fuzzed
@given(QUERIES, st.sampled_from(sorted(COLLECTIONS)))
def test_the_find_language(text: str, collection: str) -> None:
    refused(lambda query: parse_where(collection, query, now=NOW), text)
    refused(lambda term: parse_order(collection, [term], now=NOW), text)
    refused(lambda name: parse_columns(collection, [name]), text)


@fuzzed
@given(PATTERNS)
def test_rules_and_patterns_of_aliases(text: str) -> None:
    found = refused(parse_patterns, text)
    assert found is None or refused(parse_patterns, ", ".join(found)) == found
    refused(check_pattern, text)
    refused(check_rule_scope, text)


@fuzzed
@given(
    like("require", "langtech/*=require, *=warn", "/etc/modelbox/ci.pub", "langtech/*=/etc/a.pub, ~/b.pub", "~nobody/x")
)
def test_policies_of_signatures(text: str) -> None:
    refused(parse_modes, text)
    for file in refused(parse_trusted, text) or ():
        assert file.path.is_absolute()


@fuzzed
@given(
    like(
        "3:loss:min",
        "5:acc",
        "30d",
        "12h",
        "now-7d",
        "2026-05-03T10:00:00+02:00",
        "0001-01-01",
        "9999-12-31",
        "999999999w",
    )
)
def test_retention_durations_and_times_of_commands(text: str) -> None:
    refused(_best, text)
    seconds = refused(lambda one: seconds_of(one, "--x"), text)
    assert seconds is None or math.isfinite(seconds)
    at = refused(lambda one: time_of(one, "--x"), text)
    assert at is None or at.tzinfo is not None


@fuzzed
@given(like("lr=0.1", 'a={"b": [1]}', "x==", "k=nan", "k=٣"))
def test_pairs_of_commands(text: str) -> None:
    for read in (text_pairs, json_pairs, number_pairs):
        found = refused(partial(_of_one, read), text)
        assert found is None or len(found) == 1


def _of_one(read: Callable[[list[str], str], Any], text: str) -> Any:
    return read([text], "--x")


KINDS: Mapping[str, tuple[type, ...]] = {"runs": (int, str), "models": (str,), "none": ()}


@fuzzed
@given(
    st.one_of(
        like(encode_key("runs", (17, "run_1")), encode_key("models", ("wav",))),
        damaged_json([["runs", 17, "run_1"], ["models", "wav"]]).map(
            lambda key: base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")
        ),
    ),
    st.sampled_from(sorted(KINDS)),
)
def test_page_tokens(text: str, scope: str) -> None:
    key = refused(lambda token: decode_key(scope, token, *KINDS[scope]), text)
    if key is not None:
        assert [type(part) for part in key] == list(KINDS[scope])
        assert decode_key(scope, encode_key(scope, key), *KINDS[scope]) == key


@fuzzed
@given(like("bytes=0-99", "bytes=-5", "bytes=7-", "bytes=9999999999999999999-"), st.integers(0, 2**63))
def test_ranges(text: str, size: int) -> None:
    part = parse_range(text, size)
    if part is not None:
        start, length = part
        assert length >= 0
        assert length == 0 or start + length <= size


@fuzzed
@given(like("req-1", "5f3a9c.1", "a b", "x" * 65))
def test_request_ids(text: str) -> None:
    found = given_request_id(text)
    assert found in ("", text)
    assert found.isascii()
    assert found.isprintable()
    assert len(found) <= 200

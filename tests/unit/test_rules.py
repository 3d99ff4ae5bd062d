"""What versions lack, and which aliases a pattern stands for."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox._wire.rules import pack_rule, unpack_rule
from modelbox.errors import InvalidError, RuleError, error_from_dict
from modelbox.refs import check_alias
from modelbox.rules import (
    Facts,
    Rule,
    check_pattern,
    check_rule,
    find_missing,
    in_scope,
    matches_alias,
    parse_patterns,
    refusal,
)

KEYS = st.sampled_from(["team", "stage", "ß key", "a'b"])
TEXTS = st.sampled_from(["", "x"])
RULES = st.builds(
    Rule,
    scope=st.sampled_from(["ns", "ns/m"]),
    alias=st.sampled_from(["", "prod*"]),
    labels=st.lists(KEYS, max_size=3, unique=True).map(tuple),
    metadata=st.lists(KEYS, max_size=3, unique=True).map(tuple),
    owner=st.booleans(),
    description=st.booleans(),
    dataset=st.booleans(),
    signed=st.booleans(),
)
FACTS = st.builds(
    Facts,
    path=st.just("ns/m"),
    version=st.sampled_from([None, 7]),
    owner=TEXTS,
    has_model=st.booleans(),
    description=TEXTS,
    labels=st.dictionaries(KEYS, TEXTS),
    metadata=st.dictionaries(KEYS, st.sampled_from([None, "", "x", 0, False, [], {}, {"a": None}])),
    dataset=st.booleans(),
    signed=st.booleans(),
)
WHOLE = Facts(
    path="ns/m",
    version=7,
    owner="ann",
    description="text",
    labels={key: "x" for key in ("team", "stage", "ß key", "a'b")},
    metadata={key: 0 for key in ("team", "stage", "ß key", "a'b")},
    dataset=True,
    signed=True,
)


@given(st.lists(RULES, max_size=4), FACTS)
def test_rules_add_up_in_any_order_and_each_part_is_said_once(rules: list[Rule], facts: Facts) -> None:
    found = {(one.what, one.key) for one in find_missing(rules, facts)}
    assert len(found) == len(find_missing(rules, facts))
    assert set(find_missing(reversed(rules), facts)) == set(find_missing(rules, facts))
    assert found == {(one.what, one.key) for rule in rules for one in find_missing([rule], facts)}


@given(RULES)
def test_what_has_everything_lacks_nothing_and_what_has_nothing_all_that_is_asked_for(rule: Rule) -> None:
    assert find_missing([rule], WHOLE) == ()
    missing = find_missing([rule], Facts(path="ns/m", version=None))
    asked = len(rule.labels) + len(rule.metadata)
    asked += sum((rule.owner, rule.description, rule.dataset, rule.signed))
    assert len(missing) == asked


@given(st.lists(RULES, min_size=1, max_size=3), FACTS)
def test_the_error_names_all_and_travels_whole(rules: list[Rule], facts: Facts) -> None:
    missing = find_missing(rules, facts)
    if not missing:
        return
    error = refusal(missing, facts, "prod")
    assert all(str(one) in str(error) for one in missing)
    assert len(str(error).splitlines()) == 1
    # Commands can be pasted into a shell, whatever the keys are.
    assert all(shlex.split(one.fix)[0] == "modelbox" for one in missing)
    back = error_from_dict(error.to_dict())
    assert type(back) is RuleError
    assert back.fields == error.fields


@given(RULES)
def test_a_rule_arrives_as_it_was_sent(rule: Rule) -> None:
    assert unpack_rule(pack_rule(rule)) == rule


@given(st.text("abprod.*?-", min_size=1, max_size=8), st.text("abprod.-", min_size=1, max_size=8))
def test_a_pattern_is_a_simple_one(pattern: str, alias: str) -> None:
    as_regex = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    assert matches_alias(pattern, alias) == (re.fullmatch(as_regex, alias) is not None)


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,10}", fullmatch=True))
def test_every_alias_stands_for_itself(text: str) -> None:
    try:
        check_alias(text)
    except InvalidError:
        return
    if text != "latest":
        assert matches_alias(check_pattern(text), text)
        assert matches_alias("*", text)


def test_latest_is_nobodys() -> None:
    assert not matches_alias("*", "latest")
    assert not matches_alias("l*", "latest")
    with pytest.raises(InvalidError, match="moves by itself"):
        check_pattern("latest")


@pytest.mark.parametrize("text", ["", "Prod", "a/b", "[ab]", "a b", "x" * 65, "a,b", "é", "a\n"])
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(InvalidError):
        check_pattern(text)


def test_patterns_of_the_settings() -> None:
    assert parse_patterns("") == ()
    assert parse_patterns(" prod*, live ,prod*,") == ("prod*", "live")
    with pytest.raises(InvalidError):
        parse_patterns("prod*,latest")
    with pytest.raises(InvalidError, match="at most 32"):
        parse_patterns(",".join(f"a{number}" for number in range(33)))


def test_scopes() -> None:
    assert in_scope("", "ns", "m")
    assert in_scope("ns", "ns", "m")
    assert in_scope("ns/m", "ns", "m")
    assert not any(in_scope(scope, "ns", "m") for scope in ("n", "ns/", "ns/mm", "ns2", "m"))


@pytest.mark.parametrize(
    "change",
    [
        {"owner": False},
        {"scope": ""},
        {"scope": "ns/"},
        {"scope": "ns/m@7"},
        {"alias": "latest"},
        {"alias": "A"},
        {"labels": ("",)},
        {"labels": ("a\nb",)},
        {"metadata": ("k" * 251,)},
        {"metadata": tuple(f"k{number}" for number in range(65))},
    ],
)
def test_rules_that_cannot_be(change: dict[str, object]) -> None:
    rule = Rule(scope="ns", owner=True)
    assert check_rule(rule) == rule
    with pytest.raises(InvalidError):
        check_rule(replace(rule, **change))  # type: ignore[arg-type]  # any field


def test_the_commands_that_add_what_is_missing() -> None:
    rule = Rule(scope="ns", labels=("team", "a b"), metadata=("k",), owner=True, dataset=True)
    new = Facts(path="ns/m", version=None, has_model=False)
    assert "modelbox models create ns/m --owner WHO; modelbox models publish ns/m FILE... --label team=TEXT " in str(
        refusal(find_missing([rule], new), new)
    )
    old = replace(new, version=7, has_model=True)
    text = str(refusal(find_missing([rule], old), old, "prod"))
    assert text.startswith("ns/m@7 cannot be prod: it lacks the label team, the label a b, the metadata k, an owner")
    assert "modelbox labels set ns/m@7 team=TEXT 'a b=TEXT'; modelbox metadata set ns/m@7 k=JSON; " in text
    assert "modelbox models update ns/m --owner WHO; modelbox lineage add dataset:NAMESPACE/NAME@NUMBER ns/m@7" in text

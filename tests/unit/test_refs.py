"""References and names: what parses comes back as it was, and what does not parse says why."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.errors import InvalidError, RefError
from modelbox.refs import LATEST, ModelRef, check_alias, check_name, parse_digest, parse_path, shown

EDGE = string.ascii_lowercase + string.digits
names = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?", fullmatch=True).filter(lambda name: ".." not in name)
aliases = names.filter(lambda name: not name.isdigit())
digests = st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:{}".format)
selectors = st.one_of(
    st.builds(lambda a: {"alias": a}, aliases),
    st.builds(lambda v: {"version": v}, st.integers(1, 10**18 - 1)),
    st.builds(lambda d: {"digest": d}, digests),
)


@given(names, names, selectors)
def test_the_text_of_a_reference_parses_to_the_same_reference(
    namespace: str, model: str, selector: dict[str, str]
) -> None:
    ref = ModelRef(namespace=namespace, model=model, **selector)  # type: ignore[arg-type]
    assert ModelRef.parse(str(ref)) == ref
    assert ModelRef.parse(ref) is ref
    assert ref.path == f"{namespace}/{model}"
    assert ref.movable == ("alias" in selector)


@given(names, names)
def test_without_a_selector_it_is_the_latest(namespace: str, model: str) -> None:
    assert ModelRef.parse(f"{namespace}/{model}") == ModelRef(namespace=namespace, model=model, alias=LATEST)


@pytest.mark.parametrize("text", ["", "lid", "ns/", "ns/a b", "ns/a/b", "N/lid", "ns/lid@1", None])
def test_a_path_that_names_nothing_says_what_it_should_have_named(text: Any) -> None:
    with pytest.raises(InvalidError, match=r"names no experiment|valid (experiment|namespace) name") as caught:
        parse_path(text, "experiment")
    assert "model" not in str(caught.value)


def test_a_path_is_taken_apart() -> None:
    assert parse_path("langtech/lid", "experiment") == ("langtech", "lid")


@given(st.text())
def test_any_text_is_a_reference_or_a_typed_error(text: str) -> None:
    try:
        ModelRef.parse(text)
    except RefError as exc:
        message = str(exc)
    else:
        message = ""
    assert message.isprintable()
    assert len(message) < 500
    if not message:
        ref = ModelRef.parse(text)
        assert ModelRef.parse(str(ref)) == ref


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model",
        "/model",
        "ns/",
        "ns//model",
        "ns/a/b",
        "ns/model@",
        "ns/model@prod@1",
        "ns/model@0",
        "ns/model@01",
        "ns/model@-1",
        "ns/model@1000000000000000000",
        "ns/model@sha256:abc",
        "ns/model@SHA256:" + "a" * 64,
        "ns/model@sha256:" + "A" * 64,
        "Ns/model",
        "ns/mo del",
        "ns/model\n",
        "ns/model\0",
        "ns/..",
        "ns/a..b",
        "../etc/passwd",
        "ns/.hidden",
        "ns/model-",
        "ns/" + "a" * 65,
        "ns/modèle",
        "ns/model%2e",
        "ns/\u202emodel",
        "ｎｓ/model",
    ],
)
def test_what_is_not_a_reference_is_refused(text: str) -> None:
    with pytest.raises(RefError):
        ModelRef.parse(text)


@pytest.mark.parametrize("value", [None, 7, b"ns/model", ["ns/model"]])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(RefError, match="text like"):
        ModelRef.parse(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "selector",
    [{}, {"alias": "prod", "version": 1}, {"version": 0}, {"version": 10**18}, {"alias": "12"}, {"digest": "x"}],
)
def test_a_reference_has_exactly_one_valid_selector(selector: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        ModelRef(namespace="ns", model="model", **selector)  # type: ignore[arg-type]


@given(st.text(max_size=70))
def test_names_are_what_the_rule_says(text: str) -> None:
    allowed = set(EDGE + "._-")
    valid = 0 < len(text) <= 64 and set(text) <= allowed and text[0] in EDGE and text[-1] in EDGE and ".." not in text
    if valid:
        assert check_name(text, "model") == text
    else:
        with pytest.raises(InvalidError, match="not a valid model name"):
            check_name(text, "model")


def test_an_alias_is_not_a_number() -> None:
    assert check_alias("v7") == "v7"
    with pytest.raises(InvalidError, match="digits alone"):
        check_alias("7")


@given(digests)
def test_digests(digest: str) -> None:
    assert parse_digest(digest) == digest
    for wrong in (digest[:-1], digest + "0", digest.upper(), digest[7:], f" {digest}", f"{digest}\n"):
        with pytest.raises(InvalidError):
            parse_digest(wrong)


@given(st.text())
def test_shown_text_is_safe_in_a_log(text: str) -> None:
    out = shown(text)
    assert len(out) <= 100
    assert out.isascii()
    assert out.isprintable()

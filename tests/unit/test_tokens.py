"""The text of tokens."""

from __future__ import annotations

import hashlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.errors import InvalidError
from modelbox.tokens import PREFIX, Token, check_kid, is_token

KIDS = st.text("0123456789abcdefghijklmnopqrstuvwxyz", min_size=12, max_size=12)
SECRETS = st.text(string.digits + string.ascii_letters, min_size=43, max_size=43)
TOKENS = st.builds(lambda kid, secret: Token(kid=kid, secret=secret), KIDS, SECRETS)


@given(TOKENS)
def test_a_token_parses_back_to_itself(token: Token) -> None:
    assert Token.parse(token.reveal()) == token
    assert is_token(token.reveal())


def test_new_tokens_are_tokens_and_never_the_same() -> None:
    some = [Token.new() for _ in range(200)]
    assert all(Token.parse(one.reveal()) == one for one in some)
    assert len({one.kid for one in some}) == len({one.secret for one in some}) == 200
    assert all(one.reveal().startswith(PREFIX) for one in some)


@given(TOKENS, st.data())
def test_one_wrong_character_is_noticed(token: Token, data: st.DataObject) -> None:
    text = token.reveal()
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters().filter(lambda ch: ch != text[place]))
    assert not is_token(text[:place] + other + text[place + 1 :])


@given(TOKENS, st.data())
def test_a_part_of_a_token_is_none(token: Token, data: st.DataObject) -> None:
    text = token.reveal()
    assert not is_token(text[: data.draw(st.integers(0, len(text) - 1))])
    assert not is_token(text + data.draw(st.text(min_size=1, max_size=5)))


@given(st.one_of(st.text(max_size=200), st.from_regex(r"mbx_[0-9a-z_]{0,80}"), st.binary(max_size=80), st.none()))
def test_whatever_else_is_refused_without_being_repeated(text: object) -> None:
    with pytest.raises(InvalidError) as caught:
        Token.parse(text)  # type: ignore[arg-type]  # what comes from outside may be anything
    if isinstance(text, str) and len(text) > 10:
        assert text not in str(caught.value)
    assert caught.value.fields == {"what": "token"}


@given(TOKENS)
def test_only_reveal_shows_the_secret(token: Token) -> None:
    assert token.secret not in repr(token) + str(token) + f"{token}"
    assert token.kid in str(token)
    assert token.digest == hashlib.sha256(token.secret.encode()).digest()


def test_digits_of_other_scripts_are_not_digits() -> None:
    text = Token(kid="0" * 12, secret="1" * 43).reveal()
    assert not is_token(text.replace("1" * 43, "١" * 43))
    assert not is_token(text + "\n")


@pytest.mark.parametrize(
    "text",
    ["", "short", "0" * 13, "ABCDEFGHIJKL", "0123456789a\n", Token(kid="0" * 12, secret="1" * 43).reveal()],
)
def test_ids_of_tokens_are_checked_and_a_whole_token_is_not_repeated(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check_kid(text)
    assert not text or text not in str(caught.value)
    assert check_kid("0123456789ab") == "0123456789ab"

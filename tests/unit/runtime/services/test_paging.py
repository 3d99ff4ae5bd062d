"""Page tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.errors import InvalidError
from modelbox.runtime.ports import Listed
from modelbox.runtime.services.paging import DEFAULT_PAGE_SIZE, decode_key, encode_key, page_of, page_size_of

KEYS = st.lists(st.text(max_size=8) | st.integers(0, 2**63 - 1), min_size=1, max_size=3).map(tuple)


@given(KEYS, st.text(max_size=8))
def test_a_token_gives_its_key_back(key: tuple[int | str, ...], scope: str) -> None:
    token = encode_key(scope, key)
    kinds = [type(part) for part in key]
    assert decode_key(scope, token, *kinds) == key
    with pytest.raises(InvalidError):
        decode_key(scope + "x", token, *kinds)
    with pytest.raises(InvalidError):
        decode_key(scope, token, *kinds, int)


@given(st.text(max_size=40))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    try:
        key = decode_key("scope", text, int)
    except InvalidError:
        return
    assert key is None or encode_key("scope", key).rstrip("=") == text.rstrip("=")


@pytest.mark.parametrize("key", [(-1,), (2**63,), (True,), (1.5,)])
def test_numbers_that_no_server_wrote(key: tuple[int, ...]) -> None:
    with pytest.raises(InvalidError):
        decode_key("scope", encode_key("scope", key), int)


def test_the_end_is_empty() -> None:
    assert page_of("scope", Listed(items=(1, 2), next_key=None)).next_token == ""
    assert decode_key("scope", "", int) is None


def test_page_sizes() -> None:
    assert [page_size_of(size) for size in (0, 1, 1000)] == [DEFAULT_PAGE_SIZE, 1, 1000]
    for size in (-1, 1001, True, 1.0):
        with pytest.raises(InvalidError):
            page_size_of(size)  # type: ignore[arg-type]

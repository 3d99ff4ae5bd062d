"""How connections are counted."""

from __future__ import annotations

import pytest

from modelbox._serving.shares import ConnectionShares


def test_an_address_has_its_share_and_gets_it_back() -> None:
    shares = ConnectionShares(10, 2)
    assert [shares.admit("10.0.0.1") for _ in range(3)] == [True, True, False]
    assert shares.admit("10.0.0.2")
    assert (len(shares), shares.refused) == (3, 1)
    shares.leave("10.0.0.1")
    assert shares.admit("10.0.0.1")
    assert not shares.admit("10.0.0.1")


def test_all_together_have_theirs() -> None:
    shares = ConnectionShares(3)
    assert [shares.admit(f"10.0.0.{number}") for number in range(4)] == [True, True, True, False]
    shares.leave("10.0.0.0")
    assert shares.admit("10.0.0.9")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("10.0.0.1", "10.0.0.2", False),
        ("", "", True),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    shares = ConnectionShares(10, 1)
    assert shares.admit(one)
    assert shares.admit(other) is not same
    shares.leave(one)
    assert shares.admit(one) is True


def test_an_address_of_many_has_no_share_and_counts_all_the_same() -> None:
    shares = ConnectionShares(4, 1, shared=lambda address: address == "10.0.0.1")
    assert [shares.admit("10.0.0.1") for _ in range(3)] == [True, True, True]
    assert [shares.admit("10.0.0.2") for _ in range(2)] == [True, False]
    assert shares.full
    assert not shares.admit("10.0.0.1")
    for _ in range(3):
        shares.leave("10.0.0.1")
    assert (len(shares), shares.full, shares.refused) == (1, False, 2)

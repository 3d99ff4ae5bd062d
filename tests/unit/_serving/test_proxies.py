"""Whom a server believes where a call comes from."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox._serving.proxies import NO_PROXIES, TrustedProxies, read_networks
from tests.fuzzing import fuzzed, like, odd_values

OURS = TrustedProxies(("10.0.0.0/24", "2001:db8:1::/64"))
PEER = "10.0.0.1"


@pytest.mark.parametrize(
    ("forwarded", "caller"),
    [
        ((), PEER),
        (("198.51.100.7",), "198.51.100.7"),
        # What the caller itself has written stands before what the proxy adds.
        (("1.2.3.4, 198.51.100.7",), "198.51.100.7"),
        (("1.2.3.4", "198.51.100.7"), "198.51.100.7"),
        (("nonsense", "198.51.100.7"), "198.51.100.7"),
        # Several of ours, one behind the other.
        (("198.51.100.7, 10.0.0.9, 2001:db8:1::5",), "198.51.100.7"),
        (("10.0.0.8, 198.51.100.7,10.0.0.9",), "198.51.100.7"),
        # Nobody but ours: the one that began.
        (("10.0.0.8,10.0.0.9",), "10.0.0.8"),
        (("\t198.51.100.7  ",), "198.51.100.7"),
        (("198.51.100.7:4711",), "198.51.100.7"),
        (("2001:DB8:0:0::7",), "2001:db8::7"),
        (("[2001:db8::7]",), "2001:db8::7"),
        (("[2001:db8::7]:443",), "2001:db8::7"),
        (("::ffff:198.51.100.7",), "198.51.100.7"),
        (("198.51.100.7, ::ffff:10.0.0.9",), "198.51.100.7"),
        # What cannot be read says nothing.
        (("",), PEER),
        (("198.51.100.7,",), PEER),
        (("unknown",), PEER),
        (("_hidden",), PEER),
        (("198.51.100.7, unknown, 10.0.0.9",), PEER),
        (("198.51.100.07",), PEER),
        (("198.51.100.7:",), PEER),
        (("198.51.100.7:x",), PEER),
        (("[198.51.100.7]",), PEER),
        (("2001:db8::7:443, 10.0.0.9:",), PEER),
        (("fe80::7%eth0",), PEER),
        (("198.51.100.7\x00",), PEER),
        (("１９８.51.100.7",), PEER),
        ((",".join(["198.51.100.7"] + ["10.0.0.9"] * 32),), PEER),
        ((",".join(["198.51.100.7"] + ["10.0.0.9"] * 31),), "198.51.100.7"),
    ],
)
def test_the_last_that_is_none_of_ours(forwarded: tuple[str, ...], caller: str) -> None:
    assert OURS.caller(PEER, forwarded) == caller


@pytest.mark.parametrize("peer", ["10.0.1.1", "198.51.100.1", "127.0.0.1", "::1", "", "nonsense"])
def test_others_are_not_believed(peer: str) -> None:
    assert not OURS.trusts(peer)
    assert OURS.caller(peer, ("1.2.3.4",)) == peer


def test_without_the_setting_nobody_is() -> None:
    assert NO_PROXIES.caller(PEER, ("1.2.3.4",)) == PEER
    assert not NO_PROXIES.trusts(PEER)


_ADDRESSES = st.ip_addresses()
_HOPS = st.lists(_ADDRESSES.map(str) | st.sampled_from(["10.0.0.9", "unknown", ""]), max_size=5)
_PROXIES = st.lists(st.sampled_from(["10.0.0.2", "10.0.0.255", "2001:db8:1::9"]), max_size=5)
_HEADERS = st.lists(like("198.51.100.7", "10.0.0.9, 10.0.0.8", "[2001:db8::7]:443", "1.2.3.4:5"), max_size=4)


@given(said=_HOPS, caller=_ADDRESSES.filter(lambda one: not OURS.trusts(str(one))), proxies=_PROXIES)
def test_whatever_a_caller_says_its_own_address_is_the_one(
    said: list[str], caller: ipaddress.IPv4Address | ipaddress.IPv6Address, proxies: list[str]
) -> None:
    mapped = getattr(caller, "ipv4_mapped", None)
    if "%" not in str(caller) and not OURS.trusts(str(mapped or caller)):
        assert OURS.caller(PEER, (", ".join([*said, str(caller), *proxies]),)) == str(mapped or caller)


@fuzzed
@given(peer=like("10.0.0.1", "2001:db8:1::1", "198.51.100.7", ""), forwarded=_HEADERS)
def test_any_header_gives_the_peer_or_an_address(peer: str, forwarded: list[str]) -> None:
    found = OURS.caller(peer, forwarded)
    assert found == peer or (OURS.trusts(peer) and str(ipaddress.ip_address(found)) == found)


@fuzzed
@given(value=odd_values | like("10.0.0.0/8, ::1", "10.0.3.7 10.0.0.0/24", "2001:db8::/32"))
def test_any_setting_is_read_or_refused(value: Any) -> None:
    try:
        networks = read_networks(value)
    except ValueError:
        return
    assert read_networks(list(networks)) == networks
    TrustedProxies(networks)


@pytest.mark.parametrize(
    ("value", "networks"),
    [
        ("", ()),
        ([], ()),
        ("10.0.0.1", ("10.0.0.1/32",)),
        ("10.0.0.0/8, 2001:DB8::/32 ::1", ("10.0.0.0/8", "2001:db8::/32", "::1/128")),
        (["10.0.0.1", "10.0.0.1/32"], ("10.0.0.1/32",)),
    ],
)
def test_a_list_or_a_text(value: Any, networks: tuple[str, ...]) -> None:
    assert read_networks(value) == networks


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("10.0.0.1/8", "goes on behind its prefix"),
        ("balancer", "'balancer' is none"),
        ("0.0.0.0/0", "is everybody"),
        ("::/0", "is everybody"),
        (5, "^$"),
        ([5], "^$"),
    ],
)
def test_what_is_no_network_is_refused(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_networks(value)

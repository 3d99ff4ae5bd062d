"""What credentials are worth by a book, and how many bad ones an address has."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.access import Grant, Permission, Role
from modelbox.accounts import Account, AccountGrant, TokenInfo
from modelbox.errors import NotAuthenticated
from modelbox.runtime.access_ports import AccessState, StoredToken
from modelbox.runtime.services.access_book import (
    EMPTY_BOOK,
    SKEW_S,
    AccessBook,
    Credentials,
    FailureCount,
    read_credentials,
)
from modelbox.tokens import Token
from tests.faults.registry import fault

NOW = datetime(2026, 5, 3, tzinfo=UTC)
HOUR = timedelta(hours=1)
TOKEN, NARROW, OTHERS = Token.new(), Token.new(), Token.new()


def account(name: str, **changes: object) -> Account:
    made = Account(name=name, created_at=NOW, created_by="admin", mod_rev=1)
    return replace(made, **changes)  # type: ignore[arg-type]  # as the test gives them


def stored(token: Token, name: str, **changes: object) -> StoredToken:
    info = TokenInfo(id=token.kid, account=name, created_at=NOW, created_by="admin", expires_at=NOW + HOUR, mod_rev=1)
    return StoredToken(digest=token.digest, info=replace(info, **changes))  # type: ignore[arg-type]  # the same


def grant(name: str, role: Role, namespace: str = "") -> AccountGrant:
    return AccountGrant(account=name, namespace=namespace, role=role, granted_at=NOW, granted_by="admin", mod_rev=1)


STATE = AccessState(
    accounts=(account("ada", certificate_names=("ada.example", "both.example")), account("bob"), account("eve")),
    grants=(grant("ada", Role.PROMOTER, "speech"), grant("ada", Role.READER, "vision"), grant("bob", Role.ADMIN)),
    tokens=(
        stored(TOKEN, "ada"),
        stored(NARROW, "bob", role=Role.WRITER, namespaces=("speech",)),
        stored(OTHERS, "eve"),
    ),
)
BOOK = AccessBook(STATE)


def given_with(authorization: str = "", *certificate_names: str) -> Credentials:
    return read_credentials(
        authorization, declared="root", address="10.0.0.1", certificate_names=tuple(certificate_names)
    )


def bearer(token: Token) -> Credentials:
    return given_with(f"Bearer {token.reveal()}")


def at(moment: datetime) -> float:
    return moment.timestamp()


def test_a_token_is_its_account_with_its_roles_whatever_the_caller_says_of_itself() -> None:
    caller = BOOK.caller(bearer(TOKEN), at(NOW))
    assert (caller.name, caller.token_id, caller.address) == ("ada", TOKEN.kid, "10.0.0.1")
    assert caller.grants == (
        Grant(namespace="speech", role=Role.PROMOTER),
        Grant(namespace="vision", role=Role.READER),
    )


def test_a_narrow_token_of_an_admin_is_narrow() -> None:
    caller = BOOK.caller(bearer(NARROW), at(NOW))
    assert caller.grants == (Grant(namespace="speech", role=Role.WRITER),)
    assert not caller.may(Permission.READ, "vision")


def test_an_account_without_roles_is_known_and_may_nothing() -> None:
    assert BOOK.caller(bearer(OTHERS), at(NOW)).grants == ()


@fault(68)
@pytest.mark.parametrize(
    "authorization",
    [
        "Basic YWRhOmFkYQ==",
        "Bearer",
        "Bearer ",
        "Bearer mbx_",
        "bearer " + TOKEN.reveal()[:-1],
        "Bearer " + TOKEN.reveal() + " x",
        f"Bearer {TOKEN.reveal()}, Bearer {TOKEN.reveal()}",
        TOKEN.reveal(),
        "Bearer " + Token(kid=TOKEN.kid, secret=NARROW.secret).reveal(),
        "Bearer " + Token(kid=NARROW.kid, secret=TOKEN.secret).reveal(),
        "Bearer " + Token.new().reveal(),
        "Bearer " + "x" * 100_000,
    ],
    # Tokens are made anew for each process that runs tests, and all must have the same list of them.
    ids=lambda authorization: "given",
)
def test_what_is_not_quite_a_token_is_nobody_and_is_not_repeated(authorization: str) -> None:
    credentials = given_with(authorization, "ada.example")
    with pytest.raises(NotAuthenticated) as caught:
        BOOK.caller(credentials, at(NOW))
    said = str(caught.value) + repr(credentials)
    assert TOKEN.secret not in said
    assert NARROW.secret not in said
    assert credentials.digest.hex() not in said


def test_an_unknown_token_and_a_wrong_secret_are_told_the_same() -> None:
    texts = set()
    for token in (Token.new(), Token(kid=TOKEN.kid, secret=Token.new().secret)):
        with pytest.raises(NotAuthenticated) as caught:
            BOOK.caller(bearer(token), at(NOW))
        texts.add(str(caught.value).replace(token.kid, "KID"))
    assert len(texts) == 1


@given(st.text(max_size=300))
def test_any_header_is_read_and_only_good_ones_are_somebody(text: str) -> None:
    with pytest.raises(NotAuthenticated):
        BOOK.caller(given_with(text), at(NOW))


@fault(68)
def test_a_token_ends_a_little_after_its_time_as_clocks_differ() -> None:
    credentials = bearer(TOKEN)
    end = at(NOW + HOUR)
    assert BOOK.caller(credentials, end + SKEW_S - 1).name == "ada"
    with pytest.raises(NotAuthenticated, match="expired"):
        BOOK.caller(credentials, end + SKEW_S)
    caller = BOOK.caller(credentials, at(NOW))
    assert BOOK.expires(caller) == end + SKEW_S
    with pytest.raises(NotAuthenticated, match="expired"):
        BOOK.renewed(caller, end + SKEW_S)


def test_the_same_credentials_are_looked_up_anew_in_another_book() -> None:
    credentials = bearer(TOKEN)
    assert BOOK.caller(credentials, at(NOW)) is BOOK.caller(credentials, at(NOW))
    without = AccessBook(replace(STATE, tokens=()))
    with pytest.raises(NotAuthenticated):
        without.caller(credentials, at(NOW))
    more = AccessBook(replace(STATE, grants=(*STATE.grants, grant("ada", Role.ADMIN))))
    assert more.caller(credentials, at(NOW)).may(Permission.ADMIN)
    assert not BOOK.caller(credentials, at(NOW)).may(Permission.ADMIN)


def test_a_disabled_account_is_nobody_by_token_and_by_certificate() -> None:
    book = AccessBook(replace(STATE, accounts=(replace(STATE.accounts[0], disabled=True), *STATE.accounts[1:])))
    for credentials in (bearer(TOKEN), given_with("", "ada.example")):
        with pytest.raises(NotAuthenticated, match="disabled"):
            book.caller(credentials, at(NOW))
    with pytest.raises(NotAuthenticated, match="disabled"):
        book.renewed(BOOK.caller(bearer(TOKEN), at(NOW)), at(NOW))


def test_a_certificate_is_its_account_unless_a_token_is_shown() -> None:
    caller = BOOK.caller(given_with("", "other.example", "ada.example"), at(NOW))
    assert (caller.name, caller.token_id) == ("ada", "")
    assert BOOK.expires(caller) is None
    assert BOOK.renewed(caller, at(NOW)) == caller
    shown = read_credentials(f"Bearer {NARROW.reveal()}", declared="", address="", certificate_names=("ada.example",))
    assert BOOK.caller(shown, at(NOW)).name == "bob"
    for names in (["nobody.example"], []):
        with pytest.raises(NotAuthenticated):
            BOOK.caller(given_with("", *names), at(NOW))


def test_names_of_two_accounts_in_one_certificate_are_nobody() -> None:
    accounts = (*STATE.accounts[:2], account("eve", certificate_names=("eve.example",)))
    book = AccessBook(replace(STATE, accounts=accounts))
    assert book.caller(given_with("", "ada.example", "both.example"), at(NOW)).name == "ada"
    with pytest.raises(NotAuthenticated, match="two accounts"):
        book.caller(given_with("", "ada.example", "eve.example"), at(NOW))


def test_who_goes_on_for_long_has_the_roles_of_now() -> None:
    caller = BOOK.caller(bearer(TOKEN), at(NOW))
    less = AccessBook(replace(STATE, grants=(grant("ada", Role.READER, "vision"),)))
    assert less.renewed(caller, at(NOW)).grants == (Grant(namespace="vision", role=Role.READER),)
    with pytest.raises(NotAuthenticated):
        AccessBook(replace(STATE, tokens=())).renewed(caller, at(NOW))
    with pytest.raises(NotAuthenticated):
        EMPTY_BOOK.renewed(replace(caller, token_id=""), at(NOW))


# -- bad credentials by address --------------------------------------------------------------------------------------


def test_after_some_bad_credentials_an_address_has_to_wait_and_then_may_again() -> None:
    count = FailureCount(burst=3, per_s=0.5)
    assert [count.add("10.0.0.1", 100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert count.add("10.0.0.1", 100.0) == 2.0
    assert count.add("10.0.0.1", 100.0) == 2.0
    assert count.add("10.0.0.2", 100.0) == 0.0
    assert count.add("10.0.0.1", 102.0) == 0.0
    assert count.add("10.0.0.1", 102.0) > 0.0
    assert [count.add("10.0.0.1", 1000.0) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_a_network_of_ipv6_counts_as_one_address_and_ipv4_in_it_by_itself() -> None:
    count = FailureCount(burst=1)
    assert count.add("2001:db8::1", 0.0) == 0.0
    assert count.add("2001:db8::2", 0.0) > 0.0
    assert count.add("2001:db8:0:1::1", 0.0) == 0.0
    assert count.add("::ffff:10.0.0.1", 0.0) == 0.0
    assert count.add("::ffff:10.0.0.2", 0.0) == 0.0
    assert count.add("", 0.0) == 0.0


def test_a_flood_of_addresses_takes_no_memory() -> None:
    count = FailureCount(max_addresses=100)
    for number in range(10_000):
        count.add(f"10.{number >> 8}.{number & 255}.1", 0.0)
    assert len(count) == 100

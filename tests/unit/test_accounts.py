"""What is left of roles in a token that is narrower than its account."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelbox.access import Caller, Grant, Permission, Role
from modelbox.accounts import CreatedToken, narrowed

NAMES = st.sampled_from(["", "a", "b", "c"])
GRANTS = st.lists(
    st.builds(
        lambda namespace, model, role: Grant(namespace=namespace, model=model if namespace else "", role=role),
        NAMES,
        st.sampled_from(["", "m", "n"]),
        st.sampled_from(list(Role)),
    ),
    max_size=5,
)
PLACES = [("", ""), *((namespace, model) for namespace in "abc" for model in ("", "m", "n"))]


@given(GRANTS, st.none() | st.sampled_from(list(Role)), st.sets(st.sampled_from("abc")))
def test_a_token_may_what_both_it_and_its_account_may(
    grants: list[Grant], role: Role | None, namespaces: set[str]
) -> None:
    account = Caller(name="ada", grants=tuple(grants))
    token = Caller(name="ada", grants=narrowed(grants, role, namespaces))
    for permission in Permission:
        for namespace, model in PLACES:
            inside = (not namespaces or namespace in namespaces) and (role is None or role.allows(permission))
            expected = inside and account.may(permission, namespace, model)
            assert token.may(permission, namespace, model) is expected, (permission, namespace, model)


@given(GRANTS)
def test_without_a_narrowing_nothing_is_lost(grants: list[Grant]) -> None:
    token = Caller(name="ada", grants=narrowed(grants, None, ()))
    assert token.scope == Caller(name="ada", grants=tuple(grants)).scope


def test_a_created_token_is_not_printed() -> None:
    assert "secret" not in repr(CreatedToken(token="secret", info=None))  # type: ignore[arg-type]  # is not looked at

"""Roles, grants and scopes: what they allow, and that scopes can be told apart."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.access import ALL, ANYBODY, Caller, Grant, Permission, Role, Scope

NAMES = ("a", "b")
GRANTS = [
    Grant(namespace=namespace, model=model, role=role)
    for namespace in ("", *NAMES)
    for model in ("", "m")
    for role in Role
    if namespace or not model
]
NEEDED = {Permission.READ: Role.READER, Permission.WRITE: Role.WRITER, Permission.PROMOTE: Role.PROMOTER}


@pytest.mark.parametrize("permission", Permission)
@pytest.mark.parametrize("role", Role)
def test_a_role_has_the_permissions_of_the_roles_below_it(role: Role, permission: Permission) -> None:
    order = ["reader", "writer", "promoter", "admin"]
    needed = NEEDED.get(permission, Role.ADMIN)
    assert role.allows(permission) is (order.index(role) >= order.index(needed))


@given(st.lists(st.sampled_from(GRANTS), max_size=4))
def test_a_scope_shows_what_its_caller_may_read(grants: list[Grant]) -> None:
    caller = Caller(name="ada", grants=tuple(grants))
    scope = caller.scope
    for namespace, model in itertools.product(NAMES, ("", "m", "n")):
        assert scope.shows(namespace, model) is caller.may(Permission.READ, namespace, model)
        assert scope.shows(namespace, model) is any(
            grant.namespace in ("", namespace) and grant.model in ("", model) for grant in grants
        )
    for namespace in NAMES:
        assert scope.shows_namespace(namespace) is any(grant.namespace in ("", namespace) for grant in grants)
    for namespace in ("", *NAMES):
        assert scope.shows_access(namespace) is caller.may(Permission.ADMIN, namespace)
    assert all(namespace not in scope.namespaces for namespace, _ in scope.models)


@given(st.lists(st.sampled_from(GRANTS), max_size=4), st.lists(st.sampled_from(GRANTS), max_size=4))
def test_marks_are_the_same_for_the_same_scope_only(one: list[Grant], other: list[Grant]) -> None:
    first, second = Caller(name="a", grants=tuple(one)).scope, Caller(name="b", grants=tuple(other)).scope
    assert (first.mark == second.mark) is (first == second)
    assert (first.mark == "") is (first == ALL)


def test_whoever_nobody_asks_sees_everything() -> None:
    assert ANYBODY.scope == ALL
    assert ALL.shows_access("")
    assert not Scope(everything=True).shows_access("")
    assert not Scope(everything=True).shows_access("a")

"""What an answer that something is not there tells of what there is."""

from __future__ import annotations

import pytest

from modelbox.access import ALL, Scope
from modelbox.errors import ConflictError, NotFoundError
from modelbox.runtime.absence import hide, missing

SCOPE = Scope(namespaces=frozenset({"alpha"}), models=frozenset({("beta", "m")}))


@pytest.mark.parametrize(
    ("what", "plural", "exists", "shown"),
    [
        ("namespace", "namespaces", ["alpha", "beta", "gamma"], ["alpha", "beta"]),
        ("namespace", "namespaces", ["gamma"], []),
        ("model", "models", ["beta/a", "beta/m", "beta/z"], ["beta/m"]),
        ("model", "models", ["alpha/a", "alpha/m"], ["alpha/a", "alpha/m"]),
        ("experiment", "experiments", ["beta/e"], []),
        ("dataset", "datasets", ["alpha/d"], ["alpha/d"]),
    ],
)
def test_only_what_may_be_seen_is_listed(what: str, plural: str, exists: list[str], shown: list[str]) -> None:
    error = missing(what, "x", plural, exists)
    hidden = hide(error, SCOPE)
    assert hidden.to_dict() == missing(what, "x", plural, shown).to_dict()
    assert all(name in hidden.message for name in shown)
    assert not any(name in hidden.message.split() for name in set(exists) - set(shown))
    assert hide(error, ALL) is error
    assert hide(error, Scope(everything=True)) is error


def test_what_lies_inside_of_what_was_asked_for_is_told() -> None:
    files = NotFoundError("m has no file x", what="file", name="x", exists=["a.bin", "b.bin"])
    nothing = NotFoundError("no run", what="run", name="x")
    conflict = ConflictError("no", exists=["gamma"])
    for error in (files, nothing, conflict):
        assert hide(error, SCOPE) is error

"""Who may do what: roles, grants, and what a caller sees.

Pure: decides by what it is given. Who a caller is (a token, a certificate) is found out elsewhere.

Invariants:

* What nothing grants is denied.
* A role holds all permissions of the roles below it.
* Who may not read something is answered as if it were not there.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from modelbox.errors import InvalidError
from modelbox.refs import check_name, shown

__all__ = ("ALL", "ANYBODY", "Caller", "Grant", "Permission", "Role", "Scope", "check_grant")


class Permission(StrEnum):
    """What a call needs.

    ``read``: resolve, list, watch, download. ``write``: register, log, upload, move aliases that are not protected.
    ``promote``: move protected aliases. ``admin``: grants, tokens, rules, removal for good.
    """

    READ = "read"
    WRITE = "write"
    PROMOTE = "promote"
    ADMIN = "admin"

    def __init__(self, _: str) -> None:
        # The role of the same level is the lowest that has it. Enums are slow as keys, and this is asked all the time.
        self.level = len(type(self).__members__)


class Role(StrEnum):
    """What somebody is in a namespace or of a model; each has the permissions of those before it."""

    READER = "reader"
    WRITER = "writer"
    PROMOTER = "promoter"
    ADMIN = "admin"

    def __init__(self, _: str) -> None:
        self.level = len(type(self).__members__)

    @classmethod
    def parse(cls, text: str) -> Role:
        """Reads a role.

        Raises:
            InvalidError: There is no such role.
        """
        try:
            return cls(text)
        except ValueError:
            names = ", ".join(cls)
            raise InvalidError(f"{shown(text)} is not a role: expected one of {names}", what="role") from None

    @property
    def rank(self) -> int:
        """Higher for roles with more permissions."""
        return self.level

    def allows(self, permission: Permission) -> bool:
        """Whether the role has a permission."""
        return self.level >= permission.level


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Grant:
    """A role in a namespace.

    Attributes:
        namespace: Where; empty for all, and for what belongs to no namespace.
        model: Of this model only; empty for the whole namespace.
    """

    namespace: str = ""
    model: str = ""
    role: Role

    def __str__(self) -> str:
        where = f"{self.namespace}/{self.model}" if self.model else self.namespace or "*"
        return f"{self.role} of {where}"

    def covers(self, namespace: str, model: str) -> bool:
        """Whether it holds for a model, or for a namespace as a whole where ``model`` is empty."""
        return not self.namespace or (self.namespace == namespace and (not self.model or self.model == model))


def check_grant(grant: Grant) -> Grant:
    """Returns ``grant`` if it can be given.

    Raises:
        InvalidError: A name is not valid, or a model is named without its namespace.
    """
    if grant.namespace:
        check_name(grant.namespace, "namespace")
    if grant.model:
        if not grant.namespace:
            raise InvalidError(f"a role of the model {shown(grant.model)} needs its namespace", what="model")
        check_name(grant.model, "model")
    return grant


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a caller may read, as lists and watches use it to leave out the rest.

    Attributes:
        everything: All of it; then ``namespaces`` and ``models`` are empty.
        namespaces: These as a whole.
        models: These alone, as namespace and name, in namespaces that are not among the others.
        administers: Where the caller also sees who may do what, and who was denied it; an empty name is everywhere.
    """

    everything: bool = False
    namespaces: frozenset[str] = frozenset()
    models: frozenset[tuple[str, str]] = frozenset()
    administers: frozenset[str] = frozenset()

    def shows_namespace(self, namespace: str) -> bool:
        """Whether the namespace's name may be seen: something in it may be read."""
        return self.everything or namespace in self.namespaces or any(namespace == inside for inside, _ in self.models)

    def shows(self, namespace: str, model: str = "") -> bool:
        """Whether what is in ``namespace`` may be read; what is of no model has an empty one."""
        return self.everything or namespace in self.namespaces or (bool(model) and (namespace, model) in self.models)

    def shows_access(self, namespace: str) -> bool:
        """Whether what is said there about roles, rules and denials may be read; an empty name is the server itself."""
        return "" in self.administers or (bool(namespace) and namespace in self.administers)

    @property
    def mark(self) -> str:
        """A short text, another one for another scope; empty for `ALL`."""
        return "" if self == ALL else _mark(self)


@lru_cache(maxsize=4096)
def _mark(scope: Scope) -> str:
    parts = [scope.everything, sorted(scope.namespaces), sorted(scope.models), sorted(scope.administers)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


ALL = Scope(everything=True, administers=frozenset({""}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes a call, and what they may do.

    Attributes:
        name: The account; what the caller says of itself where there is no access control.
        token_id: The public part of the token it came with; empty for a certificate, or without access control.
        address: Where the call comes from, without a port; empty if that is unknown.
        grants: Everything that is granted.
    """

    name: str
    token_id: str = ""
    address: str = ""
    grants: tuple[Grant, ...] = ()

    def may(self, permission: Permission, namespace: str = "", model: str = "") -> bool:
        """Whether a grant allows it on a model, on what is of no model, or on the server (both empty)."""
        level = permission.level
        for grant in self.grants:  # noqa: SIM110  # a generator takes twice as long
            if grant.role.level >= level and grant.covers(namespace, model):
                return True
        return False

    @property
    def scope(self) -> Scope:
        """What may be read."""
        readable = [grant for grant in self.grants if grant.role.allows(Permission.READ)]
        administers = frozenset(grant.namespace for grant in self.grants if _administers(grant))
        if "" in administers:
            return ALL
        if any(not grant.namespace for grant in readable):
            return Scope(everything=True, administers=administers)
        namespaces = frozenset(grant.namespace for grant in readable if not grant.model)
        models = frozenset((grant.namespace, grant.model) for grant in readable if grant.model)
        return Scope(
            namespaces=namespaces,
            models=frozenset(pair for pair in models if pair[0] not in namespaces),
            administers=administers,
        )


def _administers(grant: Grant) -> bool:
    return not grant.model and grant.role.allows(Permission.ADMIN)


ANYBODY = Caller(name="", grants=(Grant(role=Role.ADMIN),))
"""Where there is no access control, and inside of the server: may do everything."""

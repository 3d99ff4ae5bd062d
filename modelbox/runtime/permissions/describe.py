"""The table of permissions as people read it, in ``docs/permissions.md``."""

from __future__ import annotations

from collections.abc import Mapping

from modelbox.access import Permission, Role
from modelbox.runtime.permissions.rules import Need, Rule
from modelbox.runtime.permissions.table import CALLS, ROUTES

__all__ = ("permissions_tables",)

_ROLES = dict(zip(Permission, Role, strict=True))


def permissions_tables() -> str:
    """The tables of methods and routes as Markdown."""
    return (
        "## gRPC\n\n"
        + _table("method", CALLS)
        + "\n\n## HTTP\n\nHEAD needs what GET needs.\n\n"
        + _table("route", ROUTES)
    )


def _table(what: str, rows: Mapping[str, Rule]) -> str:
    lines = [f"| {what} | role | on |", "|---|---|---|"]
    lines += [f"| `{name}` | {_roles(rule)} | {_things(rule)} |" for name, rule in rows.items()]
    return "\n".join(lines)


def _roles(rule: Rule) -> str:
    if not rule.token:
        return "no token"
    if rule.screened:
        return "as each operation's own call"
    return ", ".join(dict.fromkeys(_ROLES[need.permission].value for need in rule.needs)) or "any token"


def _things(rule: Rule) -> str:
    several = len({need.permission for need in rule.needs}) > 1
    return "; ".join((f"{_ROLES[need.permission]}: " if several else "") + _thing(need) for need in rule.needs)


def _thing(need: Need) -> str:
    fields = ", ".join(f"`{field}`" for field in need.on.fields)
    about = f"{need.on.about} ({fields})" if fields else need.on.about
    if need.listing:
        about += "; lists what may be read"
    if need.somewhere:
        about += "; or on a model of it"
    return about

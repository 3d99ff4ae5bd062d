"""The use cases of rules: what versions must have, protected aliases, and moves that wait for a second person.

Owns the checks of what callers send. Whether a rule holds for a change is asked in the change's own transaction
(`modelbox.runtime.store.guard`); who may call what here is asked at the boundary, but for
the role that approving needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from modelbox.access import ALL, Scope
from modelbox.errors import InvalidError
from modelbox.objects import Page
from modelbox.refs import check_alias, check_name, shown
from modelbox.rules import (
    AliasProtection,
    AliasRequest,
    Missing,
    Rule,
    check_pattern,
    check_rule,
    check_rule_scope,
)
from modelbox.runtime.caller import current_caller
from modelbox.runtime.limits import check_text
from modelbox.runtime.rule_ports import RuleStore
from modelbox.runtime.services.naming import check_actor
from modelbox.runtime.services.paging import decode_key, page_of, page_size_of

__all__ = ("RuleService",)

T = TypeVar("T", Rule, AliasProtection)


def _now() -> datetime:
    return datetime.now(UTC)


class RuleService:
    """Rules, protections and requests.

    Args:
        store: Where they are kept.
        clock: Gives the time of a change, aware and in UTC.
    """

    def __init__(self, store: RuleStore, *, clock: Callable[[], datetime] = _now) -> None:
        self._store = store
        self._clock = clock

    # -- rules -----------------------------------------------------------------------------------------------------

    async def set_rule(self, rule: Rule, *, actor: str) -> Rule:
        """Makes a rule, or replaces the one of its scope and alias; it holds from the next change on.

        The namespace or model need not exist yet, and the rule outlives it. What was published before stays.

        Raises:
            InvalidError: It asks for nothing, or for what cannot be.
        """
        return await self._store.set_rule(check_rule(rule), actor=check_actor(actor), at=self._clock())

    async def list_rules(self, about: str = "", *, scope: Scope = ALL) -> Sequence[Rule]:
        """Rules by scope and alias: of a namespace and its models, those that hold for a model, or all.

        Args:
            about: ``namespace``, ``namespace/model``, or empty.
            scope: What the caller may read; the rest is left out.
        """
        if about:
            check_rule_scope(about)
        return _shown(await self._store.list_rules(about), about, scope)

    async def delete_rule(self, about: str, alias: str = "", *, actor: str) -> None:
        """Removes a rule.

        Raises:
            NotFoundError: There is none; ``exists`` lists those of the scope.
        """
        check_rule_scope(about)
        if alias:
            check_pattern(alias)
        await self._store.delete_rule(about, alias, actor=check_actor(actor), at=self._clock())

    async def check_rules(self, namespace: str, model: str, version: int, alias: str = "") -> tuple[Missing, ...]:
        """What a version lacks for having an alias, or for being published as it is where that is empty.

        Raises:
            NotFoundError: There is no such version.
        """
        _check_path(namespace, model)
        if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version < 2**63:
            raise InvalidError(f"{shown(version)} is not the number of a version", what="version")
        if alias:
            check_alias(alias)
        return await self._store.check_rules(namespace, model, version, alias, caller=current_caller())

    # -- protected aliases -----------------------------------------------------------------------------------------

    async def protect_alias(self, about: str, alias: str, *, approval: bool = False, actor: str) -> AliasProtection:
        """Lets only promoters move some aliases; with ``approval``, only two of them together.

        Args:
            about: ``namespace`` or ``namespace/model``.
            alias: A name, or a pattern such as ``prod*``.
            approval: A move waits until a second promoter approves it.
            actor: Who.
        """
        protection = AliasProtection(scope=check_rule_scope(about), alias=check_pattern(alias), approval=approval)
        return await self._store.protect_alias(protection, actor=check_actor(actor), at=self._clock())

    async def list_protections(self, about: str = "", *, scope: Scope = ALL) -> Sequence[AliasProtection]:
        """As `list_rules`; those of the server's settings come first, with an empty scope."""
        if about:
            check_rule_scope(about)
        return _shown(await self._store.list_protections(about), about, scope)

    async def unprotect_alias(self, about: str, alias: str, *, actor: str) -> None:
        """Removes a protection.

        Raises:
            NotFoundError: There is none; ``exists`` lists those of the scope.
            ConflictError: The server's settings protect it.
        """
        check_rule_scope(about)
        check_pattern(alias)
        await self._store.unprotect_alias(about, alias, actor=check_actor(actor), at=self._clock())

    # -- requests --------------------------------------------------------------------------------------------------

    async def list_requests(
        self,
        namespace: str,
        model: str,
        *,
        alias: str = "",
        everything: bool = False,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[AliasRequest]:
        """Moves that wait for a second person, newest first.

        Args:
            namespace: Of the model.
            model: Its name.
            alias: Of this one only.
            everything: Also those that wait for nobody any more.
            page_size: 1 to 1000; 0 for 100.
            page_token: Where the page before ended.

        Raises:
            NotFoundError: There is no such model.
        """
        _check_path(namespace, model)
        if alias:
            check_alias(alias)
        listing = f"requests:{namespace}/{model}@{alias}:{everything}"
        return page_of(
            listing,
            await self._store.list_requests(
                namespace,
                model,
                alias=alias,
                everything=everything,
                at=self._clock(),
                limit=page_size_of(page_size),
                after=decode_key(listing, page_token, int),
            ),
        )

    async def approve_request(
        self, namespace: str, model: str, request_id: str, *, comment: str = "", actor: str
    ) -> AliasRequest:
        """Moves an alias as somebody else asked for, in one transaction.

        Raises:
            AuthError: The caller is no promoter, or the one who asked.
            NotFoundError: There is no such request, or the version is gone.
            ConflictError: It was approved or rejected already, has expired, or the alias moved meanwhile.
            RuleError: The version lacks what a rule asks for by now.
        """
        _check_request(namespace, model, request_id, comment)
        return await self._store.approve_request(
            namespace,
            model,
            request_id,
            comment=comment,
            caller=current_caller(),
            actor=check_actor(actor),
            at=self._clock(),
        )

    async def reject_request(
        self, namespace: str, model: str, request_id: str, *, comment: str = "", actor: str
    ) -> AliasRequest:
        """Refuses a move; whoever asked for it takes it back so.

        Raises:
            AuthError: The caller is neither a promoter nor the one who asked.
            NotFoundError: There is no such request.
            ConflictError: As in `approve_request`.
        """
        _check_request(namespace, model, request_id, comment)
        return await self._store.reject_request(
            namespace,
            model,
            request_id,
            comment=comment,
            caller=current_caller(),
            actor=check_actor(actor),
            at=self._clock(),
        )


def _shown(found: Sequence[T], about: str, scope: Scope) -> list[T]:
    """What the caller may know of: also what a namespace says of a model that they may read."""
    namespace, slash, model = about.partition("/")
    if slash and scope.shows(namespace, model):
        return list(found)
    return [one for one in found if not one.scope or scope.shows(*one.scope.split("/", 1))]


def _check_path(namespace: str, model: str) -> None:
    check_name(namespace, "namespace")
    check_name(model, "model")


def _check_request(namespace: str, model: str, request_id: str, comment: str) -> None:
    _check_path(namespace, model)
    check_text(request_id, "request", max_chars=40)
    check_text(comment, "comment", max_chars=1024)

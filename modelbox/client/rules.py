"""What versions must have, protected aliases, and moves that wait for a second person, as methods of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from modelbox.client.arguments import model_of, numbered
from modelbox.client.connection import ClientConnection
from modelbox.refs import ModelRef
from modelbox.rules import AliasProtection, AliasRequest, Missing, Rule

__all__ = ("RuleCalls",)


class RuleCalls(ClientConnection):
    """The part of `Client` about rules."""

    async def set_rule(
        self,
        scope: str,
        *,
        alias: str = "",
        labels: Sequence[str] = (),
        metadata: Sequence[str] = (),
        owner: bool = False,
        description: bool = False,
        dataset: bool = False,
        signed: bool = False,
    ) -> Rule:
        """Says what versions must have; replaces the rule of the same scope and alias.

        A version that lacks something cannot be published, or cannot be what the alias points to; the error lists what
        is missing. What was published or promoted before stays.

        Args:
            scope: ``namespace``, or ``namespace/model``, whose rules add to its namespace's.
            alias: Which aliases must point to such versions only: a name, or a pattern such as ``prod*``. Empty: every
                version that is published must be so.
            labels: Keys of labels that must have a value.
            metadata: Keys of metadata that must have a value.
            owner: The model must say who answers for it.
            description: The version must be described.
            dataset: It must be made from a version of a dataset, by lineage or by its metadata ``dataset``.
            signed: Somebody must have signed it; by whom is not asked here.

        Raises:
            InvalidError: The rule asks for nothing, or for what cannot be.
            AuthError: The caller is no admin there.
        """
        rule = Rule(
            scope=scope,
            alias=alias,
            labels=tuple(labels),
            metadata=tuple(metadata),
            owner=owner,
            description=description,
            dataset=dataset,
            signed=signed,
        )
        return await self._call(lambda source: source.rules.set_rule(rule))

    async def list_rules(self, scope: str = "") -> tuple[Rule, ...]:
        """Rules: of a namespace and its models, those that hold for ``namespace/model``, or all."""
        return await self._call(lambda source: source.rules.list_rules(scope))

    async def delete_rule(self, scope: str, *, alias: str = "") -> None:
        """Removes a rule.

        Raises:
            NotFoundError: There is none; says what there is.
        """
        await self._call(lambda source: source.rules.delete_rule(scope, alias))

    async def check_rules(self, ref: str | ModelRef, *, alias: str = "") -> tuple[Missing, ...]:
        """What a version (``namespace/model@7``) lacks for having an alias; empty if that may point to it.

        Args:
            ref: The version.
            alias: Empty: what it would lack if it were published now.

        Raises:
            NotFoundError: The version does not exist.
        """
        namespace, name, version = numbered(ref)
        return await self._call(lambda source: source.rules.check_rules(namespace, name, version, alias))

    async def protect_alias(self, scope: str, alias: str, *, approval: bool = False) -> AliasProtection:
        """Lets only promoters move some aliases.

        Args:
            scope: ``namespace`` or ``namespace/model``.
            alias: A name, or a pattern such as ``prod*``.
            approval: A move waits until a second promoter approves it: `promote` then raises `ApprovalNeeded`.

        Raises:
            AuthError: The caller is no admin there.
        """
        return await self._call(lambda source: source.rules.protect_alias(scope, alias, approval=approval))

    async def list_protections(self, scope: str = "") -> tuple[AliasProtection, ...]:
        """Protected aliases, as `list_rules`; what the server's settings protect everywhere has an empty scope."""
        return await self._call(lambda source: source.rules.list_protections(scope))

    async def unprotect_alias(self, scope: str, alias: str) -> None:
        """Removes a protection.

        Raises:
            NotFoundError: There is none; says what there is.
            ConflictError: The server's settings protect it.
        """
        await self._call(lambda source: source.rules.unprotect_alias(scope, alias))

    def iter_alias_requests(
        self, path: str, alias: str = "", *, everything: bool = False
    ) -> AsyncIterator[AliasRequest]:
        """Moves of a model's aliases that wait for a second person, newest first.

        Args:
            path: ``namespace/model``.
            alias: Only this one; empty for all.
            everything: Also those that wait for nobody any more.
        """
        namespace, name = model_of(path)
        return self._pages(
            lambda source, token: source.rules.list_requests(
                namespace, name, alias=alias, everything=everything, page_token=token
            )
        )

    async def approve_alias(self, path: str, request: str, *, comment: str = "") -> AliasRequest:
        """Moves an alias as somebody else asked for.

        Args:
            path: ``namespace/model``.
            request: Its id, from `iter_alias_requests` or from the error of who asked.
            comment: For its history.

        Raises:
            AuthError: The caller is no promoter, or the one who asked.
            ConflictError: It was decided already, has expired, or the alias moved meanwhile.
            RuleError: The version lacks what a rule asks for by now.
            NotFoundError: There is no such request, or the version is gone.
        """
        namespace, name = model_of(path)
        return await self._call(lambda source: source.rules.approve_request(namespace, name, request, comment))

    async def reject_alias(self, path: str, request: str, *, comment: str = "") -> AliasRequest:
        """Refuses a move, or takes back one's own request; arguments and errors as in `approve_alias`."""
        namespace, name = model_of(path)
        return await self._call(lambda source: source.rules.reject_request(namespace, name, request, comment))

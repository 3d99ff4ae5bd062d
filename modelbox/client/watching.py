"""What happens, and who serves what, as methods of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from modelbox.changes import ChangeFeed
from modelbox.client.connection import ClientConnection
from modelbox.errors import InvalidError
from modelbox.feed import Filter
from modelbox.objects import (
    Instance,
    Member,
)

__all__ = ("WatchCalls",)


class WatchCalls(ClientConnection):
    """The part of `Client` about changes, the fleet and the servers."""

    def changes(
        self,
        token: str = "",
        *,
        namespace: str = "",
        objects: Sequence[str] = (),
        kinds: Sequence[str] = (),
        list_first: bool = False,
    ) -> ChangeFeed:
        """Follows what ModelBox does, across broken connections and restarts of the server.

        Args:
            token: Go on after this place: a `ChangeFeed.token` kept before. Empty: from now on.
            namespace: Only of this namespace.
            objects: Only of these: ``namespace/model`` takes in its versions, aliases and downloads.
            kinds: Only of these kinds, see `modelbox.feed.Kind`.
            list_first: Begin with the current state of everything. Not with a ``token``.
        """
        if token and list_first:
            raise InvalidError("changes() begins either at a token or with a list, not both")
        wanted = Filter(namespace=namespace, objects=tuple(objects), kinds=tuple(kinds))
        return ChangeFeed(self, wanted, token=token, list_first=list_first)

    def iter_instances(self, path: str = "", *, include_lost: bool = False) -> AsyncIterator[Instance]:
        """Which process serves which version now.

        Args:
            path: A namespace or ``namespace/model``; empty for all.
            include_lost: Also processes that have been silent for too long.
        """
        return self._pages(
            lambda source, token: source.grpc.list_instances(path, include_lost=include_lost, page_token=token)
        )

    async def list_members(self) -> tuple[Member, ...]:
        """The servers that share the database of the one that answers, with those that were lost within the last hour.

        One server alone is its only member.
        """
        return await self._call(lambda source: source.grpc.list_members())

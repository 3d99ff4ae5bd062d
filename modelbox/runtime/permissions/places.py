"""Where objects are, by their ids: asked once, as objects never move and ids are never given again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Protocol

from modelbox.runtime.permissions.targets import Place

__all__ = ("PlaceStore", "Places")

_MAX_KNOWN = 100_000


class PlaceStore(Protocol):
    """Knows where things are."""

    async def find_places(self, ids: Collection[str]) -> Mapping[str, Place]:
        """Where these are, in the bin or not; those that are not there are left out.

        Args:
            ids: Of objects, events, comments and uploads.
        """


class Places:
    """Remembers places; what is not there is asked for again, as it may come.

    Args:
        store: Knows them.
        max_known: How many are remembered; those that were not used for longest are forgotten first.
    """

    def __init__(self, store: PlaceStore, *, max_known: int = _MAX_KNOWN) -> None:
        self._store = store
        self._max_known = max_known
        self._known: OrderedDict[str, Place] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def known(self, uid: str) -> Place | None:
        """Where this is, if that was asked before."""
        place = self._known.get(uid)
        if place is not None:
            self._known.move_to_end(uid)
        return place

    def learn(self, uid: str, place: Place) -> None:
        """Remembers where something is that was just made."""
        self._known[uid] = place
        while len(self._known) > self._max_known:
            self._known.popitem(last=False)

    async def find(self, ids: Collection[str]) -> dict[str, Place]:
        """Where these are; those that are not there are left out."""
        found: dict[str, Place] = {}
        missing: list[str] = []
        for uid in dict.fromkeys(ids):
            place = self.known(uid)
            if place is None:
                missing.append(uid)
            else:
                found[uid] = place
        if missing:
            for uid, place in (await self._store.find_places(missing)).items():
                found[uid] = place
                self.learn(uid, place)
        return found

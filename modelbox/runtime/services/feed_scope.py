"""What one reader of the change feed may see of it.

A change is of a namespace, and mostly says itself of which model it is. What it does not say (whose comment it is,
where a run lies that a version was made from) is asked, for those readers only whom it matters to.

Invariant: what cannot be placed is not shown. That is so for what is said about an object that is gone for good, to a
reader who does not see its whole namespace.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence

from modelbox.access import ALL, Caller, Scope
from modelbox.errors import AuthError
from modelbox.feed import Change, Filter, Kind
from modelbox.tracking import ObjectKind, kind_of_id

__all__ = ("FindPlaces", "Place", "Reader", "place_nothing")

Place = tuple[str, str]
"""Namespace, and model or nothing."""

FindPlaces = Callable[[Collection[str]], Awaitable[Mapping[str, Place]]]
"""Gives the places of objects by their ids, of those that there are."""

PRIVATE_KINDS = frozenset({Kind.ACCESS.value, Kind.RULE.value, Kind.DENIAL.value})
"""Who may do what, and who was denied it: for admins."""

_BY_PATH = frozenset({Kind.MODEL.value, Kind.VERSION.value, Kind.ALIAS.value, Kind.DOWNLOAD.value})
_OF_A_MODEL = (ObjectKind.MODEL, ObjectKind.VERSION, ObjectKind.ARTIFACT)


async def place_nothing(ids: Collection[str]) -> Mapping[str, Place]:
    """Knows no place."""
    return {}


class Reader:
    """Who follows the feed, and what of it.

    Args:
        wanted: What the reader asked for.
        scope: What the reader may see.
        places: Says where objects are.
        renew: Says who the reader is at a moment, and raises `AuthError` once it is nobody; None: who never changes.
    """

    __slots__ = ("_places", "_sees_all", "renew", "scope", "wanted")

    def __init__(
        self, wanted: Filter, scope: Scope, places: FindPlaces, renew: Callable[[], Caller] | None = None
    ) -> None:
        self.wanted = wanted
        self.scope = scope
        self.renew = renew
        self._places = places
        self._sees_all = scope == ALL

    def is_as_before(self) -> bool:
        """Whether the reader may still see just what it may see by its scope."""
        if self.renew is None:
            return True
        try:
            return self.renew().scope == self.scope
        except AuthError:
            return False

    async def pick(self, changes: Sequence[Change]) -> tuple[Change, ...]:
        """Those of the changes of one revision that the reader wants and may see."""
        wanted = tuple(change for change in changes if self.wanted.matches(change))
        if self._sees_all or not wanted:
            return wanted
        asked = {uid for change in wanted for uid in self._unplaced(change)}
        places = await self._places(asked) if asked else {}
        return tuple(change for change in wanted if self._shows(change, places))

    def _unplaced(self, change: Change) -> Iterator[str]:
        """Ids of which `_shows` has to know where they are."""
        scope = self.scope
        if scope.everything:
            return
        if change.kind == Kind.LINEAGE:
            if scope.shows_namespace(change.namespace):
                yield from _ends(change)
        elif scope.models and not scope.shows(change.namespace) and scope.shows_namespace(change.namespace):
            subject = _subject(change)
            if kind_of_id(subject) in _OF_A_MODEL:
                yield subject

    def _shows(self, change: Change, places: Mapping[str, Place]) -> bool:
        scope = self.scope
        if change.kind in PRIVATE_KINDS:
            return scope.shows_access(change.namespace)
        if scope.everything:
            return True
        if change.kind == Kind.LINEAGE:
            ends = [places.get(uid) for uid in _ends(change)]
            return all(place is not None and scope.shows(*place) for place in ends)
        if scope.shows(change.namespace):
            return True
        if change.kind == Kind.NAMESPACE:
            return scope.shows_namespace(change.namespace)
        if not scope.models:
            return False
        if change.kind in _BY_PATH:
            return scope.shows(*_split(change.object))
        if change.kind == Kind.ARTIFACT:
            # It says what it belongs to, also once it is deleted.
            return scope.shows(*_split(_text(change, "parent")))
        place = places.get(_subject(change))
        return place is not None and scope.shows(*place)


def _split(path: str) -> Place:
    """Namespace and model of ``ns/model@7``; no model for what is no path of one."""
    namespace, _, rest = path.partition("/")
    return namespace, rest.partition("@")[0]


def _ends(change: Change) -> tuple[str, str]:
    return _text(change, "source"), _text(change, "target")


def _subject(change: Change) -> str:
    """The id of the object that the change tells about, or tells something about."""
    if change.kind in (Kind.EVENT, Kind.COMMENT):
        return _text(change, "object")
    return change.object.partition("/")[0]


def _text(change: Change, name: str) -> str:
    value = change.state.get(name) if isinstance(change.state, dict) else None
    return value if isinstance(value, str) else ""

"""Places are asked for once."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from modelbox.runtime.permissions.places import Places
from modelbox.runtime.permissions.targets import Place


class Store:
    """Knows some places, and what it was asked."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.asked: list[tuple[str, ...]] = []

    async def find_places(self, ids: Collection[str]) -> Mapping[str, Place]:
        self.asked.append(tuple(ids))
        return {uid: self.places[uid] for uid in ids if uid in self.places}


@pytest.fixture
def store() -> Store:
    return Store()


async def test_what_is_there_is_asked_for_once(store: Store) -> None:
    places = Places(store)
    store.places = {"a": Place("ns"), "b": Place("ns", "m")}
    assert await places.find(["a", "b", "a"]) == store.places
    assert await places.find(["b", "a"]) == store.places
    assert store.asked == [("a", "b")]
    assert places.known("a") == Place("ns")


async def test_what_is_not_there_may_come(store: Store) -> None:
    places = Places(store)
    assert await places.find(["a"]) == {}
    assert places.known("a") is None
    store.places = {"a": Place("ns")}
    assert await places.find(["a"]) == store.places
    assert store.asked == [("a",), ("a",)]


async def test_what_was_just_made_needs_no_question(store: Store) -> None:
    places = Places(store)
    places.learn("a", Place("ns"))
    assert await places.find(["a"]) == {"a": Place("ns")}
    assert store.asked == []


async def test_the_longest_unused_are_forgotten(store: Store) -> None:
    places = Places(store, max_known=2)
    for uid in "ab":
        places.learn(uid, Place(uid))
    places.known("a")
    places.learn("c", Place("c"))
    assert len(places) == 2
    assert (places.known("a"), places.known("b"), places.known("c")) == (Place("a"), None, Place("c"))


async def test_a_question_larger_than_the_memory_is_answered_whole(store: Store) -> None:
    places = Places(store, max_known=2)
    store.places = {f"{at}": Place(f"{at}") for at in range(10)}
    assert await places.find(list(store.places)) == store.places
    assert len(places) == 2

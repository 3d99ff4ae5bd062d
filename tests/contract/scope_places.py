"""Where every database says that things are."""

from __future__ import annotations

from modelbox.runtime.permissions.targets import Place
from modelbox.runtime.store.artifacts import SqlArtifactStore
from modelbox.runtime.store.places import SqlPlaceStore
from modelbox.runtime.store.tracking import SqlTrackingStore
from tests.contract.metadata_stores import digest_of
from tests.scope_world import AT, ScopeWorld

__all__ = ("ScopePlacesContract",)


class ScopePlacesContract:
    """The places of things by their ids."""

    async def test_everything_is_where_it_was_made(self, world: ScopeWorld) -> None:
        found = await SqlPlaceStore(world.database).find_places(list(world.places))
        assert found == {uid: Place(*world.places[uid]) for uid in found}
        there = await SqlTrackingStore(world.database).find_objects(world.objects)
        noted = {uid for uid in world.places if uid.startswith(("evt_", "cmt_"))}
        assert set(there) | noted <= set(found)
        # Versions and artifacts that were deleted are nowhere.
        gone = {uid for uid in world.places if uid not in found}
        assert gone
        assert {uid[:4] for uid in gone} == {"ver_", "art_"}

    async def test_uploads_are_in_their_namespace(self, world: ScopeWorld) -> None:
        record = await SqlArtifactStore(world.database).open_upload("alpha", digest_of("an upload"), 9, at=AT)
        found = await SqlPlaceStore(world.database).find_places([record.id])
        assert found == {record.id: Place("alpha")}

    async def test_what_is_no_id_is_nowhere(self, world: ScopeWorld) -> None:
        texts = [
            "",
            "alpha",
            "alpha/m",
            "run_" + "0" * 24,
            "run_x",
            "evt_" + "0" * 24,
            "upl_" + "f" * 24,
            "' OR 1=1 --",
        ]
        assert await SqlPlaceStore(world.database).find_places(texts) == {}

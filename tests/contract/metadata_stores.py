"""What every database under the stores must do. Subclass the suites and give the fixture ``database``.

The suites look behind the ports, too: the tables and the hash chain must hold what the answers say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import anyio
import pytest
from sqlalchemy import Connection, func, select

from modelbox.access import ANYBODY, Caller, Grant, Role
from modelbox.errors import ConflictError, InUseError, InvalidError, LimitError, NotFoundError, StorageError
from modelbox.feed import Filter, ResumeToken
from modelbox.manifest import Manifest, ManifestFile
from modelbox.objects import (
    Alias,
    ArtifactFile,
    InstanceReport,
    InstanceState,
    ModelPatch,
    NewArtifact,
    NewModel,
    NewVersion,
    VersionPatch,
    from_json,
    to_json,
)
from modelbox.refs import Digest, ModelRef
from modelbox.runtime.ports import FeedBatch
from modelbox.runtime.store import schema
from modelbox.runtime.store.artifacts import SqlArtifactStore
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.feed import SqlFeedStore
from modelbox.runtime.store.fleet import SqlFleetStore
from modelbox.runtime.store.history import verify_chain
from modelbox.runtime.store.registry import SqlRegistryStore
from tests.faults.registry import fault

AT = datetime(2026, 5, 3, 12, 0, 0, 123456, tzinfo=UTC)


def digest_of(text: str) -> Digest:
    return Digest("sha256:" + hashlib.sha256(text.encode()).hexdigest())


def manifest(*contents: str, framework: str = "onnx") -> Manifest:
    return Manifest(
        files=tuple(
            ManifestFile(path=f"file{i}.bin", size_bytes=len(text), digest=digest_of(text))
            for i, text in enumerate(contents)
        ),
        framework=framework,
    )


async def hold(database: Database, namespace: str, *contents: str) -> None:
    """Has a namespace hold bytes, as an upload of them does."""
    store = SqlArtifactStore(database)
    for text in contents:
        upload = await store.open_upload(namespace, digest_of(text), len(text), at=AT)
        await store.finish_upload(upload.id, at=AT)


async def publish(database: Database, content: str, *, aliases: tuple[str, ...] = (), at: datetime = AT) -> int:
    await hold(database, "ns", content)
    new = NewVersion(namespace="ns", model="m", manifest=manifest(content), aliases=aliases)
    return (await SqlRegistryStore(database).publish_version(new, actor="ann", at=at)).item.version


async def history(database: Database) -> FeedBatch:
    """All revisions, after a look at their chain."""
    await database.read(verify_chain)
    batch = await SqlFeedStore(database).read_after(0, limit=10_000, max_bytes=1 << 30)
    assert [revision.rev for revision in batch.revisions] == list(range(1, batch.head.rev + 1))
    return batch


class RegistryStoreContract:
    """`modelbox.runtime.ports.RegistryStore`."""

    async def test_a_create_is_idempotent_and_says_so(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        new = NewModel(namespace="ns", name="m", owner="ann", labels={"a": "b"}, metadata={"k": [1, {"x": None}]})
        first = await store.create_model(new, actor="ann", at=AT)
        again = await store.create_model(
            NewModel(namespace="ns", name="m", owner="bob"), actor="bob", at=AT + timedelta(days=1)
        )
        assert (first.existed, again.existed) == (False, True)
        assert again.item == first.item == await store.get_model("ns", "m")
        assert first.item.created_at == AT
        assert first.item.metadata == {"k": [1, {"x": None}]}
        changes = [(c.kind, c.object, c.action) for r in (await history(database)).revisions for c in r.changes]
        assert changes == [("namespace", "ns", "created"), ("model", "ns/m", "created")]

    async def test_a_patch_sets_and_removes_keys_and_a_void_one_makes_no_revision(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        await store.create_model(NewModel(namespace="ns", name="m", labels={"a": "1", "b": "2"}), actor="", at=AT)
        patch = ModelPatch(owner="bob", labels={"c": "3"}, remove_labels=("a", "zzz"))
        model = await store.update_model("ns", "m", patch, actor="bob", at=AT)
        assert (model.owner, model.labels, model.mod_rev) == ("bob", {"b": "2", "c": "3"}, 2)
        assert await store.update_model("ns", "m", patch, actor="bob", at=AT) == model
        assert (await history(database)).head.rev == 2

    async def test_limits_hold_for_what_a_patch_makes(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        await store.create_model(
            NewModel(namespace="ns", name="m", labels={f"k{i}": "" for i in range(200)}), actor="", at=AT
        )
        with pytest.raises(LimitError):
            patch = ModelPatch(labels={f"n{i}": "" for i in range(100)})
            await store.update_model("ns", "m", patch, actor="", at=AT)
        assert len((await store.get_model("ns", "m")).labels) == 200
        assert (await history(database)).head.rev == 1

    async def test_a_version_gets_the_number_that_was_expected_or_none(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        await hold(database, "ns", "one", "two")
        first = NewVersion(namespace="ns", model="m", manifest=manifest("one"), expected_version=2, bundle="signed 2")
        with pytest.raises(ConflictError) as caught:
            await store.publish_version(first, actor="ann", at=AT)
        assert caught.value.fields["current"] == {"version": 1}
        assert (await history(database)).head.rev == 0
        first = replace(first, expected_version=1, bundle="signed 1")
        assert (await store.publish_version(first, actor="ann", at=AT)).item.bundle == "signed 1"
        await store.publish_version(NewVersion(namespace="ns", model="m", manifest=manifest("two")), actor="", at=AT)
        await store.delete_version("ns", "m", 2, actor="", at=AT)
        # A number is never given again, so it is not the one after the newest version.
        again = NewVersion(namespace="ns", model="m", manifest=manifest("two"), expected_version=2)
        with pytest.raises(ConflictError) as caught:
            await store.publish_version(again, actor="", at=AT)
        assert caught.value.fields["current"] == {"version": 3}
        # The newest version again is the newest version, not the next one.
        with pytest.raises(ConflictError) as caught:
            await store.publish_version(replace(first, expected_version=2), actor="", at=AT)
        assert caught.value.fields["current"] == {"version": 1}

    async def test_a_signature_is_kept_with_the_version_and_is_news(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        await publish(database, "one")
        ref = ModelRef.parse("ns/m@1")
        assert (await store.get_version(ref)).bundle == ""
        new = NewVersion(namespace="ns", model="m", manifest=manifest("one"), expected_version=1, bundle="first")
        made = await store.publish_version(replace(new, aliases=("prod",)), actor="ann", at=AT)
        assert (made.existed, made.item.bundle) == (True, "first")
        changes = [(c.kind, c.object, c.action) for c in (await history(database)).revisions[-1].changes]
        assert changes == [("version", "ns/m@1", "updated"), ("alias", "ns/m@prod", "created")]
        assert (await store.resolve(ModelRef.parse("ns/m@prod"))).version.bundle == "first"
        # Whoever publishes the same again does not take the place of who signed before.
        rev = (await history(database)).head.rev
        made = await store.publish_version(replace(new, bundle="second"), actor="ann", at=AT)
        assert made.item.bundle == "first"
        assert (await history(database)).head.rev == rev
        for bundle in ("second", ""):
            patched = await store.update_version("ns", "m", 1, VersionPatch(bundle=bundle), actor="ann", at=AT)
            assert patched.bundle == bundle == (await store.get_version(ref)).bundle
        untouched = await store.update_version("ns", "m", 1, VersionPatch(description="d"), actor="ann", at=AT)
        assert (untouched.bundle, untouched.digest) == ("", made.item.digest)

    async def test_publishing_is_one_revision_with_everything_that_moved(self, database: Database) -> None:
        await publish(database, "one", aliases=("prod", "staging"))
        await publish(database, "two")
        revisions = (await history(database)).revisions
        assert [[(c.kind, c.object, c.action) for c in revision.changes] for revision in revisions] == [
            [
                ("namespace", "ns", "created"),
                ("model", "ns/m", "created"),
                ("version", "ns/m@1", "created"),
                ("alias", "ns/m@latest", "created"),
                ("alias", "ns/m@prod", "created"),
                ("alias", "ns/m@staging", "created"),
            ],
            [("model", "ns/m", "updated"), ("version", "ns/m@2", "created"), ("alias", "ns/m@latest", "moved")],
        ]
        assert revisions[1].changes[0].state["latest_version"] == 2
        moved = from_json(Alias, revisions[1].changes[2].state)
        assert (moved.version, moved.mod_rev, moved.moved_by) == (2, 2, "ann")

    async def test_the_newest_manifest_again_existed_but_moves_aliases(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        await publish(database, "one", aliases=("prod",))
        await publish(database, "two")
        new = NewVersion(namespace="ns", model="m", manifest=manifest("two"), aliases=("prod",), reason="again")
        again = await store.publish_version(new, actor="bob", at=AT)
        assert (again.existed, again.item.version) == (True, 2)
        prod = (await store.resolve(ModelRef.parse("ns/m@prod"))).alias
        assert prod is not None
        assert (prod.version, prod.moved_by, prod.reason, prod.mod_rev) == (2, "bob", "again", 3)
        assert (await store.publish_version(new, actor="bob", at=AT)).existed
        assert (await history(database)).head.rev == 3
        # An older manifest is a new version: whoever publishes it means it to be the newest.
        assert await publish(database, "one") == 3

    async def test_files_must_be_held_by_this_very_namespace(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        await hold(database, "other", "one")
        with pytest.raises(NotFoundError) as caught:
            new = NewVersion(namespace="ns", model="m", manifest=manifest("one"))
            await store.publish_version(new, actor="", at=AT)
        assert caught.value.fields["missing"] == ["file0.bin"]
        assert (await store.list_namespaces(limit=10, after=None)).items == ()
        assert (await history(database)).head.rev == 0

    async def test_a_manifest_with_a_wrong_size_is_refused(self, database: Database) -> None:
        await hold(database, "ns", "one")
        wrong = Manifest(files=(ManifestFile(path="a", size_bytes=4, digest=digest_of("one")),))
        with pytest.raises(InvalidError, match="4 bytes"):
            new = NewVersion(namespace="ns", model="m", manifest=wrong)
            await SqlRegistryStore(database).publish_version(new, actor="", at=AT)

    async def test_a_manifest_of_many_files_is_checked_whole(self, database: Database) -> None:
        texts = [f"content {i}" for i in range(1200)]
        await database.write(lambda conn: _hold_all(conn, texts))
        new = NewVersion(namespace="ns", model="m", manifest=manifest(*texts))
        assert (await SqlRegistryStore(database).publish_version(new, actor="", at=AT)).item.version == 1

        def count(conn: Connection) -> int:
            return conn.execute(select(func.count()).select_from(schema.version_blobs)).scalar_one()

        assert await database.read(count) == 1200

    async def test_every_way_to_name_a_version(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        await publish(database, "one", aliases=("prod",))
        await publish(database, "two")
        one = await store.get_version(ModelRef.parse("ns/m@1"))
        assert one == await store.get_version(ModelRef.parse("ns/m@prod"))
        assert one == await store.get_version(ModelRef.parse(f"ns/m@{manifest('one').digest}"))
        assert one.manifest == manifest("one")
        assert (await store.get_version(ModelRef.parse("ns/m"))).version == 2

    async def test_resolve_is_one_snapshot_with_a_token(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        await publish(database, "one", aliases=("prod",))
        resolved = await store.resolve(ModelRef.parse("ns/m@prod"))
        token = ResumeToken.parse(resolved.token)
        assert resolved.alias is not None
        assert (token.rev, resolved.mod_rev, resolved.alias.digest) == (1, 1, resolved.version.digest)
        assert token.server_id == resolved.server_id
        assert (await store.resolve(ModelRef.parse("ns/m@1"))).alias is None

    @pytest.mark.parametrize(
        ("ref", "what", "exists"),
        [
            ("nix/m", "namespace", ["ns"]),
            ("ns/nix", "model", ["ns/m"]),
            ("ns/m@nix", "alias", ["ns/m@latest", "ns/m@prod"]),
            ("ns/m@9", "version", ["ns/m@2", "ns/m@1"]),
            ("ns/m@" + digest_of("nix"), "version", ["ns/m@2", "ns/m@1"]),
        ],
    )
    async def test_what_is_missing_says_what_exists(
        self, database: Database, ref: str, what: str, exists: list[str]
    ) -> None:
        await publish(database, "one", aliases=("prod",))
        await publish(database, "two")
        for asked in (SqlRegistryStore(database).get_version, SqlRegistryStore(database).resolve):
            with pytest.raises(NotFoundError) as caught:
                await asked(ModelRef.parse(ref))
            assert caught.value.fields["what"] == what
            assert caught.value.fields["exists"] == exists

    async def test_compare_and_set(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        await publish(database, "one")
        await publish(database, "two")

        async def move(version: int, expected: int | None) -> Alias:
            moved = await store.move_alias(
                "ns", "m", "prod", version, expected_mod_rev=expected, reason="why", actor="bob", at=AT
            )
            assert isinstance(moved, Alias)
            return moved

        with pytest.raises(ConflictError) as caught:
            await move(1, 7)
        assert caught.value.fields["current"] is None
        made = await move(1, 0)
        with pytest.raises(ConflictError) as caught:
            await move(2, 0)
        assert caught.value.fields["current"] == to_json(made)
        moved = await move(2, made.mod_rev)
        assert (moved.version, moved.reason, moved.mod_rev) == (2, "why", made.mod_rev + 1)
        with pytest.raises(ConflictError):
            await move(1, made.mod_rev)
        assert await move(2, None) == moved
        with pytest.raises(NotFoundError):
            await move(3, None)
        assert (await history(database)).head.rev == moved.mod_rev

    @fault(24)
    async def test_of_racing_writers_one_wins_each_round(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        await publish(database, "one", aliases=("prod",))
        await publish(database, "two")
        wins: list[int] = []

        async def contend(number: int) -> None:
            for _ in range(6):
                alias = (await store.resolve(ModelRef.parse("ns/m@prod"))).alias
                assert alias is not None
                try:
                    moved = await store.move_alias(
                        "ns",
                        "m",
                        "prod",
                        3 - alias.version,
                        expected_mod_rev=alias.mod_rev,
                        reason="",
                        actor=f"writer {number}",
                        at=AT,
                    )
                except ConflictError as exc:
                    current = from_json(Alias, exc.fields["current"])
                    assert current.mod_rev > alias.mod_rev
                else:
                    assert isinstance(moved, Alias)
                    wins.append(moved.mod_rev)

        before = (await history(database)).head.rev
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(contend, number)
        # Nobody's win was overwritten unseen: each win is one revision of its own, and they alternate.
        assert wins
        assert sorted(wins) == list(range(before + 1, before + 1 + len(wins)))
        batch = await history(database)
        targets = [r.changes[0].state["version"] for r in batch.revisions if r.rev > before]
        assert all(a != b for a, b in pairwise(targets))

    async def test_rollback_goes_back_and_forth(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        await publish(database, "one", aliases=("prod",))

        async def rollback(expected: int | None = None) -> Alias:
            return await store.rollback_alias(
                "ns", "m", "prod", expected_mod_rev=expected, reason="", actor="bob", at=AT
            )

        with pytest.raises(ConflictError, match="nothing to roll back"):
            await rollback()
        await publish(database, "two", aliases=("prod",))
        with pytest.raises(ConflictError):
            await rollback(1)
        assert (await rollback(2)).version == 1
        assert (await rollback()).version == 2
        await store.delete_alias("ns", "m", "prod", expected_mod_rev=None, reason="", actor="", at=AT)
        with pytest.raises(NotFoundError):
            await rollback()

    async def test_history_answers_what_it_pointed_to(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        await publish(database, "one", aliases=("prod",), at=AT)
        await publish(database, "two", aliases=("prod",), at=AT + timedelta(days=1))
        await store.delete_alias(
            "ns", "m", "prod", expected_mod_rev=2, reason="retired", actor="eve", at=AT + timedelta(days=2)
        )

        async def moves(at: datetime | None) -> list[tuple[int | None, int | None]]:
            found = await store.list_alias_moves("ns", "m", alias="prod", at=at, limit=10, after=None)
            return [(move.from_version, move.to_version) for move in found.items]

        assert await moves(None) == [(2, None), (1, 2), (None, 1)]
        assert (await moves(AT + timedelta(hours=1)))[0] == (None, 1)
        assert (await moves(AT + timedelta(days=1)))[0] == (1, 2)
        assert await moves(AT - timedelta(seconds=1)) == []
        everything = await store.list_alias_moves("ns", "m", alias="", at=None, limit=2, after=None)
        assert [move.name for move in everything.items] == ["prod", "prod"]
        rest = await store.list_alias_moves("ns", "m", alias="", at=None, limit=9, after=everything.next_key)
        assert [move.name for move in rest.items] == ["latest", "prod", "latest"]

    async def test_what_an_alias_points_to_cannot_be_deleted(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        await publish(database, "one", aliases=("prod",))
        await publish(database, "two")
        with pytest.raises(InUseError) as caught:
            await store.delete_version("ns", "m", 1, actor="", at=AT)
        assert caught.value.fields["held_by"] == ["ns/m@prod"]
        with pytest.raises(InUseError):
            await store.delete_model("ns", "m", actor="", at=AT)
        assert (await history(database)).head.rev == 2

    async def test_latest_moves_to_the_next_newest_and_numbers_are_never_given_again(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        for content in ("one", "two", "three"):
            await publish(database, content)
        await store.delete_version("ns", "m", 3, actor="", at=AT)
        assert (await store.get_version(ModelRef.parse("ns/m@latest"))).version == 2
        assert (await store.get_model("ns", "m")).latest_version == 2
        await store.delete_version("ns", "m", 1, actor="", at=AT)
        assert (await store.get_version(ModelRef.parse("ns/m@latest"))).version == 2
        await store.delete_version("ns", "m", 2, actor="", at=AT)
        with pytest.raises(NotFoundError):
            await store.get_version(ModelRef.parse("ns/m@latest"))
        assert (await store.list_aliases("ns", "m")) == ()
        assert await publish(database, "three") == 4

    async def test_deleting_a_model_takes_everything_and_tells_of_it(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        artifacts = SqlArtifactStore(database)
        await publish(database, "one")
        for parent in ("ns/m", "ns/m@1"):
            file = ArtifactFile(path="a", size_bytes=3, digest=digest_of("one"))
            await artifacts.create_artifact(NewArtifact(parent=parent, name="a", files=(file,)), actor="", at=AT)
        await store.delete_model("ns", "m", actor="eve", at=AT)
        last = (await history(database)).revisions[-1]
        assert sorted((c.kind, c.action) for c in last.changes) == [
            ("alias", "deleted"),
            ("artifact", "deleted"),
            ("artifact", "deleted"),
            ("model", "deleted"),
            ("version", "deleted"),
        ]
        with pytest.raises(NotFoundError):
            await store.get_model("ns", "m")
        # The name is free again, and newer states have greater revisions.
        made = await store.create_model(NewModel(namespace="ns", name="m"), actor="", at=AT)
        assert not made.existed
        assert made.item.mod_rev > last.rev

    async def test_editing_a_version(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        await publish(database, "one")
        patch = VersionPatch(description="good", metrics={"wer": 1}, metadata={"x": "é\u2028"})
        version = await store.update_version("ns", "m", 1, patch, actor="", at=AT)
        assert (version.description, version.metrics, version.metadata) == ("good", {"wer": 1.0}, {"x": "é\u2028"})
        assert version == await store.get_version(ModelRef.parse("ns/m@1"))
        assert version == await store.update_version("ns", "m", 1, patch, actor="", at=AT)
        removed = await store.update_version("ns", "m", 1, VersionPatch(remove_metrics=("wer",)), actor="", at=AT)
        assert removed.metrics == {}
        assert (await history(database)).head.rev == 3

    async def test_lists_are_paged_without_loss(self, database: Database) -> None:
        store = SqlRegistryStore(database)
        paths = sorted(f"{ns}/{name}" for ns in ("a", "b", "b.c") for name in ("x", "y", "y-1"))
        for path in reversed(paths):
            namespace, _, name = path.partition("/")
            await store.create_model(NewModel(namespace=namespace, name=name), actor="", at=AT)
        seen, after = [], None
        while True:
            page = await store.list_models(namespace="", limit=2, after=after)
            assert len(page.items) <= 2
            seen += [(model.namespace, model.name) for model in page.items]
            if (after := page.next_key) is None:
                break
        assert seen == sorted((path.partition("/")[0], path.partition("/")[2]) for path in paths)
        only = await store.list_models(namespace="b", limit=10, after=None)
        assert [model.name for model in only.items] == ["x", "y", "y-1"]
        first = await store.list_namespaces(limit=2, after=None)
        rest = await store.list_namespaces(limit=2, after=first.next_key)
        assert [namespace.name for namespace in first.items + rest.items] == ["a", "b", "b.c"]
        assert rest.next_key is None

    async def test_versions_come_newest_first(self, database: Database) -> None:
        for content in ("one", "two", "three"):
            await publish(database, content)
        store = SqlRegistryStore(database)
        first = await store.list_versions("ns", "m", limit=2, after=None)
        rest = await store.list_versions("ns", "m", limit=2, after=first.next_key)
        assert [version.version for version in first.items + rest.items] == [3, 2, 1]
        with pytest.raises(NotFoundError):
            await store.list_versions("ns", "nix", limit=2, after=None)


def _hold_all(conn: Connection, texts: Sequence[str]) -> None:
    rows = [{"digest": digest_of(text), "size_bytes": len(text), "created_at_us": 0} for text in texts]
    conn.execute(schema.blobs.insert(), rows)
    for row in conn.execute(select(schema.blobs.c.id)).all():
        conn.execute(schema.holdings.insert().values(namespace="ns", blob_id=row.id, created_at_us=0))


class ArtifactStoreContract:
    """`modelbox.runtime.ports.ArtifactStore`."""

    async def test_an_upload_is_found_again_until_it_is_done(self, database: Database) -> None:
        store = SqlArtifactStore(database)
        first = await store.open_upload("ns", digest_of("one"), 3, at=AT)
        assert await store.open_upload("ns", digest_of("one"), 3, at=AT) == first
        assert (await store.open_upload("other", digest_of("one"), 3, at=AT)).id != first.id
        assert await store.find_held("ns", digest_of("one")) is None
        await store.finish_upload(first.id, at=AT)
        await store.finish_upload(first.id, at=AT)
        assert (await store.get_upload(first.id)).done
        assert await store.find_held("ns", digest_of("one")) == 3
        assert await store.find_held("other", digest_of("one")) is None
        assert (await store.open_upload("ns", digest_of("one"), 3, at=AT)).id != first.id

    @fault(68)
    async def test_a_digest_gives_nothing_to_who_sees_one_model(self, database: Database) -> None:
        store, registry = SqlArtifactStore(database), SqlRegistryStore(database)
        ann, bob = (Caller(name=name, grants=(Grant(namespace="ns", model="mine", role=Role.WRITER),)) for name in "ab")
        await hold(database, "ns", "hidden", "seen", "attached", "loose")
        for model, content in (("theirs", "hidden"), ("mine", "seen")):
            new = NewVersion(namespace="ns", model=model, manifest=manifest(content))
            await registry.publish_version(new, actor="", at=AT)

        async def attach(parent: str, content: str, caller: Caller = ANYBODY) -> None:
            file = ArtifactFile(path="a", size_bytes=len(content), digest=digest_of(content))
            new = NewArtifact(parent=parent, name=content, files=(file,))
            await store.create_artifact(new, actor="", at=AT, caller=caller)

        await attach("ns/mine@1", "attached")
        for content in ("seen", "attached"):
            assert await store.find_held("ns", digest_of(content), caller=ann) == len(content)
            await attach("ns/mine", content, ann)
        stolen = NewVersion(namespace="ns", model="mine", manifest=manifest("seen", "hidden"))
        for content in ("hidden", "loose"):
            assert await store.find_held("ns", digest_of(content)) == len(content)
            assert await store.find_held("ns", digest_of(content), caller=ann) is None
            with pytest.raises(NotFoundError, match="upload them first"):
                await attach("ns/mine", content, ann)

        # Begun by who knows the digest, and carried out by others: neither has ann the bytes then, nor bob.
        begun = await store.open_upload("ns", digest_of("hidden"), 6, at=AT, caller=ann)
        assert await store.open_upload("ns", digest_of("hidden"), 6, at=AT, caller=ann) == begun
        for caller in (ANYBODY, bob):
            other = await store.open_upload("ns", digest_of("hidden"), 6, at=AT, caller=caller)
            assert other.id != begun.id
            await store.finish_upload(other.id, at=AT)
            with pytest.raises(NotFoundError, match="upload them first"):
                await registry.publish_version(stolen, actor="", at=AT, caller=ann)

        # Who sends them has them.
        await store.finish_upload(begun.id, at=AT)
        assert await store.find_held("ns", digest_of("hidden"), caller=ann) == 6
        assert (await registry.publish_version(stolen, actor="", at=AT, caller=ann)).item.version == 2

    async def test_old_uploads_are_forgotten_but_those_to_keep(self, database: Database) -> None:
        store = SqlArtifactStore(database)
        ids = [(await store.open_upload("ns", digest_of(text), 1, at=AT)).id for text in "abc"]
        late = await store.open_upload("ns", digest_of("d"), 1, at=AT + timedelta(hours=2))
        assert await store.drop_uploads(before=AT + timedelta(hours=1), keep=frozenset([ids[1]])) == 2
        assert (await store.get_upload(ids[1])).id == ids[1]
        assert (await store.get_upload(late.id)).id == late.id
        for gone in (ids[0], ids[2]):
            with pytest.raises(NotFoundError):
                await store.get_upload(gone)
        # What took long is remembered from its end on.
        await store.finish_upload(ids[1], at=AT + timedelta(hours=3))
        assert await store.drop_uploads(before=AT + timedelta(hours=3), keep=frozenset()) == 1
        assert (await store.get_upload(ids[1])).done

    async def test_a_download_is_one_change_and_known_to_its_version_only(self, database: Database) -> None:
        store = SqlArtifactStore(database)
        await publish(database, "one")
        await publish(database, "two")
        download = await store.begin_download(ModelRef.parse("ns/m@1"), actor="bob", at=AT)
        change = (await history(database)).revisions[-1].changes[0]
        assert (change.kind, change.object, change.actor) == ("download", "ns/m@1", "bob")
        assert change.state == to_json(download)
        file = await store.find_version_file(ModelRef.parse("ns/m@1"), "file0.bin", download.id)
        assert (file.download_known, file.size_bytes, file.digest) == (True, 3, digest_of("one"))
        assert not (await store.find_version_file(ModelRef.parse("ns/m@2"), "file0.bin", download.id)).download_known
        assert not (await store.find_version_file(ModelRef.parse("ns/m@1"), "file0.bin", "")).download_known
        with pytest.raises(NotFoundError) as caught:
            await store.find_version_file(ModelRef.parse("ns/m@1"), "nix", "")
        assert caught.value.fields["exists"] == ["file0.bin"]

    async def test_artifacts_are_idempotent_by_parent_and_name(self, database: Database) -> None:
        store = SqlArtifactStore(database)
        await hold(database, "ns", "one")
        stored = ArtifactFile(path="a", size_bytes=3, digest=digest_of("one"), media_type="text/plain")
        tracked = ArtifactFile(path="b", size_bytes=9, digest=digest_of("nine"), uri="s3://bucket/nine")
        new = NewArtifact(parent="ns", name="logs", files=(tracked, stored), labels={"x": "y"})
        made = await store.create_artifact(new, actor="ann", at=AT)
        again = await store.create_artifact(new, actor="bob", at=AT + timedelta(days=1))
        assert (made.existed, again.existed) == (False, True)
        assert made.item == again.item == await store.get_artifact(made.item.id)
        assert [file.path for file in made.item.files] == ["a", "b"]
        with pytest.raises(ConflictError):
            other = NewArtifact(parent="ns", name="logs", files=(stored,))
            await store.create_artifact(other, actor="bob", at=AT)
        assert (await store.find_artifact_file(made.item.id, "b")).uri == "s3://bucket/nine"
        changes = [(c.kind, c.action) for r in (await history(database)).revisions for c in r.changes]
        assert changes == [("namespace", "created"), ("artifact", "created")]
        await store.delete_artifact(made.item.id, actor="ann", at=AT)
        with pytest.raises(NotFoundError):
            await store.get_artifact(made.item.id)
        with pytest.raises(NotFoundError):
            await store.delete_artifact(made.item.id, actor="ann", at=AT)

    async def test_an_artifact_needs_its_parent_and_its_bytes(self, database: Database) -> None:
        store = SqlArtifactStore(database)
        file = ArtifactFile(path="a", size_bytes=3, digest=digest_of("one"))
        with pytest.raises(NotFoundError, match="no namespace ns"):
            await store.create_artifact(NewArtifact(parent="ns/m@1", name="a", files=(file,)), actor="", at=AT)
        await publish(database, "two")
        with pytest.raises(NotFoundError, match="upload"):
            await store.create_artifact(NewArtifact(parent="ns/m@1", name="a", files=(file,)), actor="", at=AT)
        with pytest.raises(NotFoundError, match="ns/m@2"):
            await store.create_artifact(NewArtifact(parent="ns/m@2", name="a", files=(file,)), actor="", at=AT)

    async def test_artifacts_are_listed_by_parent_or_namespace(self, database: Database) -> None:
        store = SqlArtifactStore(database)
        await publish(database, "one")
        file = ArtifactFile(path="a", size_bytes=3, digest=digest_of("one"))
        for parent in ("ns", "ns/m", "ns/m@1"):
            for name in ("x", "y"):
                await store.create_artifact(NewArtifact(parent=parent, name=name, files=(file,)), actor="", at=AT)
        of_model = await store.list_artifacts(parent="ns/m", namespace="", limit=10, after=None)
        assert [artifact.name for artifact in of_model.items] == ["x", "y"]
        first = await store.list_artifacts(parent="", namespace="ns", limit=4, after=None)
        rest = await store.list_artifacts(parent="", namespace="ns", limit=4, after=first.next_key)
        assert (len(first.items), len(rest.items), rest.next_key) == (4, 2, None)
        assert (await store.list_artifacts(parent="", namespace="nix", limit=4, after=None)).items == ()


class FleetStoreContract:
    """`modelbox.runtime.ports.FleetStore`."""

    async def test_reports_are_leases(self, database: Database) -> None:
        store = SqlFleetStore(database)

        def report(instance: str, ref: str, state: InstanceState = InstanceState.ACTIVE) -> InstanceReport:
            return InstanceReport(instance_id=instance, host="h", pid=1, ref=ref, state=state, version=1)

        async def listed(at: datetime, *, lost: bool = False, model: str = "") -> list[tuple[str, bool]]:
            found = await store.list_instances(
                namespace="ns",
                model=model,
                seen_since=None if lost else at - timedelta(seconds=90),
                lease_s=90,
                at=at,
                limit=10,
                after=None,
            )
            return [(item.report.instance_id, item.alive) for item in found.items]

        forget = AT - timedelta(days=7)
        await store.report([report("a", "ns/m@prod"), report("b", "ns/n@prod")], at=AT, forget_before=forget)
        later = AT + timedelta(seconds=60)
        await store.report([report("a", "ns/m@prod")], at=later, forget_before=forget)
        assert await listed(later) == [("a", True), ("b", True)]
        assert await listed(later, model="n") == [("b", True)]
        late = AT + timedelta(seconds=120)
        assert await listed(late) == [("a", True)]
        assert await listed(late, lost=True) == [("a", True), ("b", False)]
        await store.report([report("a", "ns/m@prod", InstanceState.GONE)], at=late, forget_before=AT)
        assert await listed(late, lost=True) == [("a", False), ("b", False)]
        await store.report([report("c", "ns/m@prod")], at=late, forget_before=late)
        assert await listed(late, lost=True) == [("a", False), ("c", True)]
        assert (await history(database)).head.rev == 0


class FeedStoreContract:
    """`modelbox.runtime.ports.FeedStore`."""

    async def test_batches_are_cut_between_revisions(self, database: Database) -> None:
        store = SqlFeedStore(database)
        for content in ("one", "two", "three"):
            await publish(database, content)
        batch = await store.read_after(0, limit=2, max_bytes=1 << 30)
        assert [revision.rev for revision in batch.revisions] == [1, 2]
        assert [len(revision.changes) for revision in batch.revisions] == [4, 3]
        small = await store.read_after(1, limit=10, max_bytes=1)
        assert [revision.rev for revision in small.revisions] == [2]
        assert small.head.rev == 3
        assert (await store.read_after(3, limit=10, max_bytes=1)).revisions == ()

    async def test_compaction_keeps_what_is_young_and_the_chain(self, database: Database) -> None:
        store = SqlFeedStore(database)
        for day, content in enumerate(("one", "two", "three", "four", "five")):
            await publish(database, content, at=AT + timedelta(days=day))
        await SqlArtifactStore(database).begin_download(ModelRef.parse("ns/m@1"), actor="", at=AT)
        assert await store.compact(keep_revs=6, before=AT + timedelta(days=99), batch=10) == 0
        assert await store.compact(keep_revs=0, before=AT, batch=10) == 0
        assert await store.compact(keep_revs=0, before=AT + timedelta(days=3), batch=2) == 2
        assert await store.compact(keep_revs=0, before=AT + timedelta(days=3), batch=2) == 1
        head, chain = await store.check(3)
        assert (head.compact_rev, chain is not None) == (3, True)
        # The rows stay for the audit log, and readers of the feed do not get them.
        assert await database.read(verify_chain) == 6
        assert [r.rev for r in (await store.read_after(3, limit=9, max_bytes=1 << 20)).revisions] == [4, 5, 6]
        assert (await store.read_after(2, limit=9, max_bytes=1 << 20)).revisions == ()

    async def test_rows_are_forgotten_behind_the_compaction_and_the_rest_of_the_chain_holds(
        self, database: Database
    ) -> None:
        store = SqlFeedStore(database)
        for day, content in enumerate(("one", "two", "three", "four", "five")):
            await publish(database, content, at=AT + timedelta(days=day))
        far = AT + timedelta(days=99)
        assert await store.forget(before=far, batch=10) == 0
        assert await store.compact(keep_revs=1, before=far, batch=10) == 4
        assert await store.forget(before=AT, batch=10) == 0
        assert await store.forget(before=AT + timedelta(days=2), batch=1) == 1
        assert await store.forget(before=AT + timedelta(days=2), batch=9) == 1
        assert await store.forget(before=AT + timedelta(days=2), batch=9) == 0
        assert await database.read(verify_chain) == 3
        assert [(await store.check(rev))[1] is not None for rev in range(1, 6)] == [False, False, True, True, True]
        assert await store.forget(before=far, batch=9) == 2
        assert await database.read(verify_chain) == 1
        head, chain = await store.check(4)
        assert (head.compact_rev, chain is not None) == (4, True)
        assert [r.rev for r in (await store.read_after(4, limit=9, max_bytes=1 << 20)).revisions] == [5]

    async def test_an_altered_revision_is_found(self, database: Database) -> None:
        await publish(database, "one")
        await publish(database, "two")
        await database.write(
            lambda conn: (
                conn.execute(
                    schema.feed_changes.update().where(schema.feed_changes.c.rev == 1).values(actor="mallory")
                ).rowcount
            )
        )
        with pytest.raises(StorageError, match="revision 1"):
            await database.read(verify_chain)

    @pytest.mark.parametrize("limit", [1, 2, 3, 100])
    async def test_the_list_is_the_state_that_the_changes_add_up_to(self, database: Database, limit: int) -> None:
        registry = SqlRegistryStore(database)
        artifacts = SqlArtifactStore(database)
        for content in ("one", "two", "three"):
            await publish(database, content, aliases=(f"to-{content}",))
        file = ArtifactFile(path="a", size_bytes=3, digest=digest_of("one"))
        kept = await artifacts.create_artifact(NewArtifact(parent="ns/m", name="a", files=(file,)), actor="", at=AT)
        await registry.create_model(NewModel(namespace="other", name="m"), actor="", at=AT)
        await registry.delete_alias("ns", "m", "to-one", expected_mod_rev=None, reason="", actor="", at=AT)
        await registry.delete_version("ns", "m", 1, actor="", at=AT)
        states: dict[str, tuple[int, object]] = {}
        for revision in (await history(database)).revisions:
            for change in revision.changes:
                if change.action == "deleted":
                    states.pop(change.object)
                else:
                    states[change.object] = (change.rev, change.state)

        async def listed(wanted: Filter) -> dict[str, tuple[int, object]]:
            found: dict[str, tuple[int, object]] = {}
            after = None
            while True:
                page = await SqlFeedStore(database).list_states(wanted, limit=limit, after=after)
                assert len(page.items) <= limit
                for item in page.items:
                    assert item.object not in found
                    found[item.object] = (item.rev, item.state)
                if (after := page.next_key) is None:
                    return found

        assert await listed(Filter()) == states
        for wanted, objects in (
            (Filter(namespace="other"), {"other", "other/m"}),
            (Filter(kinds=("alias",), objects=("ns/m",)), {"ns/m@latest", "ns/m@to-two", "ns/m@to-three"}),
            (Filter(objects=("ns/m@to-two",)), {"ns/m@to-two"}),
            (Filter(objects=(kept.item.id, "other")), {kept.item.id, "other"}),
            (Filter(objects=("ns/nix",)), set()),
        ):
            assert (await listed(wanted)).keys() == objects

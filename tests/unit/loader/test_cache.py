"""The cache keeps what it was given, notices what was changed, and refuses what it cannot trust."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from modelbox.errors import CacheError, IntegrityError, InvalidError, NotFoundError
from modelbox.loader import cache_upkeep
from modelbox.loader.cache import Cache, Quarantined, RefState
from modelbox.loader.cache_layout import Layout
from modelbox.manifest import Manifest, ManifestFile
from tests.faults.registry import fault
from tests.model_source import digest_of, manifest_of, version_of

FILES = {"model.onnx": b"graph", "data/deep/weights.bin": b"weights" * 1000, "empty.txt": b""}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "cache")
    cache.open()
    return cache


def put(cache: Cache, data: bytes) -> Path:
    writer = cache.new_blob(ManifestFile(path="x", size_bytes=len(data), digest=digest_of(data)))
    writer.write(data)
    return writer.commit()


def fill(cache: Cache, files: dict[str, bytes]) -> Manifest:
    for data in files.values():
        if not cache.has_blob(digest_of(data), len(data)):
            put(cache, data)
    manifest = manifest_of(files)
    cache.materialise(manifest)
    return manifest


def litter(cache: Cache) -> list[str]:
    return sorted(os.listdir(cache.directory / "tmp"))


def overwrite(path: Path, data: bytes) -> None:
    os.chmod(path, 0o600)
    path.write_bytes(data)


# -- blobs and trees ---------------------------------------------------------------------------------------------------


def test_a_version_is_linked_from_its_blobs(cache: Cache) -> None:
    manifest = fill(cache, FILES)
    tree = cache.materialise(manifest)
    for path, data in FILES.items():
        assert (tree / path).read_bytes() == data
        status = os.lstat(tree / path)
        assert stat.S_IMODE(status.st_mode) == 0o444
        assert status.st_ino == os.stat(cache._layout.blob(digest_of(data))).st_ino, "a hard link, not a copy"
    assert litter(cache) == []
    for directory in [cache.directory, *(p for p in cache.directory.rglob("*") if p.is_dir())]:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700, directory


def test_nothing_is_visible_before_commit_and_nothing_left_after_abort(cache: Cache) -> None:
    file = ManifestFile(path="x", size_bytes=4, digest=digest_of(b"data"))
    writer = cache.new_blob(file)
    writer.write(b"da")
    assert writer.offset == 2
    assert cache.partial_bytes(file.digest) == 2
    assert not cache.has_blob(file.digest, 4)
    writer.abort()
    writer.abort()
    assert litter(cache) == []
    with pytest.raises(ValueError, match="committed or aborted"):
        writer.write(b"ta")


@pytest.mark.parametrize("sent", [b"dat", b"dbta"])
def test_wrong_bytes_never_get_a_name(cache: Cache, sent: bytes) -> None:
    file = ManifestFile(path="x", size_bytes=4, digest=digest_of(b"data"))
    writer = cache.new_blob(file)
    writer.write(sent)
    with pytest.raises(IntegrityError):
        writer.commit()
    assert not cache.has_blob(file.digest, 4)
    assert litter(cache) == []


def test_a_version_with_missing_files_says_which(cache: Cache) -> None:
    put(cache, b"graph")
    with pytest.raises(NotFoundError) as caught:
        cache.materialise(manifest_of(FILES))
    assert caught.value.fields["missing"] == ["data/deep/weights.bin", "empty.txt"]
    assert cache.find_tree(manifest_of(FILES)) is None


@fault(44)
@pytest.mark.parametrize("damage", [b"", b"short", b"W" * 7000, b"weights" * 1000 + b"!"])
def test_changed_files_are_noticed_and_made_again(cache: Cache, damage: bytes) -> None:
    manifest = fill(cache, FILES)
    overwrite(cache.materialise(manifest) / "data/deep/weights.bin", damage)
    assert cache.find_tree(manifest) is None
    assert not cache.has_blob(digest_of(FILES["data/deep/weights.bin"]), 7000), "the blob is the same file"
    put(cache, FILES["data/deep/weights.bin"])
    assert (cache.materialise(manifest) / "data/deep/weights.bin").read_bytes() == b"weights" * 1000
    assert litter(cache) == []


def test_a_removed_or_replaced_file_is_noticed(cache: Cache) -> None:
    manifest = fill(cache, FILES)
    tree = cache.materialise(manifest)
    os.unlink(tree / "model.onnx")
    assert cache.find_tree(manifest) is None
    os.symlink(cache._layout.blob(digest_of(b"graph")), tree / "model.onnx")
    assert cache.find_tree(manifest) is None, "not even a link to the right bytes"
    assert not os.path.islink(cache.materialise(manifest) / "model.onnx")


def test_a_wrong_declaration_does_not_cost_a_sound_blob(cache: Cache) -> None:
    blob = put(cache, b"data")
    assert not cache.has_blob(digest_of(b"data"), 5)
    assert cache.has_blob(digest_of(b"data"), 4)
    os.utime(blob)
    assert not cache.has_blob(digest_of(b"data"), 5)
    assert not blob.exists(), "whoever touched it may have cut it"


def test_files_whose_times_were_lost_are_hashed_once_and_sealed_again(cache: Cache) -> None:
    manifest = fill(cache, FILES)
    path = cache.materialise(manifest) / "model.onnx"
    os.utime(path)
    before = os.stat(path).st_mtime_ns
    assert cache.find_tree(manifest) is not None
    assert os.stat(path).st_mtime_ns != before


def test_without_hard_links_files_are_copied(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EPERM, "no hard links on this file system")

    monkeypatch.setattr(os, "link", no_links)
    manifest = fill(cache, FILES)
    tree = cache.materialise(manifest)
    assert (tree / "model.onnx").read_bytes() == b"graph"
    assert os.stat(tree / "model.onnx").st_nlink == 1
    assert cache.usage()[0].size_bytes == 2 * manifest.size_bytes, "copies take room, and are counted"
    assert cache.prune(2 * manifest.size_bytes) == 0
    assert cache.prune(2 * manifest.size_bytes - 1) == 2 * manifest.size_bytes
    fill(cache, FILES)
    assert cache.find_tree(manifest) == tree


def test_threads_materialise_one_version_at_once(cache: Cache) -> None:
    manifest = manifest_of({f"f{i}": b"%d" % i for i in range(50)})
    for i in range(50):
        put(cache, b"%d" % i)
    results: list[Path | Exception] = []

    def work() -> None:
        try:
            results.append(cache.materialise(manifest))
        except Exception as exc:
            results.append(exc)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [cache._layout.tree(manifest.digest)] * 8
    assert litter(cache) == []


# -- trust -------------------------------------------------------------------------------------------------------------


@fault(45)
@pytest.mark.parametrize("part", ["blobs", "blobs/sha256", "trees", "tmp", "refs", "leases", "locks", "derived"])
def test_a_planted_link_is_refused_and_not_followed(tmp_path: Path, part: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    planted = tmp_path / "cache" / part
    planted.parent.mkdir(parents=True, mode=0o700)
    planted.symlink_to(victim)
    with pytest.raises(CacheError, match="not a directory"):
        Cache(tmp_path / "cache").open()
    assert list(victim.iterdir()) == []


@fault(45)
def test_links_planted_where_files_go_leave_their_target_alone(cache: Cache, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    digest = digest_of(b"data")
    blob = cache._layout.blob(digest)
    blob.parent.mkdir()
    blob.symlink_to(victim)
    cache._layout.lease(digest).symlink_to(victim)
    cache._layout.lock(digest).symlink_to(victim)
    assert not cache.has_blob(digest, 8)
    with pytest.raises(CacheError, match="remove it"):
        cache.lease(digest)
    with pytest.raises(CacheError, match="remove it"):
        cache.lock_blob(digest)
    put(cache, b"data")
    assert blob.read_bytes() == b"data"
    assert not blob.is_symlink()
    assert victim.read_bytes() == b"precious"
    assert stat.S_IMODE(victim.stat().st_mode) != 0o444


@fault(45)
def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(CacheError, match="chmod 700"):
        Cache(directory).open()


@fault(45)
@pytest.mark.root
def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    directory.mkdir(mode=0o700)
    os.chown(directory, 12345, 12345)
    with pytest.raises(CacheError, match="belongs to user 12345"):
        Cache(directory).open()


def test_a_file_in_the_way_is_a_cache_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError):
        Cache(tmp_path / "file").open()
    with pytest.raises(CacheError):
        Cache(tmp_path / "file" / "below").open()


# -- locks -------------------------------------------------------------------------------------------------------------


@fault(42)
def test_leased_versions_survive_pruning(cache: Cache) -> None:
    kept, gone = fill(cache, {"a": b"a" * 100}), fill(cache, {"b": b"b" * 100})
    with cache.lease(kept.digest):
        assert cache.prune(0) == 100
        assert cache.find_tree(kept) is not None
        assert cache.find_tree(gone) is None
        assert [(e.digest, e.leased, e.complete) for e in cache.usage()] == [(kept.digest, True, True)]
    assert cache.prune(0) == 100
    assert cache.usage() == []
    assert [p for p in cache.directory.rglob("*") if p.is_file()] == []


def test_several_leases_hold_until_the_last(cache: Cache) -> None:
    manifest = fill(cache, FILES)
    first, second = cache.lease(manifest.digest), cache.lease(manifest.digest)
    first.release()
    first.release()
    assert cache.prune(0) == 0
    second.release()
    assert cache.prune(0) > 0


def test_a_lease_on_what_is_being_pruned_is_on_the_new_file(cache: Cache) -> None:
    manifest = fill(cache, FILES)
    cache.lease(manifest.digest).release()
    cache.prune(0)
    lease = cache.lease(manifest.digest)
    fill(cache, FILES)
    assert cache.prune(0) == 0, "the lease that came after pruning counts"
    lease.release()


@fault(42)
def test_the_least_recently_used_goes_first_and_known_versions_last(cache: Cache) -> None:
    manifests = [fill(cache, {"f": bytes([i]) * 100}) for i in range(4)]
    for age, manifest in enumerate(manifests):
        cache.lease(manifest.digest).release()
        os.utime(cache._layout.lease(manifest.digest), (age, age))
    state = RefState(ref="ns/model@prod", server_id="s", version=version_of(manifests[0]), alias_mod_rev=1)
    cache.save_ref("key", state)
    assert [e.digest for e in cache.usage()] == [m.digest for m in manifests]
    assert cache.usage()[0].names == ("ns/model@1",)
    assert cache.prune(200) == 200
    assert [e.digest for e in cache.usage()] == [manifests[0].digest, manifests[3].digest]


def test_shared_files_stay_while_one_version_needs_them(cache: Cache) -> None:
    old, new = fill(cache, {"w": b"w" * 500, "g": b"1"}), fill(cache, {"w": b"w" * 500, "g": b"2"})
    with cache.lease(new.digest):
        assert cache.prune(0) == 1
        assert cache.find_tree(new) is not None
        assert cache.has_blob(digest_of(b"w" * 500), 500)
    assert cache.find_manifest(old.digest) is None


def test_one_download_lock_at_a_time(cache: Cache) -> None:
    digest = digest_of(b"data")
    lock = cache.lock_blob(digest)
    assert lock is not None
    assert cache.lock_blob(digest) is None
    lock.release(unlink=True)
    again = cache.lock_blob(digest)
    assert again is not None
    again.release(unlink=True)


@fault(40)
@pytest.mark.parametrize("failure", [None, errno.ENOTSUP, errno.ENOLCK])
def test_without_working_locks_everything_still_works(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, failure: int | None
) -> None:
    def flock(fd: int, operation: int) -> None:
        if failure is not None:
            raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(fcntl, "flock", flock)
    manifest = fill(cache, FILES)
    lease = cache.lease(manifest.digest)
    open_file = (cache.materialise(manifest) / "model.onnx").open("rb")
    first, second = cache.lock_blob(manifest.digest), cache.lock_blob(manifest.digest)
    assert first is not None
    assert second is not None
    cache.prune(0)
    with open_file:
        assert open_file.read() == b"graph", "what is open stays whole, whatever is pruned"
    with pytest.raises(NotFoundError):
        cache.materialise(manifest)
    fill(cache, FILES)
    lease.release()
    first.release(unlink=True)
    second.release(unlink=True)
    assert cache.verify().problems == ()


# -- upkeep ------------------------------------------------------------------------------------------------------------


@fault(44)
def test_verify_finds_and_removes_what_is_wrong(cache: Cache) -> None:
    manifest = fill(cache, FILES)
    assert cache.verify().problems == ()
    path = cache.materialise(manifest) / "model.onnx"
    status = os.stat(path)
    overwrite(path, b"grapH")
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert cache.find_tree(manifest) is not None, "a forged seal is not seen without hashing"
    report = cache.verify()
    assert all(problem.removed for problem in report.problems)
    assert {Path(p.path).parent.parent.name for p in report.problems} == {"sha256", "cache"}
    assert cache.find_tree(manifest) is None
    assert cache.verify().problems == ()


def test_verify_checks_derived_files_manifests_and_records(cache: Cache) -> None:
    manifest = fill(cache, FILES)
    with cache.new_derived(manifest.digest, "key") as writer:
        (writer.directory / "model.ort").write_bytes(b"optimised")
        derived = writer.commit()
    cache.save_ref("k", RefState(ref="a/b@c", server_id="s", version=version_of(manifest), alias_mod_rev=1))
    status = os.stat(derived / "model.ort")
    overwrite(derived / "model.ort", b"0ptimised")
    os.utime(derived / "model.ort", ns=(status.st_mtime_ns, status.st_mtime_ns))
    overwrite(next((cache.directory / "refs").glob("*.json")), b"garbage")
    overwrite(cache._layout.manifest(manifest.digest), b"{}")
    reasons = " / ".join(problem.reason for problem in cache.verify().problems)
    for words in ("derived files", "last-known-good", "manifest"):
        assert words in reasons
    assert cache.find_derived(manifest.digest, "key") is None


@fault(46)
def test_old_litter_is_swept_and_work_in_progress_is_not(cache: Cache) -> None:
    busy = cache.new_blob(ManifestFile(path="x", size_bytes=4, digest=digest_of(b"data")))
    for i in range(100):
        (cache.directory / "tmp" / f"blob.dead.{i}").write_bytes(b"half")
    (cache.directory / "tmp" / "tree.dead").mkdir()
    (cache.directory / "tmp" / "link").symlink_to("/etc/passwd")
    fresh = cache.directory / "tmp" / "fresh"
    fresh.write_bytes(b"")
    past = time.time() - 2 * cache_upkeep.STALE_S
    for path in (cache.directory / "tmp").iterdir():
        if path != fresh:
            os.utime(path, (past, past), follow_symlinks=False)
    Cache(cache.directory).open()
    assert litter(cache) == sorted([fresh.name, busy.path.name])
    assert os.path.exists("/etc/passwd")
    busy.abort()


def test_orphaned_blobs_go_only_when_old(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = put(cache, b"nobody's")
    cache.prune(0)
    assert blob.exists(), "its version may be on its way"
    monkeypatch.setattr(cache_upkeep, "STALE_S", -10.0)
    assert cache.prune(0) == 8
    assert not blob.exists()


def test_make_room_prunes_and_refuses_the_impossible(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=1000)
    cache.open()
    old = fill(cache, {"f": b"x" * 600})
    cache.make_room(400)
    assert cache.find_tree(old) is not None
    cache.make_room(401)
    assert cache.find_tree(old) is None
    with pytest.raises(CacheError, match="cache_max_bytes"):
        cache.make_room(1001)


# -- derived files -----------------------------------------------------------------------------------------------------


def test_derived_files_appear_whole_or_not_at_all(cache: Cache) -> None:
    manifest = fill(cache, FILES)
    writer = cache.new_derived(manifest.digest, "ort-1.24_cpu")
    (writer.directory / "model.onnx").write_bytes(b"graph")
    (writer.directory / "model.data").write_bytes(b"weights")
    assert cache.find_derived(manifest.digest, "ort-1.24_cpu") is None
    path = writer.commit()
    assert cache.find_derived(manifest.digest, "ort-1.24_cpu") == path
    assert cache.find_derived(manifest.digest, "other") is None
    second = cache.new_derived(manifest.digest, "ort-1.24_cpu")
    (second.directory / "model.onnx").write_bytes(b"another")
    assert second.commit() == path
    assert (path / "model.onnx").read_bytes() == b"graph", "who comes first stays"
    assert litter(cache) == []


def test_changed_derived_files_are_not_used_and_can_be_made_again(cache: Cache) -> None:
    manifest = fill(cache, FILES)
    for content in (b"one", b"two"):
        with cache.new_derived(manifest.digest, "k") as writer:
            (writer.directory / "m.ort").write_bytes(content)
            path = writer.commit()
        assert (path / "m.ort").read_bytes() == content
        overwrite(path / "m.ort", b"xxx")
        assert cache.find_derived(manifest.digest, "k") is None


def test_derived_directories_hold_plain_files_only(cache: Cache) -> None:
    manifest = fill(cache, FILES)
    with cache.new_derived(manifest.digest, "k") as writer:
        (writer.directory / "link").symlink_to("/etc/passwd")
        with pytest.raises(CacheError):
            writer.commit()
    with cache.new_derived(manifest.digest, "k") as writer, pytest.raises(CacheError, match="nothing was written"):
        writer.commit()
    assert litter(cache) == []


@pytest.mark.parametrize("key", ["", "..", "a/b", "../x", ".hidden", "a..b", "x" * 200, "a\0b"])
def test_keys_cannot_be_paths(cache: Cache, key: str) -> None:
    with pytest.raises(InvalidError):
        cache.find_derived(digest_of(b""), key)


# -- last-known-good records -------------------------------------------------------------------------------------------


def state_of(number: int) -> RefState:
    version = version_of(manifest_of({"model.onnx": b"%d" % number}), version=number)
    return RefState(
        ref="ns/model@prod",
        server_id="server",
        version=version,
        alias_mod_rev=number,
        token="token",
        previous=version,
        quarantine=(Quarantined(digest=version.digest, mod_rev=3, reason="does not open"),),
    )


def test_records_come_back_as_they_were(cache: Cache) -> None:
    assert cache.load_ref("http://a ns/model@prod") is None
    cache.save_ref("http://a ns/model@prod", state_of(1))
    cache.save_ref("http://b ns/model@prod", state_of(2))
    again = Cache(cache.directory)
    again.open()
    assert again.load_ref("http://a ns/model@prod") == state_of(1)
    assert again.load_ref("http://b ns/model@prod") == state_of(2)


@fault(46)
@pytest.mark.parametrize("damage", [b"", b"garbage", b"modelbox-ref 1 00\n{}", os.urandom(500)])
def test_a_torn_record_falls_back_to_the_one_before(cache: Cache, damage: bytes) -> None:
    cache.save_ref("k", state_of(1))
    cache.save_ref("k", state_of(2))
    path = next((cache.directory / "refs").glob("*.json"))
    path.write_bytes(damage)
    assert cache.load_ref("k") == state_of(1)
    cache.save_ref("k", state_of(3))
    assert cache.load_ref("k") == state_of(3)
    path.write_bytes(damage)
    assert cache.load_ref("k") == state_of(1), "a torn record never becomes the backup"
    path.with_suffix(".json.bak").write_bytes(damage)
    assert cache.load_ref("k") is None
    assert litter(cache) == []


@fault(46)
def test_a_single_flipped_bit_in_a_record_is_noticed(cache: Cache) -> None:
    cache.save_ref("k", state_of(1))
    path = next((cache.directory / "refs").glob("*.json"))
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        assert cache.load_ref("k") is None


# -- errors of the disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "modelbox cache prune"),
        (errno.EDQUOT, "modelbox cache prune"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "may not write"),
        (errno.EIO, "modelbox cache verify"),
    ],
)
@pytest.mark.parametrize("call", ["writev", "fsync", "replace", "fchmod"])
def test_every_failing_call_is_a_cache_error_that_leaves_nothing(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, code: int, advice: str, call: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    file = ManifestFile(path="x", size_bytes=4, digest=digest_of(b"data"))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        writer = cache.new_blob(file)
        with pytest.raises(CacheError, match=advice) as caught:
            writer.write(b"data")
            writer.commit()
        writer.abort()
    assert caught.value.fields["errno"] == errno.errorcode[code]
    assert litter(cache) == []
    assert not cache.has_blob(file.digest, 4)


def test_short_writes_are_completed(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, chunks: real(fd, [bytes(chunks[0])[:3]]))
    data = b"0123456789"
    writer = cache.new_blob(ManifestFile(path="x", size_bytes=10, digest=digest_of(data)))
    chunks = [data[:4], data[4:5], data[5:]]
    writer.check(chunks)
    writer.store(chunks)
    assert writer.commit().read_bytes() == data


def test_layout_keeps_names_inside(tmp_path: Path) -> None:
    with pytest.raises(InvalidError):
        Layout(tmp_path).blob("sha256:../../etc/passwd")  # type: ignore[arg-type]

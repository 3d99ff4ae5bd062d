"""Whatever is packed comes back the same; whatever is malformed is an `InvalidError`, never anything else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox import _wire as wire
from modelbox import errors
from modelbox._proto.modelbox import v1 as pb
from modelbox.feed import Bookmark, Change, FeedItem, Filter, Resync, ResyncReason, Revision, Snapshot
from modelbox.manifest import Manifest, ManifestFile
from modelbox.objects import (
    Alias,
    AliasMove,
    Artifact,
    ArtifactFile,
    Instance,
    InstanceReport,
    InstanceState,
    Model,
    ModelPatch,
    ModelVersion,
    Namespace,
    NewArtifact,
    NewModel,
    NewVersion,
    Resolved,
    VersionPatch,
    to_json,
)
from modelbox.refs import Digest, ModelRef
from modelbox.signature import Signature, TensorSpec
from tests.faults.registry import fault

DIGEST = Digest("sha256:" + "ab" * 32)

text = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
count = st.integers(0, 2**63 - 1)
names = st.from_regex(r"[a-z0-9]{1,10}", fullmatch=True)
times = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
labels = st.dictionaries(text, text, max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
metadata = st.dictionaries(text, json_values, max_size=3)
metrics = st.dictionaries(text, st.floats(allow_nan=False), max_size=3)
digests = st.binary(min_size=32, max_size=32).map(lambda raw: Digest(f"sha256:{raw.hex()}"))
optional = st.none() | text
optional_version = st.none() | st.integers(1, 2**60)
uniques = st.lists(text, max_size=3).map(tuple)
manifests = st.builds(
    Manifest,
    files=st.lists(
        st.builds(
            ManifestFile,
            path=st.from_regex(r"[a-z]{1,8}/[a-z]{1,8}\.onnx", fullmatch=True),
            size_bytes=st.integers(0, 1 << 30),
            digest=digests,
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda file: file.path,
    ).map(tuple),
    signature=st.none()
    | st.just(
        Signature(
            inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", -1, 3)),),
            outputs=(TensorSpec(name="y", dtype="int64", shape=()),),
        )
    ),
)


def _version(manifest: Manifest, **values: Any) -> ModelVersion:
    return ModelVersion(manifest=manifest, digest=manifest.digest, **values)


versions = st.builds(
    _version,
    manifest=manifests,
    id=text,
    namespace=names,
    model=names,
    version=st.integers(1, 2**60),
    description=text,
    labels=labels,
    metadata=metadata,
    metrics=metrics,
    created_at=times,
    created_by=text,
    mod_rev=count,
)
aliases = st.builds(
    Alias, namespace=names, model=names, name=names, version=count, digest=digests, moved_at=times, mod_rev=count
)
files = st.builds(ArtifactFile, path=text, size_bytes=count, digest=digests, media_type=st.just("text/plain"), uri=text)
reports = st.builds(
    InstanceReport,
    instance_id=text,
    host=text,
    pid=count,
    ref=text,
    state=st.sampled_from(InstanceState),
    version=count,
    digest=text,
    target_version=count,
    mod_rev=count,
    reason=text,
    stale=st.booleans(),
)
changes = st.builds(
    Change,
    rev=count,
    idx=st.integers(0, 2**31 - 1),
    namespace=names,
    object=text,
    kind=text,
    action=text,
    actor=text,
    at=times,
    state=json_values,
)
revisions = st.builds(Revision, rev=count, prev_rev=count, changes=st.lists(changes, max_size=3).map(tuple), token=text)
bookmarks = st.builds(Bookmark, rev=count, head_rev=count, token=text)
resyncs = st.builds(Resync, reason=st.sampled_from(ResyncReason), message=text)


def _across(message: Any) -> Any:
    return wire.decode_message(type(message), bytes(message))


CASES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], st.SearchStrategy[Any]]] = {
    "namespace": (
        wire.pack_namespace,
        wire.unpack_namespace,
        st.builds(Namespace, name=text, created_at=times, mod_rev=count),
    ),
    "model": (
        wire.pack_model,
        wire.unpack_model,
        st.builds(
            Model,
            id=text,
            namespace=names,
            name=names,
            owner=text,
            task=text,
            description=text,
            labels=labels,
            metadata=metadata,
            latest_version=count,
            created_at=times,
            mod_rev=count,
        ),
    ),
    "version": (wire.pack_version, wire.unpack_version, versions),
    "alias": (wire.pack_alias, wire.unpack_alias, aliases),
    "move": (
        wire.pack_alias_move,
        wire.unpack_alias_move,
        st.builds(
            AliasMove,
            namespace=names,
            model=names,
            name=names,
            from_version=optional_version,
            to_version=optional_version,
            moved_at=times,
            moved_by=text,
            reason=text,
            rev=count,
        ),
    ),
    "resolved": (
        wire.pack_resolved,
        wire.unpack_resolved,
        st.builds(
            Resolved,
            ref=st.sampled_from([ModelRef.parse("a/b@prod"), ModelRef.parse("a/b@7"), ModelRef.parse(f"a/b@{DIGEST}")]),
            version=versions,
            alias=st.none() | aliases,
            token=text,
            server_id=text,
        ),
    ),
    "new model": (
        wire.pack_new_model,
        wire.unpack_new_model,
        st.builds(NewModel, namespace=text, name=text, owner=text, labels=labels, metadata=metadata),
    ),
    "model patch": (
        lambda patch: wire.pack_model_patch("ns", "m", patch),
        wire.unpack_model_patch,
        st.builds(
            ModelPatch,
            owner=optional,
            task=optional,
            description=optional,
            labels=labels,
            remove_labels=uniques,
            metadata=metadata,
            remove_metadata=uniques,
        ),
    ),
    "new version": (
        wire.pack_new_version,
        wire.unpack_new_version,
        st.builds(
            NewVersion,
            namespace=text,
            model=text,
            manifest=manifests,
            description=text,
            labels=labels,
            metadata=metadata,
            metrics=metrics,
            aliases=uniques,
            reason=text,
        ),
    ),
    "version patch": (
        lambda patch: wire.pack_version_patch("ns", "m", 3, patch),
        wire.unpack_version_patch,
        st.builds(
            VersionPatch,
            description=optional,
            labels=labels,
            remove_labels=uniques,
            metadata=metadata,
            remove_metadata=uniques,
            metrics=metrics,
            remove_metrics=uniques,
        ),
    ),
    "artifact": (
        wire.pack_artifact,
        wire.unpack_artifact,
        st.builds(
            Artifact,
            id=text,
            namespace=names,
            parent=text,
            name=text,
            files=st.lists(files, max_size=3).map(tuple),
            labels=labels,
            metadata=metadata,
            created_at=times,
            created_by=text,
            mod_rev=count,
        ),
    ),
    "new artifact": (
        wire.pack_new_artifact,
        wire.unpack_new_artifact,
        st.builds(
            NewArtifact,
            parent=text,
            name=text,
            files=st.lists(files, max_size=3).map(tuple),
            labels=labels,
            metadata=metadata,
        ),
    ),
    "instance": (
        wire.pack_instance,
        wire.unpack_instance,
        st.builds(Instance, report=reports, first_seen_at=times, last_seen_at=times, alive=st.booleans()),
    ),
    "filter": (
        wire.pack_filter,
        wire.unpack_filter,
        st.builds(Filter, namespace=text, objects=uniques, kinds=uniques),
    ),
    "feed item": (wire.pack_feed_item, wire.unpack_feed_item, revisions | bookmarks | resyncs),
    "snapshot": (
        wire.pack_snapshot,
        wire.unpack_snapshot,
        st.builds(Snapshot, items=st.lists(changes, max_size=3).map(tuple), next_token=text, token=text, rev=count),
    ),
}


@pytest.mark.parametrize("case", CASES)
@given(data=st.data())
def test_what_is_packed_comes_back_the_same(case: str, data: st.DataObject) -> None:
    pack, unpack, values = CASES[case]
    value = data.draw(values)
    assert unpack(_across(pack(value))) == value


@fault(64)
@given(data=st.binary(max_size=60), cls=st.sampled_from([pb.PublishVersionRequest, pb.WatchRequest, pb.ListResponse]))
def test_malformed_bytes_are_invalid_and_nothing_else(data: bytes, cls: Any) -> None:
    try:
        message = wire.decode_message(cls, data)
    except errors.InvalidError:
        return
    assert isinstance(message, cls)


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x01\xff",  # text that is not UTF-8
        b"\x48" + b"\xff" * 11,  # a varint without an end
        b"\x0a",  # a field without its length
    ],
)
def test_bytes_that_are_no_message_are_invalid(data: bytes) -> None:
    with pytest.raises(errors.InvalidError, match="not a valid Model message"):
        wire.decode_message(pb.Model, data)


def test_times_keep_every_microsecond_and_refuse_what_is_no_time() -> None:
    late = datetime(2262, 4, 11, 23, 47, 16, 854_775, tzinfo=UTC)
    assert wire.unpack_time(wire.pack_time(late)) == late
    with pytest.raises(errors.InvalidError, match="is not a time"):
        wire.unpack_time(2**63 - 1)


def test_a_manifest_that_its_digest_does_not_name_is_refused() -> None:
    manifest = Manifest(files=(ManifestFile(path="m.onnx", size_bytes=1, digest=DIGEST),))
    message = pb.ModelVersion(
        namespace="a", model="b", version=1, digest=manifest.digest, manifest_json=manifest.to_json() + b" "
    )
    with pytest.raises(errors.IntegrityError) as caught:
        wire.unpack_version(message)
    assert caught.value.fields["expected"] == manifest.digest
    actual = hashlib.sha256(message.manifest_json).hexdigest()
    assert caught.value.fields["actual"] == f"sha256:{actual}"


@pytest.mark.parametrize("value", ["{", "NaN", "[1,]", "[" * 100_000])
def test_metadata_that_is_not_json_is_refused(value: str) -> None:
    with pytest.raises(errors.InvalidError, match="'card' is not JSON"):
        wire.unpack_new_model(pb.CreateModelRequest(namespace="a", name="b", metadata_json={"card": value}))


def test_metadata_that_cannot_become_json_is_refused_before_it_is_sent() -> None:
    with pytest.raises(errors.InvalidError, match="metadata must be JSON: 'x' is not"):
        wire.pack_new_model(NewModel(namespace="a", name="b", metadata={"good": 1, "x": float("nan")}))


def test_a_version_whose_metric_is_not_finite_travels_in_the_feed() -> None:
    state = to_json({"loss": float("nan"), "best": float("-inf")})
    change = Change(
        rev=1,
        idx=0,
        namespace="a",
        object="a/b@1",
        kind="version",
        action="created",
        actor="me",
        at=datetime(2026, 1, 1, tzinfo=UTC),
        state=state,
    )
    assert wire.unpack_change(_across(wire.pack_change(change))).state == {"best": "-Infinity", "loss": "NaN"}


@fault(37)
def test_an_item_from_a_newer_server_is_none_and_its_reason_means_list_again() -> None:
    assert wire.unpack_feed_item(pb.WatchResponse()) is None
    item = wire.unpack_feed_item(pb.WatchResponse(resync=pb.Resync(reason="moon", message="full")))
    assert isinstance(item, Resync)
    assert item.reason is ResyncReason.DIVERGED


def test_an_answer_without_its_object_is_invalid() -> None:
    answers: list[tuple[Callable[[Any], Any], Any]] = [
        (wire.unpack_created_model, pb.CreateModelResponse()),
        (wire.unpack_created_version, pb.PublishVersionResponse()),
        (wire.unpack_created_artifact, pb.CreateArtifactResponse()),
        (wire.unpack_resolved, pb.ResolveResponse(ref="a/b@prod")),
        (wire.unpack_instance, pb.Instance()),
    ]
    for unpack, message in answers:
        with pytest.raises(errors.InvalidError, match="lacks"):
            unpack(message)


def _all(cls: type[errors.ModelBoxError]) -> list[type[errors.ModelBoxError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in _all(sub))]


@pytest.mark.parametrize("cls", _all(errors.ModelBoxError))
def test_every_error_survives_the_trailer(cls: type[errors.ModelBoxError]) -> None:
    error = cls("it broke: \u00fc", current=3, exists=["a", "b"])
    back = wire.unpack_error(13, "", wire.pack_error(error))
    assert type(back) is cls
    assert (back.message, back.fields) == (error.message, error.fields)


@pytest.mark.parametrize("fields", [{"x": object()}, {"x": "y" * 10_000}, {"x": float("nan")}])
def test_fields_that_do_not_fit_the_trailer_stay_behind(fields: dict[str, object]) -> None:
    trailer = wire.pack_error(errors.LimitError("full", **fields))
    assert len(trailer) <= wire.MAX_ERROR_BYTES
    back = wire.unpack_error(8, "", trailer)
    assert type(back) is errors.LimitError
    assert (back.message, back.fields) == ("full", {})


def test_a_long_message_is_cut_and_the_trailer_stays_small() -> None:
    trailer = wire.pack_error(errors.InvalidError("\u20ac" * 100_000))
    assert len(trailer) <= wire.MAX_ERROR_BYTES
    assert type(wire.unpack_error(3, "", trailer)) is errors.InvalidError


@pytest.mark.parametrize(
    ("status", "cls"), [(14, errors.Unavailable), (4, errors.DeadlineExceeded), (2, errors.ModelBoxError)]
)
@pytest.mark.parametrize("trailer", [None, b"", b"{", b"[]", b"\xff"])
def test_an_error_without_a_usable_trailer_goes_by_its_status(status: int, cls: type, trailer: bytes | None) -> None:
    back = wire.unpack_error(status, "no route", trailer)
    assert type(back) is cls
    assert back.message == "no route"


def test_a_feed_item_is_one_of_three() -> None:
    item: FeedItem = Bookmark(rev=1, head_rev=2, token="t")
    assert wire.unpack_feed_item(_across(wire.pack_feed_item(item))) == item


def test_a_derived_class_without_a_code_of_its_own_does_not_take_its_parents_place() -> None:
    class Special(errors.NotFoundError):
        def __init__(self) -> None:
            super().__init__("special")

    assert type(errors.error_from_dict(Special().to_dict())) is errors.NotFoundError

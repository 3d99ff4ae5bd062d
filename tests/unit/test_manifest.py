"""Manifests: equal content has one digest, and no path that passes leaves its directory."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.errors import InvalidError
from modelbox.manifest import MAX_FILES, Manifest, ManifestFile, check_path
from modelbox.refs import Digest
from modelbox.signature import DTYPES, Signature, TensorSpec
from tests.faults.registry import fault

DIGEST = Digest("sha256:" + "0" * 64)

segments = st.text(
    st.characters(exclude_characters="/\\:", exclude_categories=("Cc", "Cf", "Cs")), min_size=1, max_size=20
).map(lambda text: unicodedata.normalize("NFC", text))
paths = (
    st.lists(segments, min_size=1, max_size=4)
    .map("/".join)
    .filter(lambda path: not {".", "..", ""} & set(path.split("/")) and unicodedata.normalize("NFC", path) == path)
)
files = st.builds(
    ManifestFile,
    path=paths,
    size_bytes=st.integers(0, 1 << 34),
    digest=st.text("0123456789abcdef", min_size=64, max_size=64).map(lambda h: Digest(f"sha256:{h}")),
    media_type=st.sampled_from(["application/octet-stream", "application/json", "text/x-y+z"]),
)


def _apart(found: list[ManifestFile]) -> list[ManifestFile]:
    """Drops files whose paths clash, as `Manifest` sees it."""
    kept: list[ManifestFile] = []
    for file in found:
        key = file.path.casefold()
        others = [k.path.casefold() for k in kept]
        if not any(key == o or key.startswith(f"{o}/") or o.startswith(f"{key}/") for o in others):
            kept.append(file)
    return kept


specs = st.builds(
    TensorSpec,
    name=st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=10),
    dtype=st.sampled_from(sorted(DTYPES)),
    shape=st.lists(st.one_of(st.integers(-1, 1 << 40), st.sampled_from(["batch", "time"])), max_size=4).map(tuple),
)
sides = st.lists(specs, max_size=3, unique_by=lambda spec: spec.name).map(tuple)
manifests = st.builds(
    lambda found, framework, signature: Manifest(files=tuple(_apart(found)), framework=framework, signature=signature),
    st.lists(files, min_size=1, max_size=6),
    st.sampled_from(["onnx", "safetensors", "custom-1"]),
    st.none() | st.builds(Signature, inputs=sides, outputs=sides),
)


@given(manifests, st.randoms())
def test_json_gives_the_same_manifest_and_digest_back(manifest: Manifest, random: Any) -> None:
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert again.digest == manifest.digest
    shuffled = list(manifest.files)
    random.shuffle(shuffled)
    other = Manifest(files=tuple(shuffled), framework=manifest.framework, signature=manifest.signature)
    assert other.digest == manifest.digest, "the order in which files are given is not content"
    assert Manifest.from_json(json.loads(manifest.to_json())) == manifest


def test_the_digest_is_the_documented_one() -> None:
    manifest = Manifest(files=(ManifestFile(path="m.onnx", size_bytes=1, digest=DIGEST),))
    text = (
        '{"files":[{"digest":"' + DIGEST + '","media_type":"application/octet-stream","path":"m.onnx","size_bytes":1}],'
        '"framework":"onnx"}'
    )
    assert manifest.to_json() == text.encode()
    assert manifest.digest == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@given(paths)
def test_good_paths_stay_inside(path: str) -> None:
    assert check_path(path) == path
    inside = os.path.normpath(f"/root/{path}")
    assert inside == f"/root/{path}"


@given(st.text(max_size=60))
def test_any_text_is_a_path_inside_or_refused(text: str) -> None:
    try:
        check_path(text)
    except InvalidError as exc:
        message = str(exc)
    else:
        message = ""
    assert message.isprintable()
    if message:
        return
    assert os.path.normpath(f"/root/{text}") == f"/root/{text}"
    assert not PurePosixPath(text).is_absolute()
    assert "\0" not in text


@fault(60)
@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "../up",
        "a/../b",
        "a/..",
        "..",
        ".",
        "./a",
        "a/./b",
        "a//b",
        "a/",
        "a\\b",
        "C:",
        "C:\\x",
        "a:b",
        "a\0b",
        "a\nb",
        "a\x7fb",
        "a\u202eb",
        "a\u200bb",
        "e\u0301",
        "\ud800",
        "x" * 256,
        "é" * 128,
        "/".join(["x" * 200] * 6),
    ],
)
def test_bad_paths_are_refused(path: str) -> None:
    with pytest.raises(InvalidError):
        ManifestFile(path=path, size_bytes=1, digest=DIGEST)


@pytest.mark.parametrize(
    "change",
    [
        {"size_bytes": -1},
        {"size_bytes": True},
        {"size_bytes": 1.5},
        {"size_bytes": (50 << 30) + 1},
        {"digest": "sha256:xyz"},
        {"digest": "md5:" + "0" * 32},
        {"media_type": "text"},
        {"media_type": "text/html\r\nX: y"},
        {"media_type": None},
    ],
)
def test_bad_files_are_refused(change: dict[str, Any]) -> None:
    good = {"path": "m", "size_bytes": 1, "digest": DIGEST}
    ManifestFile(**good)  # type: ignore[arg-type]
    with pytest.raises(InvalidError):
        ManifestFile(**{**good, **change})


def _file(path: str, size_bytes: int = 1) -> ManifestFile:
    return ManifestFile(path=path, size_bytes=size_bytes, digest=DIGEST)


@pytest.mark.parametrize(
    "clash",
    [("a", "a"), ("Model.onnx", "model.onnx"), ("straße", "strasse"), ("a", "a/b"), ("A", "a/b/c"), ("a/b/c", "a/b")],
)
def test_paths_that_are_one_on_some_file_system_are_refused(clash: tuple[str, str]) -> None:
    with pytest.raises(InvalidError):
        Manifest(files=tuple(_file(path) for path in clash))


def test_limits() -> None:
    with pytest.raises(InvalidError, match="at least one"):
        Manifest(files=())
    Manifest(files=tuple(_file(f"f{i}") for i in range(MAX_FILES)))
    with pytest.raises(InvalidError, match="at most"):
        Manifest(files=tuple(_file(f"f{i}") for i in range(MAX_FILES + 1)))
    with pytest.raises(InvalidError, match="more than"):
        Manifest(files=tuple(_file(f"f{i}", 50 << 30) for i in range(5)))


def test_the_entry_point_is_one_of_the_files() -> None:
    assert Manifest(files=(_file("a"), _file("b")), entrypoint="b").entrypoint == "b"
    with pytest.raises(InvalidError, match="entry point"):
        Manifest(files=(_file("a"),), entrypoint="b")


@pytest.mark.parametrize("framework", ["", "ONNX", "a b", "../x", "x" * 65, None])
def test_bad_frameworks_are_refused(framework: Any) -> None:
    with pytest.raises(InvalidError):
        Manifest(files=(_file("a"),), framework=framework)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["files", "path", "x"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.one_of(st.binary(max_size=50), json_values.map(lambda value: json.dumps(value).encode())))
def test_anything_else_is_a_typed_error(data: bytes) -> None:
    with pytest.raises(InvalidError):
        Manifest.from_json(data)


@given(manifests, st.data())
def test_a_field_of_another_type_is_a_typed_error_or_means_the_same(manifest: Manifest, draw: st.DataObject) -> None:
    raw = json.loads(manifest.to_json())
    target = draw.draw(st.sampled_from([raw, raw["files"][0], *([raw["signature"]] if "signature" in raw else [])]))
    target[draw.draw(st.sampled_from(sorted(target)))] = draw.draw(json_values)
    try:
        changed = Manifest.from_json(raw)
    except InvalidError:
        return
    assert Manifest.from_json(changed.to_json()) == changed


def test_deep_nesting_is_a_typed_error() -> None:
    with pytest.raises(InvalidError):
        Manifest.from_json("[" * 100_000)

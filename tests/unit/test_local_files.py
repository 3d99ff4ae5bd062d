"""Which local files go into a version, and which are refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from modelbox._local_files import collect, measure, media_type
from modelbox.errors import InvalidError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "weights").mkdir(parents=True)
    (root / "model.onnx").write_bytes(b"graph")
    (root / "weights" / "b.bin").write_bytes(b"b")
    (root / "weights" / "a.bin").write_bytes(b"a")
    return root


def test_a_file_goes_under_its_own_name(tree: Path) -> None:
    assert collect(tree / "model.onnx") == [("model.onnx", tree / "model.onnx")]


def test_a_directory_goes_with_everything_below_it_in_order(tree: Path) -> None:
    assert [path for path, _ in collect(str(tree))] == ["model.onnx", "weights/a.bin", "weights/b.bin"]


def test_a_mapping_names_the_paths(tree: Path) -> None:
    found = collect({"graph/model.onnx": tree / "model.onnx", "a": str(tree / "weights" / "a.bin")})
    assert found == [("a", tree / "weights" / "a.bin"), ("graph/model.onnx", tree / "model.onnx")]


def test_a_list_mixes_files_and_directories(tree: Path) -> None:
    assert [path for path, _ in collect([tree / "model.onnx", tree / "weights"])] == ["a.bin", "b.bin", "model.onnx"]


def test_two_files_of_one_name_are_refused(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "model.onnx"
    other.write_bytes(b"other")
    with pytest.raises(InvalidError, match=r"two files would be 'model\.onnx'"):
        collect([tree, other])


@pytest.mark.parametrize("path", ["../escape", "/etc/passwd", "a//b", "a\\b", "c:d", "a\0b", "."])
def test_paths_that_no_manifest_allows_are_refused(tree: Path, path: str) -> None:
    with pytest.raises(InvalidError, match="not a valid file path"):
        collect({path: tree / "model.onnx"})


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="No such file"):
        collect(tmp_path / "absent")
    with pytest.raises(InvalidError, match="no files"):
        collect([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidError, match="no files"):
        collect(tmp_path / "empty")


def test_a_link_out_of_the_directory_is_refused(tree: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (tree / "weights" / "c.bin").symlink_to(secret)
    with pytest.raises(InvalidError, match="leads out of"):
        collect(tree)


def test_a_link_inside_the_directory_is_read(tree: Path) -> None:
    (tree / "weights" / "c.bin").symlink_to("a.bin")
    assert "weights/c.bin" in dict(collect(tree))


def test_a_link_to_a_directory_is_refused(tree: Path) -> None:
    (tree / "more").symlink_to("weights", target_is_directory=True)
    with pytest.raises(InvalidError, match="link to a directory"):
        collect(tree)


def test_a_dangling_or_circular_link_is_refused(tree: Path) -> None:
    (tree / "loop").symlink_to("loop")
    with pytest.raises(InvalidError, match="leads nowhere"):
        collect(tree)


def test_special_files_are_refused(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    with pytest.raises(InvalidError, match="not a regular file"):
        collect(tree)
    with pytest.raises(InvalidError, match="neither a regular file nor a directory"):
        collect(tree / "pipe")


def test_measuring_reads_size_and_digest(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) * 2 + 17)
    path = tmp_path / "big.onnx"
    path.write_bytes(data)
    steps: list[int] = []
    measured = measure("m/big.onnx", path, steps.append)
    assert measured.size_bytes == len(data) == sum(steps)
    assert measured.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert (measured.path, measured.local) == ("m/big.onnx", path)


def test_an_unreadable_file_is_the_callers_problem(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="cannot be read"):
        measure("x", tmp_path)


def test_media_types_do_not_depend_on_the_system() -> None:
    assert media_type("a/MODEL.ONNX") == "application/x-onnx"
    assert media_type("weights") == "application/octet-stream"

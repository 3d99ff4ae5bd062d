"""The commands of rules and of protected aliases against a real server."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import pytest

from tests.cli import Cli


@pytest.fixture
def ns() -> str:
    return f"ns-{secrets.token_hex(4)}"


def test_what_a_version_must_have(cli: Cli, ns: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_text("one")
    publication = ("models", "publish", f"{ns}/m", str(file), "--framework", "other")
    shown = cli("rules", "set", ns, "--owner", "--label", "team", "--metadata", "license")
    assert re.search(rf"{ns} +every publication +label team, metadata license, owner ", shown)
    refused = cli(*publication, code=7)
    assert "it lacks the label team, the metadata license and an owner of the model" in refused
    assert f"modelbox models create {ns}/m --owner WHO" in refused
    assert len(refused.splitlines()) == 1
    # What the error says is what helps.
    cli("models", "create", f"{ns}/m", "--owner", "ada")
    cli(*publication, "--label", "team=asr", "--metadata", 'license="MIT"')
    cli("rules", "set", f"{ns}/m", "--alias", "prod*", "--description", "--dataset")
    assert len(cli.json("rules", "show", f"{ns}/m")) == 2
    cli("models", "promote", f"{ns}/m@prod", "1", code=7)
    table = cli.shown("rules", "check", f"{ns}/m@1", "--alias", "prod", code=7)
    assert re.search(rf"a description +{ns}/m +modelbox models update {ns}/m@1 --description TEXT", table)
    cli("models", "update", f"{ns}/m@1", "--description", "first")
    cli("datasets", "create", f"{ns}/voices")
    cli("datasets", "add", f"{ns}/voices", "--s3", "s3://bucket/voices")
    cli("lineage", "add", f"dataset:{ns}/voices@1", f"{ns}/m@1")
    assert cli.json("rules", "check", f"{ns}/m@1", "--alias", "prod") == {"missing": []}
    cli("models", "promote", f"{ns}/m@prod", "1")
    assert cli("rules", "delete", ns) == f"removed the rule of {ns} for every publication\n"
    assert "no rule" in cli("rules", "delete", ns, code=3)
    assert "asks for nothing" in cli("rules", "set", ns, code=2)
    cli("models", "update", f"{ns}/m", "--owner", "bo", "--task", "asr")
    assert cli.json("models", "show", f"{ns}/m")["model"]["owner"] == "bo"
    assert "of its model" in cli("models", "update", f"{ns}/m@1", "--owner", "bo", code=2)
    assert "nothing to edit" in cli("models", "update", f"{ns}/m", code=2)


def test_who_moves_an_alias(cli: Cli, ns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights.bin"
    for content in ("one", "two"):
        file.write_text(content)
        cli("models", "publish", f"{ns}/m", str(file), "--framework", "other")
    monkeypatch.setenv("MODELBOX_ACTOR", "ada")
    shown = cli("aliases", "protect", ns, "blue*", "--approval")
    assert re.search(rf"blue\* +{ns} +two promoters ", shown)
    assert {one["alias"]: one["scope"] for one in cli.json("aliases", "protected", ns)} == {"prod*": "", "blue*": ns}
    refused = cli("models", "promote", f"{ns}/m@blue", "1", "--reason", "try it", code=7)
    match = re.search(r"modelbox aliases approve (\S+) (req_[0-9a-f]{24})", refused)
    assert match is not None
    path, request = match.groups()
    assert re.search(rf"{request} +blue +none -> 1 +pending +ada ", cli("aliases", "requests", f"{ns}/m@blue"))
    assert "somebody else" in cli("aliases", "approve", path, request, code=7)
    monkeypatch.setenv("MODELBOX_ACTOR", "bo")
    assert cli("aliases", "approve", path, request) == f"approved {ns}/m@blue: none -> 1\n"
    cli("models", "promote", f"{ns}/m@blue", "2", code=7)
    second = cli.json("aliases", "requests", f"{ns}/m")[0]["id"]
    assert cli("aliases", "reject", path, second, "--comment", "no").startswith("rejected ")
    assert cli.json("aliases", "requests", f"{ns}/m") == []
    assert [one["comment"] for one in cli.json("aliases", "requests", f"{ns}/m", "--all")] == ["no", ""]
    assert "needs --yes" in cli("aliases", "unprotect", ns, "blue*", code=2)
    assert cli("aliases", "unprotect", ns, "blue*", "--yes") == f"blue* of {ns} is no longer protected\n"
    cli("models", "promote", f"{ns}/m@blue", "2")

"""The commands of retention and space against a real server, and the check without one."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import pytest

from tests.cli import Cli
from tests.server import ServerProcess


@pytest.fixture
def ns() -> str:
    return f"ns-{secrets.token_hex(4)}"


def publish(cli: Cli, path: str, directory: Path, *contents: str) -> None:
    for content in contents:
        file = directory / "weights.bin"
        file.write_text(content)
        cli("models", "publish", path, str(file), "--framework", "other")


def test_retention(cli: Cli, ns: str, tmp_path: Path) -> None:
    publish(cli, f"{ns}/m", tmp_path, "one", "two", "three")
    assert cli("versions", "lock", f"{ns}/m@1", "--reason", "audit").endswith(": audit\n")
    assert "audit" in cli("versions", "locks", ns)
    plan = cli("retention", "plan", ns, "--keep-last", "1", "--only-deleted")
    assert re.search(rf"{ns}/m@2 +delete +3 B +{ns} +not one of the newest 1 \(number 2\)", plan)
    assert f"{ns}/m@1" not in plan
    shown = cli("retention", "set", ns, "--keep-last", "1", "--keep-best", "2:wer:min", "--keep-younger", "36h")
    assert "newest 1, best 2 by wer (min), younger than 1.5 d" in shown
    policy = cli.json("retention", "get", ns)
    assert (policy["keep_younger_s"], policy["keep_best"]) == (
        129600.0,
        [{"count": 2, "metric": "wer", "mode": "min"}],
    )
    assert cli.json("retention", "run", ns, "--yes") == {"binned": 0, "more": False, "purged": 0, "versions": 0}
    cli("retention", "set", ns, "--keep-last", "1")
    assert cli("retention", "run", ns, "--yes").startswith("deleted 1 versions")
    cli("retention", "set", ns, "--kind", "bin", "--keep-younger", "30d")
    assert len(cli.json("retention", "list", "--namespace", ns)) == 2
    assert "expected versions, checkpoints, runs, bin" in cli("retention", "get", ns, "--kind", "x", code=2)
    assert "N:METRIC" in cli("retention", "set", ns, "--keep-best", "best", code=2)
    assert "rule" in cli("retention", "set", ns, code=2)
    cli("retention", "delete", ns)
    assert "no policy" in cli("retention", "get", ns, code=3)
    assert cli("versions", "unlock", f"{ns}/m@1") == f"unlocked {ns}/m@1\n"
    assert cli("versions", "unlock", f"{ns}/m@1") == f"{ns}/m@1 was not locked\n"


def test_quotas_and_usage(cli: Cli, ns: str, tmp_path: Path) -> None:
    assert cli.json("quotas", "set", ns, "1.5KiB")["limit_bytes"] == 1536
    assert cli.json("quotas", "set", ns, "2kB")["limit_bytes"] == 2000
    assert "not a size" in cli("quotas", "set", ns, "much", code=2)
    publish(cli, f"{ns}/m", tmp_path, "x" * 1000)
    (quota,) = [one for one in cli.json("quotas", "list") if one["namespace"] == ns]
    assert quota["used_bytes"] == 1000
    assert re.search(rf"{ns} +2\.0 KiB +1000 B +50%", cli("quotas", "list"))
    assert re.search(rf"{ns} +1 +1000 B +0 B +1000 B +0 B +2\.0 KiB", cli("server", "du"))
    assert [one["path"] for one in cli.json("server", "du", ns)["usage"]] == [f"{ns}/m"]
    cli("quotas", "delete", ns)


def test_collection_and_check(cli: Cli, ns: str, tmp_path: Path) -> None:
    publish(cli, f"{ns}/m", tmp_path, "one")
    assert cli.json("server", "gc", "--dry-run")["dry_run"]
    assert cli("server", "gc").startswith("removed 0 files")
    assert cli("server", "fsck", "--checksums").startswith("0 findings; checked ")


def test_a_check_without_a_server(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cli = Cli(capsys)
    directory = tmp_path / "server"
    with ServerProcess(directory) as process:
        monkeypatch.setenv("MODELBOX_URL", process.url)
        publish(cli, "ns/m", tmp_path, "one", "two")
        assert "another server" in cli("server", "fsck", "--data-dir", str(directory), code=2)
    assert cli.json("server", "fsck", "--data-dir", str(directory), "--checksums")["findings"] == []
    for path in (directory / "blobs" / "sha256").glob("*/*"):
        if path.read_bytes() == b"one":
            path.unlink()
    assert cli("server", "fsck", "--data-dir", str(directory), code=6) == ""
    assert "no database" in cli("server", "fsck", "--data-dir", str(tmp_path / "nowhere"), code=2)

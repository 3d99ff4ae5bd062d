"""What is captured of code and environment, and what is kept back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelbox.capture import (
    MAX_DIFF_BYTES,
    capture_diff,
    capture_environment,
    notebook_path,
)
from modelbox.runtime.limits import check_metadata


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=ann", "-c", "user.email=ann@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "trunk")
    (tmp_path / "train.py").write_text("lr = 0.1\n")
    git(tmp_path, "add", "train.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_a_clean_repository(repository: Path) -> None:
    git(repository, "remote", "add", "origin", "https://ann:hunter2@example.com/ann/model.git")
    captured = capture_environment(directory=repository)
    assert captured["git"] == {
        "commit": git(repository, "rev-parse", "HEAD"),
        "branch": "trunk",
        "dirty": False,
        "root": os.path.realpath(repository),
        "remote": "https://example.com/ann/model.git",
    }
    assert capture_diff(directory=repository) is None


def test_uncommitted_changes(repository: Path) -> None:
    (repository / "train.py").write_text("lr = 0.2\nurl = 'postgres://ann:hunter2@db/x'\n")
    (repository / "notes.txt").write_text("not tracked\n")
    assert capture_environment(directory=repository)["git"]["dirty"] is True
    diff = capture_diff(directory=repository)
    assert diff is not None
    assert not diff.truncated
    assert "-lr = 0.1\n+lr = 0.2\n" in diff.text
    assert "hunter2" not in diff.text
    assert "postgres://ann:***@db/x" in diff.text
    assert "not tracked" not in diff.text


def test_a_detached_head_and_a_repository_without_commits(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    git(repository, "checkout", "-q", "--detach")
    detached = capture_environment(directory=repository)["git"]
    assert "branch" not in detached
    assert detached["commit"] == git(repository, "rev-parse", "HEAD")
    empty = tmp_path_factory.mktemp("empty")
    git(empty, "init", "-q", "-b", "trunk")
    state = capture_environment(directory=empty)["git"]
    assert (state.get("commit"), state["branch"]) == (None, "trunk")


def test_a_huge_diff_is_cut_after_a_line(repository: Path) -> None:
    (repository / "train.py").write_text("x" * 99 + "\n" + ("y" * 99 + "\n") * 10_000)
    diff = capture_diff(directory=repository)
    assert diff is not None
    assert diff.truncated
    assert MAX_DIFF_BYTES - 200 < len(diff.text.encode()) <= MAX_DIFF_BYTES
    assert diff.text.endswith("y\n")


def test_configured_helpers_are_not_run(repository: Path) -> None:
    """A repository may name programs in its configuration: looking at it must not start them."""
    marker = repository / "ran"
    script = repository / "helper.sh"
    script.write_text(f"#!/bin/sh\ntouch {marker}\ncat /dev/null\n")
    script.chmod(0o755)
    (repository / ".gitattributes").write_text("*.py diff=evil\n")
    for key in ("diff.external", "diff.evil.textconv", "core.fsmonitor", "core.pager"):
        git(repository, "config", key, str(script))
    (repository / "train.py").write_text("lr = 0.3\n")
    marker.unlink(missing_ok=True)
    diff = capture_diff(directory=repository)
    assert diff is not None
    assert "+lr = 0.3" in diff.text
    assert capture_environment(directory=repository)["git"]["dirty"] is True
    assert not marker.exists()


def test_outside_of_a_repository_and_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "git" not in capture_environment(directory=tmp_path)
    assert capture_diff(directory=tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git" not in capture_environment(directory=tmp_path)
    assert capture_diff(directory=tmp_path / "gone") is None


def test_a_git_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "git"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    captured = capture_environment(directory=tmp_path, timeout_s=0.3)
    assert "git" not in captured
    assert captured["python"]["version"]


def test_what_is_captured_fits_metadata() -> None:
    captured = capture_environment()
    check_metadata({"environment": captured})
    assert captured["packages"]["anyio"]
    assert captured["python"]["version"] == ".".join(str(part) for part in sys.version_info[:3])
    assert json.loads(json.dumps(captured)) == captured


def test_a_notebook_is_known_by_what_its_front_end_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert notebook_path() == ""
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/ann/train.ipynb")
    assert notebook_path() == "", "the variable is inherited by programs that a notebook starts"
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert notebook_path() == "/home/ann/train.ipynb"

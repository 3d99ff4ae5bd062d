"""`make soak`, shortened: mixed load and faults at random, without a violation."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sidecar_traffic import PROTOCOLS
from tools.soak.__main__ import main
from tools.soak.outcome import Outcome

ROOT = Path(__file__).parents[2]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose name leaves room for a socket's: the kernel takes at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="mb-") as name:
        yield Path(name)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_twenty_seconds_of_either_part(short_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.soak", "--minutes", "0.6", "--seed", "7", "--directory", str(short_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=350,
        check=False,
    )
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    assert done.stdout.count("violations: 0") == 2
    for name in PROTOCOLS:
        answered = re.search(rf"^  {name} +(\d+)\b", done.stdout, re.MULTILINE)
        assert answered, report
        assert int(answered[1]) > 20, report
    assert int(re.findall(r"faults injected: (\d+)", done.stdout)[0]) > 3, report
    assert int(re.findall(r"operations on models: (\d+)", done.stdout)[0]) > 3, report
    assert list(short_path.iterdir()) == []


def test_a_violation_is_told_and_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    async def soak(directory: Path, *, seconds: float, seed: int, say: object) -> Outcome:
        assert (seconds, seed) == (30.0, 3)
        return Outcome(seconds=1.0, answered=Counter(socket=5), violations=["socket: version 1 gave another's answer"])

    monkeypatch.setattr("tools.soak.__main__.soak", soak)
    assert main(["--of", "sidecar", "--minutes", "0.5", "--seed", "3", "--directory", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "violations: 1\n  socket: version 1 gave another's answer\n" in printed

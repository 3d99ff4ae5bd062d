"""`make demo`, as a process: every claim of it, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

CLAIMS = (
    "the server runs on its embedded default",
    "version 1 is published and prod points to it",
    "the service finds the speech in real audio",
    "version 2 is another file with the same answers",
    "prod moves under load and every client follows within 60 s",
    "0 failed calls across the swap",
    "answers go on while the server is dead",
    "a service starts while the server is dead, from its cache",
    "the services follow when the server is back and prod moves back",
    "0 failed calls in the whole run",
    "every answer is one version's, and no client goes back and forth",
    "calls per version are what the clients saw",
    "the business metric counts the speech that was found",
)


@contextmanager
def demo(tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The demo with its own temporary directory; asked to end, not killed, so that it takes its programs along."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "examples.demo", *arguments]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(100)
    assert list(temporary.iterdir()) == [], "data left behind"
    assert left_behind(temporary) == []


def left_behind(temporary: Path) -> list[str]:
    """Command lines of processes that work in the demo's directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(temporary) or str(temporary) in " ".join(process.cmdline()):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_every_claim_holds(tmp_path: Path) -> None:
    report_path = tmp_path / "report.json"
    # How long it takes is this machine's: what the demo claims by itself is for people to watch.
    with demo(tmp_path, "--json", str(report_path), "--within", "60") as process:
        output, _ = process.communicate(timeout=340)
    assert process.returncode == 0, output
    report: dict[str, Any] = json.loads(report_path.read_text())
    assert report["held"] is True
    assert tuple(claim["name"] for claim in report["claims"]) == CLAIMS
    for claim in report["claims"]:
        assert claim["held"] is True
        assert f"  ok       {claim['name']}: {claim['evidence']}\n" in output

    rows = {row["phase"]: row for row in report["figures"]}
    assert list(rows) == ["before", "during", "after", "server dead", "and back"]
    assert all(row["failed"] == 0 and 0 < row["p50_ms"] <= row["p99_ms"] for row in rows.values())
    assert set(rows["before"]["by_version"]) == {"1"}
    assert set(rows["during"]["by_version"]) == {"1", "2"}
    assert set(rows["after"]["by_version"]) == {"2"}
    assert set(rows["server dead"]["by_version"]) == {"2"}
    assert set(rows["and back"]["by_version"]) == {"1", "2"}
    assert "modelbox_calls_total" in output
    assert "speech_seconds_total" in output


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_under_load_it_ends_everything_that_it_started(tmp_path: Path, number: signal.Signals) -> None:
    with demo(tmp_path, "--calls", "100000") as process:
        lines: list[str] = []
        under_load = threading.Event()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if line.startswith("4. Under load"):
                    under_load.set()
            under_load.set()  # it ended: the assertions below say how

        reader = threading.Thread(target=read)
        reader.start()
        assert under_load.wait(150), "".join(lines)
        process.send_signal(number)
        assert process.wait(100) == 128 + number, "".join(lines)
        reader.join(60)
    assert f"Interrupted by {number.name}" in "".join(lines)

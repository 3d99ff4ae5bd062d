"""The file that remembers a run: which one, and when each step was logged first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.errors import InvalidError
from modelbox.resume import ResumeFile
from modelbox.tracking import ObjectKind, new_id

RUN = new_id(ObjectKind.RUN)


def test_it_knows_a_run_from_its_beginning_until_it_is_done(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    first = ResumeFile(path)
    assert first.run_id is None
    first.begin(RUN)
    assert ResumeFile(path).run_id == RUN
    first.done()
    first.done()
    assert not path.exists()
    assert ResumeFile(path).run_id is None
    # A run that goes on to log after its end is told the time, and nothing is written.
    assert first.at(3) == first.at(3)
    assert not path.exists()


@given(steps=st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.sampled_from(["", "epoch"])), max_size=50))
def test_a_step_keeps_its_first_time(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str]]) -> None:
    path = tmp_path_factory.mktemp("resume") / "run"
    with ResumeFile(path) as one:
        one.begin(RUN)
        times = {key: one.at(*key) for key in steps}
        assert times == {key: one.at(*key) for key in steps}
    for _ in range(2):
        with ResumeFile(path) as again:
            again.begin(RUN)
            assert times == {key: again.at(*key) for key in steps}
            assert again.at(7, "other") not in times.values()


def test_another_run_forgets_the_steps(tmp_path: Path) -> None:
    resume = ResumeFile(tmp_path / "run")
    resume.begin(RUN)
    before = resume.at(1)
    resume.begin(new_id(ObjectKind.RUN))
    assert resume.at(1) > before
    resume.close()


def test_a_record_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with ResumeFile(path) as one:
        one.begin(RUN)
        times = [one.at(step) for step in range(3)]
    path.write_bytes(path.read_bytes()[:-5])
    with ResumeFile(path) as again:
        again.begin(RUN)
        assert [again.at(0), again.at(1)] == times[:2]
        last = again.at(2)
        assert last - times[2] >= timedelta(0)
    with ResumeFile(path) as third:
        assert [third.at(step) for step in range(3)] == [*times[:2], last]


@pytest.mark.parametrize("data", [b"", b"something else\n" * 10, b"modelbox resume 1 run_nonsense".ljust(64)])
def test_another_file_is_refused_and_left_alone(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "run"
    path.write_bytes(data)
    with pytest.raises(InvalidError, match="another one"):
        ResumeFile(path)
    assert path.read_bytes() == data


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this platform has no /dev/full")
def test_a_full_disk_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    resume = ResumeFile(tmp_path / "run")
    resume.begin(RUN)
    first = resume.at(0)
    file = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(resume, "_file", file)
    assert resume.at(1) == resume.at(1)
    resume.at(2)
    assert caplog.text.count("no longer remembered") == 1
    assert ResumeFile(tmp_path / "run").at(0) == first


def test_what_it_returned_outlives_a_kill(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from modelbox.resume import ResumeFile\n"
        f"resume = ResumeFile({str(tmp_path / 'run')!r})\n"
        f"resume.begin({RUN!r})\n"
        "for step in range(10**9):\n"
        "    print(step, resume.at(step).isoformat(), flush=True)\n"
    )
    said = []
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if len(said) == 500:
                process.send_signal(signal.SIGKILL)
    resume = ResumeFile(tmp_path / "run")
    assert resume.run_id == RUN
    for line in said:
        if line.endswith("\n"):
            step, time = line.split()
            assert resume.at(int(step)).isoformat() == time

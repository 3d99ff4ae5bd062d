"""What a spool does for records to outlive the machine, and what is left of them when it goes down in the middle."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbox.errors import LimitError
from modelbox.spool.host import SpoolHost
from modelbox.spool.log import SpoolLog
from modelbox.spool.operations import operation_data
from modelbox.spool.reader import Spool
from modelbox.tracking import NewComment
from tests.unit.spool.servers import MemoryServer, config_for
from tests.unit.spool.test_log import RUN, taken


class Syncs:
    """Which files below a directory were synced; everything is, for real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, below: Path) -> None:
        self._below = below
        self.names: list[str] = []
        self.threads: set[int] = set()
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._noting(getattr(os, name)))

    def _noting(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{fd}"))
            if path.is_relative_to(self._below):
                self.names.append(path.name)
                self.threads.add(threading.get_ident())
            real(fd)

        return sync


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Syncs:
    return Syncs(monkeypatch, tmp_path.resolve())


def new_log(directory: Path) -> SpoolLog:
    return SpoolLog(directory, url="http://x:1", actor="a", max_bytes=1 << 20)


def test_whose_it_is_is_on_disk_before_it_is_used(tmp_path: Path, syncs: Syncs) -> None:
    log = new_log(tmp_path)
    assert syncs.names == ["about.json.part", log.id, tmp_path.name]
    log.close()


def test_no_append_syncs_and_sync_does_it_for_all_segments(tmp_path: Path, syncs: Syncs) -> None:
    log = new_log(tmp_path)
    log.sync()
    syncs.names.clear()
    for step in range(6000):
        log.append_point(RUN, "loss", step, 5, 0.5)
    (tmp_path / "w.bin").write_bytes(b"weights")
    log.append_files(RUN, "w", {"a/w.bin": tmp_path / "w.bin"}, labels={}, metadata={})
    assert syncs.names == []
    segments = sorted(path.name for path in log.directory.glob("*.seg"))
    assert len(segments) > 2
    log.sync()
    # The copy, and what leads to it, before the record that speaks of it.
    assert syncs.names[0] == "w.bin"
    assert syncs.names.index("files") < syncs.names.index(segments[0])
    assert [name for name in syncs.names if name.endswith(".seg")] == segments
    syncs.names.clear()
    log.sync()
    assert syncs.names == []
    log.close()


def test_the_background_syncs_every_second(tmp_path: Path, syncs: Syncs) -> None:
    host = SpoolHost(config_for(tmp_path), destination=MemoryServer())
    try:
        syncs.threads.clear()
        for number in range(2):
            syncs.names.clear()
            host.log.append_point(RUN, "loss", number, 5, 0.5)
            for _ in range(6000):
                if host.log.tail()[0] in syncs.names:
                    break
                threading.Event().wait(0.01)
            assert host.log.tail()[0] in syncs.names
        assert threading.get_ident() not in syncs.threads
    finally:
        host.close()


@settings(max_examples=25, deadline=None)
@given(
    text=st.text(max_size=40),
    kind=st.sampled_from(["point", "points", "payload", "operation"]),
    rest=st.sampled_from(["cut", "zeros", "noise"]),
)
def test_a_tear_at_any_byte_of_the_last_record_costs_that_record_only(
    tmp_path_factory: pytest.TempPathFactory, text: str, kind: str, rest: str
) -> None:
    log = new_log(tmp_path_factory.mktemp("spool"))
    log.append_point(RUN, "loss", 1, 5, 0.5)
    log.append_operation(operation_data(NewComment(object=RUN, text="kept")))
    name, whole = log.tail()
    if kind == "point":
        log.append_point(RUN, f"last {text}", 2, 5, 0.5)
    elif kind == "points":
        log.append_points(RUN, 2, 5, {"last": 0.5, f"last {text}": 0.25})
    elif kind == "payload":
        log.append_payload(RUN, "last", 2, 5, 2, text.encode())
    else:
        log.append_operation(operation_data(NewComment(object=RUN, text=f"last {text}")))
    log.abandon()
    segment = log.directory / name
    data = segment.read_bytes()
    for end in range(whole, len(data)):
        lost = len(data) - end
        torn = {"cut": b"", "zeros": bytes(lost), "noise": b"\xa5" * lost}[rest]
        segment.write_bytes(data[:end] + torn)
        (log.directory / "cursor").unlink(missing_ok=True)
        spool = Spool(log.directory)
        found = taken(spool)
        assert found[:2] in ([("loss", 1, 0.5), ("kept", 0, 0.0)], [("kept", 0, 0.0), ("loss", 1, 0.5)])
        if data[:end] + torn != data:
            assert not [key for key, *_ in found if key.startswith("last")]
            assert spool.damaged_bytes <= len(data) - whole
        spool.close()


def test_a_copy_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"weights")
    server = MemoryServer()
    host = SpoolHost(config_for(tmp_path), destination=server)
    server.away = LimitError("the disk is full", what="disk")
    host.log.append_files(RUN, "w", tmp_path / "w.bin", labels={}, metadata={})
    (copy,) = (host.directory / "files").rglob("*.bin")
    copy.write_bytes(b"")
    server.away = None
    assert host.wait(host.log.last_seq, 60)
    assert server.artifacts == []
    assert ["0 of 7 bytes" in refusal.rejection.message for refusal in host.refusals] == [True]
    host.close()


def test_a_record_that_no_reader_would_take_is_refused_at_once(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    with pytest.raises(LimitError, match="artifact"):
        log.append_operation(bytes(65 << 20))
    assert log.append_point(RUN, "loss", 1, 5, 0.5)
    assert taken(Spool(log.directory, log)) == [("loss", 1, 0.5)]
    log.close()

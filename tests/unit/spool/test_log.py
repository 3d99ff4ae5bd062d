from __future__ import annotations

import os
import resource
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbox.spool.log import SpoolLog
from modelbox.spool.operations import operation_data
from modelbox.spool.reader import Spool, adopt, find_spools
from modelbox.tracking import MetricColumns, NewComment
from tests.unit.spool.servers import points_of

RUN = "run_" + "0" * 24
MIB = 1 << 20


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SpoolLog]:
    log = SpoolLog(tmp_path, url="http://x:1", actor="a", max_bytes=64 * MIB)
    yield log
    log.close()


def taken(spool: Spool) -> list[tuple[str, int, float | bytes]]:
    """Everything that is there now: key or text, step, value."""
    found: list[tuple[str, int, float | bytes]] = []
    while (batch := spool.next_batch()) is not None:
        for one in batch.operations:
            if isinstance(one.payload, MetricColumns):
                found += [(key, step, value) for (_, key, step, _), value in points_of(one.payload)]
            elif isinstance(one.payload, NewComment):
                found.append((one.payload.text, 0, 0.0))
        spool.advance(batch)
    return found


def comment(text: str) -> bytes:
    return operation_data(NewComment(object=RUN, text=text))


def test_what_was_appended_comes_in_order_while_more_is_appended(log: SpoolLog) -> None:
    spool = Spool(log.directory, log)
    assert spool.next_batch() is None
    log.append_point(RUN, "loss", 1, 5, 0.5)
    log.append_operation(comment("one"))
    assert taken(spool) == [("loss", 1, 0.5), ("one", 0, 0.0)]
    log.append_points(RUN, 2, 6, {"loss": 0.25, "acc": 0.75})
    log.append_payload(RUN, "text", 3, 7, 1, b"x")
    assert taken(spool) == [("loss", 2, 0.25), ("acc", 2, 0.75), ("text", 3, b"x")]
    assert spool.delivered_seq == log.last_seq


def test_a_batch_comes_again_until_it_was_passed(log: SpoolLog) -> None:
    log.append_point(RUN, "loss", 1, 5, 0.5)
    spool = Spool(log.directory, log)
    first = spool.next_batch()
    assert first is not None
    assert spool.next_batch() == first
    log.append_point(RUN, "loss", 2, 5, 0.5)
    spool.advance(first)
    assert taken(spool) == [("loss", 2, 0.5)]


def test_another_reader_goes_on_where_the_first_one_was(log: SpoolLog) -> None:
    for step in range(10):
        log.append_point(RUN, "loss", step, 5, 0.5)
    taken(Spool(log.directory, log))
    log.append_point(RUN, "loss", 10, 5, 0.5)
    assert taken(Spool(log.directory)) == [("loss", 10, 0.5)]
    (log.directory / "cursor").write_bytes(b"rubbish of more than twelve bytes")
    assert len(taken(Spool(log.directory))) == 11


def test_segments_are_removed_when_they_are_delivered(tmp_path: Path) -> None:
    log = SpoolLog(tmp_path, url="http://x:1", actor="a", max_bytes=MIB)
    spool = Spool(log.directory, log)
    total = 0
    for _ in range(20):
        for step in range(5000):
            assert log.append_point(RUN, "loss", total + step, 5, 0.5)
        total += 5000
        assert len(taken(spool)) == 5000
    assert log.used_bytes < MIB // 2
    assert len(list(log.directory.glob("*.seg"))) <= 3
    log.close(delivered_seq=log.last_seq)
    assert not log.directory.exists()


def test_points_are_refused_when_it_is_full_and_operations_later(tmp_path: Path) -> None:
    log = SpoolLog(tmp_path, url="http://x:1", actor="a", max_bytes=MIB)
    kept = 0
    while log.append_point(RUN, f"key {kept}", kept, 5, 0.5):
        kept += 1
    # Names of keys that found no room must not be taken as written.
    assert not log.append_point(RUN, "unseen", 0, 5, 0.5)
    operations = 0
    while log.append_operation(comment(f"comment {operations}")):
        operations += 1
    assert operations > 100
    assert sum(path.stat().st_size for path in log.directory.glob("*.seg")) <= MIB
    assert (log.dropped, log.failed) == (2, 1)
    spool = Spool(log.directory, log)
    assert len(taken(spool)) == kept + operations
    assert log.append_point(RUN, "unseen", 0, 5, 0.5)
    assert log.append_point(RUN, "key 0", 1, 5, 0.5)
    assert taken(spool) == [("unseen", 0, 0.5), ("key 0", 1, 0.5)]
    log.close(delivered_seq=log.last_seq)


def test_a_record_that_is_not_written_whole_is_taken_back(log: SpoolLog) -> None:
    """As when the disk is full: the process may not make files larger than this."""
    log.append_point(RUN, "loss", 0, 5, 0.5)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (log.directory / log.tail()[0]).stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
        assert not log.append_point(RUN, "loss", 1, 5, 0.5)
        assert not log.append_operation(comment("x" * 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert log.append_point(RUN, "loss", 2, 5, 0.5) or log.append_point(RUN, "loss", 2, 5, 0.5)
    assert (log.dropped, log.failed) == (1, 1) or (log.dropped, log.failed) == (2, 1)
    spool = Spool(log.directory, log)
    assert taken(spool) == [("loss", 0, 0.5), ("loss", 2, 0.5)]
    assert spool.damaged_bytes == 0


def test_a_step_beyond_64_bits_leaves_no_trace(log: SpoolLog) -> None:
    with pytest.raises(struct.error):
        log.append_point(RUN, "loss", 2**63, 5, 0.5)
    log.append_point(RUN, "acc", 1, 5, 0.5)
    log.append_point(RUN, "loss", 1, 5, 0.5)
    assert taken(Spool(log.directory, log)) == [("acc", 1, 0.5), ("loss", 1, 0.5)]


@pytest.mark.parametrize("cut", [1, 20, 48, 60])
def test_a_torn_end_hides_only_itself(tmp_path: Path, cut: int) -> None:
    log = SpoolLog(tmp_path, url="http://x:1", actor="a", max_bytes=MIB)
    for step in range(10):
        log.append_point(RUN, "loss", step, 5, 0.5)
    log.close()
    (segment,) = log.directory.glob("*.seg")
    os.truncate(segment, segment.stat().st_size - cut)
    spool = Spool(log.directory)
    assert len(taken(spool)) == 10 - -(-cut // 49)
    assert spool.damaged_bytes == -cut % 49


def test_damage_in_one_segment_leaves_the_others(tmp_path: Path) -> None:
    log = SpoolLog(tmp_path, url="http://x:1", actor="a", max_bytes=MIB)
    for step in range(6000):
        log.append_point(RUN, "loss", step, 5, 0.5)
    log.close()
    first, *_ = sorted(log.directory.glob("*.seg"))
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    spool = Spool(log.directory)
    steps = [step for _, step, _ in taken(spool)]
    assert steps[0] == 0
    assert steps[-1] == 5999
    assert 6000 - len(steps) <= len(data) // 2 // 49 + 2
    assert spool.damaged_bytes


def test_many_threads_lose_nothing(log: SpoolLog) -> None:
    def work(key: str) -> None:
        for step in range(2000):
            log.append_point(RUN, key, step, 5, float(step))
            if step % 100 == 0:
                log.append_operation(comment(f"{key} {step}"))

    threads = [threading.Thread(target=work, args=(f"key {number}",)) for number in range(6)]
    spool = Spool(log.directory, log)
    for thread in threads:
        thread.start()
    found = []
    while any(thread.is_alive() for thread in threads):
        found += taken(spool)
    found += taken(spool)
    for number in range(6):
        assert [step for key, step, _ in found if key == f"key {number}"] == list(range(2000))
    assert spool.damaged_bytes == 0


def test_a_signal_handler_may_log_while_its_thread_does(log: SpoolLog) -> None:
    handled = 0

    def handle(*_: object) -> None:
        nonlocal handled
        handled += 1
        log.append_point(RUN, "signals", handled - 1, 5, 0.5)

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    logged = 0
    try:
        # As long as it takes for some to have come, on a machine that is fast or whose timers are coarse.
        while logged < 20_000 or (handled <= 10 and logged < 1_000_000):
            log.append_point(RUN, "loss", logged, 5, 0.5)
            logged += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert handled > 10
    found = taken(Spool(log.directory, log))
    assert [step for key, step, _ in found if key == "loss"] == list(range(logged))
    assert sorted(step for key, step, _ in found if key == "signals") == list(range(handled))


def test_files_are_copied_and_removed_when_they_are_delivered(log: SpoolLog, tmp_path: Path) -> None:
    local = tmp_path / "model.bin"
    local.write_bytes(b"one")
    log.append_files(RUN, "weights", {"a/model.bin": local}, labels={}, metadata={})
    local.write_bytes(b"another")
    spool = Spool(log.directory, log)
    batch = spool.next_batch()
    assert batch is not None
    assert batch.files is not None
    (file,) = batch.files.files
    assert (file.path, file.copied) == ("a/model.bin", True)
    assert spool.path_of(file.local).read_bytes() == b"one"
    used = log.used_bytes
    spool.advance(batch)
    assert not spool.path_of(file.local).exists()
    assert log.used_bytes == used - 3


def test_files_without_room_stay_where_they_are(tmp_path: Path) -> None:
    log = SpoolLog(tmp_path / "spool", url="http://x:1", actor="a", max_bytes=MIB)
    local = tmp_path / "large.bin"
    local.write_bytes(bytes(MIB))
    assert log.append_files(RUN, "weights", local, labels={}, metadata={})
    batch = Spool(log.directory, log).next_batch()
    assert batch is not None
    assert batch.files is not None
    assert [(file.copied, file.local) for file in batch.files.files] == [(False, str(local))]
    log.close(delivered_seq=log.last_seq)


def test_an_owner_keeps_others_out_until_it_is_gone(tmp_path: Path) -> None:
    log = SpoolLog(tmp_path, url="http://x:1", actor="a", max_bytes=MIB)
    log.append_point(RUN, "loss", 0, 5, 0.5)
    (about,) = find_spools(tmp_path)
    assert (about.url, about.actor, about.pid) == ("http://x:1", "a", os.getpid())
    with adopt(about.directory) as spool:
        assert spool is None
    log.close()
    with adopt(about.directory) as spool:
        assert spool is not None
        with adopt(about.directory) as second:
            assert second is None
        assert taken(spool) == [("loss", 0, 0.5)]
        spool.remove()
    assert find_spools(tmp_path) == []


def test_a_directory_that_cannot_be_made_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        SpoolLog(tmp_path / "file", url="http://x:1", actor="a", max_bytes=MIB)

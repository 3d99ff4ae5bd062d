from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelbox.errors import ConflictError, InvalidError, LimitError, NotFoundError, Unavailable
from modelbox.spool.delivery import push_spools, spool_status
from modelbox.spool.host import SpoolHost, open_host
from modelbox.spool.log import SpoolLog
from modelbox.spool.operations import attributes_data, operation_data
from modelbox.tracking import (
    AttributeKind,
    AttributesEdit,
    MetricColumns,
    NewComment,
    OperationPayload,
    RunEdit,
    RunPatch,
    RunStatus,
)
from tests.unit.spool.servers import MemoryServer, config_for

RUN = "run_" + "0" * 24
Hosts = Callable[..., SpoolHost]


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
def start(tmp_path: Path, server: MemoryServer) -> Iterator[Hosts]:
    hosts: list[SpoolHost] = []

    def make(**settings: object) -> SpoolHost:
        hosts.append(SpoolHost(config_for(tmp_path, **settings), destination=server))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


def comment(text: str) -> bytes:
    return operation_data(NewComment(object=RUN, text=text))


def texts_of(server: MemoryServer) -> list[str]:
    return [one.text for one in server.operations if isinstance(one, NewComment)]


def delivered(host: SpoolHost) -> bool:
    return host.wait(host.log.last_seq, 60)


def until(holds: Callable[[], object], *, meanwhile: Callable[[], object] = lambda: None) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        meanwhile()
        time.sleep(0.005)


def refused(host: SpoolHost) -> bool:
    """Waits until the server was asked and did not take it; returns whether anything is left."""
    until(lambda: host.error is not None)
    return not host.wait(host.log.last_seq, 0)


def test_delivers_what_is_appended_in_the_background(start: Hosts, server: MemoryServer) -> None:
    host = start()
    host.log.append_operation(comment("one"))
    assert delivered(host)
    for step in range(5000):
        host.log.append_point(RUN, "loss", step, 5, float(step))
    host.log.append_operation(comment("two"))
    assert delivered(host)
    assert texts_of(server) == ["one", "two"]
    assert server.series("loss") == [(step, float(step)) for step in range(5000)]
    assert host.left == 0
    host.close()
    assert not host.directory.exists()


def test_notices_new_records_without_being_asked(start: Hosts, server: MemoryServer) -> None:
    host = start()
    said: list[str] = []
    for number in range(3):
        said.append(str(number))
        host.log.append_operation(comment(said[-1]))
        until(lambda: len(server.operations) >= len(said))
        assert texts_of(server) == said


def test_a_server_that_is_away_gets_everything_once_when_it_is_back(start: Hosts, server: MemoryServer) -> None:
    server.away = Unavailable("nobody there")
    host = start()
    for number in range(50):
        host.log.append_operation(comment(str(number)))
        host.log.append_point(RUN, "loss", number, 5, 0.5)
    assert refused(host)
    assert isinstance(host.error, Unavailable)
    assert host.left
    server.away = None
    server.lose_answers = 3
    assert delivered(host)
    assert host.error is None
    assert texts_of(server) == [str(n) for n in range(50)]
    assert len(server.points) == 50


def test_says_at_the_end_what_is_left_and_how_to_deliver_it(
    start: Hosts, server: MemoryServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.away = Unavailable("nobody there")
    host = start()
    host.log.append_operation(comment("one"))
    assert refused(host)
    host.close()
    said = capfd.readouterr().err
    assert "modelbox spool push" in said
    assert "nobody there" in said
    (status,) = spool_status(host.directory.parent)
    assert (status.records, status.owned, status.damaged) == (1, False, False)


def test_a_refused_operation_does_not_hold_up_the_others(start: Hosts, server: MemoryServer) -> None:
    server.refuse = lambda one: ConflictError("no") if getattr(one, "text", "") == "bad" else None
    host = start()
    for text in ("one", "bad", "two"):
        host.log.append_operation(comment(text))
    assert delivered(host)
    assert texts_of(server) == ["one", "two"]
    (refusal,) = host.refusals
    assert (refusal.object, refusal.what, refusal.rejection.code) == (RUN, "NewComment", "conflict")


def test_a_bad_key_does_not_take_the_others_with_it(start: Hosts, server: MemoryServer) -> None:
    def refuse(one: OperationPayload) -> ConflictError | InvalidError | None:
        if isinstance(one, AttributesEdit) and "lr" in one.values:
            return ConflictError("lr is 1", current=1)
        if isinstance(one, MetricColumns) and "text" in one.keys:
            return InvalidError("text holds numbers")
        return None

    server.refuse = refuse
    host = start()
    host.log.append_operation(attributes_data(RUN, AttributeKind.PARAM, {"a": "1", "lr": "2"}, (), overwrite=False))
    host.log.append_points(RUN, 1, 5, {"loss": 0.5, "acc": 0.25})
    host.log.append_payload(RUN, "text", 1, 5, 1, b"x")
    host.log.append_operation(comment("after"))
    assert delivered(host)
    assert [one.values for one in server.operations if isinstance(one, AttributesEdit)] == [{"a": 1}]
    assert sorted(key for _, key, _, _ in server.points) == ["acc", "loss"]
    assert len(server.of(NewComment)) == 1
    assert [refusal.rejection.message for refusal in host.refusals] == ["lr is 1", "text holds numbers"]


@pytest.mark.parametrize("kind", list(AttributeKind))
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_bad_key_whose_refusal_was_lost_on_the_way_does_not_take_the_others_either(
    start: Hosts, server: MemoryServer, kind: AttributeKind, overwrite: bool
) -> None:
    server.refuse = lambda one: ConflictError("no") if isinstance(one, AttributesEdit) and "bad" in one.values else None
    # Of the delivery and of the parts: both are made again.
    server.lose_answers = 2
    host = start()
    host.log.append_operation(attributes_data(RUN, kind, {"a": "1", "bad": "2"}, ("c",), overwrite=overwrite))
    host.log.append_operation(comment("after"))
    assert delivered(host)
    edits = [one for one in server.operations if isinstance(one, AttributesEdit)]
    assert [(one.values, tuple(one.remove)) for one in edits] == [({"a": 1}, ()), ({}, ("c",))]
    assert texts_of(server) == ["after"]
    assert [refusal.rejection.message for refusal in host.refusals] == ["no"]


def test_an_operation_that_fails_the_whole_call_is_found_and_passed_over(start: Hosts, server: MemoryServer) -> None:
    server.fail_call = lambda some: (
        InvalidError("poison") if any(getattr(one.payload, "text", "") == "37" for one in some) else None
    )
    host = start()
    for number in range(60):
        host.log.append_operation(comment(str(number)))
    assert delivered(host)
    texts = texts_of(server)
    assert texts == [str(number) for number in range(60) if number != 37]
    assert [refusal.rejection.message for refusal in host.refusals] == ["poison"]


def test_a_limit_that_passes_is_waited_for(start: Hosts, server: MemoryServer) -> None:
    tries = 0

    def full(_: object) -> LimitError | None:
        nonlocal tries
        tries += 1
        return LimitError("the disk is full") if tries <= 3 else None

    server.fail_call = full
    host = start()
    host.log.append_operation(comment("one"))
    assert delivered(host)
    assert (len(server.operations), host.refusals) == (1, [])


def test_an_artifact_goes_in_order(start: Hosts, server: MemoryServer, tmp_path: Path) -> None:
    host = start()
    (tmp_path / "w.bin").write_bytes(b"weights")
    (tmp_path / "gone.bin").write_bytes(bytes(1 << 20))
    host.log.append_operation(comment("before"))
    host.log.append_files(RUN, "w", tmp_path / "w.bin", labels={}, metadata={})
    host.log.append_operation(comment("after"))
    assert delivered(host)
    assert server.artifacts == [(RUN, "w", {"w.bin": b"weights"})]
    assert len(server.operations) == 2
    until(lambda: not list((host.directory / "files").rglob("*.bin")))


def test_a_file_that_changed_before_it_was_uploaded_is_refused(
    start: Hosts, server: MemoryServer, tmp_path: Path
) -> None:
    server.away = Unavailable("nobody there")
    host = start(spool_max_bytes=1 << 20)
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(1 << 20))
    host.log.append_files(RUN, "kept", large, labels={}, metadata={})
    changed = tmp_path / "changed.bin"
    changed.write_bytes(bytes(1 << 20))
    host.log.append_files(RUN, "changed", changed, labels={}, metadata={})
    changed.write_bytes(b"other")
    server.away = None
    assert delivered(host)
    assert [(name, len(files["large.bin"])) for _, name, files in server.artifacts] == [("kept", 1 << 20)]
    assert ["changed since" in refusal.rejection.message for refusal in host.refusals] == [True]


def orphan(directory: Path, *, url: str = "http://127.0.0.1:9", open_run: bool = True) -> SpoolLog:
    """What a program leaves behind that was killed."""
    log = SpoolLog(directory / "spool", url=url, actor="tester", max_bytes=1 << 20)
    log.append_operation(comment("orphan"))
    log.append_point(RUN, "loss", 1, 5, 0.5)
    if open_run:
        log.mark_open(RUN)
    log.abandon()
    return log


def test_what_a_dead_program_left_comes_first_and_its_run_is_interrupted(
    start: Hosts, server: MemoryServer, tmp_path: Path
) -> None:
    left = orphan(tmp_path)
    other = orphan(tmp_path, url="http://127.0.0.1:10")
    server.away = Unavailable("nobody there")
    host = start()
    host.log.append_operation(comment("mine"))
    assert refused(host)
    server.away = None
    assert delivered(host)
    first, end, mine = server.operations
    assert isinstance(first, NewComment)
    assert isinstance(end, RunEdit)
    assert isinstance(mine, NewComment)
    assert (first.text, mine.text) == ("orphan", "mine")
    assert (end.id, end.patch.status) == (RUN, RunStatus.INTERRUPTED)
    assert not left.directory.exists()
    assert other.directory.exists()


def test_a_run_that_was_begun_without_a_block_and_never_ended_is_interrupted(
    start: Hosts, server: MemoryServer
) -> None:
    host = start()
    host.log.mark_open(RUN)
    host.close()
    (end,) = server.operations
    assert isinstance(end, RunEdit)
    assert (end.id, end.patch.status) == (RUN, RunStatus.INTERRUPTED)
    assert not host.directory.exists()


def test_half_made_spools_are_swept_away_after_a_while(start: Hosts, tmp_path: Path) -> None:
    old, new = tmp_path / "spool" / ("0" * 32), tmp_path / "spool" / ("1" * 32)
    for directory in (old, new):
        directory.mkdir(parents=True)
        (directory / "lock").touch()
    os.utime(old, (1, 1))
    host = start()
    host.log.append_operation(comment("one"))
    assert delivered(host)
    assert not old.exists()
    assert new.exists()


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Pushing happens on an engine's loop."""
    return "asyncio"


async def test_push_delivers_once_though_it_was_broken_off(server: MemoryServer, tmp_path: Path) -> None:
    left = orphan(tmp_path)
    config = config_for(tmp_path)
    server.lose_answers = 1
    (first,) = await push_spools(config, config.spool_dir, connect=lambda _: server)
    assert isinstance(first.error, Unavailable)
    counted: list[int] = []
    (second,) = await push_spools(config, config.spool_dir, connect=lambda _: server, on_progress=counted.append)
    assert second.error is None
    assert sum(counted) == second.delivered == 2
    assert [type(one) for one in server.operations] == [NewComment, RunEdit]
    assert not left.directory.exists()
    assert await push_spools(config, config.spool_dir, connect=lambda _: server) == ()


async def test_push_leaves_a_living_program_and_another_server_alone(
    start: Hosts, server: MemoryServer, tmp_path: Path
) -> None:
    other = orphan(tmp_path, url="http://127.0.0.1:10", open_run=False)
    server.away = Unavailable("nobody there")
    host = start()
    host.log.append_operation(comment("mine"))
    away = MemoryServer()
    assert await push_spools(host.config, host.directory.parent, connect=lambda _: away) == ()
    (status,) = [one for one in spool_status(host.directory.parent) if one.owned]
    assert status.records == 1
    (pushed,) = await push_spools(host.config, host.directory.parent, connect=lambda _: away, any_url=True)
    assert pushed.about.spool == other.id
    assert [type(one) for one in away.operations] == [NewComment]


async def test_ending_a_run_that_the_server_does_not_know_is_passed_over(server: MemoryServer, tmp_path: Path) -> None:
    left = orphan(tmp_path)
    config = config_for(tmp_path)
    server.refuse = lambda one: NotFoundError("no such run") if isinstance(one, RunEdit) else None
    (pushed,) = await push_spools(config, config.spool_dir, connect=lambda _: server)
    assert pushed.error is None
    assert not left.directory.exists()


def test_one_process_has_one_spool_for_a_server(tmp_path: Path) -> None:
    one, two = config_for(tmp_path), config_for(tmp_path, actor="somebody")
    first = open_host(one)
    try:
        assert open_host(config_for(tmp_path)) is first
        other = open_host(two)
        assert other is not first
        other.close()
    finally:
        first.close()
    again = open_host(one)
    assert again is not first
    again.close()


def test_a_directory_that_cannot_be_written_has_a_replacement(
    tmp_path: Path, server: MemoryServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    host = SpoolHost(config_for(tmp_path, spool_dir=tmp_path / "file" / "spool"), destination=server)
    try:
        assert host.directory.parent == tmp_path / f"modelbox-spool-{os.getuid()}"
        assert "MODELBOX_SPOOL_DIR" in capfd.readouterr().err
        host.log.append_operation(comment("one"))
        assert delivered(host)
    finally:
        host.close()


def test_a_long_upload_holds_up_nothing_but_uploads(start: Hosts, server: MemoryServer, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"weights")
    server.hold_uploads = threading.Event()
    host = start()
    before = host.log.last_seq
    for name in ("first", "second"):
        host.log.append_files(RUN, name, tmp_path / "w.bin", labels={}, metadata={})
    host.log.append_operation(comment("after"))
    host.log.append_point(RUN, "loss", 1, 5, 0.5)
    until(lambda: server.series("loss") and server.uploads and host.left == 2, meanwhile=host.kick)
    assert texts_of(server) == ["after"]
    assert server.series("loss") == [(1, 0.5)]
    # Whoever waits for all of it waits for the files, too.
    assert not host.wait(host.log.last_seq, 0.1)
    assert host.wait(before, 0)
    assert (host.left, server.uploads) == (2, 1)
    server.hold_uploads.set()
    assert delivered(host)
    assert [name for _, name, _ in server.artifacts] == ["first", "second"]
    host.close()
    assert not host.directory.exists()


def test_an_upload_that_was_broken_off_is_made_up_for_by_whoever_delivers_the_rest(
    start: Hosts, server: MemoryServer, tmp_path: Path
) -> None:
    (tmp_path / "w.bin").write_bytes(b"weights")
    server.hold_uploads = threading.Event()
    host = start()
    host.log.append_files(RUN, "w", tmp_path / "w.bin", labels={}, metadata={})
    host.log.append_operation(comment("after"))
    until(lambda: server.operations, meanwhile=host.kick)
    host.close()
    server.hold_uploads = None
    assert server.artifacts == []
    (status,) = spool_status(host.directory.parent)
    assert (status.records, status.damaged) == (1, False)
    other = start()
    until(lambda: not host.directory.exists(), meanwhile=other.kick)
    assert server.artifacts == [(RUN, "w", {"w.bin": b"weights"})]
    assert texts_of(server) == ["after"]


def test_a_fault_of_ours_does_not_end_delivery(start: Hosts, server: MemoryServer) -> None:
    failed = False

    def fail(_: object) -> None:
        nonlocal failed
        if not failed:
            failed = True
            raise KeyError("a fault")

    server.fail_call = fail
    host = start()
    host.log.append_operation(comment("one"))
    assert delivered(host)
    assert texts_of(server) == ["one"]


def test_a_full_disk_of_the_server_is_waited_for_without_end(
    server: MemoryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpoolHost, "_pause_s", lambda *_: 0.001)
    tries = 0

    def full(_: object) -> LimitError | None:
        nonlocal tries
        tries += 1
        return LimitError("the disk is full", what="disk") if tries <= 50 else None

    server.fail_call = full
    host = SpoolHost(config_for(tmp_path), destination=server)
    host.log.append_operation(comment("one"))
    assert delivered(host)
    assert (texts_of(server), host.refusals) == (["one"], [])
    host.close()


async def test_a_run_whose_program_died_while_it_recorded_the_end_has_that_end(
    server: MemoryServer, tmp_path: Path
) -> None:
    end = RunEdit(id=RUN, patch=RunPatch(status=RunStatus.FINISHED, reason=""))
    left = SpoolLog(tmp_path / "spool", url="http://127.0.0.1:9", actor="tester", max_bytes=1 << 20)
    left.mark_open(RUN)
    left.mark_ending(RUN, operation_data(end))
    left.abandon()
    config = config_for(tmp_path)
    (pushed,) = await push_spools(config, config.spool_dir, connect=lambda _: server)
    assert pushed.error is None
    assert server.operations == [end]

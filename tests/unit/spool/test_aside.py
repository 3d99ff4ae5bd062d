"""What a server refuses as it knows nothing of what it is about: kept aside, said, delivered once that has changed."""

from __future__ import annotations

import fcntl
import json
import os
import time
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbox.errors import AuthError, InvalidError, ModelBoxError, NotFoundError, Unavailable
from modelbox.objects import JsonValue
from modelbox.spool import PushedSpool, SpoolStatus, push_spools, spool_status
from modelbox.spool.host import SpoolHost
from modelbox.spool.log import SpoolLog
from modelbox.spool.operations import operation_data, read_operation
from modelbox.spool.push import Delivery, Refusal
from modelbox.spool.reader import Batch, Spool, adopt
from modelbox.tracking import MetricColumns, NewComment, OperationPayload, RunEdit
from tests.unit.spool.servers import MemoryServer, config_for

SEEN, HIDDEN = "run_" + "0" * 24, "run_" + "1" * 24


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class Server(MemoryServer):
    """One that does not show what it hides."""

    def __init__(self) -> None:
        super().__init__()
        self.hides = HIDDEN
        self.refuse = self._refuse

    def _refuse(self, payload: OperationPayload) -> ModelBoxError | None:
        about = getattr(payload, "object", "") or getattr(payload, "id", "")
        return NotFoundError("it is not there, or not for you to see") if about == self.hides else None

    async def upload(
        self,
        parent: str,
        name: str,
        files: Mapping[str, Path],
        *,
        labels: Mapping[str, str],
        metadata: Mapping[str, JsonValue],
    ) -> None:
        if parent == self.hides:
            raise NotFoundError("it is not there, or not for you to see")
        await super().upload(parent, name, files, labels=labels, metadata=metadata)

    @property
    def texts(self) -> list[str]:
        return [one.text for one in self.operations if isinstance(one, NewComment)]


@pytest.fixture
def server() -> Server:
    return Server()


def comment(object_id: str, text: str) -> bytes:
    return operation_data(NewComment(object=object_id, text=text))


def left_behind(directory: Path, *, open_run: str = "") -> SpoolLog:
    """The spool of a dead program that wrote about what it may see, and about what it may not see any more."""
    log = SpoolLog(directory / "spool", url="http://127.0.0.1:9", actor="tester", max_bytes=1 << 24)
    for number in range(3):
        log.append_operation(comment(HIDDEN, f"hidden {number}"))
        log.append_operation(comment(SEEN, f"seen {number}"))
        log.append_points(HIDDEN, number, 5, {"loss": number / 2, "acc": 0.25})
        log.append_payload(HIDDEN, "text", number, 5, 1, b"\xc3\xa9")
        log.append_point(SEEN, "loss", number, 5, 1.5)
    if open_run:
        log.mark_open(open_run)
    log.abandon()
    return log


async def push(directory: Path, server: MemoryServer) -> tuple[PushedSpool, ...]:
    config = config_for(directory)
    return await push_spools(config, config.spool_dir, connect=lambda _: server)


def statuses(directory: Path) -> list[SpoolStatus]:
    return spool_status(directory / "spool")


async def test_it_is_kept_said_and_delivered_once_it_may_be(server: Server, tmp_path: Path) -> None:
    log = left_behind(tmp_path)
    (pushed,) = await push(tmp_path, server)
    assert pushed.error is None
    assert pushed.refused
    assert all(refusal.kept and refusal.rejection.code == "not_found" for refusal in pushed.refused)
    assert server.texts == ["seen 0", "seen 1", "seen 2"]
    assert {object_id for object_id, *_ in server.points} == {SEEN}
    assert not log.directory.exists()
    (kept,) = statuses(tmp_path)
    # Three comments, and the points of the batch as one.
    assert (kept.about.refused, kept.owned, kept.records, kept.damaged) == (True, False, 4, False)
    assert (kept.about.url, kept.about.actor, kept.about.pid) == ("http://127.0.0.1:9", "tester", os.getpid())

    # As long as nothing has changed it is refused again, and kept again.
    for _ in range(2):
        (pushed,) = await push(tmp_path, server)
        assert (len(pushed.refused), pushed.error) == (4, None)
        (again,) = statuses(tmp_path)
        assert again.records == 4
        assert again.about.spool != kept.about.spool
        kept = again

    server.hides = ""
    (pushed,) = await push(tmp_path, server)
    assert (pushed.refused, pushed.error) == ((), None)
    assert server.texts[3:] == ["hidden 0", "hidden 1", "hidden 2"]
    assert server.series("acc") == [(number, 0.25) for number in range(3)]
    assert server.series("text") == [(number, b"\xc3\xa9") for number in range(3)]
    assert statuses(tmp_path) == []
    assert await push(tmp_path, server) == ()


async def test_an_artifact_is_kept_with_its_files(server: Server, tmp_path: Path) -> None:
    log = SpoolLog(tmp_path / "spool", url="http://127.0.0.1:9", actor="tester", max_bytes=1 << 24)
    for name in ("one", "two"):
        file = tmp_path / name
        file.write_bytes(name.encode())
        for parent in (HIDDEN, SEEN):
            assert log.append_files(parent, name, {"a/b.bin": file}, labels={"x": "y"}, metadata={})
        file.unlink()
    log.abandon()
    (pushed,) = await push(tmp_path, server)
    assert [(refusal.what, refusal.kept) for refusal in pushed.refused] == [
        ("artifact one", True),
        ("artifact two", True),
    ]
    (kept,) = statuses(tmp_path)
    assert (kept.records, kept.about.refused) == (2, True)
    assert kept.size_bytes >= len("onetwo")
    (pushed,) = await push(tmp_path, server)
    assert len(pushed.refused) == 2
    server.hides = ""
    (pushed,) = await push(tmp_path, server)
    assert (pushed.refused, pushed.error) == ((), None)
    assert [(parent, files) for parent, _, files in server.artifacts] == [
        (SEEN, {"a/b.bin": b"one"}),
        (SEEN, {"a/b.bin": b"two"}),
        (HIDDEN, {"a/b.bin": b"one"}),
        (HIDDEN, {"a/b.bin": b"two"}),
    ]
    assert statuses(tmp_path) == []


def test_a_program_keeps_it_and_offers_nothing_again_by_itself(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        host = SpoolHost(config_for(tmp_path), destination=server)
        try:
            host.log.append_operation(comment(HIDDEN, "hidden"))
            host.log.append_operation(comment(SEEN, "seen"))
            assert host.wait(host.log.last_seq, 60)
            # It is told a moment after the cursor has moved.
            deadline = time.monotonic() + 60
            while not host.refusals and time.monotonic() < deadline:
                time.sleep(0.005)
            assert [(refusal.what, refusal.kept) for refusal in host.refusals] == [("NewComment", True)]
            # That of the program before, it leaves alone.
            assert server.texts == ["seen"]
        finally:
            host.close()
        server.operations.clear()
    assert [(one.about.refused, one.records) for one in statuses(tmp_path)] == [(True, 1)] * 2


async def test_the_end_of_a_run_is_kept_too(server: Server, tmp_path: Path) -> None:
    left_behind(tmp_path, open_run=HIDDEN)
    (pushed,) = await push(tmp_path, server)
    assert [refusal.what for refusal in pushed.refused if refusal.kept][-1] == "RunEdit"
    server.hides = ""
    (pushed,) = await push(tmp_path, server)
    assert (pushed.refused, pushed.error) == ((), None)
    assert isinstance(server.operations[-1], RunEdit)
    assert server.operations[-1].id == HIDDEN


async def test_an_end_that_the_token_is_not_enough_for_stays_in_its_spool(server: Server, tmp_path: Path) -> None:
    log = left_behind(tmp_path, open_run=SEEN)
    server.fail_call = lambda operations: (
        AuthError("you may read it") if isinstance(operations[0].payload, RunEdit) else None
    )
    (pushed,) = await push(tmp_path, server)
    assert isinstance(pushed.error, AuthError)
    assert log.directory.exists()
    server.fail_call = lambda _: None
    pushed = next(one for one in await push(tmp_path, server) if one.about.spool == log.id)
    assert pushed.error is None
    assert isinstance(server.operations[-1], RunEdit)


class _Torn(Spool):
    """One whose machine goes down before the cursor is moved."""

    def advance(self, batch: Batch) -> None:
        raise OSError("the machine is gone")


async def test_what_is_kept_before_a_crash_is_kept_once(server: Server, tmp_path: Path) -> None:
    log = left_behind(tmp_path)
    for _ in range(2):
        told: list[Refusal] = []
        with pytest.raises(OSError, match="gone"):
            await Delivery(_Torn(log.directory), server, refused=told.append).records()
        assert not told
    (pushed,) = [one for one in await push(tmp_path, server) if one.about.spool == log.id]
    assert all(refusal.kept for refusal in pushed.refused)
    (kept,) = statuses(tmp_path)
    assert kept.records == 4
    server.hides = ""
    await push(tmp_path, server)
    assert server.texts == [f"{what} {number}" for what in ("seen", "hidden") for number in range(3)]


async def test_many_batches_are_kept_in_few_files_and_in_order(server: Server, tmp_path: Path) -> None:
    log = SpoolLog(tmp_path / "spool", url="http://127.0.0.1:9", actor="tester", max_bytes=1 << 24)
    for number in range(2500):
        log.append_operation(comment(HIDDEN, f"{number}"))
    log.abandon()
    (pushed,) = await push(tmp_path, server)
    assert len(pushed.refused) == 2500
    (kept,) = statuses(tmp_path)
    assert kept.records == 2500
    assert len(list(kept.about.directory.glob("*.seg"))) == 1
    server.hides = ""
    await push(tmp_path, server)
    assert server.texts == [str(number) for number in range(2500)]


async def test_there_is_room_for_so_much_and_the_rest_goes_on(server: Server, tmp_path: Path) -> None:
    log = left_behind(tmp_path)
    told: list[Refusal] = []
    with adopt(log.directory) as spool:
        assert spool is not None
        await Delivery(spool, server, refused=told.append, aside_bytes=100).records()
    assert told
    assert not [refusal for refusal in told if refusal.kept]
    assert server.texts == ["seen 0", "seen 1", "seen 2"]


async def test_a_disk_that_takes_nothing_holds_up_nothing(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modelbox.spool.push.keep_operations", full)
    left_behind(tmp_path)
    (pushed,) = await push(tmp_path, server)
    assert pushed.error is None
    assert not [refusal for refusal in pushed.refused if refusal.kept]
    assert server.texts == ["seen 0", "seen 1", "seen 2"]
    assert "cannot be kept aside: [Errno 28] No space left on device" in caplog.text


async def test_while_it_is_delivered_nothing_is_added(server: Server, tmp_path: Path) -> None:
    log = left_behind(tmp_path)
    with pytest.raises(OSError, match="gone"):
        await Delivery(_Torn(log.directory), server, refused=lambda _: None).records()
    (kept,) = [one for one in statuses(tmp_path) if one.about.refused]
    fd = os.open(kept.about.directory / "lock", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        (pushed,) = await push(tmp_path, server)
        assert isinstance(pushed.error, Unavailable)
    finally:
        os.close(fd)
    assert log.directory.exists()
    assert not [one.error for one in await push(tmp_path, server) if one.error is not None]


def columns(**changed: Any) -> MetricColumns:
    whole: dict[str, Any] = {
        "object": SEEN,
        "keys": ("a", "é"),
        "key_index": np.array([0, 1, 0], "<u4").tobytes(),
        "steps": np.array([1, -2, 1 << 62], "<i8").tobytes(),
        "times_us": np.array([5, 6, 7], "<i8").tobytes(),
        "values": np.array([0.5, float("nan"), 0.0], "<f8").tobytes(),
        "kinds": b"\0\0\2",
        "payloads": (b"\xff\0",),
    }
    return MetricColumns(**(whole | changed))


@pytest.mark.parametrize(
    "points",
    [
        columns(),
        columns(keys=("a",), key_index=b""),
        columns(kinds=b"", payloads=()),
    ],
)
def test_points_come_back_as_they_were(points: MetricColumns) -> None:
    assert read_operation(operation_data(points)) == points


@pytest.mark.parametrize(
    "changed",
    [
        {"keys": []},
        {"keys": "a"},
        {"keys": ["a"]},
        {"key_index": ""},
        {"key_index": b64encode(np.array([0, 1, 2], "<u4").tobytes()).decode()},
        {"steps": "A"},
        {"steps": "@@@@"},
        {"steps": 5},
        {"values": b64encode(bytes(16)).decode()},
        {"kinds": b64encode(b"\0").decode()},
        {"payloads": []},
        {"payloads": None},
        {"steps": "", "times_us": "", "values": "", "key_index": "", "kinds": "", "payloads": []},
    ],
)
def test_points_that_do_not_fit_together_are_refused(changed: dict[str, Any]) -> None:
    document = json.loads(operation_data(columns()))
    document["value"] |= changed
    with pytest.raises(InvalidError):
        read_operation(json.dumps(document).encode())
    with pytest.raises(InvalidError):
        read_operation(json.dumps(document | {"value": [changed]}).encode())

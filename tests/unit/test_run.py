from __future__ import annotations

import logging
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from modelbox.errors import DeadlineExceeded, InvalidError, LimitError, Unavailable, UsageError
from modelbox.run import LiveRun
from modelbox.runtime.limits import MAX_ATTRIBUTES, check_metadata
from modelbox.spool.checks import MAX_KEYS
from modelbox.spool.host import SpoolHost
from modelbox.tracking import (
    AttributeKind,
    AttributesEdit,
    NewCheckpoint,
    NewComment,
    NewEdges,
    NewEvent,
    NewRun,
    ReadmeEdit,
    RunEdit,
    RunStatus,
)
from tests.unit.spool.servers import MemoryServer, config_for


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
def host(tmp_path: Path, server: MemoryServer) -> Iterator[SpoolHost]:
    host = SpoolHost(config_for(tmp_path), destination=server)
    yield host
    host.close()


def run_on(host: SpoolHost, *, capture: bool = False, **options: object) -> LiveRun:
    return LiveRun("lab/wav2vec", None, host=host, capture=capture, **options)  # type: ignore[arg-type]


def edits(server: MemoryServer) -> list[RunEdit]:
    return [one for one in server.operations if isinstance(one, RunEdit)]


def attributes(server: MemoryServer, kind: AttributeKind) -> dict[str, object]:
    values: dict[str, object] = {}
    for one in server.operations:
        if isinstance(one, AttributesEdit) and one.kind is kind:
            values |= one.values
    return values


async def test_a_run_records_what_it_is_told_under_every_loop(host: SpoolHost, server: MemoryServer) -> None:
    async with run_on(host, name="first", params={"lr": 0.1}, tags={"stage": "dev"}) as run:
        run.log_metric("loss", 0.5, step=3)
        await run.aflush(timeout=60)
        assert server.series("loss") == [(3, 0.5)]
        run.log_metrics({"loss": 0.25, "acc": 0.75}, step=4)
    first, *_, last = server.operations
    assert isinstance(first, NewRun)
    assert (first.id, first.experiment, first.name, first.status) == (run.id, "lab/wav2vec", "first", "running")
    assert isinstance(last, RunEdit)
    assert (last.id, last.patch.status, last.patch.reason) == (run.id, RunStatus.FINISHED, "")
    assert last.patch.ended_at is not None
    assert attributes(server, AttributeKind.PARAM) == {"lr": 0.1}
    assert attributes(server, AttributeKind.TAG) == {"stage": "dev"}
    assert server.series("acc") == [(4, 0.75)]
    assert (run.skipped, run.dropped, run.rejections) == (0, 0, ())


def test_everything_that_can_be_said_of_a_run(host: SpoolHost, server: MemoryServer, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    at = datetime(2026, 5, 3, tzinfo=UTC)
    with run_on(host) as run:
        run.log_params({"path": tmp_path, "scalar": np.float32(0.5), "when": at, "list": (1, 2), "array": np.arange(3)})
        run.set_tags(["bare"])
        run.set_labels({"team": "speech"})
        run.set_metadata({"nested": {"a": [None, True]}})
        event = run.log_event("gpu.lost", source="scheduler", at=at, metadata={"gpu": 3})
        checkpoint = run.log_checkpoint(2, step=200, metrics={"acc": np.float64(0.5)}, files=tmp_path / "model.bin")
        run.log_artifact("weights", tmp_path / "model.bin")
        comment = run.add_comment("*good*")
        run.set_readme("# title")
        run.use_dataset("lab/speech@3")
        run.produced("lab/model@7")
    assert attributes(server, AttributeKind.PARAM) == {
        "path": str(tmp_path),
        "scalar": 0.5,
        "when": "2026-05-03T00:00:00+00:00",
        "list": [1, 2],
        "array": [0, 1, 2],
    }
    assert attributes(server, AttributeKind.TAG) == {"bare": ""}
    assert attributes(server, AttributeKind.LABEL) == {"team": "speech"}
    assert attributes(server, AttributeKind.METADATA) == {"nested": {"a": [None, True]}}
    (told,) = [one for one in server.operations if isinstance(one, NewEvent)]
    assert (told.id, told.object, told.name, told.source, told.at) == (event, run.id, "gpu.lost", "scheduler", at)
    assert [one for one in server.operations if isinstance(one, NewCheckpoint)] == [
        NewCheckpoint(id=checkpoint, parent_id=run.id, epoch=2, step=200, metrics={"acc": 0.5})
    ]
    assert server.artifacts == [
        (checkpoint, "files", {"model.bin": b"weights"}),
        (run.id, "weights", {"model.bin": b"weights"}),
    ]
    assert next(one for one in server.operations if isinstance(one, NewComment)).id == comment
    assert [one.text for one in server.operations if isinstance(one, ReadmeEdit)] == ["# title"]
    edges = [edge for one in server.operations if isinstance(one, NewEdges) for edge in one.edges]
    assert [(edge.source, edge.target, edge.type) for edge in edges] == [
        ("dataset:lab/speech@3", run.id, "used"),
        (run.id, "lab/model@7", "produced"),
    ]
    assert run.skipped == 0


def test_steps_count_up_for_each_key_and_go_on_from_one_that_is_given(host: SpoolHost, server: MemoryServer) -> None:
    with run_on(host) as run:
        for value in (0.5, 0.25):
            run.log_metric("loss", value)
        run.log_metric("acc", 1)
        run.log_metric("loss", 0.125, step=10)
        run.log_metric("loss", 0.0625)
        run.log_metrics({"loss": 0.0, "acc": 2})
    assert server.series("loss") == [(0, 0.5), (1, 0.25), (10, 0.125), (11, 0.0625), (12, 0.0)]
    assert server.series("acc") == [(0, 1.0), (12, 2.0)]


def test_values_of_every_kind_are_kept(host: SpoolHost, server: MemoryServer) -> None:
    with run_on(host) as run:
        values: list[Any] = [True, 3, np.int64(4), np.float32(0.5), np.array(2.5), float("inf"), -0.0]
        for number, value in enumerate(values):
            run.log_metric("number", value, step=number)
        run.log_metric("nan", float("nan"))
        run.log_metrics({"text": "ünï", "bytes": b"\0\xff"}, step=np.int64(7))  # type: ignore[arg-type]
    packed = [struct.pack("<d", value) for _, value in server.series("number") if isinstance(value, float)]
    assert packed == [struct.pack("<d", value) for value in (1.0, 3.0, 4.0, 0.5, 2.5, float("inf"), -0.0)]
    assert np.isnan(server.series("nan")[0][1])
    assert server.series("text") == [(7, "ünï".encode())]
    assert server.series("bytes") == [(7, b"\0\xff")]


DEEP: list[object] = []
for _ in range(10_000):
    DEEP = [DEEP]
BAD: dict[str, Callable[[Any], object]] = {
    "step": lambda run: run.log_metric("loss", 0.5, step=2**63),
    "fraction": lambda run: run.log_metric("loss", 0.5, step=0.5),
    "object": lambda run: run.log_metric("loss", object()),
    "array": lambda run: run.log_metric("loss", np.zeros(3)),
    "long key": lambda run: run.log_metric("k" * 251, 0.5),
    "empty key": lambda run: run.log_metric("", 0.5),
    "no key": lambda run: run.log_metric(None, 0.5),
    "unhashable": lambda run: run.log_metric([], 0.5),
    "line": lambda run: run.log_metric("a\nb", 0.5),
    "naive": lambda run: run.log_metric("loss", 0.5, at=datetime(2026, 5, 3)),
    "long text": lambda run: run.log_metric("text", "x" * (1 << 20) + "x"),
    "surrogate": lambda run: run.log_metric("text", "\ud800"),
    "metrics step": lambda run: run.log_metrics({"a": 1.0}, step=-(2**63) - 1),
    "metrics value": lambda run: run.log_metrics({"bad": object()}),
    "nan param": lambda run: run.log_params({"lr": float("nan")}),
    "large param": lambda run: run.log_params({"lr": "x" * (64 << 10)}),
    "deep param": lambda run: run.log_params({"lr": DEEP}),
    "17 levels": lambda run: run.log_params({"lr": [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]}),
    "huge param": lambda run: run.log_params({"lr": 10**5000}),
    "nul": lambda run: run.log_params({"lr": "a\0b"}),
    "set": lambda run: run.log_params({"lr": object()}),
    "label": lambda run: run.set_labels({"a": 1}),
    "long label": lambda run: run.set_labels({"a": "x" * 1025}),
    "tag": lambda run: run.set_tags({"a": 1}),
    "epoch": lambda run: run.log_checkpoint(-1),
    "epoch text": lambda run: run.log_checkpoint("one"),
    "event": lambda run: run.log_event(""),
    "event metadata": lambda run: run.log_event("e", metadata={"a": object()}),
    "no file": lambda run: run.log_artifact("w", "/nowhere/at/all"),
    "dataset": lambda run: run.use_dataset("Not A Name"),
    "version": lambda run: run.produced("Not A Name"),
    "comment": lambda run: run.add_comment(3),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_value_is_left_out_and_the_run_goes_on(
    host: SpoolHost, server: MemoryServer, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with run_on(host) as run:
        BAD[case](run)
        BAD[case](run)
        run.log_metric("after", 1.0)
    assert run.skipped == 2
    said = [record for record in caplog.records if "goes on without this" in record.message]
    assert len(said) == 1
    assert run.id in said[0].message
    assert server.series("after") == [(0, 1.0)]
    (end,) = edits(server)
    assert end.patch.status is RunStatus.FINISHED
    (told,) = [one for one in server.operations if isinstance(one, NewEvent)]
    assert told.metadata == {"dropped_points": 0, "skipped_values": 2}
    assert server.points.keys() == {(run.id, "after", 0, time_us) for *_, time_us in server.points}


@pytest.mark.parametrize("case", BAD)
def test_a_strict_run_raises_for_a_bad_value(host: SpoolHost, case: str) -> None:
    with run_on(host, strict=True) as run, pytest.raises((InvalidError, LimitError)):
        BAD[case](run)


def test_one_bad_key_leaves_the_others(host: SpoolHost, server: MemoryServer) -> None:
    with run_on(host) as run:
        run.log_params({"a": 1, "bad": object(), "b": 2})
        run.log_params({"a": 3, "c": 3})
        run.log_params({"a": 4}, overwrite=True)
        run.log_metrics({"x": 1.0, "y": object(), "z": 2.0})  # type: ignore[dict-item]
        run.log_metric("x", "text by now")
    assert attributes(server, AttributeKind.PARAM) == {"a": 4, "b": 2, "c": 3}
    assert sorted(key for _, key, _, _ in server.points) == ["x", "z"]
    assert run.skipped == 4


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("bad\nluck"), RunStatus.FAILED, "ValueError: bad luck"),
        (ExceptionGroup("many", [ValueError("one")]), RunStatus.FAILED, "ValueError: one"),
        (KeyboardInterrupt(), RunStatus.INTERRUPTED, "KeyboardInterrupt"),
        (SystemExit(0), RunStatus.FINISHED, ""),
        (SystemExit(3), RunStatus.FAILED, "the program ended with 3"),
        (SystemExit(143), RunStatus.INTERRUPTED, "the program was told to end (exit code 143)"),
    ],
)
def test_the_end_says_how_it_came(
    host: SpoolHost, server: MemoryServer, error: BaseException, status: RunStatus, reason: str
) -> None:
    with pytest.raises(type(error)):
        with run_on(host):
            raise error
    (end,) = edits(server)
    assert (end.patch.status, end.patch.reason) == (status, reason)


async def test_a_cancelled_run_is_interrupted_and_delivered(host: SpoolHost, server: MemoryServer) -> None:
    with anyio.CancelScope() as scope:
        async with run_on(host) as run:
            run.log_metric("loss", 0.5)
            scope.cancel()
            await anyio.sleep_forever()
    (end,) = edits(server)
    assert end.patch.status is RunStatus.INTERRUPTED
    assert server.series("loss") == [(0, 0.5)]


async def test_a_cancelled_flush_lets_go(host: SpoolHost, server: MemoryServer) -> None:
    server.away = Unavailable("nobody there")
    async with run_on(host, flush_timeout_s=0) as run:
        with anyio.move_on_after(0.05) as scope:
            await run.aflush()
        assert scope.cancelled_caught
        server.away = None
        await run.aflush(timeout=60)
    assert server.operations


def test_a_flush_that_is_late_says_what_is_left_and_why(host: SpoolHost, server: MemoryServer) -> None:
    server.away = Unavailable("nobody there")
    with run_on(host, flush_timeout_s=0) as run:
        run.log_metric("loss", 0.5)
        while host.error is None:
            time.sleep(0.001)
        with pytest.raises(DeadlineExceeded, match="nobody there") as caught:
            run.flush(timeout=0.2)
        assert caught.value.fields["left"] == 2
        server.away = None
        run.flush(timeout=60)
    assert server.series("loss") == [(0, 0.5)]


@pytest.mark.parametrize("what", ["params", "tags", "metadata"])
def test_values_without_keys_are_refused_before_the_run_begins(
    host: SpoolHost, server: MemoryServer, what: str
) -> None:
    with pytest.raises(InvalidError, match=rf"^{what} are .*expected values by key"):
        run_on(host, **{what: ["a", "b"]})  # type: ignore[arg-type]
    assert not server.operations


def test_a_key_has_one_limit_in_the_client_and_the_server(host: SpoolHost, server: MemoryServer) -> None:
    with run_on(host, strict=True) as run:
        run.log_event("gpu.lost", metadata={"k" * 250: 1})
        with pytest.raises(InvalidError):
            run.log_event("gpu.lost", metadata={"k" * 251: 1})
    events = [(one.name, dict(one.metadata)) for one in server.operations if isinstance(one, NewEvent)]
    assert ("gpu.lost", {"k" * 250: 1}) in events, events
    for _, metadata in events:
        check_metadata(metadata)


def test_a_child_run_names_its_parent(host: SpoolHost, server: MemoryServer) -> None:
    with run_on(host) as run:
        with run.child("trial 1", params={"x": 1}) as child:
            child.log_metric("loss", 0.5)
    parent, first = [one for one in server.operations if isinstance(one, NewRun)]
    assert (parent.id, first.id, first.parent_id, first.name) == (run.id, child.id, run.id, "trial 1")
    assert [edit.id for edit in edits(server)] == [child.id, run.id]


def test_a_child_run_leaves_waiting_for_a_server_that_is_away_to_its_parent(
    host: SpoolHost, server: MemoryServer
) -> None:
    server.away = Unavailable("nobody there")
    with run_on(host, flush_timeout_s=90) as run:
        began = time.monotonic()
        for number in range(3):
            with run.child(f"trial {number}") as child:
                child.log_metric("loss", 0.5)
        assert time.monotonic() - began < 90
        server.away = None
    assert len(server.series("loss")) == 3


def test_a_resumed_run_is_running_again_and_is_not_made_anew(host: SpoolHost, server: MemoryServer) -> None:
    run_id = "run_" + "a" * 24
    with run_on(host, resume=run_id) as run:
        assert run.id == run_id
    assert [(type(one).__name__, one.patch.status) for one in edits(server)] == [
        ("RunEdit", RunStatus.RUNNING),
        ("RunEdit", RunStatus.FINISHED),
    ]
    assert len(server.operations) == 2


def test_a_checkpoint_has_one_id_for_an_epoch(host: SpoolHost) -> None:
    with run_on(host) as run:
        assert run.log_checkpoint(1) == run.log_checkpoint(1) != run.log_checkpoint(2)


def test_refused_operations_are_told_to_their_run_only(host: SpoolHost, server: MemoryServer) -> None:
    server.refuse = lambda one: InvalidError("no") if isinstance(one, NewCheckpoint | NewEdges) else None
    with run_on(host) as run, run_on(host) as other:
        run.log_checkpoint(1)
        run.produced("lab/model@7")
        run.flush(60)
        assert [one.message for one in run.rejections] == ["no", "no"]
        assert other.rejections == ()


def test_it_is_used_in_a_block(host: SpoolHost) -> None:
    run = run_on(host)
    with pytest.raises(UsageError, match="start_run"):
        run.log_metric("loss", 0.5)
    assert repr(run).endswith("not started>")
    with run:
        with pytest.raises(UsageError):
            run.start()
    assert repr(run).endswith("ended>")


@pytest.mark.parametrize("experiment", ["noslash", "a/b@3", "A/b", "a/b/c"])
def test_an_experiment_that_cannot_be_is_refused_at_once(experiment: str) -> None:
    with pytest.raises(InvalidError):
        LiveRun(experiment, None)


def test_code_and_system_are_recorded_when_asked(host: SpoolHost, server: MemoryServer) -> None:
    with run_on(host, capture=True, system_metrics=0.02) as run:
        for _ in range(500):
            if any(key.startswith("system/") for _, key, _, _ in server.points):
                break
            run.flush(60)
            threading.Event().wait(0.02)
    assert "python" in attributes(server, AttributeKind.METADATA)
    assert any(key == "system/memory_used_bytes" for _, key, _, _ in server.points)
    assert not any(thread.name == "modelbox system metrics" for thread in threading.enumerate())


def test_points_without_room_are_counted_and_the_rest_is_delivered(tmp_path: Path, server: MemoryServer) -> None:
    server.away = Unavailable("nobody there")
    host = SpoolHost(config_for(tmp_path, spool_max_bytes=1 << 20), destination=server)
    with run_on(host, flush_timeout_s=100) as run:
        for step in range(30_000):
            run.log_metric("loss", 0.5, step=step)
        assert run.dropped
        run.log_params({"lr": 1})
        server.away = None
    host.close()
    assert attributes(server, AttributeKind.PARAM) == {"lr": 1}
    steps = [step for step, _ in server.series("loss")]
    assert steps == list(range(30_000 - run.dropped))
    (told,) = [one for one in server.operations if isinstance(one, NewEvent)]
    assert told.metadata == {"dropped_points": run.dropped, "skipped_values": 0}


def test_threads_share_a_run(host: SpoolHost, server: MemoryServer) -> None:
    with run_on(host) as run:

        def work() -> None:
            for _ in range(1000):
                run.log_metric("loss", 0.5)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [step for step, _ in server.series("loss")] == list(range(4000))


def test_a_forked_child_records_into_a_spool_of_its_own(host: SpoolHost, server: MemoryServer) -> None:
    with LiveRun("lab/wav2vec", host.config, host=host, capture=False) as run:
        run.log_metric("loss", 0.5)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                run.log_metric("child", 1.0)
                run.finish()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        run.log_metric("loss", 0.25)
    # What the child left is found at the next look around; it says what it speaks of, so any order will do.
    host._orphans_at = 0.0
    for _ in range(6000):
        host.kick()
        if server.series("child"):
            break
        threading.Event().wait(0.01)
    assert server.series("child") == [(0, 1.0)]
    assert [value for _, value in server.series("loss")] == [0.5, 0.25]
    assert [one.id for one in server.operations if isinstance(one, NewRun)] == [run.id, run.id]
    assert [edit.patch.status for edit in edits(server)] == [RunStatus.FINISHED]


def test_more_keys_than_an_object_may_have_hold_up_nothing(host: SpoolHost, server: MemoryServer) -> None:
    with run_on(host) as run:
        run.set_tags({f"t{number}": "" for number in range(1_000_000)})
        for number in range(0, 3000, 500):
            run.log_params({f"p{key}": key for key in range(number, number + 500)})
        run.set_tags({"t0": "again"})
        run.log_metric("after", 1.0)
    assert attributes(server, AttributeKind.TAG) == {f"t{number}": "" for number in range(1000)} | {"t0": "again"}
    assert len(attributes(server, AttributeKind.PARAM)) == 2000
    assert run.skipped == 999_000 + 1000
    assert run.rejections == ()
    assert server.series("after") == [(0, 1.0)]
    with run_on(host, strict=True) as strict, pytest.raises(LimitError, match="256 of kind label"):
        strict.set_labels({f"l{number}": "" for number in range(257)})


def test_as_many_keys_are_recorded_as_the_server_takes() -> None:
    assert MAX_KEYS == MAX_ATTRIBUTES

"""Runs whose program or server is killed: everything whose call returned is on the server in the end, once."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from modelbox import sync
from modelbox.errors import ModelBoxError
from modelbox.spool import spool_status
from modelbox.tracking import RunStatus
from tests.logging_process import ROOT, Logger, logging_to
from tests.server import ServerProcess


def check_complete(client: sync.Client, logger: Logger) -> None:
    """Everything that the program said is there once; beyond it, at most the call that the kill cut off."""
    steps = logger.said("step")
    series = client.read_series(logger.run, "loss")
    assert series.steps.tolist() in (list(range(len(steps))), list(range(len(steps) + 1)))
    assert np.array_equal(series.values, series.steps / 2)
    params = client.get_params(logger.run)
    assert params == {f"p{step}": step for step in logger.said("param")} | {
        key: value for key, value in params.items() if value == steps[-1]
    }
    artifacts = {artifact.name: artifact for artifact in client.iter_artifacts(logger.run)}
    assert {f"a{step}" for step in logger.said("artifact")} <= artifacts.keys()
    for name, artifact in artifacts.items():
        assert artifact.files[0].size_bytes == len(name) - 1


@pytest.mark.parametrize("seed", range(6))
def test_a_program_killed_without_a_server_loses_nothing(
    shared_server: ServerProcess, tmp_path: Path, seed: int
) -> None:
    spool = tmp_path / "spool"
    random_ = random.Random(seed)
    loggers = []
    for _ in range(2):
        # The address of nobody: all of it waits in the spool.
        with logging_to("http://127.0.0.1:9", spool) as logger:
            logger.wait_for(random_.randrange(2, 4000))
            logger.kill()
            loggers.append(logger)
    assert [status.owned for status in spool_status(spool)] == [False, False]
    with sync.Client(shared_server.url, spool_dir=spool) as client:
        pushed = client.push_spools(any_url=True)
        assert [one.error for one in pushed] == [None, None]
        assert [one.refused for one in pushed] == [(), ()]
        for logger in loggers:
            check_complete(client, logger)
            run = client.get_run(logger.run)
            assert run.status is RunStatus.INTERRUPTED
            assert run.ended_at is not None
        assert client.push_spools(any_url=True) == ()
    assert spool_status(spool) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_program_killed_while_it_delivers_loses_and_doubles_nothing(
    shared_server: ServerProcess, tmp_path: Path, seed: int
) -> None:
    spool = tmp_path / "spool"
    random_ = random.Random(seed)
    with logging_to(shared_server.url, spool) as logger:
        logger.wait_for(1000)
        time.sleep(random_.uniform(0, 0.7))
        logger.kill()
    with sync.Client(shared_server.url, spool_dir=spool) as client:
        # The next program delivers it, without being told.
        with client.start_run("lab/next", capture=False) as run:
            run.flush(timeout=60)
        # Files come last, and nobody waits for those of another program.
        deadline = time.monotonic() + 60
        while len(spool_status(spool)) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        check_complete(client, logger)
        assert client.get_run(logger.run).status is RunStatus.INTERRUPTED
        assert client.get_run(run.id).status is RunStatus.FINISHED


@pytest.mark.slow
def test_a_server_killed_again_and_again_gets_everything_once(server: ServerProcess, tmp_path: Path) -> None:
    random_ = random.Random(3)
    with logging_to(server.url, tmp_path / "spool") as logger:
        logger.wait_for(500)
        for _ in range(3):
            time.sleep(random_.uniform(0.1, 0.8))
            server.kill()
            time.sleep(random_.uniform(0.1, 0.5))
            server.restart()
        logger.wait_for(len(logger.lines) + 500)
        # As Ctrl-C: the block is left, and waits for delivery.
        logger.kill(signal.SIGINT)
    with sync.Client(server.url, spool_dir=tmp_path / "spool") as client:
        errors: list[ModelBoxError] = []
        for _ in range(100):
            errors = [one.error for one in client.push_spools() if one.error is not None]
            if not errors:
                break
            time.sleep(0.1)
        assert errors == []
        check_complete(client, logger)
        assert client.get_run(logger.run).status is RunStatus.INTERRUPTED


@pytest.mark.slow
def test_a_push_that_is_killed_is_gone_on_with(shared_server: ServerProcess, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with logging_to("http://127.0.0.1:9", spool) as logger:
        logger.wait_for(12_000)
        logger.kill()
    script = (
        "import sys; from modelbox import sync\n"
        "client = sync.Client(sys.argv[1], spool_dir=sys.argv[2])\n"
        "client.push_spools(any_url=True, on_progress=lambda n: print(n, flush=True))\n"
    )
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", script, shared_server.url, str(spool)], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
    with sync.Client(shared_server.url, spool_dir=spool) as client:
        client.push_spools(any_url=True)
        check_complete(client, logger)
    assert spool_status(spool) == []


def test_runs_of_forked_children_arrive_whole(shared_server: ServerProcess, tmp_path: Path) -> None:
    namespace = f"ns-{secrets.token_hex(4)}"
    with sync.Client(shared_server.url, spool_dir=tmp_path / "spool") as client:
        with client.start_run(f"{namespace}/forks", capture=False) as run:
            run.log_metric("parent", 1.0)
            pids = []
            for number in range(4):
                pid = os.fork()
                if pid == 0:
                    code = 1
                    try:
                        for step in range(100):
                            run.log_metric(f"child {number}", step / 2, step=step)
                        code = 0
                    finally:
                        os._exit(code)
                pids.append(pid)
            assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
            run.log_metric("parent", 2.0)
        # This program delivers those of dead ones by itself, too, and what it is at is passed over.
        deadline = time.monotonic() + 60
        while client.push_spools() or len(spool_status(tmp_path / "spool")) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        found = {one.key: one.count for one in client.metric_summaries(run.id)}
        assert found == {"parent": 2} | {f"child {number}": 100 for number in range(4)}
        assert client.get_run(run.id).status is RunStatus.FINISHED

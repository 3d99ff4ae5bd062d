"""The commands for experiments and what belongs to them, against a real server."""

from __future__ import annotations

import csv
import io
import secrets
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

import modelbox.sync
from tests.cli import Cli
from tests.server import ServerProcess

AT = datetime(2026, 5, 3, 12, tzinfo=UTC)


@pytest.fixture
def ns() -> str:
    return f"ns-{secrets.token_hex(4)}"


@pytest.fixture
def client(shared_server: ServerProcess) -> Iterator[modelbox.sync.Client]:
    with modelbox.sync.Client(shared_server.url, actor="ada@test") as opened:
        yield opened


def test_the_form_of_the_earlier_project_works(cli: Cli, ns: str) -> None:
    argv = ["client", "experiments", "create", "--namespace", ns, "--owner", "you@example.com"]
    argv += ["--name", "wav2vec-lid", "--framework", "pytorch"]
    created = cli(*argv)
    assert created.startswith(f"created {ns}/wav2vec-lid exp_")
    assert cli(*argv) == created.replace("created", "exists", 1)
    (experiment,) = cli.json("experiments", "list", "--namespace", ns)
    assert (experiment["owner"], experiment["framework"]) == ("you@example.com", "pytorch")


def test_an_experiments_life(cli: Cli, ns: str, client: modelbox.sync.Client) -> None:
    path = f"{ns}/digits"
    cli("experiments", "create", path, "--task", "ocr")
    assert cli.json("experiments", "update", path, "--owner", "grace")["owner"] == "grace"
    client.create_run(path, name="first")
    shown = cli.json("experiments", "show", path)
    assert shown["runs"] == {"running": 1}
    assert "1 running" in cli("experiments", "show", path)
    assert cli.json("experiments", "delete", path)["deleted"] == 2
    assert cli.json("experiments", "list", "--namespace", ns) == []
    assert "DELETED" in cli("experiments", "list", "--namespace", ns, "--deleted")
    assert "bin" in cli("experiments", "create", path)
    assert cli.json("experiments", "restore", path)["restored"] == 2
    assert "digits" in cli("experiments", "show", f"{ns}/digit", code=3)


def test_runs_are_listed_shown_and_compared(cli: Cli, ns: str, client: modelbox.sync.Client) -> None:
    path = f"{ns}/digits"
    runs = []
    for number, lr in enumerate((1e-3, 3e-4)):
        run = client.create_run(path, name=f"r{number}", params={"lr": lr, "layers": 12}, tags={"team": "speech"}).item
        client.log_metrics(run.id, {"loss": 0.5 - number / 10}, step=7)
        runs.append(run.id)
    client.log_metrics(runs[1], {"accuracy": float("nan")}, step=7)
    assert [run["name"] for run in cli.json("runs", "list", path)] == ["r1", "r0"]
    assert [run["name"] for run in cli.json("runs", "list", path, "--limit", "1")] == ["r1"]
    assert cli.json("runs", "list", ns, "--status", "failed") == []
    shown = cli.json("runs", "show", runs[0])
    assert shown["params"] == {"layers": 12, "lr": 1e-3}
    assert shown["metrics"][0]["latest"] == 0.5
    text = cli("runs", "show", runs[0])
    assert "team=speech" in text
    assert "loss" in text
    compared = cli.json("runs", "compare", *runs)
    assert compared["params"] == {"lr": {runs[0]: 1e-3, runs[1]: 3e-4}}
    assert compared["metrics"]["loss"][runs[1]]["latest"] == 0.4
    assert compared["metrics"]["accuracy"][runs[1]]["latest"] == "NaN"
    table = [line.split() for line in cli("runs", "compare", *runs).splitlines()]
    assert ["lr", "0.001", "0.0003"] in table
    assert ["loss", "0.5", "0.4"] in table
    assert ["accuracy", "-", "nan"] in table
    assert not [line for line in table if line[:1] == ["layers"]]
    assert "layers" in cli("runs", "compare", *runs, "--all")
    cli("runs", "compare", runs[0], runs[0], code=2)
    cli("runs", "delete", runs[0])
    assert [run["id"] for run in cli.json("runs", "list", path)] == [runs[1]]
    assert "deleted" in cli("runs", "show", runs[0])
    cli("runs", "restore", runs[0])
    cli("runs", "show", "run_" + "0" * 24, code=3)
    cli("runs", "show", "r1", code=2)


def test_points_are_exported_as_csv(cli: Cli, ns: str, client: modelbox.sync.Client, tmp_path: Path) -> None:
    run = client.create_run(f"{ns}/digits").item.id
    client.log_metrics(run, {"loss": float("inf"), "note": 'a "b",\nc', "raw": b"\0\1"}, step=-3, at=AT)
    client.log_series(run, "loss", [1, 2], [0.5, 0.25], times_us=1)
    rows = list(csv.DictReader(io.StringIO(cli("runs", "export", run))))
    found = {(row["key"], row["step"]): row["value"] for row in rows}
    assert found == {
        ("loss", "-3"): "inf",
        ("loss", "1"): "0.5",
        ("loss", "2"): "0.25",
        ("note", "-3"): 'a "b",\nc',
        ("raw", "-3"): "AAE=",
    }
    assert rows[0]["time"] == "2026-05-03T12:00:00.000000Z"
    target = tmp_path / "loss.csv"
    written = cli.json("runs", "export", run, "--metric", "loss", "--file", str(target))
    assert written == {"path": str(target), "points": 3}
    assert len(target.read_text().splitlines()) == 4
    cli("runs", "export", run, "--file", str(tmp_path / "no" / "x.csv"), code=2)


def test_checkpoints(cli: Cli, ns: str, client: modelbox.sync.Client, tmp_path: Path) -> None:
    run = client.create_run(f"{ns}/digits").item.id
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"weights")
    created = cli.json("checkpoints", "create", run, "3", str(weights), "--step", "900", "--metric", "wer=0.25")
    assert created["item"]["epoch"] == 3
    assert cli("checkpoints", "create", run, "3").startswith("exists ckp_")
    cli("checkpoints", "create", f"{ns}/digits", "0", "--path", "/mnt/0.pt")
    (listed,) = cli.json("checkpoints", "list", run)
    assert (listed["step"], listed["metrics"]) == (900, {"wer": 0.25})
    assert "/mnt/0.pt" in cli("checkpoints", "list", f"{ns}/digits")
    (artifact,) = cli.json("artifacts", "list", listed["id"])
    assert artifact["files"][0]["path"] == "weights.pt"
    cli("checkpoints", "delete", listed["id"])
    assert cli.json("checkpoints", "list", run) == []
    cli("checkpoints", "restore", listed["id"])
    cli("checkpoints", "create", run, "4", "--metric", "wer=nan", code=2)


def test_metrics_are_drawn(cli: Cli, ns: str, client: modelbox.sync.Client) -> None:
    runs = [client.create_run(f"{ns}/digits", name=f"r{number}").item.id for number in range(2)]
    for number, run in enumerate(runs):
        client.log_series(run, "loss", range(1000), 1 / (1 + np.arange(1000.0)) + number)
    client.log_metrics(runs[0], {"note": "text"})
    cli("metrics", "log", runs[0], "accuracy=0.5", "--step", "3")
    keys = [metric["key"] for metric in cli.json("metrics", "show", runs[0])]
    assert keys == ["accuracy", "loss", "note"]
    assert "OBJECT" in cli("metrics", "show", *runs)
    lines = cli("metrics", "show", runs[0], "--metric", "loss", "--width", "60", "--height", "8").splitlines()
    assert lines[0] == "loss"
    assert lines[1].split()[0] == "1"
    assert any("\u2801" <= ch <= "\u28ff" for ch in lines[1])
    assert max(map(len, lines[:10])) == 60
    assert "min 0.001  max 1  latest 0.001 at step 999  points 1000" in lines[-1]
    both = cli("metrics", "show", *runs, "--metric", "loss", "--log")
    assert "●" in both
    assert f"○ r1 ({runs[1]})" in both
    (drawn,) = cli.json("metrics", "show", runs[0], "--metric", "loss", "--from-step", "990", "--width", "20")
    assert sum(drawn["sample"]["counts"]) == 10
    assert drawn["summary"]["count"] == 1000
    assert "no metric 'lost'" in cli("metrics", "show", runs[0], "--metric", "lost", code=3)
    assert "holds text" in cli("metrics", "show", runs[0], "--metric", "note", code=2)


def test_events(cli: Cli, ns: str) -> None:
    cli("models", "create", f"{ns}/m")
    argv = ("events", "log", f"{ns}/m", "gpu.lost", "--source", "scheduler", "--metadata", "node=7")
    assert cli.json(*argv, "--at", "2026-05-03T12:00:00Z")["at"] == "2026-05-03T12:00:00.000000Z"
    cli("events", "log", f"{ns}/m", "gpu.back", "--at", "5m")
    assert [event["name"] for event in cli.json("events", "list", ns)] == ["gpu.back", "gpu.lost"]
    assert [event["name"] for event in cli.json("events", "list", ns, "--since", "1h")] == ["gpu.back"]
    assert [event["metadata"] for event in cli.json("events", "list", ns, "--until", "1h")] == [{"node": 7}]
    assert "scheduler" in cli("events", "list", f"{ns}/m", "--name", "gpu.lost", "--limit", "1")
    assert "how long ago" in cli("events", "list", ns, "--since", "yesterday", code=2)


def test_datasets(cli: Cli, ns: str, tmp_path: Path) -> None:
    path = f"{ns}/voices"
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.wav").write_bytes(b"a" * 1000)
    cli("datasets", "create", "--name", "voices", "--namespace", ns, "--owner", "grace")
    argv = ["datasets", "add", path, str(data), "--s3", "s3://voices/2026", "--query", "select 1", "--source", "db"]
    argv += ["--component", '{"type": "s3", "location": "s3://b/k", "rows": 3}']
    added = cli.json(*argv)["item"]
    assert [part["type"] for part in added["components"]] == ["path", "s3", "query", "s3"]
    assert added["components"][0]["size_bytes"] == 1000
    assert cli(*argv).startswith(f"exists {path}@1 ")
    (data / "b.wav").write_bytes(b"b")
    assert cli(*argv).startswith(f"added {path}@2 ")
    assert [one["latest_version"] for one in cli.json("datasets", "list", "--namespace", ns)] == [2]
    assert [one["version"] for one in cli.json("datasets", "show", path)["versions"]] == [2, 1]
    assert "select 1" in cli("datasets", "show", f"{path}@1")
    assert "1000 B" in cli("datasets", "show", path)
    cli("datasets", "delete", f"{path}@1")
    assert [one["version"] for one in cli.json("datasets", "show", path)["versions"]] == [2]
    cli("datasets", "restore", added["id"])
    cli("datasets", "add", path, "--component", "{", code=2)
    cli("datasets", "add", path, "/does/not/exist", code=2)
    cli("datasets", "add", path, code=2)


def test_lineage_is_a_tree(cli: Cli, ns: str, client: modelbox.sync.Client) -> None:
    cli("datasets", "add", f"{ns}/voices", "--s3", "s3://voices/1")
    first, second = (client.create_run(f"{ns}/digits", name=name).item.id for name in ("first", "second"))
    for run in (first, second):
        assert cli.json("lineage", "add", f"dataset:{ns}/voices@1", run, "--type", "used")["existed"] is False
    cli("lineage", "add", first, second)
    text = cli("lineage", "show", f"dataset:{ns}/voices@1", "--direction", "descendants")
    assert text.splitlines()[2].startswith("├── used: run ")
    assert text.splitlines()[3].startswith("│   └── derived: run ")
    assert text.splitlines()[4].startswith("└── used: run ")
    shown = cli.json("lineage", "show", second, "--direction", "ancestors", "--depth", "1")
    assert {node["depth"] for node in shown["nodes"]} == {0, 1}
    assert "nothing that is recorded" in cli("lineage", "show", second)
    assert "cycle" in cli("lineage", "add", second, first, code=4)
    assert cli.json("lineage", "remove", first, second)["removed"] is True


def test_comments_and_a_readme(cli: Cli, ns: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cli("models", "create", f"{ns}/m")
    comment = cli.json("comments", "add", f"{ns}/m", "looks good\n\x1b[31m")["id"]
    assert "looks good\n\\x1b[31m\n" in cli("comments", "list", f"{ns}/m")
    monkeypatch.setattr(sys, "stdin", io.StringIO("looks bad"))
    assert cli.json("comments", "edit", comment, "-")["text"] == "looks bad"
    cli("comments", "delete", comment)
    assert cli.json("comments", "list", f"{ns}/m") == []
    page = tmp_path / "README.md"
    page.write_text("# M\n\nText.\n")
    cli("readme", "set", f"{ns}/m", "--file", str(page))
    assert cli("readme", "show", f"{ns}/m") == "# M\n\nText.\n"
    assert cli.json("readme", "show", f"{ns}/m")["text"] == "# M\n\nText.\n"
    assert "removed" in cli("readme", "set", f"{ns}/m", "")
    cli("readme", "show", f"{ns}/m", code=3)
    cli("readme", "set", f"{ns}/m", "text", "--file", str(page), code=2)


def test_values_by_key(cli: Cli, ns: str, client: modelbox.sync.Client) -> None:
    run = client.create_run(f"{ns}/digits").item.id
    cli("params", "set", run, "lr=3e-4", 'net={"depth": 12}', "name=big")
    assert cli.json("params", "show", run) == {"lr": 3e-4, "name": "big", "net": {"depth": 12}}
    error = cli.json("params", "set", run, "lr=1", code=4)
    assert error["fields"]["current"]
    cli("params", "set", run, "lr=1", "--overwrite")
    cli("tags", "set", run, "best", "team=speech")
    assert cli.json("tags", "show", run) == {"best": "", "team": "speech"}
    cli("labels", "set", f"experiment:{ns}/digits", "stage=trial")
    assert cli.json("labels", "show", f"experiment:{ns}/digits") == {"stage": "trial"}
    cli("metadata", "set", run, "hours=960")
    cli("tags", "remove", run, "best")
    shown = {(one["kind"], one["key"]): one["value"] for one in cli.json("attributes", "show", run)}
    assert shown[("metadata", "hours")] == 960
    assert ("tag", "best") not in shown
    history = cli.json("attributes", "history", run, "param", "lr")
    assert [change["value"] for change in history] == [1, 3e-4]
    assert "removed" in cli("attributes", "history", run, "tag")
    assert '{"depth": 12}' in cli("params", "show", run)


def test_find_in_three_forms(cli: Cli, ns: str, client: modelbox.sync.Client) -> None:
    for number in range(3):
        run = client.create_run(f"{ns}/digits", name=f"r{number}", params={"learning rate": number / 10}).item.id
        client.log_metrics(run, {"loss": number / 4})
    argv = ("find", "runs", 'metrics.loss > 0 and params."learning rate" > 0', "--within", f"{ns}/digits")
    table = [line.split() for line in cli(*argv, "--order-by", "metrics.loss desc").splitlines()]
    assert table[0][-3:] == ["metrics.loss", "params.learning", "rate"]
    assert [row[-2:] for row in table[1:]] == [["0.5", "0.2"], ["0.25", "0.1"]]
    assert "created_by" not in table[0]
    assert "created_by" in cli("find", "runs", "created_by = 'ada@test'", "--within", ns)
    rows = cli.json(*argv, "--order-by", "name", "--limit", "1")
    assert [(row["name"], row["metrics.loss"]) for row in rows] == [("r1", 0.25)]
    text = cli(*argv, "--format", "csv", "--columns", "name,metrics.loss", "--order-by", "name")
    assert next(csv.reader(io.StringIO(text)))[1:] == ["name", "metrics.loss"]
    assert text.count("\n") == 3
    assert len(cli.json("find", "experiments", f"namespace = {ns}", "--all")) == 1


def test_a_wrong_query_points_at_the_place(cli: Cli) -> None:
    error = cli("find", "runs", "metrics.accuracy > high", code=2).splitlines()
    assert error == [
        "error: metrics.accuracy is a number: expected a number",
        "  metrics.accuracy > high",
        "                     ^",
    ]
    assert cli.json("find", "runs", "metrics.accuracy > high", code=2)["fields"]["position"] == 19
    assert "error" in cli("find", "colours", code=2)


def test_what_lies_in_the_bin_is_purged(cli: Cli, ns: str, client: modelbox.sync.Client) -> None:
    run = client.create_run(f"{ns}/digits").item.id
    cli("runs", "delete", run)
    assert cli.json("purge", "--before", "0s", "--namespace", ns, "--dry-run")["found"] == 1
    assert "needs --yes" in cli("purge", "--before", "0s", "--namespace", ns, code=2)
    assert cli.json("purge", "--before", "0s", "--namespace", ns, "--yes")["purged"] == 1
    cli("runs", "show", run, code=3)


_ABANDONED = """
import os, sys
import modelbox.sync
run = modelbox.sync.Client().start_run(sys.argv[1], capture=False)
run.start()
run.log_metric("loss", 0.5)
print(run.id, flush=True)
os._exit(1)
"""


def test_spools_that_programs_left_behind(
    cli: Cli, ns: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared_server: ServerProcess
) -> None:
    monkeypatch.setenv("MODELBOX_SPOOL_DIR", str(tmp_path / "spool"))
    assert cli.json("spool", "status") == []
    with monkeypatch.context() as away:
        away.setenv("MODELBOX_URL", "http://127.0.0.1:1")
        argv = [sys.executable, "-c", _ABANDONED, f"{ns}/digits"]
        run = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
        (spool,) = cli.json("spool", "status")
        assert spool["open_runs"] == [run]
        assert spool["records"] >= 2
        assert "left behind" in cli("spool", "status")
        cli("spool", "push", code=5)
    assert cli.json("spool", "push") == []
    (pushed,) = cli.json("spool", "push", "--any-url")
    assert (pushed["error"], pushed["refused"]) == (None, [])
    assert cli.json("runs", "show", run)["run"]["status"] == "interrupted"
    assert cli.json("spool", "status") == []

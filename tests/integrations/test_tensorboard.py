"""TensorBoard's event files, written and read by tensorboard and torch themselves, into runs and back."""

from __future__ import annotations

import json
import math
import secrets
import shutil
from pathlib import Path

import numpy as np
import pytest

import modelbox
from modelbox import sync
from modelbox.errors import InvalidError, NotFoundError
from modelbox.tracking import RunStatus
from tests.cli import Cli
from tests.training import need

need("tensorboard", "torch")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginAccumulator
from tensorboard.util import tensor_util
from torch.utils.tensorboard import SummaryWriter

from modelbox.integrations.tensorboard import export_run, import_directory


@pytest.fixture
def experiment() -> str:
    return f"ns-{secrets.token_hex(4)}/digits"


def write(directory: Path, *, steps: range = range(3), offset: float = 0.0) -> None:
    with SummaryWriter(str(directory)) as writer:
        for step in steps:
            writer.add_scalar("loss/train", 1 / (1 + step) + offset, step, walltime=1_700_000_000 + step)


def test_directories_become_runs(box: sync.Client, experiment: str, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    write(logs / "a")
    write(logs / "deep" / "b", steps=range(5))
    with SummaryWriter(str(logs / "a")) as writer:
        writer.add_scalar("loss/train", math.nan, 7, walltime=1_700_000_100.25)
        writer.add_scalar("new", 2**-30, 7, new_style=True, walltime=1_700_000_100)
        writer.add_scalar("new", 0.1, 8, new_style=True, double_precision=True, walltime=1_700_000_100)
        writer.add_text("notes", "<b>hello</b>\nworld", 3)
        writer.add_histogram("weights", np.arange(10.0), 1)
        writer.add_histogram("weights", np.arange(10.0), 2)
        writer.add_image("picture", np.zeros((3, 4, 4)), 1)
    first, second = import_directory(box, logs, experiment)
    assert (first.run.name, second.run.name) == ("a", "deep/b")
    assert (first.existed, first.points, first.skipped) == (False, 7, {"histogram": 2, "image": 1})
    assert second.points == 5
    assert first.run.status is RunStatus.FINISHED
    series = box.read_series(first.run.id, "loss/train")
    assert series.steps.tolist() == [0, 1, 2, 7]
    assert series.values.tolist()[:2] == [1, 0.5]
    assert math.isnan(series.values[3])
    assert series.times_us.tolist()[3] == 1_700_000_100_250_000
    assert box.read_series(first.run.id, "new").values.tolist() == [2**-30, 0.1]
    assert box.read_series(first.run.id, "notes").payloads == ("<b>hello</b>\nworld",)
    assert box.get_metadata(first.run.id)["tensorboard"] == {"directory": str(logs / "a")}


def test_importing_again_adds_what_is_new(box: sync.Client, experiment: str, tmp_path: Path) -> None:
    write(tmp_path / "logs", steps=range(3))
    (first,) = import_directory(box, tmp_path / "logs", experiment)
    assert first.run.name == "logs"
    write(tmp_path / "logs", steps=range(2, 6))
    (again,) = import_directory(box, tmp_path / "logs", experiment)
    assert (again.run.id, again.existed) == (first.run.id, True)
    assert box.read_series(first.run.id, "loss/train").steps.tolist() == [0, 1, 2, 3, 4, 5]
    # The same name in another place is another run.
    shutil.rmtree(tmp_path / "logs")
    with SummaryWriter(str(tmp_path / "logs")) as writer:
        writer.add_scalar("loss/train", 1, 0)
    assert import_directory(box, tmp_path / "logs", experiment)[0].run.id != first.run.id


def test_hyperparameters_come_along(box: sync.Client, experiment: str, tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "logs")) as writer:
        hparams = {"lr": 3e-4, "layers": 12, "name": "big", "bias": True}
        writer.add_hparams(hparams, {"hparam/wer": 0.25}, run_name=".")
    (imported,) = import_directory(box, tmp_path / "logs", experiment)
    assert box.get_params(imported.run.id) == hparams
    assert box.read_series(imported.run.id, "hparam/wer").values.tolist() == [0.25]


async def test_there_and_back_again(box: sync.Client, experiment: str, tmp_path: Path) -> None:
    params = {"lr": 3e-4, "layers": 12, "name": "big", "bias": False}
    run = box.create_run(experiment, params={**params, "net": {"depth": 3}}).item
    steps, values = [-5, 0, 1, 2**40], [0.1, math.nan, math.inf, 1e-300]
    times = [1_700_000_000_123_456 + number for number in range(4)]
    box.log_series(run.id, "loss", steps, values, times_us=times)
    box.log_metrics(run.id, {"notes": "ÄÖ\nline", "raw": b"\0"}, step=3)
    async with modelbox.Client(box.config.url) as client:
        exported = await export_run(client, run.id, tmp_path / "out", double_precision=True)
        assert (exported.points, exported.skipped) == (5, {"bytes": 1})
        (back,) = await import_directory(client, tmp_path / "out", f"{experiment}-back")
        series = await client.read_series(back.run.id, "loss")
        assert (series.steps.tolist(), series.times_us.tolist()) == (steps, times)
        np.testing.assert_array_equal(series.values, values)
        assert (await client.read_series(back.run.id, "notes")).payloads == ("ÄÖ\nline",)
        assert await client.get_params(back.run.id) == params | {"net": '{"depth": 3}'}
    with pytest.raises(InvalidError, match="exists already"):
        export_run(box, run.id, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == [exported.path.name]


def test_tensorboard_reads_what_is_exported(box: sync.Client, experiment: str, tmp_path: Path) -> None:
    run = box.create_run(experiment, params={"lr": 3e-4}).item
    box.log_series(run.id, "loss", range(1000), np.linspace(1, 0, 1000), times_us=1_700_000_000_000_000)
    box.log_metrics(run.id, {"accuracy": 0.5}, step=10)
    exported = export_run(box, run.id, tmp_path / "out")
    read = EventAccumulator(str(tmp_path / "out"), size_guidance={"scalars": 0})
    read.Reload()
    assert read.Tags()["scalars"] == ["accuracy", "loss"]
    scalars = read.Scalars("loss")
    assert [scalar.step for scalar in scalars] == list(range(1000))
    assert scalars[500].value == pytest.approx(1 - 500 / 999)
    assert scalars[0].wall_time == 1_700_000_000
    # As TensorBoard's own data provider reads it.
    plugins = PluginAccumulator(str(exported.path))
    plugins.Reload()
    assert set(plugins.PluginTagToContent("hparams")) == {"_hparams_/session_start_info"}
    assert set(plugins.PluginTagToContent("scalars")) == {"accuracy", "loss"}


def test_text_and_64_bits_are_read_by_tensorboard(box: sync.Client, experiment: str, tmp_path: Path) -> None:
    run = box.create_run(experiment).item
    box.log_metrics(run.id, {"notes": "text", "loss": 0.1}, step=1)
    export_run(box, run.id, tmp_path / "out", double_precision=True)
    plugins = PluginAccumulator(str(tmp_path / "out"))
    plugins.Reload()
    assert set(plugins.PluginTagToContent("text")) == {"notes"}
    (point,) = plugins.Tensors("loss")
    assert tensor_util.make_ndarray(point.tensor_proto).item() == 0.1


def test_what_cannot_be_kept_is_counted(box: sync.Client, experiment: str, tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "logs")) as writer:
        writer.add_scalar("x" * 300, 1, 0)
        writer.add_scalar("both", 1, 0)
        writer.add_text("both", "text", 0)
        writer.add_text("long", "x" * (2 << 20), 0)
        writer.add_scalar("fine", 1, 0)
    (imported,) = import_directory(box, tmp_path / "logs", experiment)
    assert (imported.points, imported.skipped) == (2, {"name": 2, "large text": 1})


def test_a_file_that_ends_in_the_middle_is_read_up_to_there(box: sync.Client, experiment: str, tmp_path: Path) -> None:
    write(tmp_path / "logs", steps=range(100))
    (file,) = (tmp_path / "logs").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    (first,) = import_directory(box, tmp_path / "logs", experiment)
    assert 0 < first.points < 100
    file.write_bytes(whole)
    (again,) = import_directory(box, tmp_path / "logs", experiment)
    assert again.points == 100
    assert len(box.read_series(first.run.id, "loss/train")) == 100
    file.write_bytes(b"")
    assert import_directory(box, tmp_path / "logs", experiment) == ()


def test_nothing_there_is_an_error(box: sync.Client, experiment: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="no event files"):
        import_directory(box, tmp_path, experiment)
    with pytest.raises(NotFoundError):
        export_run(box, "run_" + "0" * 24, tmp_path)
    assert list(tmp_path.glob("*tfevents*")) == []


def test_the_commands(cli: Cli, box: sync.Client, experiment: str, tmp_path: Path) -> None:
    write(tmp_path / "logs" / "first")
    argv = ("runs", "import-tensorboard", str(tmp_path / "logs"), "--experiment", experiment)
    (imported,) = cli.json(*argv)
    assert (imported["points"], imported["run"]["name"]) == (3, "first")
    assert "updated" in cli(*argv)
    run = imported["run"]["id"]
    exported = json.loads(cli("runs", "export-tensorboard", run, str(tmp_path / "out"), "--output", "json"))
    assert Path(exported["path"]).exists()
    cli("runs", "export-tensorboard", run, str(tmp_path / "out"), code=2)
    cli("runs", "import-tensorboard", str(tmp_path / "nothing"), "--experiment", experiment, code=2)

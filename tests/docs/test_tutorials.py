"""The notebooks run, each in a kernel of its own, against a real server; git keeps them without what they put out."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.server import ServerProcess
from tests.training import need

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.name)
def test_it_is_kept_without_outputs(path: Path) -> None:
    text = path.read_text()
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert cell["metadata"] == {}
    # One form, so that a change shows what was changed.
    assert text == json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.name)
def test_it_runs(path: Path, server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("torch", "lightning", "sklearn", "skl2onnx", "onnxscript", "pandas", "matplotlib", "nbclient", "ipykernel")
    monkeypatch.setenv("MODELBOX_URL", server.url)
    for name in ("MODELBOX_CACHE_DIR", "MODELBOX_SPOOL_DIR", "XDG_CONFIG_HOME", "IPYTHONDIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    work = tmp_path / "work"
    work.mkdir()
    notebook = executed(path, work)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]


def executed(path: Path, work: Path) -> Any:
    with warnings.catch_warnings():
        # What Jupyter's packages say about each other.
        warnings.simplefilter("ignore")
        import nbformat
        from nbclient import NotebookClient

        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(work)}}
        )
        client.execute()
    return notebook

"""No code of ModelBox makes code or files out of what others sent: no unpickling, no unpacking of archives, no shells.

Ruff's rules see most of it; this looks at every call and import of the package, whatever it is excused from there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.registry import fault

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for top in ("modelbox", "tools", "examples", "deploy")
    for path in (ROOT / top).rglob("*.py")
    if ".venv" not in path.parts and "node_modules" not in path.parts
)
MODULES = frozenset(
    ["_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "py7zr", "rarfile", "shelve"]
) | frozenset(["tarfile"])
NAMES = frozenset(["eval", "exec", "compile", "execfile"])
METHODS = frozenset(["extract", "extractall", "unpack_archive", "unsafe_load", "full_load", "system", "popen"])
# An archive of arrays is looked into, never unpacked; only here.
READS_ZIP = frozenset(["modelbox/loader/warmup.py"])


def found(tree: ast.AST, name: str) -> Iterator[str]:
    """Every place that should not be."""
    for node in ast.walk(tree):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for module in modules:
                top = module.partition(".")[0]
                if top in MODULES or (top == "zipfile" and name not in READS_ZIP):
                    yield f"{where} imports {module}"
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id in NAMES:
            yield f"{where} calls {function.id}"
        if isinstance(function, ast.Attribute):
            of = function.value.id if isinstance(function.value, ast.Name) else ""
            if (function.attr in METHODS and of != "platform") or (function.attr == "load" and of == "yaml"):
                yield f"{where} calls {of}.{function.attr}"
            if function.attr == "load" and of in ("np", "numpy") and not _says(node, "allow_pickle", False):
                yield f"{where} reads arrays without allow_pickle=False"
            if function.attr == "load" and of == "torch" and not _says(node, "weights_only", True):
                yield f"{where} reads more than weights"
        for keyword in node.keywords:
            false = isinstance(keyword.value, ast.Constant) and not keyword.value.value
            if keyword.arg in ("shell", "allow_pickle") and not false:
                yield f"{where} passes {keyword.arg}"


def _says(call: ast.Call, name: str, value: bool) -> bool:
    given = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return bool(given) and isinstance(given[0], ast.Constant) and given[0].value is value


@fault(59)
@pytest.mark.parametrize("top", sorted({path.relative_to(ROOT).parts[0] for path in SOURCES}))
def test_nothing_that_others_sent_is_run_or_unpacked(top: str) -> None:
    sources = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == top]
    wrong = [
        place
        for path in sources
        for place in found(ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix())
    ]
    assert not wrong


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import tarfile",
        "import zipfile",
        "from zipfile import ZipFile",
        "archive.extractall(path)",
        "archive.extract(member)",
        "shutil.unpack_archive(path)",
        "eval(text)",
        "exec(text)",
        "yaml.load(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trusted)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
    ],
)
def test_the_search_finds(line: str) -> None:
    assert list(found(ast.parse(line), "modelbox/any.py"))


def test_the_search_lets_pass_what_is_safe() -> None:
    safe = (
        "platform.system()\nnp.load(path, allow_pickle=False)\ntorch.load(path, weights_only=True)\n"
        "yaml.safe_load(text)\njson.load(file)\nre.compile(text)"
    )
    assert not list(found(ast.parse(safe), "modelbox/any.py"))

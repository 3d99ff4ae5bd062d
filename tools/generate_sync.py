"""Generate `modelbox/_sync_calls.py`: the client's methods, blocking, with the same names, arguments and docstrings.

The source are the parts of `modelbox.client`. An ``async def`` becomes a ``def``, an asynchronous iterator an iterator.
What cannot be had that way is written by hand in `modelbox.sync`, and named in `BY_HAND` here. The result is committed
and never edited.

Run by `make sync`; `make sync-check` uses `--check`, which writes nothing and fails with the difference.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ROOT / "modelbox" / "client"
OUTPUT = ROOT / "modelbox" / "_sync_calls.py"
NOT_PARTS = frozenset(["__init__", "arguments", "connection", "loading"])
BY_HAND = frozenset(["changes", "start_run"])
HEADER = '''"""The client's methods, blocking. Generated from `modelbox.client` by `make sync`: do not edit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelbox._blocking import BlockingClient, finish, iterate

'''
CLASS = '''
__all__ = ("SyncCalls",)


class SyncCalls:
    """Every call of `modelbox.Client` that waits for an answer."""

    _client: BlockingClient

'''

Function = ast.FunctionDef | ast.AsyncFunctionDef


def generate(parts: Path) -> str:
    """Return the text of the generated module, formatted."""
    imports: list[str] = []
    type_imports: list[str] = []
    methods: list[str] = []
    for path in sorted(parts.glob("*.py")):
        if path.stem in NOT_PARTS:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imports += [ast.unparse(node) for node in tree.body if _is_wanted(node)]
        type_imports += [
            f"    {ast.unparse(inner)}" for node in tree.body if isinstance(node, ast.If) for inner in node.body
        ]
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                methods += [_method(item) for item in node.body if _is_call(item)]
    block = "\n".join(["if TYPE_CHECKING:", *type_imports])
    return _formatted("\n".join([HEADER, *imports, block, CLASS + "".join(methods)]))


def _is_wanted(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module != "__future__")


def _is_call(node: ast.stmt) -> bool:
    return isinstance(node, Function) and not node.name.startswith("_") and node.name not in BY_HAND


def _method(node: ast.stmt) -> str:
    assert isinstance(node, Function)
    assert node.returns is not None
    returns = ast.unparse(node.returns)
    forwarded = ", ".join(
        [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)][1:]
        + ([f"*{node.args.vararg.arg}"] if node.args.vararg else [])
        + [f"{arg.arg}={arg.arg}" for arg in node.args.kwonlyargs]
        + ([f"**{node.args.kwarg.arg}"] if node.args.kwarg else [])
    )
    if isinstance(node, ast.AsyncFunctionDef):
        driver = "finish"
    elif returns.startswith("AsyncIterator["):
        driver, returns = "iterate", returns.removeprefix("Async")
    else:
        raise SystemExit(f"{node.name} is neither async nor an iterator: name it in BY_HAND")
    docstring = ast.get_docstring(node, clean=False)
    return (
        f"    def {node.name}({ast.unparse(node.args)}) -> {returns}:\n"
        f'        """{docstring}"""\n'
        f"        return {driver}(self._client.{node.name}({forwarded}))\n\n"
    )


def _formatted(text: str) -> str:
    text = _ruff(text, "check", "--fix", "--exit-zero", "--select", "I,F401,F811")
    if "if TYPE_CHECKING:\n    pass\n" in text:
        text = _ruff(text.replace("if TYPE_CHECKING:\n    pass\n", ""), "check", "--fix", "--select", "I,F401")
    return _ruff(text, "format")


def _ruff(text: str, *command: str) -> str:
    ruff = [sys.executable, "-m", "ruff", *command, "--quiet", "--stdin-filename", str(OUTPUT), "-"]
    return subprocess.run(ruff, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def main() -> int:
    """Write the module, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the module is out of date")
    options = parser.parse_args()
    wanted = generate(PARTS)
    there = OUTPUT.read_text(encoding="utf-8") if OUTPUT.exists() else ""
    if wanted == there:
        return 0
    if not options.check:
        OUTPUT.write_text(wanted, encoding="utf-8")
        return 0
    name = OUTPUT.relative_to(ROOT).as_posix()
    difference = difflib.unified_diff(there.splitlines(), wanted.splitlines(), name, "modelbox/client", lineterm="")
    print("\n".join([*difference, f"{name} is out of date: run `make sync`"]), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

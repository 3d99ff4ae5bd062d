"""What is public is what `__all__` says, it all imports, and it needs no extra."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import modelbox
from modelbox.errors import ConfigError

ROOT = Path(__file__).parents[2]
EXTRAS = ("onnxruntime", "sqlalchemy", "alembic", "aiosqlite", "prometheus_client", "typer", "rich", "uvloop")
EXTRAS_OTEL = ("opentelemetry.sdk", "opentelemetry.exporter")


def modules() -> list[str]:
    found = ["modelbox"]
    for module in pkgutil.walk_packages(modelbox.__path__, "modelbox."):
        hidden = any(part.startswith("_") for part in module.name.split("."))
        if not hidden and "migrations" not in module.name:
            found.append(module.name)
    return found


@pytest.mark.parametrize("name", modules())
def test_all_names_what_the_module_defines(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ConfigError as exc:
        pytest.skip(f"an integration without its library: {exc}")
    listed = getattr(module, "__all__", None)
    if listed is None:
        return
    assert isinstance(listed, tuple)
    assert len(set(listed)) == len(listed)
    for attribute in listed:
        assert hasattr(module, attribute), f"{name}.__all__ names {attribute}, which is not there"


@pytest.mark.parametrize("name", [name for name in modules() if "." not in name.removeprefix("modelbox.")])
def test_public_modules_of_the_first_level_say_what_is_public(name: str) -> None:
    if name in (
        "modelbox.loader",
        "modelbox.runtime",
        "modelbox.sidecar",
        "modelbox.cli",
        "modelbox.integrations",
    ):  # packages of parts, without a front of their own
        return
    assert hasattr(importlib.import_module(name), "__all__")


def test_the_package_imports_without_any_extra() -> None:
    script = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS!r} or name.startswith({EXTRAS_OTEL!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from modelbox import *
import modelbox
from modelbox.errors import ConfigError
print(sorted(name for name in modelbox.__all__ if name not in globals()))
try:
    modelbox.otel.configure_prometheus()
except ConfigError as exc:
    print(exc)
from modelbox.loader.session import runtime
try:
    runtime()
except ConfigError as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    missing, prometheus, onnx = done.stdout.splitlines()
    assert missing == "[]"
    assert "modelbox[otel]" in prometheus
    assert "modelbox[onnx]" in onnx


def test_importing_the_package_opens_no_runtime() -> None:
    script = (
        "import modelbox, sys; print([m for m in ('onnxruntime', 'sqlalchemy', 'trio', 'grpclib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"

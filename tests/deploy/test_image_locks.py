"""The images install what the tests ran with, each package by its hash, and nothing says where from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
EXTRAS = {
    "sidecar": ("onnx", "otel", "sidecar", "images", "signing"),
    "server": ("server", "postgres", "mysql", "s3"),
    "example": ("otel",),
    "build": (),
}
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)((?: ;[^\\]*)?)", re.MULTILINE)

every_lock = pytest.mark.parametrize("name", EXTRAS)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name: str) -> dict[str, set[str]]:
    """Versions by package (more than one where they depend on the Python)."""
    found: dict[str, set[str]] = {}
    for package, version, _ in _PIN.findall((REQUIREMENTS / f"{name}.txt").read_text()):
        found.setdefault(_normal(package), set()).add(version)
    return found


def _names(requirements: list[str]) -> set[str]:
    matches = (re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements)
    return {_normal(match[0]) for match in matches if match} - {"modelbox"}


@every_lock
def test_has_the_versions_that_were_tested(name: str) -> None:
    tested = pins("dev")
    assert {package: pins(name)[package] - tested.get(package, set()) for package in pins(name)} == {
        package: set() for package in pins(name)
    }


@every_lock
def test_names_no_place_and_hashes_everything(name: str) -> None:
    text = (REQUIREMENTS / f"{name}.txt").read_text()
    assert not re.search(r"://|--index|--find-links|--extra-index|--trusted", text)
    blocks = [block for block in re.split(r"\n(?=\S)", text) if not block.startswith("#")]
    assert blocks
    assert [block for block in blocks if "--hash=sha256:" not in block] == []


@every_lock
def test_holds_all_that_is_asked_for(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted: set[str] = set()
    if name == "build":
        wanted |= _names(project["build-system"]["requires"])
    else:
        wanted |= _names(project["project"]["dependencies"])
    for extra in EXTRAS[name]:
        wanted |= _names(project["project"]["optional-dependencies"][extra])
    if name == "example":
        example = tomllib.loads((ROOT / "examples" / "inference_service" / "pyproject.toml").read_text())
        wanted |= _names(example["project"]["dependencies"])
    assert wanted <= set(pins(name))


def test_only_the_sidecar_runs_models() -> None:
    assert {name for name in EXTRAS if "onnxruntime" in pins(name)} == {"sidecar"}

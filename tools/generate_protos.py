"""Generate `modelbox/_proto/` from the definitions under `protos/`.

The result is committed and never edited. It holds betterproto2 messages with asynchronous grpclib clients and
servers, and `descriptors.binpb`: a serialized `FileDescriptorSet` of all definitions and their imports, from
which the server's reflection service answers.

The output depends on the definitions and on the pinned tools only. The plugin formats its code by running
ruff, which would pick up whatever configuration lies around: so the compiler runs in a directory with an
empty one.

Run by `make proto`; `make proto-check` uses `--check`, which writes nothing and fails with the difference.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.resources
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
OUTPUT = ROOT / "modelbox" / "_proto"
DESCRIPTORS = "descriptors.binpb"
PLUGIN = "protoc-gen-python_betterproto2"
OPTIONS = "client_generation=async,server_generation=async"


class GenerationError(Exception):
    """The code could not be generated; the text says why."""


def generate(protos: Path) -> dict[str, bytes]:
    """Return what belongs into the output directory: contents by relative POSIX path.

    Args:
        protos: The directory that import paths start from; every `.proto` file below it is compiled.

    Raises:
        GenerationError: When there is no definition, a tool is missing, or the compiler refuses.
    """
    sources = sorted(path.relative_to(protos).as_posix() for path in protos.rglob("*.proto"))
    if not sources:
        raise GenerationError(f"no .proto file under {protos}")
    scripts = sysconfig.get_path("scripts")
    search_path = os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])
    plugin = shutil.which(PLUGIN, path=search_path)
    if plugin is None:
        raise GenerationError(f"{PLUGIN} is not installed; `make venv` installs it")
    well_known_types = importlib.resources.files("grpc_tools") / "_proto"

    with tempfile.TemporaryDirectory(prefix="modelbox-protos-") as scratch:
        work, out = Path(scratch, "work"), Path(scratch, "out")
        work.mkdir()
        out.mkdir()
        (work / "ruff.toml").touch()
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={protos.resolve()}",
            f"--proto_path={well_known_types}",
            f"--plugin=protoc-gen-betterproto2={plugin}",
            f"--betterproto2_out={out}",
            f"--betterproto2_opt={OPTIONS}",
            f"--descriptor_set_out={out / DESCRIPTORS}",
            "--include_imports",
            *sources,
        ]
        done = subprocess.run(
            command,
            cwd=work,
            env=os.environ | {"PATH": search_path, "RUFF_NO_CACHE": "true"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise GenerationError(done.stderr.strip() or f"protoc failed with {done.returncode}")
        files = read_tree(out)
    # Packages without a definition of their own (`_proto` itself, `google`) need an __init__.py all the same.
    for name in list(files):
        for parent in Path(name).parents:
            files.setdefault((parent / "__init__.py").as_posix(), b"")
    return files


def read_tree(directory: Path) -> dict[str, bytes]:
    """Return the files below a directory, caches aside: contents by relative POSIX path."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def difference(old: dict[str, bytes], new: dict[str, bytes]) -> str:
    """Return how two trees differ as a unified diff; empty when they are the same."""
    report: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if name == DESCRIPTORS:
            report.append(f"{name}: {'missing' if before is None else 'differs'}\n")
            continue
        lines = difflib.unified_diff(
            (before or b"").decode().splitlines(keepends=True),
            (after or b"").decode().splitlines(keepends=True),
            fromfile=f"committed/{name}" if before is not None else os.devnull,
            tofile=f"generated/{name}" if after is not None else os.devnull,
        )
        text = "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
        report.append(text or f"{name}: {'missing' if before is None else 'left over'} (empty file)\n")
    return "".join(report)


def write_tree(directory: Path, files: dict[str, bytes]) -> None:
    """Make a directory hold exactly these files; what is the same already is not touched."""
    old = read_tree(directory)
    for name in old.keys() - files.keys():
        (directory / name).unlink()
    for name, content in files.items():
        if old.get(name) != content:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    below = sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True)
    for path in below:
        if path.name == "__pycache__":
            shutil.rmtree(path)
        elif not any(path.iterdir()):
            path.rmdir()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Generate modelbox/_proto from protos/.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    parser.add_argument("--protos", type=Path, default=PROTOS, help="directory of the definitions")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="directory of the generated package")
    options = parser.parse_args(arguments)
    try:
        files = generate(options.protos)
    except GenerationError as error:
        print(f"generate_protos: {error}", file=sys.stderr)
        return 1
    if not options.check:
        write_tree(options.output, files)
        return 0
    report = difference(read_tree(options.output), files)
    if report:
        sys.stdout.write(report)
        print(f"generate_protos: {options.output} is out of date; run `make proto`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

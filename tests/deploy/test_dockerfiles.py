"""What every image has to be: small stages, no root, no shell between signals and the program, nothing unpinned."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.deploy.dockerfiles import Stage, stages_of

ROOT = Path(__file__).parents[2]
DOCKERFILES = {
    "server": ROOT / "deploy" / "Dockerfile.server",
    "sidecar": ROOT / "Dockerfile.sidecar",
    "example": ROOT / "deploy" / "Dockerfile.example",
}
BUILD_TOOLS = {"build-essential", "cmake", "g++", "gcc", "git", "make", "python3-dev", "python3-pip", "python3-venv"}

every_image = pytest.mark.parametrize("name", DOCKERFILES)


def stages(name: str) -> list[Stage]:
    return stages_of(DOCKERFILES[name].read_text())


def final(name: str) -> Stage:
    return stages(name)[-1]


def packages(stage: Stage) -> set[str]:
    """What a stage installs with apt."""
    found = re.findall(r"apt-get install -y --no-install-recommends ([^&]*)", " ".join(stage.all("RUN")))
    return {word for words in found for word in words.split()}


def environment(stage: Stage) -> dict[str, str]:
    return dict(word.split("=", 1) for text in stage.all("ENV") for word in shlex.split(text))


@every_image
def test_builds_apart_from_what_runs(name: str) -> None:
    build, last = stages(name)
    assert (build.name, last.name) == ("build", "")
    assert not packages(last) & BUILD_TOOLS
    assert "pip" not in " ".join(last.all("RUN"))
    assert "pip uninstall --yes pip setuptools" in build.last("RUN")
    assert {text.split()[-1] for text in last.all("COPY") if "--from=build" in text} == {"/opt/modelbox"}


@every_image
def test_pins_its_base_by_tag_and_takes_a_digest(name: str) -> None:
    text = DOCKERFILES[name].read_text()
    (base,) = {stage.base for stage in stages(name)}
    assert re.fullmatch(r"[a-z]+:[a-z0-9.-]+", base)
    assert not base.endswith(":latest")
    assert text.count("FROM ${BASE}") == 2


@every_image
def test_installs_only_locked_wheels(name: str) -> None:
    installs = re.findall(r"pip install ([^&]*)", " ".join(stages(name)[0].all("RUN")))
    for arguments in installs:
        words = set(arguments.split())
        assert {"--require-hashes", "--only-binary"} <= words or {"--no-index", "--no-deps"} <= words, arguments
    assert f"-r requirements/{name}.txt" in " ".join(installs)


@every_image
def test_leaves_no_package_lists(name: str) -> None:
    for stage in stages(name):
        for run in stage.all("RUN"):
            if "apt-get" in run:
                assert "--no-install-recommends" in run
                assert "rm -rf /var/lib/apt/lists/*" in run


@every_image
def test_runs_as_nobody_special(name: str) -> None:
    stage = final(name)
    assert stage.last("USER") == "65532:65532"
    # Nothing is made by root after that, and nothing as root at run time.
    order = [instruction.name for instruction in stage.instructions]
    assert not {"RUN", "COPY", "ADD"} & set(order[order.index("USER") :])
    assert "sudo" not in " ".join(stage.all("RUN"))


@every_image
def test_starts_without_a_shell_under_an_init(name: str) -> None:
    entrypoint = json.loads(final(name).last("ENTRYPOINT"))
    program = entrypoint.index("--")
    assert entrypoint[:program] == ["/usr/bin/tini", *(["-e", "143"] if name == "example" else [])]
    assert entrypoint[program + 1 : program + 3] == ["/opt/modelbox/bin/python", "-m"]
    assert "tini" in packages(final(name))
    for text in final(name).all("CMD"):
        assert isinstance(json.loads(text), list)


@every_image
def test_has_a_health_check_without_a_shell(name: str) -> None:
    text = final(name).last("HEALTHCHECK")
    options, command = text.split(" CMD ")
    assert {option.split("=")[0] for option in options.split()} == {
        "--interval",
        "--timeout",
        "--start-period",
        "--retries",
    }
    words = json.loads(command)
    assert words[0] == "/opt/modelbox/bin/python"
    assert "COPY deploy/healthcheck.py /opt/modelbox/healthcheck.py" in DOCKERFILES[name].read_text()
    port = words[-2].rpartition("=")[2]
    assert port in final(name).last("EXPOSE").split()


@every_image
def test_can_run_on_a_read_only_root(name: str) -> None:
    stage = final(name)
    values = environment(stage)
    assert values["PYTHONDONTWRITEBYTECODE"] == "1"
    made = re.findall(r"install -d -o 65532 -g 65532 -m 0700 ([^&]*)", " ".join(stage.all("RUN")))
    places = {word for words in made for word in words.split()}
    for key in ("MODELBOX_CACHE_DIR", "MODELBOX_DATA_DIR"):
        if key in values:
            assert values[key] in places
    volumes = {path for text in stage.all("VOLUME") for path in json.loads(text)}
    assert volumes <= places


@every_image
def test_holds_no_secret(name: str) -> None:
    text = DOCKERFILES[name].read_text()
    assert not re.search(r"(?i)(password|token|secret|index[-_]url|https?://(?!server))", text)


def test_the_context_holds_only_what_is_copied() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    kept = [line[1:].rstrip("/") for line in ignored if line.startswith("!")]
    copied = {
        word
        for name in DOCKERFILES
        for stage in stages(name)
        for text in stage.all("COPY")
        if "--from" not in text
        for word in text.split()[:-1]
    }
    for path in copied:
        assert (ROOT / path).exists(), f"{path} is copied, and does not exist"
        assert any(Path(path).match(pattern) or path.startswith(f"{pattern}/") for pattern in kept), path

"""Flags of settings, in every program that has them: a switch means true where it has no value."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import pytest

import modelbox.runtime.__main__ as server
import modelbox.sidecar.__main__ as sidecar
from modelbox._serving.flags import complete_switches
from modelbox.cli import main as modelbox
from modelbox.runtime.config import ServerConfig
from modelbox.sidecar.config import SidecarConfig

Start = Callable[[Sequence[str]], int]

SERVERS: dict[str, Start] = {
    "python -m modelbox.runtime": server.main,
    "modelbox server start": lambda argv: modelbox(["server", "start", *argv]),
}
SIDECARS: dict[str, Start] = {
    "python -m modelbox.sidecar": sidecar.main,
    "modelbox sidecar": lambda argv: modelbox(["sidecar", *argv]),
    "modelbox sidecar start": lambda argv: modelbox(["sidecar", "start", *argv]),
}
PROGRAMS = SERVERS | SIDECARS


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ServerConfig | SidecarConfig]:
    """The settings that programs would have started with."""
    found: list[ServerConfig | SidecarConfig] = []
    for name in os.environ:
        if name.startswith("MODELBOX_"):
            monkeypatch.delenv(name)
    for program in (server, sidecar):
        monkeypatch.setattr(program, "_run", found.append)
        # For the whole process.
        monkeypatch.setattr(program, "set_up_logging", lambda *_, **__: None)
    return found


@pytest.mark.parametrize("program", SERVERS)
@pytest.mark.parametrize(
    "flags",
    [
        ("--insecure-open", "--host", "0.0.0.0", "--insecure-plaintext"),
        ("--host", "0.0.0.0", "--insecure-plaintext", "--insecure-open"),
        ("--host", "0.0.0.0", "--insecure-open", "true", "--insecure-plaintext", "on"),
        ("--host=0.0.0.0", "--insecure-open=true", "--insecure-plaintext=YES"),
    ],
)
def test_a_switch_of_the_server_needs_no_value(
    started: list[ServerConfig], program: str, flags: tuple[str, ...]
) -> None:
    assert SERVERS[program](flags) == 0
    (config,) = started
    assert (config.host, config.insecure_open, config.insecure_plaintext) == ("0.0.0.0", True, True)
    assert config.s3_presign is False


@pytest.mark.parametrize("program", SIDECARS)
@pytest.mark.parametrize(
    "flags",
    [
        ("--insecure-plaintext", "acme/ranker@prod", "--host", "0.0.0.0", "--grpc", "false"),
        ("acme/ranker@prod", "--host", "0.0.0.0", "--grpc=no", "--insecure-plaintext"),
        ("--host", "0.0.0.0", "--insecure-plaintext", "true", "acme/ranker@prod", "--grpc", "0"),
        ("--host", "0.0.0.0", "--grpc", "off", "--insecure-plaintext", "--", "acme/ranker@prod"),
    ],
)
def test_a_switch_of_the_sidecar_takes_no_model_for_its_value(
    started: list[SidecarConfig], program: str, flags: tuple[str, ...]
) -> None:
    assert SIDECARS[program](flags) == 0
    (config,) = started
    assert (config.host, config.insecure_plaintext, config.grpc, config.http) == ("0.0.0.0", True, False, True)
    assert [str(ref) for ref in config.models] == ["acme/ranker@prod"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_value_that_is_neither_is_refused(
    started: list[ServerConfig], capsys: pytest.CaptureFixture[str], program: str
) -> None:
    assert PROGRAMS[program](["--insecure-open=maybe"]) == 2
    assert not started
    assert "--insecure-open = 'maybe': expected true or false" in capsys.readouterr().err


@pytest.mark.parametrize("start", [server.main, sidecar.main])
def test_the_help_says_so(capsys: pytest.CaptureFixture[str], start: Start) -> None:
    with pytest.raises(SystemExit):
        start(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "[--insecure-open [true|false]]" in told
    assert "[--host VALUE]" in told
    assert "A flag of true|false means true where it has no value." in told


@pytest.mark.parametrize(
    ("argv", "complete"),
    [
        (["--on-top"], ["--on-top=true"]),
        (["--on-top", "x"], ["--on-top=true", "x"]),
        (["--on-top", "No", "x"], ["--on-top", "No", "x"]),
        (["--on-top", "--on-top"], ["--on-top=true", "--on-top=true"]),
        (["--on-top=x", "y"], ["--on-top=x", "y"]),
        (["--other", "--on-top"], ["--other", "--on-top=true"]),
        (["--", "--on-top"], ["--", "--on-top"]),
        ([], []),
    ],
)
def test_switches_get_their_values(argv: list[str], complete: list[str]) -> None:
    assert complete_switches(argv, {"on_top"}) == complete

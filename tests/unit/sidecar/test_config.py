"""The sidecar's settings."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from modelbox.errors import ConfigError
from modelbox.refs import ModelRef
from modelbox.sidecar.config import (
    SidecarConfig,
    load_sidecar_config,
    setting_help,
    settings_table,
    sidecar_config_toml,
)

ROOT = Path(__file__).parents[3]


def load(
    *, flags: dict[str, object] | None = None, env: dict[str, str] | None = None, path: Path | None = None
) -> SidecarConfig:
    return load_sidecar_config(flags=flags or {}, env=env or {}, config_path=path)


def test_the_ports_are_those_of_the_protocol() -> None:
    config = load()
    assert (config.host, config.http_port, config.grpc_port, config.metrics_port) == ("127.0.0.1", 8000, 8001, 8002)
    assert config.models == ()
    assert config.socket is None
    assert config.socket_mode == 0o600


def test_flags_win_over_the_environment_which_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text(
        'models = ["a/b@prod"]\nmax_batch = 1\nmax_queue = 2\nsocket = "/run/x.sock"\nproviders = ["CUDA"]\n'
    )
    config = load(
        flags={"max_batch": "3", "models": None},
        env={"MODELBOX_SIDECAR_MAX_QUEUE": "4", "MODELBOX_SIDECAR_SOCKET": "unix:///run/y.sock"},
        path=file,
    )
    assert (config.max_batch, config.max_queue, config.socket) == (3, 4, Path("/run/y.sock"))
    assert config.models == (ModelRef.parse("a/b@prod"),)
    assert config.providers == ("CUDAExecutionProvider",)
    assert load(env={"MODELBOX_SIDECAR_CONFIG": str(file), "MODELBOX_SIDECAR_SOCKET": ""}).socket is None


def test_models_come_as_words_or_lists_and_once_each() -> None:
    config = load(env={"MODELBOX_SIDECAR_MODELS": "a/b@prod, a/c a/b@prod"})
    assert [str(ref) for ref in config.models] == ["a/b@prod", "a/c@latest"]
    assert load(flags={"models": ["a/b@7"]}, env={"MODELBOX_SIDECAR_MODELS": "x/y"}).models == (
        ModelRef.parse("a/b@7"),
    )


def test_what_applications_are_told_is_none_of_its_business() -> None:
    assert load(env={"MODELBOX_SIDECAR": "unix:///run/x.sock", "MODELBOX_URL": "http://x:1"}) == SidecarConfig()


def test_permissions_are_octal() -> None:
    assert load(flags={"socket_mode": "660"}).socket_mode == 0o660
    with pytest.raises(ConfigError, match="octal"):
        load(flags={"socket_mode": "999"})


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(
            flags={
                "models": ["nonsense"],
                "http_port": "8002",
                "max_batch": "0",
                "mode": "fast",
                "socket": "/" + "x" * 200,
            },
            env={"MODELBOX_SIDECAR_HOST": "0.0.0.0", "MODELBOX_SIDECAR_BATCHING": "perhaps"},
        )
    text = str(caught.value)
    for part in ("nonsense", "max_batch".replace("_", "-"), "auto, inline, pool", "auto, on, off", "107 bytes"):
        assert part in text
    assert "insecure_plaintext" in text
    assert "http_port and metrics_port are all 8002" in text


def test_the_file_that_is_written_sets_nothing_and_every_line_of_it_can_be_used(tmp_path: Path) -> None:
    assert tomllib.loads(sidecar_config_toml()) == {}
    names = [name for name, _ in setting_help()]
    lines = [line.removeprefix("# ") for line in sidecar_config_toml().splitlines()]
    file = tmp_path / "sidecar.toml"
    file.write_text("\n".join(line for line in lines if line.partition(" = ")[0] in names))
    assert set(tomllib.loads(file.read_text())) == set(names)
    assert load(path=file) == SidecarConfig()


def test_every_setting_is_explained_and_documented() -> None:
    assert [name for name, _ in setting_help()] == [f.name for f in dataclasses.fields(SidecarConfig)]
    assert all(len(text) > 15 for _, text in setting_help())
    text = (ROOT / "docs" / "sidecar.md").read_text()
    assert settings_table() in text, "write the output of modelbox.sidecar.config.settings_table() there"

"""Where settings come from, which of them wins, and what a wrong one gets."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from modelbox.config import (
    ClientConfig,
    client_config_path,
    client_config_toml,
    load_client_config,
    process_instance_id,
)
from modelbox.errors import ConfigError


def env_of(home: Path, **values: str) -> Mapping[str, str]:
    return {"HOME": str(home), "USER": "ada", **values}


def problems_of(error: ConfigError) -> list[str]:
    problems = error.fields["problems"]
    assert isinstance(problems, list)
    return problems


def test_the_defaults_need_nothing(tmp_path: Path) -> None:
    config = load_client_config(env=env_of(tmp_path))
    assert config.url == "http://127.0.0.1:8080"
    assert config.cache_dir == tmp_path / ".cache" / "modelbox"
    assert config.actor.startswith("ada@")


def test_the_cache_follows_xdg(tmp_path: Path) -> None:
    config = load_client_config(env=env_of(tmp_path, XDG_CACHE_HOME=str(tmp_path / "xdg")))
    assert config.cache_dir == tmp_path / "xdg" / "modelbox"


def test_a_relative_xdg_directory_is_ignored(tmp_path: Path) -> None:
    # As the XDG base directory specification asks for.
    config = load_client_config(env=env_of(tmp_path, XDG_CACHE_HOME="somewhere"))
    assert config.cache_dir == tmp_path / ".cache" / "modelbox"


def test_an_argument_beats_the_environment_beats_the_file(tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text('url = "http://file:1"\nactor = "file"\nrequest_timeout_s = 3\n')
    env = env_of(tmp_path, MODELBOX_URL="http://env:2", MODELBOX_ACTOR="env")
    config = load_client_config(config_path=path, env=env, url="http://argument:3/")
    assert (config.url, config.actor, config.request_timeout_s) == ("http://argument:3", "env", 3.0)


def test_the_users_file_is_read_from_its_usual_place(tmp_path: Path) -> None:
    path = tmp_path / ".config" / "modelbox" / "client.toml"
    path.parent.mkdir(parents=True)
    path.write_text('actor = "grace"')
    assert client_config_path(env_of(tmp_path)) == path
    assert load_client_config(env=env_of(tmp_path)).actor == "grace"


@pytest.mark.parametrize(
    ("text", "size"), [("1048576", 1 << 20), ("20 GiB", 20 << 30), ("3mib", 3 << 20), ("2TiB", 2 << 40)]
)
def test_sizes_may_have_units(tmp_path: Path, text: str, size: int) -> None:
    env = env_of(tmp_path, MODELBOX_CACHE_MAX_BYTES=text)
    assert load_client_config(env=env).cache_max_bytes == size


def test_trials(tmp_path: Path) -> None:
    assert load_client_config(env=env_of(tmp_path)).probe == "off"
    path = tmp_path / "client.toml"
    path.write_text("probe = true\nprobe_max_bytes = 0\nprobe_timeout_s = 5\n")
    config = load_client_config(config_path=path, env=env_of(tmp_path, MODELBOX_PROBE_MAX_BYTES="2 GiB"))
    assert (config.probe, config.probe_max_bytes, config.probe_timeout_s) == ("on", 2 << 30, 5.0)
    assert load_client_config(env=env_of(tmp_path), probe=" Unsigned ").probe == "unsigned"


def test_the_interval_between_swaps(tmp_path: Path) -> None:
    assert load_client_config(env=env_of(tmp_path)).swap_interval_s == 0
    assert load_client_config(env=env_of(tmp_path, MODELBOX_SWAP_INTERVAL_S="30")).swap_interval_s == 30.0


def test_what_becomes_of_slower_versions(tmp_path: Path) -> None:
    config = load_client_config(env=env_of(tmp_path))
    assert (config.slower, config.slower_factor) == ("warn", 10.0)
    config = load_client_config(env=env_of(tmp_path, MODELBOX_SLOWER="refuse", MODELBOX_SLOWER_FACTOR="1.5"))
    assert (config.slower, config.slower_factor) == ("refuse", 1.5)
    assert load_client_config(env=env_of(tmp_path), slower=False).slower == "off"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("swap_interval_s", -1),
        ("swap_interval_s", "0.001"),
        ("slower", "never"),
        ("slower", True),
        ("slower_factor", 1),
        ("slower_factor", "nan"),
        ("slower_factor", "fast"),
        ("slower_factor", True),
        ("probe", "sometimes"),
        ("probe", 1),
        ("probe_max_bytes", "1 kib"),
        ("probe_max_bytes", False),
        ("url", "models.example:8080"),
        ("url", "ftp://models.example"),
        ("url", "http://"),
        ("url", "http://host:99999"),
        ("url", "http://host:0"),
        ("url", "http://user:secret@host"),
        ("url", "http://host/?q=1"),
        ("url", "https://host:0"),
        ("tls_ca", "a\0b"),
        ("token", "two words"),
        ("token", "mbx_ü"),
        ("insecure_token", "perhaps"),
        ("url", "http://ho\nst"),
        ("cache_dir", "a\0b"),
        ("cache_max_bytes", "much"),
        ("cache_max_bytes", "-1"),
        ("cache_max_bytes", True),
        ("cache_max_bytes", 10),
        ("connect_timeout_s", "nan"),
        ("connect_timeout_s", 0),
        ("request_timeout_s", "soon"),
        ("stall_timeout_s", 1e9),
        ("actor", "a" * 129),
        ("actor", "Zoë"),
        ("actor", "a\x1b[31m"),
    ],
)
def test_a_wrong_value_is_refused_by_name(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load_client_config(env=env_of(tmp_path), **{name: value})
    (problem,) = problems_of(caught.value)
    assert problem.startswith(f"{name} is ")
    assert "expected" in problem or "must" in problem or "does not belong" in problem or "a port is" in problem


SECRET = "mbx_q7_AbCdEfGhIjKlMnOpQrStUvWxYz012345"


def test_a_token_is_not_shown(tmp_path: Path) -> None:
    config = load_client_config(env=env_of(tmp_path, MODELBOX_TOKEN=SECRET))
    assert config.token == SECRET
    assert config.has_token
    assert SECRET not in repr(config)
    with pytest.raises(ConfigError) as caught:
        load_client_config(env=env_of(tmp_path, MODELBOX_TOKEN=f"{SECRET} {SECRET}"))
    assert SECRET not in str(caught.value) + repr(caught.value.fields)


@pytest.mark.parametrize("url", ["http://models.example:8080", "http://10.1.2.3:8080", "http://[fd00::1]"])
def test_a_token_needs_tls_to_leave_the_machine(tmp_path: Path, url: str) -> None:
    for settings in ({"token": SECRET}, {"token_file": tmp_path / "token"}):
        with pytest.raises(ConfigError, match="use an https:// address; or set insecure_token = true"):
            load_client_config(env=env_of(tmp_path), url=url, **settings)
        assert load_client_config(env=env_of(tmp_path), url=url.replace("http:", "https:"), **settings).has_token
        assert load_client_config(env=env_of(tmp_path), url=url, insecure_token=True, **settings).has_token


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "http://localhost:8080", "http://[::1]:8080"])
def test_a_token_may_go_to_this_machine(tmp_path: Path, url: str) -> None:
    assert load_client_config(env=env_of(tmp_path), url=url, token=SECRET).has_token


def test_of_two_tokens_the_one_said_more_strongly_counts(tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text(f'token = "{SECRET}"')
    config = load_client_config(config_path=path, env=env_of(tmp_path, MODELBOX_TOKEN_FILE="/run/token"))
    assert (config.token, config.token_file) == ("", Path("/run/token"))
    path.write_text('token_file = "/run/token"')
    config = load_client_config(config_path=path, env=env_of(tmp_path, MODELBOX_TOKEN=SECRET))
    assert (config.token, config.token_file) == (SECRET, None)
    with pytest.raises(ConfigError, match="token and token_file are both set"):
        load_client_config(env=env_of(tmp_path), token=SECRET, token_file="/run/token")


def test_a_key_needs_its_certificate(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tls_client_key is set, and tls_client_cert is not"):
        load_client_config(env=env_of(tmp_path), tls_client_key="/run/key")


def test_addresses_with_tls(tmp_path: Path) -> None:
    assert load_client_config(env=env_of(tmp_path), url="HTTPS://models.example/").url == "https://models.example"


def test_all_problems_are_reported_at_once_with_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text('url = 5\nspeed = "fast"\n')
    env = env_of(tmp_path, MODELBOX_REQUEST_TIMEOUT_S="-1")
    with pytest.raises(ConfigError) as caught:
        load_client_config(config_path=path, env=env, cache_max_bytes="x")
    text = "\n".join(problems_of(caught.value))
    assert f"{path}: url is 5" in text
    assert f"{path}: 'speed' is not a setting" in text
    assert "MODELBOX_REQUEST_TIMEOUT_S is '-1'" in text
    assert "cache_max_bytes is 'x'" in text
    assert len(problems_of(caught.value)) == 4


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    missing = tmp_path / "absent.toml"
    with pytest.raises(ConfigError, match="does not exist"):
        load_client_config(config_path=missing, env=env_of(tmp_path))
    with pytest.raises(ConfigError, match="does not exist"):
        load_client_config(env=env_of(tmp_path, MODELBOX_CLIENT_CONFIG=str(missing)))


def test_a_broken_file_says_where(tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text("url = \n")
    with pytest.raises(ConfigError, match=r"client\.toml is not a TOML file"):
        load_client_config(config_path=path, env=env_of(tmp_path))


def test_an_unknown_argument_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError, match="colour"):
        load_client_config(colour="red")


def test_the_written_file_reads_back_as_the_same_settings(tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text(client_config_toml({"url": "http://h:1", "actor": 'say "hi" \\ there'}))
    config = load_client_config(config_path=path, env=env_of(tmp_path))
    assert (config.url, config.actor) == ("http://h:1", 'say "hi" \\ there')


def test_the_written_file_shows_every_setting_as_valid_toml(tmp_path: Path) -> None:
    text = client_config_toml()
    assert tomllib.loads(text) == {}
    path = tmp_path / "client.toml"
    path.write_text("\n".join(line.removeprefix("#") for line in text.splitlines() if "# " not in line))
    names = set(tomllib.loads(path.read_text()))
    assert names == {field.name for field in fields(ClientConfig)}
    load_client_config(config_path=path, env=env_of(tmp_path))


def test_a_process_keeps_its_instance_id_and_a_fork_gets_another(tmp_path: Path) -> None:
    mine = process_instance_id()
    assert process_instance_id() == mine
    assert f"-{os.getpid()}-" in mine
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(writer, process_instance_id().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        theirs = stream.read()
    assert theirs != mine
    assert f"-{pid}-" in theirs

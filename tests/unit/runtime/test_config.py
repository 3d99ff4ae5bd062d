"""Settings: who wins, what is refused, and that all of it is said at once."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from modelbox.errors import ConfigError
from modelbox.runtime.config import (
    ServerConfig,
    load_server_config,
    server_config_toml,
    setting_help,
    settings_table,
)

ROOT = Path(__file__).parents[3]


def load(
    *, flags: dict[str, object] | None = None, env: dict[str, str] | None = None, path: Path | None = None
) -> ServerConfig:
    return load_server_config(flags=flags or {}, env=env or {}, config_path=path)


def problems_of(**sources: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(**sources)  # type: ignore[arg-type]  # as the test gives them
    problems = caught.value.fields["problems"]
    assert isinstance(problems, list)
    for problem in problems:
        assert problem in str(caught.value)
    return problems


def test_without_any_setting_it_listens_on_loopback_only() -> None:
    config = load()
    assert (config.host, config.grpc_port, config.http_port, config.metrics_port) == ("127.0.0.1", 8085, 8080, 2112)
    assert config.data_dir == Path("modelbox-data")
    assert config.loopback


def test_a_flag_wins_over_the_environment_which_wins_over_the_file_which_wins_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("grpc_port = 1\nhttp_port = 2\nmetrics_port = 3\n")
    config = load(
        flags={"grpc_port": "21", "http_port": None, "metrics_port": None},
        env={"MODELBOX_GRPC_PORT": "11", "MODELBOX_HTTP_PORT": "12"},
        path=file,
    )
    assert (config.grpc_port, config.http_port, config.metrics_port) == (21, 12, 3)
    assert config.max_streams == ServerConfig().max_streams


def test_the_environment_can_name_the_file_and_the_home(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("drain_timeout_s = 7\n")
    config = load(env={"MODELBOX_SERVER_CONFIG": str(file), "MODELBOX_HOME": str(tmp_path)})
    assert config.drain_timeout_s == 7.0
    assert config.data_dir == tmp_path
    assert load(env={"MODELBOX_HOME": str(tmp_path), "MODELBOX_DATA_DIR": "/x"}).data_dir == Path("/x")


def test_variables_of_the_client_are_none_of_its_business() -> None:
    assert load(env={"MODELBOX_URL": "http://elsewhere:8080", "MODELBOX_CACHE_DIR": "/c"}) == ServerConfig()


def test_all_problems_are_reported_at_once_with_key_value_and_what_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('grpc_prot = 8085\nlog_level = "loud"\ninsecure_plaintext = "perhaps"\nmax_streams = true\n')
    problems = problems_of(
        flags={"http_port": "70000", "keepalive_s": "nan"},
        env={"MODELBOX_METRICS_PORT": "many", "MODELBOX_ADVERTISE_GRPC": "nowhere"},
        path=file,
    )
    assert problems == [
        f"grpc_prot in {file}: there is no such setting (did you mean grpc_port?)",
        f"log_level in {file} = 'loud': expected debug, info, warning, error",
        f"insecure_plaintext in {file} = 'perhaps': expected true or false",
        f"max_streams in {file} = True: expected 1 to 10000 calls",
        "MODELBOX_METRICS_PORT = 'many': expected 0 to 65535",
        "MODELBOX_ADVERTISE_GRPC = 'nowhere': expected host:port, or empty",
        "--http-port = '70000': expected 0 to 65535",
        "--keepalive-s = 'nan': expected 1 to 600 seconds",
    ]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "models.example"])
def test_leaving_loopback_must_be_asked_for_in_so_many_words(host: str) -> None:
    no_access, no_tls = problems_of(flags={"host": host})
    assert host in no_access
    assert "access = on" in no_access
    assert "insecure_open = true" in no_access
    assert host in no_tls
    assert "insecure_plaintext = true" in no_tls
    assert problems_of(flags={"host": host, "insecure_open": "true"}) == [no_tls]
    assert problems_of(flags={"host": host, "access": "on"}) == [no_tls]
    assert problems_of(flags={"host": host, "access": "off", "tls_cert": "server.pem"}) == [no_access]
    assert problems_of(flags={"host": host, "insecure_plaintext": "true"}) == [no_access]
    assert load(flags={"host": host, "access": "on", "tls_cert": "server.pem"}).access_on
    assert not load(flags={"host": host, "insecure_open": "true", "insecure_plaintext": "true"}).access_on


def test_access_control_is_off_on_loopback_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert not load().access_on
    assert not load(flags={"access": "off"}).access_on
    assert load(env={"MODELBOX_ACCESS": "on"}).access_on
    assert problems_of(flags={"access": "maybe"}) == ["--access = 'maybe': expected on, off, or empty"]
    assert load(flags={"data_dir": str(tmp_path)}).admin_token_path == tmp_path / "admin-token"
    assert load(flags={"admin_token_file": "/run/secrets/admin"}).admin_token_path == Path("/run/secrets/admin")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_asking(host: str) -> None:
    assert load(flags={"host": host}).loopback


def test_ports_must_differ_unless_they_are_free_ones() -> None:
    assert problems_of(flags={"http_port": "8085"}) == [
        "grpc_port and http_port are all 8085: expected different ports"
    ]
    free = load(flags={"grpc_port": "0", "http_port": "0", "metrics_port": "0"})
    assert free.grpc_port == free.http_port == 0


@pytest.mark.parametrize("text", ["grpc_port = ", "\x00", "[", 'a = "\\q"'])
def test_a_file_that_is_not_toml_is_a_problem_like_others(tmp_path: Path, text: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    first, second = problems_of(path=file, flags={"grpc_port": "x"})
    assert "is not valid TOML" in first
    assert second.startswith("--grpc-port")


def test_a_file_that_is_missing_is_a_problem_like_others(tmp_path: Path) -> None:
    [problem] = problems_of(path=tmp_path / "none.toml")
    assert problem == f"the file {tmp_path / 'none.toml'} cannot be read: No such file or directory"


def test_the_generated_file_holds_every_setting_with_its_default(tmp_path: Path) -> None:
    text = server_config_toml()
    assert tomllib.loads(text) == {}
    lines = [line.removeprefix("# ") for line in text.splitlines()]
    names = [name for name, _ in setting_help()]
    file = tmp_path / "server.toml"
    file.write_text("\n".join(line for line in lines if line.partition(" = ")[0] in names))
    assert set(tomllib.loads(file.read_text())) == set(names)
    assert load(path=file) == ServerConfig()


def test_every_setting_is_explained_and_documented() -> None:
    assert [name for name, _ in setting_help()] == [f.name for f in dataclasses.fields(ServerConfig)]
    assert all(len(text) > 15 for _, text in setting_help())
    text = (ROOT / "docs" / "server-settings.md").read_text()
    assert settings_table() in text, "write the output of modelbox.runtime.config.settings_table() there"

"""The sidecar's settings."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from modelbox.errors import ConfigError
from modelbox.loader.runner import Mode
from modelbox.refs import ModelRef
from modelbox.sidecar.config import (
    SidecarConfig,
    load_sidecar_config,
    setting_help,
    settings_table,
    sidecar_config_toml,
)
from modelbox.sidecar.model_settings import ModelSettings, model_settings_table, providers_of, serving_of

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
    settings = [f.name for f in dataclasses.fields(SidecarConfig) if f.name != "model"]
    assert [name for name, _ in setting_help()] == settings
    assert all(len(text) > 15 for _, text in setting_help())
    text = (ROOT / "docs" / "sidecar.md").read_text()
    assert settings_table() in text, "write the output of modelbox.sidecar.config.settings_table() there"
    assert model_settings_table() in text, "and that of modelbox.sidecar.model_settings.model_settings_table()"


# -- one model


PER_MODEL = """
models = ["acme/ranker@prod", "acme/ranker@staging", "acme/tagger@prod"]
max_batch = 32
providers = ["CPU"]
prediction_cache_mb = 8
default_timeout_s = 5

[model."acme/ranker"]
max_batch = 8
max_delay_ms = 2
max_queue = 5
batching = true
mode = "pool"
threads = 3
golden = false
prediction_cache = false

[model."acme/ranker@staging"]
max_batch = 1
default_timeout_s = 0
priority = 20
intra_op_threads = 2
providers = ["CUDA", "CPU"]
warm_up_timeout_s = 7
prediction_cache = true
"""


def test_a_table_for_one_reference_wins_over_its_models_and_that_over_all(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text(PER_MODEL)
    config = load(path=file, env={"MODELBOX_SIDECAR_MAX_DELAY_MS": "1"})
    prod, staging, tagger = (serving_of(config, ref) for ref in config.models)
    assert (prod.options.runner.max_batch, staging.options.runner.max_batch, tagger.options.runner.max_batch) == (
        8,
        1,
        32,
    )
    assert (prod.options.runner.max_delay_s, tagger.options.runner.max_delay_s) == (0.002, 0.001)
    assert (prod.max_queue, staging.max_queue, tagger.max_queue) == (5, 5, 1000)
    assert (prod.options.batching, tagger.options.batching) == (True, None)
    assert (staging.options.runner.mode, tagger.options.runner.mode) == (Mode.POOL, Mode.AUTO)
    assert (staging.options.runner.threads, tagger.options.runner.threads) == (3, 0)
    assert (prod.default_timeout_s, staging.default_timeout_s) == (5.0, None)
    assert (prod.priority, staging.priority) == (0, 20)
    assert (prod.options.session.intra_op_threads, staging.options.session.intra_op_threads) == (1, 2)
    assert staging.options.session.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert (prod.options.warm_up_timeout_s, staging.options.warm_up_timeout_s) == (60.0, 7.0)
    assert (prod.options.golden, tagger.options.golden) == (False, True)
    assert (prod.caches, staging.caches, tagger.caches) == (False, True, True)
    assert providers_of(config) == ("CPUExecutionProvider", "CUDAExecutionProvider")
    # What comes by a load of a client.
    assert serving_of(config, ModelRef.parse("acme/ranker@9")).options.runner.max_batch == 8


def test_every_setting_of_one_model_does_something(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text('prediction_cache_mb = 1\nmodels = ["a/b"]\n')
    plain = serving_of(load(path=file), ModelRef.parse("a/b"))
    other: dict[str, object] = {
        "max_queue": 1,
        "max_batch": 2,
        "max_delay_ms": 3,
        "batching": "off",
        "default_timeout_s": 4,
        "priority": 5,
        "prediction_cache": False,
        "mode": "inline",
        "threads": 6,
        "intra_op_threads": 7,
        "providers": ["x"],
        "warm_up_timeout_s": 8,
        "golden": False,
    }
    assert list(other) == [f.name for f in dataclasses.fields(ModelSettings)]
    for key, value in other.items():
        text = str(value).lower() if isinstance(value, bool) else repr(value)
        file.write_text(f'prediction_cache_mb = 1\nmodels = ["a/b"]\n[model."a/b"]\n{key} = {text}\n')
        assert serving_of(load(path=file), ModelRef.parse("a/b")) != plain, key


def test_problems_of_all_tables_are_reported_with_the_others(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text(
        """
        max_batch = 0
        repository_control = false
        models = ["a/b@prod"]
        [model."a/b"]
        max_batch = 0
        mode = "fast"
        max_batsch = 3
        prediction_cache = true
        [model."a/b@prod"]
        providers = []
        priority = 0
        [model."x/y"]
        threads = 2
        [model."no reference"]
        threads = 2
        [model.a]
        b = 1
        [model]
        "c/d@prod" = 5
        """.replace("[model]", "").replace('"c/d@prod" = 5', '[model."c/d@prod".deeper]')
    )
    with pytest.raises(ConfigError) as caught:
        load(path=file)
    text = str(caught.value)
    for part in (
        "max_batch in",
        'max_batch in [model."a/b"] = 0: expected 1 to 65536 rows',
        'mode in [model."a/b"]',
        "did you mean max_batch?",
        'prediction_cache in [model."a/b"] = true: expected prediction_cache_mb above 0',
        'providers in [model."a/b@prod"]',
        'priority in [model."a/b@prod"] = 0',
        '[model."x/y"]: no such model is served',
        '[model."no reference"]',
        '[model."a"]',
        'deeper in [model."c/d@prod"]: there is no such setting',
    ):
        assert part in text, part


def test_a_model_that_is_no_table(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text('model = "a/b"\n')
    with pytest.raises(ConfigError, match="expected tables such as"):
        load(path=file)
    file.write_text('[model]\n"a/b" = 5\n')
    with pytest.raises(ConfigError, match="expected a table"):
        load(path=file)
    file.write_text('[model."a/b"]\n[model."a/b@latest"]\n[model."a/b@sha256:%s"]\n' % ("0" * 64))
    assert len(load(path=file).model) == 3


TLS = {"tls_cert": "/c", "tls_client_ca": "/a", "tls_client_auth": "required"}


@pytest.mark.parametrize(
    "flags",
    [
        {"host": "127.0.0.1"},
        {"host": "127.0.0.1", "tls_cert": "/c"},
        {"host": "0.0.0.0", **TLS},
        {"host": "0.0.0.0", "tls_cert": "/c", "insecure_open": "true"},
        {"host": "0.0.0.0", **TLS, "tls_client_auth": "optional", "insecure_open": "true"},
        {"host": "0.0.0.0", "insecure_plaintext": "true"},
    ],
)
def test_who_may_be_reached_by_others(flags: dict[str, object]) -> None:
    assert load(flags=flags).host == flags["host"]


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        ({}, "there is no TLS: expected tls_cert"),
        ({"insecure_open": "true"}, "there is no TLS: expected tls_cert"),
        ({"tls_cert": "/c"}, "nobody is asked who it is: expected tls_client_auth = required"),
        ({**TLS, "tls_client_auth": "optional"}, "nobody is asked who it is: expected tls_client_auth = required"),
    ],
)
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "gpu-7.example"])
def test_who_may_not(host: str, flags: dict[str, object], missing: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(flags={"host": host, **flags})
    problems = caught.value.fields["problems"]
    assert isinstance(problems, list)
    (problem,) = problems
    assert problem.startswith(f"host = {host!r} can be reached from other machines")
    assert missing in problem


def test_the_server_may_have_tls() -> None:
    assert load(flags={"server": "https://models.example"}).server == "https://models.example"
    with pytest.raises(ConfigError, match=r"expected http://host:port or https://host:port, or empty"):
        load(flags={"server": "ftp://models.example"})

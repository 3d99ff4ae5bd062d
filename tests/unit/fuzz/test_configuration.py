"""Files, variables and arguments of configuration: all that is wrong is said at once, as a `ConfigError`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.config import ClientConfig, client_config_toml, load_client_config
from modelbox.errors import ConfigError
from modelbox.runtime.config import ServerConfig, load_server_config, server_config_toml
from modelbox.sidecar.config import SidecarConfig, load_sidecar_config, sidecar_config_toml
from tests.fuzzing import damaged, fuzzed, like, odd_values

PROGRAMS = ["client", "server", "sidecar"]
TABLES = '[model."acme/ranker@prod"]\nmax_queue = 5\nproviders = ["CPU"]\n[model."acme/ranker"]\nthreads = 2\n'


SAMPLES = [
    client_config_toml({"url": "https://models:8080", "token": "mbx_x"}).replace("\n#", "\n").encode(),
    server_config_toml().replace("\n# ", "\n").encode(),
    sidecar_config_toml().replace("\n# ", "\n").encode(),
    b'url = "http://h:1"\ncache_size = "20 GiB"\nsignatures = ["langtech/*=require", "*=warn"]\n',
    b'host = "0.0.0.0"\ndatabase_url = "postgresql://u:p@h/d"\nblobs_url = "s3://b/p"\ns3_endpoint = "https://h"\n',
    b'models = ["acme/ranker@prod"]\nsocket_mode = "660"\nsocket_users = ["root", 5]\n' + TABLES.encode(),
    b"x = " + b"[" * 5000,
    b"a." * 50 + b"b = 1",
]
"""Every setting of every program (with the words that explain it, which are no TOML), and small files that work."""

TEXTS = like(
    "http://127.0.0.1:8080", "https://[::1]:1/", "http://[", "postgresql://u:p@h:1/d?host=/x", "s3://bucket/prefix",
    "file:///tmp/x", "unix:///run/x.sock", "20 GiB", "0.5", "true", "acme/ranker@prod, a/b", "660", "root,nobody",
    "~/x", "~nobody-there/x", "host:1", "prod*,eu-?", "require, a/*=warn", "/etc/a.pub,a/*=~/b.pub", "info", "on", "",
)  # fmt: skip


def load(program: str, file: Path | None, env: dict[str, str], given: dict[str, Any]) -> None:
    """Reads the settings of a program: they work, or every line of the refusal can be printed."""
    try:
        if program == "client":
            load_client_config(config_path=file, env=env, **given)
        elif program == "server":
            load_server_config(flags=given, env=env, config_path=file)
        else:
            load_sidecar_config(flags=given, env=env, config_path=file)
    except ConfigError as exc:
        refused = exc
    else:
        return
    problems = refused.fields["problems"]
    assert isinstance(problems, list)
    assert problems
    assert str(refused)


@pytest.mark.parametrize("program", PROGRAMS)
@fuzzed
@given(data=damaged(SAMPLES))
def test_files_of_configuration(program: str, data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "given.toml"
    file.write_bytes(data)
    load(program, file, {"HOME": str(tmp_path)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["given.toml"]


@pytest.mark.parametrize("program", PROGRAMS)
@fuzzed
@given(data=st.data())
def test_variables_and_arguments(program: str, data: st.DataObject, tmp_path: Path) -> None:
    cls = {"client": ClientConfig, "server": ServerConfig, "sidecar": SidecarConfig}[program]
    name = st.sampled_from([field.name for field in fields(cls) if field.metadata])
    prefix = "MODELBOX_SIDECAR_" if program == "sidecar" else "MODELBOX_"
    env = data.draw(st.dictionaries(name.map(lambda one: prefix + one.upper()), TEXTS, max_size=3))
    given = data.draw(st.dictionaries(name, st.one_of(TEXTS, odd_values), max_size=3))
    load(program, None, {"HOME": str(tmp_path), **env}, given)

"""The compose file: valid by the Compose Specification, and what docs/deploying.md promises of it."""

from __future__ import annotations

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from modelbox.runtime.config import ServerConfig, load_server_config
from modelbox.sidecar.config import load_sidecar_config

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVERS = ("server-1", "server-2")
OURS = (*SERVERS, "sidecar", "example")


def _parse(compose: dict[str, Any]) -> Any:
    # Merged keys (`<<`) are YAML's, not the specification's: they are resolved by now.
    return compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose))


def test_fits_the_specification() -> None:
    assert set(_parse(COMPOSE).services) == set(SERVICES)


@pytest.mark.parametrize(("key", "value"), [("read_onli", True), ("ports", ["abc:def"]), ("restart", "perhaps")])
def test_the_specification_finds_mistakes(key: str, value: object) -> None:
    compose = copy.deepcopy(COMPOSE)
    compose["services"]["sidecar"][key] = value
    with pytest.raises(ValueError, match=r"services\.sidecar"):
        _parse(compose)


@pytest.mark.parametrize("name", SERVICES)
def test_refers_to_what_exists(name: str) -> None:
    service = SERVICES[name]
    if "build" in service:
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert set(service.get("depends_on", ())) <= set(SERVICES)
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume


@pytest.mark.parametrize("name", SERVICES)
def test_listens_on_loopback_only(name: str) -> None:
    # Docker publishes past the host's firewall, and nothing here asks who is calling.
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


@pytest.mark.parametrize("name", [*OURS, "balancer", "prometheus"])
def test_may_do_only_what_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "user", "pid", "network_mode"} & set(service)


@pytest.mark.parametrize("name", ["balancer", "postgres", "s3", "prometheus", "grafana"])
def test_pins_the_images_of_others(name: str) -> None:
    tag = SERVICES[name]["image"].partition(":")[2]
    assert tag.lstrip("v").split(".")[0].isdecimal(), "pinned by tag"


def test_holds_no_password() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if any(word in name for word in ("PASSWORD", "SECRET", "KEY", "DATABASE_URL")):
                assert "${" in value, name
                assert ":?" in value, "compose says what is missing"


def _server_config(name: str) -> ServerConfig:
    """As the program reads what compose gives it."""
    given = {key: re.sub(r"\$\{[^}]*\}", "secret", value) for key, value in SERVICES[name]["environment"].items()}
    return load_server_config(flags={}, env=given)


def test_two_replicas_share_a_database_and_a_store() -> None:
    one, two = (_server_config(name) for name in SERVERS)
    assert one.database_url == two.database_url == "postgresql://modelbox:secret@postgres:5432/modelbox"
    assert one.blobs_url == two.blobs_url == f"s3://{SERVICES['s3']['environment']['GARAGE_DEFAULT_BUCKET']}"
    assert one.replica_name != two.replica_name
    region = tomllib.loads((DEPLOY / "garage" / "garage.toml").read_text())["s3_api"]["s3_region"]
    assert one.s3_region == region


def test_publishes_the_ports_that_the_programs_have() -> None:
    server = _server_config("server-1")
    sidecar = load_sidecar_config(flags={}, env={})
    inside = {name: {int(port.split(":")[2]) for port in service["ports"]} for name, service in SERVICES.items()}
    assert inside["balancer"] == {server.http_port, server.grpc_port}
    assert inside["server-1"] == inside["server-2"] == inside["postgres"] == inside["s3"] == set()
    assert inside["sidecar"] == {sidecar.http_port, sidecar.grpc_port}
    assert SERVICES["sidecar"]["environment"]["MODELBOX_URL"] == f"http://balancer:{server.http_port}"


def test_the_balancer_knows_where_the_replicas_are() -> None:
    environment = SERVICES["balancer"]["environment"]
    for number, name in enumerate(SERVERS, 1):
        server = _server_config(name)
        assert environment[f"SERVER_{number}_HTTP"] == f"{name}:{server.http_port}"
        assert environment[f"SERVER_{number}_GRPC"] == f"{name}:{server.grpc_port}"
        assert environment[f"SERVER_{number}_CHECK"] == str(server.http_port)


@pytest.mark.parametrize("name", [*SERVERS, "sidecar"])
def test_leaves_time_to_drain(name: str) -> None:
    if name == "sidecar":
        drain_s = load_sidecar_config(flags={}, env={}).drain_timeout_s
    else:
        server = _server_config(name)
        drain_s = server.drain_delay_s + server.drain_timeout_s
    assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > drain_s


def test_the_example_answers_through_the_sidecar() -> None:
    sidecar, example = SERVICES["sidecar"], SERVICES["example"]
    shared = set(sidecar["volumes"]) & set(example["volumes"])
    assert shared == {"socket:/run/modelbox"}
    assert example["environment"]["MODELBOX_SIDECAR"] == "unix:///run/modelbox/sidecar.sock"
    assert sidecar["command"] == [example["environment"]["SPEECH_MODEL"]]


def test_grafana_finds_its_dashboard_and_its_source() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "modelbox.yaml").read_text())["providers"]
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    (local,) = (source for source, target in mounted.items() if target == provider["options"]["path"])
    assert list((DEPLOY / local).glob("*.json"))

"""The Kubernetes manifests: valid against the API's own schemas, and what docs/deploying.md promises of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it ships no types
import pytest
import yaml

from modelbox.config import load_client_config
from modelbox.runtime.config import load_server_config
from modelbox.sidecar.config import load_sidecar_config

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
REPLICAS = ROOT / "deploy" / "kubernetes-replicas"
RELEASES = ("1.30", "1.33", "1.37")
"""Releases of Kubernetes whose schemas the manifests are checked against; the first is the oldest that they ask for."""


def _objects() -> dict[str, dict[str, Any]]:
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    found: dict[str, dict[str, Any]] = {}
    for name in kustomization["resources"]:
        for document in yaml.safe_load_all((KUBERNETES / name).read_text()):
            key = f"{document['kind']}/{document['metadata']['name']}"
            assert key not in found, f"{key} is there twice"
            found[key] = document
    return found


OBJECTS = _objects()
POD_TEMPLATES = {key: o["spec"]["template"] for key, o in OBJECTS.items() if "template" in o.get("spec", ())}


def containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from pod.get("initContainers", ())
    yield from pod["containers"]


def container(key: str, name: str) -> dict[str, Any]:
    (found,) = (c for c in containers(POD_TEMPLATES[key]["spec"]) if c["name"] == name)
    return found


CONTAINERS = [(key, c["name"]) for key, template in POD_TEMPLATES.items() for c in containers(template["spec"])]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("key", OBJECTS)
def test_fits_the_schema(key: str, release: str) -> None:
    # Strict: unknown fields are errors too, as with `kubectl apply --validate=strict`.
    assert kubernetes_validate.validate(OBJECTS[key], release, strict=True) == release


@pytest.mark.parametrize("spoil", ["unknown field", "wrong type", "missing field"])
def test_the_schema_finds_mistakes(spoil: str) -> None:
    deployment = copy.deepcopy(OBJECTS["Deployment/speech"])
    first = deployment["spec"]["template"]["spec"]["initContainers"][0]
    if spoil == "unknown field":
        first["readinesProbe"] = first.pop("readinessProbe")
    elif spoil == "wrong type":
        first["args"] = "langtech/silero-vad@prod"
    else:
        del deployment["spec"]["selector"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, RELEASES[0], strict=True)


def test_every_manifest_is_applied() -> None:
    applied = set(yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"])
    others = {"kustomization.yaml", "prometheus-adapter-values.yaml"}
    assert {path.name for path in KUBERNETES.glob("*.yaml")} == applied | others


def test_every_image_can_be_set() -> None:
    named = {image["name"] for image in yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["images"]}
    assert {container(*where)["image"] for where in CONTAINERS} == named


@pytest.mark.parametrize(("key", "name"), CONTAINERS)
def test_passes_the_restricted_profile(key: str, name: str) -> None:
    pod, one = POD_TEMPLATES[key]["spec"], container(key, name)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert OBJECTS["Namespace/modelbox"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(("key", "name"), CONTAINERS)
def test_has_probes_and_bounds(key: str, name: str) -> None:
    one = container(key, name)
    ports = {port["name"] for port in one["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert one[probe]["httpGet"]["port"] in ports, probe
    # An honest readiness must not restart anything: what is alive is another question than what is ready.
    assert one["livenessProbe"]["httpGet"]["path"] != one["readinessProbe"]["httpGet"]["path"]
    assert {"cpu", "memory"} <= set(one["resources"]["requests"])
    assert "memory" in one["resources"]["limits"]


@pytest.mark.parametrize(("key", "name"), CONTAINERS)
def test_mounts_what_the_pod_has(key: str, name: str) -> None:
    volumes = {volume["name"] for volume in POD_TEMPLATES[key]["spec"].get("volumes", ())}
    volumes |= {claim["metadata"]["name"] for claim in OBJECTS[key]["spec"].get("volumeClaimTemplates", ())}
    assert {mount["name"] for mount in container(key, name)["volumeMounts"]} <= volumes


def test_the_sidecar_is_a_native_one() -> None:
    pod = POD_TEMPLATES["Deployment/speech"]["spec"]
    (sidecar,) = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    # Its startup probe is what holds the application back until the models answer.
    assert sidecar["startupProbe"]["httpGet"]["path"] == "/v2/health/ready"


def test_sidecar_and_application_share_the_socket_and_nothing_else() -> None:
    sidecar, app = container("Deployment/speech", "modelbox-sidecar"), container("Deployment/speech", "speech")
    theirs = {mount["name"]: mount["mountPath"] for mount in sidecar["volumeMounts"]}
    ours = {mount["name"]: mount["mountPath"] for mount in app["volumeMounts"]}
    assert set(theirs) & set(ours) == {"socket"}
    environment = {variable["name"]: variable["value"] for variable in app["env"]}
    dockerfile = (ROOT / "Dockerfile.sidecar").read_text()
    assert environment["MODELBOX_SIDECAR"] == f"unix://{ours['socket']}/sidecar.sock"
    assert f"MODELBOX_SIDECAR_SOCKET={theirs['socket']}/sidecar.sock" in dockerfile
    assert environment["SPEECH_MODEL"] in sidecar["args"]


def test_the_sidecar_understands_its_settings() -> None:
    sidecar = container("Deployment/speech", "modelbox-sidecar")
    environment = {variable["name"]: variable["value"] for variable in sidecar["env"]}
    config = load_sidecar_config(flags={"models": tuple(sidecar["args"])}, env=environment)
    assert not config.repository_control
    assert not config.shared_memory
    assert [port["containerPort"] for port in sidecar["ports"]] == [
        config.http_port,
        config.grpc_port,
        config.metrics_port,
    ]
    grace_s = POD_TEMPLATES["Deployment/speech"]["spec"]["terminationGracePeriodSeconds"]
    assert config.drain_timeout_s < grace_s


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget", "NetworkPolicy"])
@pytest.mark.parametrize("app", ["modelbox-server", "speech"])
def test_selects_its_pods(kind: str, app: str) -> None:
    spec = OBJECTS[f"{kind}/{app}"]["spec"]
    selector = spec.get("podSelector", spec.get("selector"))
    selector = selector.get("matchLabels", selector)
    (template,) = (t for t in POD_TEMPLATES.values() if t["metadata"]["labels"]["app.kubernetes.io/name"] == app)
    assert selector.items() <= template["metadata"]["labels"].items()


@pytest.mark.parametrize("app", ["modelbox-server", "speech"])
def test_ports_have_names_that_exist(app: str) -> None:
    (template,) = (t for t in POD_TEMPLATES.values() if t["metadata"]["labels"]["app.kubernetes.io/name"] == app)
    ports = {port["name"] for c in containers(template["spec"]) for port in c["ports"]}
    assert {port["targetPort"] for port in OBJECTS[f"Service/{app}"]["spec"]["ports"]} <= ports
    rules = OBJECTS[f"NetworkPolicy/{app}"]["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} <= ports
    assert all(len(name) <= 15 for name in ports), "Kubernetes takes at most 15 characters"


def test_nobody_but_probes_and_prometheus_reaches_the_sidecar() -> None:
    rules = OBJECTS["NetworkPolicy/speech"]["spec"]["ingress"]
    assert {"oip-http", "oip-grpc"}.isdisjoint(port["port"] for rule in rules for port in rule["ports"])


def test_budgets_let_nodes_be_drained() -> None:
    server = OBJECTS["PodDisruptionBudget/modelbox-server"]["spec"]
    assert OBJECTS["StatefulSet/modelbox-server"]["spec"]["replicas"] == 1
    assert server["maxUnavailable"] == 1
    speech = OBJECTS["PodDisruptionBudget/speech"]["spec"]
    assert speech["minAvailable"] < OBJECTS["HorizontalPodAutoscaler/speech"]["spec"]["minReplicas"]


def test_the_autoscaler_scales_the_sidecar() -> None:
    spec = OBJECTS["HorizontalPodAutoscaler/speech"]["spec"]
    target = spec["scaleTargetRef"]
    assert f"{target['kind']}/{target['name']}" in OBJECTS
    assert "replicas" not in OBJECTS["Deployment/speech"]["spec"], "each apply would undo the autoscaler"
    (resource,) = (m["containerResource"] for m in spec["metrics"] if m["type"] == "ContainerResource")
    assert container("Deployment/speech", resource["container"])["resources"]["requests"]["cpu"]


# -- replicas ----------------------------------------------------------------------------------------------------------

REPLICATED: dict[str, Any] = yaml.safe_load((REPLICAS / "server.yaml").read_text())


@pytest.mark.parametrize("release", RELEASES)
def test_the_replicas_fit_the_schema(release: str) -> None:
    assert kubernetes_validate.validate(REPLICATED, release, strict=True) == release


def test_the_replicas_stand_where_the_one_stood() -> None:
    overlay = yaml.safe_load((REPLICAS / "kustomization.yaml").read_text())
    assert overlay["resources"] == ["../kubernetes", "server.yaml"]
    deleted, budget = (yaml.safe_load(patch["patch"]) for patch in overlay["patches"])
    assert deleted["$patch"] == "delete"
    assert f"{deleted['kind']}/{deleted['metadata']['name']}" in OBJECTS
    assert f"{budget['kind']}/{budget['metadata']['name']}" in OBJECTS
    service = OBJECTS["Service/modelbox-server"]["spec"]
    (server,) = REPLICATED["spec"]["template"]["spec"]["containers"]
    assert service["selector"].items() <= REPLICATED["spec"]["template"]["metadata"]["labels"].items()
    assert {port["targetPort"] for port in service["ports"]} <= {port["name"] for port in server["ports"]}
    (alone,) = POD_TEMPLATES["StatefulSet/modelbox-server"]["spec"]["containers"]
    assert server["image"] == alone["image"]
    assert server["securityContext"] == alone["securityContext"]


def test_the_replicas_understand_their_settings() -> None:
    (server,) = REPLICATED["spec"]["template"]["spec"]["containers"]
    given = {entry["name"]: entry.get("value", "a-pod") for entry in server["env"]}
    secret = {"MODELBOX_DATABASE_URL": "postgresql://modelbox:secret@postgres.example:5432/modelbox"}
    config = load_server_config(flags={}, env=given | secret)
    for name in given:
        assert hasattr(config, name.removeprefix("MODELBOX_").lower()), name
    grace_s = REPLICATED["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > config.drain_delay_s + config.drain_timeout_s
    probe = server["readinessProbe"]
    assert config.drain_delay_s > probe["periodSeconds"] * probe["failureThreshold"]


# -- with TLS and access control ---------------------------------------------------------------------------------------

SECURE = ROOT / "deploy" / "kubernetes-secure"
_MERGE_KEYS = {"containers": "name", "initContainers": "name", "env": "name", "volumes": "name", "ports": "port"}


def _patched(base: Any, patch: Any, key: str = "") -> Any:
    """``base`` with a strategic merge patch, as far as ours go."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {name: _patched(base.get(name), value, name) for name, value in patch.items()}
    if isinstance(base, list) and isinstance(patch, list):
        by = "mountPath" if key == "volumeMounts" else _MERGE_KEYS[key]
        merged = {item[by]: item for item in base}
        for item in patch:
            merged[item[by]] = _patched(merged.get(item[by]), item)
        return list(merged.values())
    return patch


def _secure(name: str, base: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = _patched(
        base, yaml.safe_load((SECURE / f"{name}.yaml").read_text()) | {"kind": base["kind"]}
    )
    return found


SECURED = {
    "alone": _secure("server", OBJECTS["StatefulSet/modelbox-server"]),
    "replicated": _secure("server", REPLICATED),
    "service": _secure("service", OBJECTS["Service/modelbox-server"]),
    "speech": _secure("speech", OBJECTS["Deployment/speech"]),
}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", SECURED)
def test_what_is_secured_fits_the_schema(name: str, release: str) -> None:
    assert kubernetes_validate.validate(SECURED[name], release, strict=True) == release


def test_every_patch_is_applied() -> None:
    overlay = yaml.safe_load((SECURE / "kustomization.yaml").read_text())
    assert overlay["resources"] == ["../kubernetes"]
    assert {patch["path"] for patch in overlay["patches"]} == {path.name for path in SECURE.iterdir()} - {
        "kustomization.yaml"
    }


@pytest.mark.parametrize("name", ["alone", "replicated"])
def test_a_secured_server_has_tls_and_knows_who_calls(name: str) -> None:
    pod = SECURED[name]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    given = {entry["name"]: entry.get("value", "a-pod") for entry in server["env"]}
    given |= {"MODELBOX_DATABASE_URL": "postgresql://modelbox:secret@postgres.example:5432/modelbox"}
    config = load_server_config(flags={}, env=given | {"MODELBOX_HOST": "0.0.0.0"})
    assert config.access_on
    assert not config.insecure_open
    assert not config.insecure_plaintext
    mounts = {mount["name"]: mount["mountPath"] for mount in server["volumeMounts"]}
    assert (config.tls_cert, config.tls_key) == (f"{mounts['tls']}/tls.crt", f"{mounts['tls']}/tls.key")
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]} | ({"data"} if name == "alone" else set())
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["scheme"] == "HTTPS"
        assert server[probe]["failureThreshold"] if probe != "readinessProbe" else server[probe]["periodSeconds"]
    assert all(port["appProtocol"] == "https" for port in SECURED["service"]["spec"]["ports"])


@pytest.mark.parametrize("which", ["initContainers", "containers"])
def test_clients_of_a_secured_server_say_who_they_are(which: str) -> None:
    pod = SECURED["speech"]["spec"]["template"]["spec"]
    (client,) = pod[which]
    given = {entry["name"]: entry["value"] for entry in client["env"]}
    config = load_client_config(env={"HOME": "/", "USER": "speech", **given})
    assert config.url == "https://modelbox-server:8080"
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in client["volumeMounts"]}
    assert (config.tls_ca, config.token_file) == (mounts["ca"] / "ca.crt", mounts["token"] / "token")
    assert set(mounts) <= {volume["name"] for volume in pod["volumes"]}

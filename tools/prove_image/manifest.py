"""Turns a container of a Kubernetes manifest into arguments of podman, so that what is proven is what is deployed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"


def pod_of(file: str, kind: str) -> dict[str, Any]:
    """The pod template of the one object of ``kind`` in a manifest."""
    documents = yaml.safe_load_all((MANIFESTS / file).read_text())
    templates: list[dict[str, Any]] = [doc["spec"]["template"]["spec"] for doc in documents if doc["kind"] == kind]
    (template,) = templates
    return template


def container_of(pod: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One container of a pod, whether it starts first or not."""
    found: list[dict[str, Any]] = [c for c in [*pod.get("initContainers", ()), *pod["containers"]] if c["name"] == name]
    (container,) = found
    return container


def podman_arguments(pod: Mapping[str, Any], container: Mapping[str, Any], volumes: Mapping[str, Path]) -> list[str]:
    """What podman needs to run the container as the manifest says, in front of the image's name.

    Environment, mounts, user, capabilities, privileges, the read-only root and the limit of memory are the manifest's.
    The network is that of the caller.

    Args:
        pod: The template.
        container: One of its containers.
        volumes: Directories that stand for the pod's volumes, by name.
    """
    security = container["securityContext"]
    user = pod["securityContext"]
    arguments = ["--network", "host", "--image-volume", "ignore", "--ulimit", "nofile=4096:4096"]
    arguments += ["--ulimit", "nproc=4096:4096", "--user", f"{user['runAsUser']}:{user['runAsGroup']}"]
    if security["readOnlyRootFilesystem"]:
        # Not even podman's own scratch directories: Kubernetes has none.
        arguments += ["--read-only", "--read-only-tmpfs=false"]
    if not security["allowPrivilegeEscalation"]:
        arguments += ["--security-opt", "no-new-privileges"]
    for capability in security["capabilities"]["drop"]:
        arguments += ["--cap-drop", capability]
    if memory := container["resources"]["limits"].get("memory"):
        arguments += ["--memory", memory.removesuffix("i").lower()]
    for variable in container.get("env", ()):
        arguments += ["--env", f"{variable['name']}={variable['value']}"]
    for mount in container.get("volumeMounts", ()):
        arguments += ["--volume", f"{volumes[mount['name']]}:{mount['mountPath']}"]
    return arguments


def probe_of(container: Mapping[str, Any], probe: str) -> tuple[int, str]:
    """Port and path of an HTTP probe."""
    get = container[probe]["httpGet"]
    ports: dict[str, int] = {port["name"]: port["containerPort"] for port in container["ports"]}
    return ports.get(get["port"], 0) or int(get["port"]), get["path"]

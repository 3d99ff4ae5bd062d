"""The images, built from their Dockerfiles and run as the manifests say. Minutes of work: only when it is asked for."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.prove_image.engine import missing_tools
from tools.prove_image.manifest import container_of, pod_of, podman_arguments, probe_of

ROOT = Path(__file__).parents[2]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.external
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not os.environ.get("MODELBOX_PROVE_IMAGE"), reason="set MODELBOX_PROVE_IMAGE=1: it takes minutes")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {', '.join(missing_tools())}")
def test_the_images_keep_their_promises() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.prove_image"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_container_runs_as_its_manifest_says(tmp_path: Path) -> None:
    pod = pod_of("speech.yaml", "Deployment")
    sidecar = container_of(pod, "modelbox-sidecar")
    volumes = {"socket": tmp_path / "socket", "models": tmp_path / "models"}
    arguments = podman_arguments(pod, sidecar, volumes)
    pairs = {*itertools.pairwise(arguments)}
    assert "--read-only" in arguments
    assert "--read-only-tmpfs=false" in arguments
    assert {
        ("--user", "65532:65532"),
        ("--cap-drop", "ALL"),
        ("--security-opt", "no-new-privileges"),
        ("--memory", "1g"),
        ("--env", "MODELBOX_URL=http://modelbox-server:8080"),
        ("--volume", f"{tmp_path}/socket:/run/modelbox"),
        ("--volume", f"{tmp_path}/models:/var/cache/modelbox"),
    } <= pairs
    assert probe_of(sidecar, "livenessProbe") == (8000, "/v2/health/live")


def test_a_laxer_manifest_is_not_made_stricter(tmp_path: Path) -> None:
    pod = pod_of("server.yaml", "StatefulSet")
    server = container_of(pod, "modelbox-server")
    server["securityContext"] = {
        "readOnlyRootFilesystem": False,
        "allowPrivilegeEscalation": True,
        "capabilities": {"drop": []},
    }
    arguments = podman_arguments(pod, server, {"data": tmp_path})
    assert not {"--read-only", "--cap-drop", "--security-opt"} & set(arguments)

"""Executes the Dockerfiles over a base made of Debian's packages, and looks into what comes out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tools.prove_image.engine import Engine, ProofError, Report, note

ROOT = Path(__file__).resolve().parents[2]
BASE = "docker.io/library/debian:bookworm-slim"
SUITE = "bookworm"
DOCKERFILES = {
    "modelbox-server": ROOT / "deploy" / "Dockerfile.server",
    "modelbox-sidecar": ROOT / "Dockerfile.sidecar",
    "modelbox-example": ROOT / "deploy" / "Dockerfile.example",
}
USER = 65532
_BUILD_TOOLS = ("cc", "gcc", "g++", "make", "pip", "pip3", "git", "uv", "hatchling")
_CA_IN_BUILD = "/run/proof-ca.crt"


def make_base(engine: Engine, *, mirror: str) -> None:
    """Makes the base image, unless the storage holds it: Debian's minimal system, as ``debian:*-slim`` is made of.

    Args:
        engine: Where it goes.
        mirror: Of Debian's packages; empty for debootstrap's own choice.
    """
    if engine.has_image(BASE):
        return
    note(f"making {BASE} with debootstrap (about a minute) …")
    tree = engine.work / "base"
    shutil.rmtree(tree, ignore_errors=True)
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", SUITE, str(tree), *([mirror] if mirror else [])],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ProofError(f"debootstrap failed:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    _slim(tree)
    container = engine.buildah("from", "scratch").stdout.strip()
    engine.buildah("add", "--quiet", container, str(tree), "/", timeout=600)
    engine.buildah("config", "--cmd", "bash", "--env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", container)
    engine.buildah("commit", "--quiet", "--rm", container, BASE, timeout=600)
    shutil.rmtree(tree)


def _slim(tree: Path) -> None:
    """What makes ``*-slim`` of Debian's minimal system: no documentation, no translations, no copies of packages."""
    excluded = ("doc", "info", "locale", "man")
    rules = "".join(f"path-exclude /usr/share/{name}/*\n" for name in excluded)
    (tree / "etc/dpkg/dpkg.cfg.d/docker").write_text(rules)
    (tree / "etc/apt/apt.conf.d/docker-clean").write_text(
        'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };\n'
        'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";\n'
    )
    for name in excluded:
        shutil.rmtree(tree / "usr/share" / name)
        (tree / "usr/share" / name).mkdir()
    for pattern in ("var/cache/apt/archives/*.deb", "var/cache/apt/*.bin", "var/lib/apt/lists/*_*"):
        for leftover in tree.glob(pattern):
            leftover.unlink()


def build(engine: Engine, name: str) -> None:
    """Executes one Dockerfile, as it is."""
    note(f"building {name} …")
    done = engine.buildah(
        "bud",
        # Dockerfiles are about images in Docker's format: the other one has no HEALTHCHECK.
        *("--format", "docker", "--isolation", "chroot", "--network", "host", "--pull-never"),
        *_pip_settings(engine.work),
        *("--file", str(DOCKERFILES[name]), "--tag", f"localhost/{name}", str(ROOT)),
        check=False,
        timeout=1200,
    )
    (engine.work / f"{name}.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise ProofError(f"{DOCKERFILES[name].name}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def _pip_settings(work: Path) -> list[str]:
    """Lets pip inside of the build reach packages the way that it does out here; nothing of it stays in the image."""
    lines, mounts = ["[global]"], []
    for key in ("index_url", "extra_index_url", "trusted_host"):
        if value := os.environ.get(f"PIP_{key.upper()}"):
            lines.append(f"{key.replace('_', '-')} = {value}")
    bundle = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    if bundle and Path(bundle).is_file():
        lines.append(f"cert = {_CA_IN_BUILD}")
        mounts += ["--volume", f"{Path(bundle).resolve()}:{_CA_IN_BUILD}:ro"]
    config = work / "pip.conf"
    config.write_text("\n".join(lines) + "\n")
    return [*mounts, "--volume", f"{config}:/etc/pip.conf:ro"]


def look_into(engine: Engine, name: str, report: Report) -> None:
    """Checks what an image declares, and what is in it."""
    image = engine.inspect_image(f"localhost/{name}")
    config = image["Config"]
    report.section(f"{name}: {image['Size'] / 1e6:.0f} MB unpacked, of which Debian's base {_base_size(engine):.0f} MB")
    report.same("runs as", config["User"], f"{USER}:{USER}")
    starts = config["Entrypoint"]
    report.check("starts under tini, without a shell", starts[0] == "/usr/bin/tini" and "--" in starts, starts)
    health = image.get("Healthcheck") or {}
    report.check("has a health check without a shell", health.get("Test", [""])[0] == "CMD", health.get("Test"))
    secrets = [entry for entry in config["Env"] if re.search(r"(?i)token|secret|passw|index|cert", entry)]
    report.same("carries no secret and no registry in its environment", secrets, [])

    shell = _in_image(engine, name, "for tool in " + " ".join(_BUILD_TOOLS) + '; do command -v "$tool"; done; true')
    report.same("has no build tools", shell.split(), [])
    # What the build mounted for pip leaves an empty file behind, as every mount does.
    places = f"/etc/pip.conf {_CA_IN_BUILD} /src /wheels /opt/build /var/cache/apt/archives/*.deb /root/.cache"
    leftovers = _in_image(engine, name, f"find {places} -maxdepth 0 ! -empty 2>/dev/null; true")
    report.same("holds nothing of the build", leftovers.split(), [])
    installed = _in_image(engine, name, "ls /opt/modelbox/lib/python3*/site-packages | grep -i '^onnxruntime$'; true")
    wanted = ["onnxruntime"] if name == "modelbox-sidecar" else []
    report.same("has onnxruntime only in the sidecar", installed.split(), wanted)
    compiled = _in_image(engine, name, "ls /opt/modelbox/lib/python3*/site-packages/modelbox/__pycache__ | wc -l")
    report.check("has its bytecode, which a read-only image cannot write later", int(compiled) > 10)
    declared = " ".join(sorted(config.get("Volumes") or {})) or "/nowhere"
    writable = _in_image(
        engine,
        name,
        "find / -xdev \\( -type f -o -type d \\) -writable 2>/dev/null"
        r" | grep -vE '^/(proc|sys|dev|tmp|var/tmp|run/lock|run/secrets)(/|$)'; true",
    )
    stray = [path for path in writable.split() if path not in {*declared.split(), "/run/modelbox"}]
    report.same(f"can write nowhere but in its volumes ({declared}) and /tmp", stray, [])


def _base_size(engine: Engine) -> float:
    return float(engine.inspect_image(BASE)["Size"]) / 1e6


def _in_image(engine: Engine, name: str, script: str) -> str:
    done = engine.podman(
        *("run", "--rm", "--network", "none", "--cgroups=disabled", "--ulimit", "nofile=1024:1024"),
        *("--ulimit", "nproc=1000:1000", "--image-volume", "ignore"),
        *("--entrypoint", "/bin/sh", f"localhost/{name}", "-c", script),
    )
    return done.stdout

"""``python -m tools.prove_image``: build the images, look into them, run them, say what holds."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.prove_image.build import DOCKERFILES, build, look_into, make_base
from tools.prove_image.engine import TOOLS, Engine, ProofError, Report, missing_tools, note

NOT_PROVEN = """\
Not proven here:
  * the tag debian:bookworm-slim itself, and Docker's builder and engine: the base was made by debootstrap of the same
    release's packages, the Dockerfiles were executed by buildah, the images run by podman and crun;
  * that an engine runs HEALTHCHECK by itself at its interval: it was run by hand;
  * Prometheus and Grafana (their images are not ours); their files are checked by tests/deploy;
  * Kubernetes: scheduling, the order of native sidecars, network policies, the autoscaler. Containers ran with the
    manifests' environment, mounts, users, privileges and probes, but on one network, and under podman's own filter of
    system calls."""


def main() -> int:
    """Runs the proof; 0 when everything holds."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.prove_image",
        description="Builds the container images and runs them as deploy/kubernetes says, without a Docker engine.",
        epilog=f"Needs root, Debian packages for {', '.join(TOOLS)}, and a way to Debian's and Python's packages.",
    )
    parser.add_argument("--work", type=Path, help="Directory to keep between runs; a temporary one by default.")
    parser.add_argument("--mirror", default="", help="Of Debian's packages, for debootstrap.")
    parser.add_argument("--skip-build", action="store_true", help="Use the images that are in --work.")
    parser.add_argument("--in-own-network", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if os.geteuid() != 0 or missing_tools():
        print(f"needs root, and: {', '.join(missing_tools()) or 'nothing else'}", file=sys.stderr)
        return 2
    if options.in_own_network:
        return _run_and_report(Engine(options.work))

    work = (options.work or Path(tempfile.mkdtemp(prefix="modelbox-proof-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        engine = Engine(work)
        if not options.skip_build:
            make_base(engine, mirror=options.mirror)
            for name in DOCKERFILES:
                build(engine, name)
        # Mounts and network of the containers vanish with the process.
        command = ["unshare", "--mount", "--net", sys.executable, "-m", "tools.prove_image"]
        return subprocess.run([*command, "--work", str(work), "--in-own-network"], check=False).returncode
    except ProofError as exc:
        print(f"failed: {exc}", file=sys.stderr)
        return 1
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)


def _run_and_report(engine: Engine) -> int:
    from tools.prove_image.run import run

    # Both generations of control groups at once confuse the container runtime; the older one has the limits then.
    if Path("/sys/fs/cgroup/unified").is_mount():
        subprocess.run(["umount", "/sys/fs/cgroup/unified"], check=True)
    report = Report()
    try:
        for name in DOCKERFILES:
            look_into(engine, name, report)
        shutil.rmtree(engine.work / "volumes", ignore_errors=True)
        run(engine, report)
    except ProofError as exc:
        report.check("the proof came to its end", False, exc)
        note(str(exc))
    print(f"\n{report.count - len(report.failed)} of {report.count} checks hold.\n\n{NOT_PROVEN}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Server and sidecar as their images run them, without an image: another user, a read-only root, no privileges at all.

Only what every Linux has is used: namespaces, mounts and `setpriv`. The images themselves are built and run by
``python -m tools.prove_image`` (`test_prove_image.py`), which needs more.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import anyio
import pytest

import modelbox
from tests.deploy.test_healthcheck import check
from tests.onnx_models import add_constant
from tests.server import ServerProcess

USER = 65532
HEALTH = "/v2/health/ready"


def _may_confine() -> bool:
    if os.geteuid() != 0 or shutil.which("setpriv") is None or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else"),
    pytest.mark.skipif(not _may_confine(), reason="needs util-linux, and the right to make mount namespaces"),
]

# In a mount namespace of its own: everything read-only but one directory, then another user without any privilege.
CONFINE = f"""
set -eu
mount --make-rprivate /
mount --bind "$WRITABLE" "$WRITABLE"
if [ -n "$HIDDEN" ]; then  # the interpreter lies in somebody's home: only it is shown to the other user
    mount --bind "$PYTHON_HOME" /mnt
    mount -t tmpfs -o mode=755 tmpfs "$HIDDEN"
    mkdir -p "$PYTHON_HOME"
    mount --move /mnt "$PYTHON_HOME"
fi
for point in / /tmp /var /home /run /dev /dev/shm "$HIDDEN"; do
    if [ -n "$point" ] && mountpoint -q "$point"; then mount -o remount,ro,bind "$point"; fi
done
cd /
exec setpriv --reuid={USER} --regid={USER} --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


class Confined:
    """A program of ours with one directory that it may write to."""

    def __init__(self, module: str, writable: Path, *arguments: object, **environment: str) -> None:
        home = Path(sys.base_prefix)
        hidden = [path for path in (home, *home.parents) if not path.stat().st_mode & 0o001]
        self.output = ""
        self.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", CONFINE, "sh", sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                "PATH": os.environ["PATH"],
                "WRITABLE": str(writable),
                "HIDDEN": str(hidden[-1]) if hidden else "",
                "PYTHON_HOME": str(home),
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONPATH": str(Path(modelbox.__file__).parents[1]),
                **environment,
            },
        )

    def wait_for(self, pattern: str) -> re.Match[str]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"it never printed {pattern!r}:\n{self.output}")

    def status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def can_write(self, path: str) -> bool:
        """Whether the process's own view of the file system lets it make files there."""
        probe = [
            *("nsenter", f"--mount=/proc/{self.process.pid}/ns/mnt"),
            *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--bounding-set=-all"),
            *("touch", f"{path}/probe"),
        ]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0

    def end(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        rest, _ = self.process.communicate(timeout=60)
        self.output += rest
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def writable() -> Iterator[Path]:
    """The one place that may be written to; not pytest's own, which is closed to other users."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="modelbox-confined-") as name:
        Path(name).chmod(0o711)
        place = Path(name, "volume")
        place.mkdir(mode=0o700)
        os.chown(place, USER, USER)
        yield place


def assert_confined(program: Confined, writable: Path) -> None:
    status = program.status()
    assert status["Uid"].split() == [str(USER)] * 4
    assert status["NoNewPrivs"] == "1"
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Prm", "Eff", "Bnd", "Amb")} == {0}
    assert [path for path in ("/", "/tmp", "/var/tmp", "/etc", "/dev/shm") if program.can_write(path)] == []
    assert program.can_write(str(writable))


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def publish(url: str, directory: Path, constant: float) -> None:
    path = directory / f"{constant}.onnx"
    path.write_bytes(add_constant(constant))
    async with modelbox.Client(url) as box:
        await box.publish("acme/adder", path, aliases=["prod"])


async def test_the_server_needs_nothing_but_its_data(writable: Path, tmp_path: Path) -> None:
    server = Confined(
        "modelbox.runtime",
        writable,
        *("--data-dir", writable / "data", "--grpc-port", 0, "--http-port", 0, "--metrics-port", 0),
    )
    with contextlib.closing(server):
        http = server.wait_for(r"^modelbox ready .*http=(\S+)")[1]
        assert_confined(server, writable)
        assert check(http.rpartition(":")[2]).returncode == 0
        await publish(f"http://{http}", tmp_path, 1.0)
        assert server.end() == 0, server.output


async def test_the_sidecar_needs_nothing_but_cache_and_socket(
    writable: Path, tmp_path: Path, server: ServerProcess
) -> None:
    await publish(server.url, tmp_path, 1.0)
    sidecar = Confined(
        "modelbox.sidecar",
        writable,
        *("acme/adder@prod", "--grpc-port", 0, "--http-port", 0, "--metrics-port", 0),
        MODELBOX_URL=server.url,
        MODELBOX_CACHE_DIR=str(writable / "models"),
        MODELBOX_SIDECAR_SOCKET=str(writable / "sidecar.sock"),
    )
    with contextlib.closing(sidecar):
        http = sidecar.wait_for(r"^modelbox sidecar ready http=(\S+)")[1]
        assert_confined(sidecar, writable)
        assert check(http.rpartition(":")[2], HEALTH).returncode == 0
        assert ask(http) == [2.0] * 4
        socket = os.stat(writable / "sidecar.sock")
        assert (socket.st_uid, socket.st_mode & 0o777) == (USER, 0o600)
        # A swap needs the same places: download, optimised form, another session.
        await publish(server.url, tmp_path, 5.0)
        with anyio.fail_after(60):
            while ask(http) != [6.0] * 4:
                await anyio.sleep(0.02)
        assert sidecar.end() == 0, sidecar.output
    assert not (writable / "sidecar.sock").exists()


def ask(http: str) -> list[float]:
    """One call over the Open Inference Protocol."""
    inputs = [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0] * 4}]
    request = Request(
        f"http://{http}/v2/models/adder/infer",
        json.dumps({"inputs": inputs}).encode(),
        {"Content-Type": "application/json"},
    )
    with urlopen(request, timeout=60) as answer:
        values: list[float] = json.load(answer)["outputs"][0]["data"]
    return values

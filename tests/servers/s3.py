"""S3-compatible servers for tests: Ceph's radosgw, which is the real thing, and moto, which is quick.

`RadosGateway` runs one monitor, one store in memory and one gateway of Debian's packages, all below a temporary
directory; it checks signatures, expiry and conditions as a store in production does. `MotoServer` is a Python process
that accepts any credentials. Both give `S3Bucket`: what a client needs to know, with a bucket of its own.
"""

from __future__ import annotations

import ctypes
import functools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.servers.debian import CannotHave, Packages, unpacked
from tests.servers.files import free_port

__all__ = ("MotoServer", "RadosGateway", "S3Bucket", "S3Server")

_PACKAGES = (
    *("radosgw", "ceph-mon", "ceph-osd", "ceph-base", "ceph-common", "librados2", "librbd1", "librgw2", "libcephfs2"),
    *("libradosstriper1", "libboost-thread1.74.0", "libboost-context1.74.0", "libfmt9", "libnl-3-200"),
    *("libnl-route-3-200", "libibverbs1", "librdmacm1", "libtcmalloc-minimal4", "libgoogle-perftools4"),
    *("liblua5.3-0", "liboath0", "librabbitmq4", "libsnappy1v5", "libleveldb1d", "libaio1", "libdaxctl1"),
    *("libndctl6", "libpmem1", "libfuse2"),
)
_READY_S = 90.0
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1

# The store's own command line is Python and wants modules of the system's interpreter; the library is all it takes.
_MON_COMMAND = """
import ctypes, sys
lib = ctypes.CDLL("librados.so.2")
cluster = ctypes.c_void_p()
assert lib.rados_create(ctypes.byref(cluster), b"admin") == 0
assert lib.rados_conf_read_file(cluster, sys.argv[1].encode()) == 0
assert lib.rados_connect(cluster) == 0, "no monitor answers"
for text in sys.argv[2:]:
    command = (ctypes.c_char_p * 1)(text.encode())
    out, status = ctypes.c_char_p(), ctypes.c_char_p()
    out_size, status_size = ctypes.c_size_t(), ctypes.c_size_t()
    code = lib.rados_mon_command(cluster, command, ctypes.c_size_t(1), None, ctypes.c_size_t(0), ctypes.byref(out),
                                 ctypes.byref(out_size), ctypes.byref(status), ctypes.byref(status_size))
    assert code == 0, (text, status.value)
lib.rados_shutdown(cluster)
"""

_STARTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Bucket:
    """A bucket of a test's own and how to reach it."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"

    @property
    def url(self) -> str:
        """As the setting ``blobs_url`` takes it."""
        return f"s3://{self.bucket}"

    @property
    def env(self) -> dict[str, str]:
        """The credentials as a process takes them."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    def client(self, **config: Any) -> Any:
        """A blocking client of botocore, for looking behind our own store's back."""
        return _client(self.endpoint, self.region, self.access_key, self.secret_key, **config)

    def list_keys(self) -> list[str]:
        """All keys in it, sorted."""
        found = self.client().list_objects_v2(Bucket=self.bucket)
        return sorted(item["Key"] for item in found.get("Contents", ()))

    def multipart_uploads(self) -> list[str]:
        """The keys of all multipart uploads that are under way."""
        return [item["Key"] for item in self.client().list_multipart_uploads(Bucket=self.bucket).get("Uploads", ())]


class S3Server:
    """A server of some kind; an ordinary context manager around `start` and `stop`."""

    access_key = "AKTESTTESTTESTTESTTE"
    secret_key = "SKTESTSECRETSKTESTSECRETSKTESTSECRETSKTE"

    def __init__(self) -> None:
        self.port = free_port()

    @property
    def endpoint(self) -> str:
        """Its address, for clients."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Starts it and waits until it answers.

        Raises:
            CannotHave: It cannot be had on this machine.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Ends it and removes all it kept."""
        raise NotImplementedError

    def new_bucket(self) -> S3Bucket:
        """Makes an empty bucket."""
        bucket = S3Bucket(
            endpoint=self.endpoint,
            bucket=f"test-{uuid.uuid4().hex[:16]}",
            access_key=self.access_key,
            secret_key=self.secret_key,
        )
        bucket.client().create_bucket(Bucket=bucket.bucket)
        return bucket

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_ready(self, *processes: subprocess.Popen[bytes]) -> None:
        probe = S3Bucket(endpoint=self.endpoint, bucket="", access_key=self.access_key, secret_key=self.secret_key)
        client = probe.client(connect_timeout=2, read_timeout=5)
        deadline = time.monotonic() + _READY_S
        while True:
            try:
                client.list_buckets()
            except (BotoCoreError, ClientError) as exc:
                for process in processes:
                    if process.poll() is not None:
                        raise CannotHave(f"{process.args!r} ended with {process.returncode}") from exc
                if time.monotonic() > deadline:
                    raise CannotHave(f"the S3 server did not answer within {_READY_S:g} s: {exc}") from exc
                time.sleep(0.05)
            else:
                return


class MotoServer(S3Server):
    """moto's server in a process; keeps all in memory, and believes whoever asks."""

    def start(self) -> Self:
        """See `S3Server.start`."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_end_with_parent,
        )
        self._wait_ready(self._process)
        return self

    def stop(self) -> None:
        """See `S3Server.stop`."""
        _end(self._process)


class RadosGateway(S3Server):
    """One monitor, one store in memory, one gateway.

    Args:
        memory_bytes: What the store holds at most; taken only as it fills.
    """

    def __init__(self, *, memory_bytes: int = 4 << 30) -> None:
        super().__init__()
        self._memory_bytes = memory_bytes
        self._processes: list[subprocess.Popen[bytes]] = []
        self._gateway: subprocess.Popen[bytes] | None = None
        self._dir = Path()
        self._env: Mapping[str, str] = {}

    def start(self) -> Self:
        """See `S3Server.start`; tries again with other ports, as somebody else may just have taken one."""
        packages = unpacked("radosgw", _PACKAGES)
        for _ in range(_STARTS - 1):
            try:
                return self._start_once(packages)
            except CannotHave:
                self.port = free_port()
        return self._start_once(packages)

    def _start_once(self, packages: Packages) -> Self:
        # Sockets lie in it, and their paths must be short.
        self._dir = Path(tempfile.mkdtemp(prefix="mbs3-", dir="/tmp"))
        try:
            env = packages.env()
            own = ":".join(str(path / "ceph") for path in packages.libraries)
            self._env = {
                **env,
                "CEPH_CONF": str(self._dir / "ceph.conf"),
                "LD_LIBRARY_PATH": f"{env['LD_LIBRARY_PATH']}:{own}",
                "TZ": "UTC",
            }
            self._start(packages)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """See `S3Server.stop`."""
        for process in reversed(self._processes):
            # Nothing that it keeps is wanted again.
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait(60)
        self._processes.clear()
        if self._dir.name.startswith("mbs3-"):
            shutil.rmtree(self._dir, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL for the gateway; what it stored stays."""
        assert self._gateway is not None
        self._gateway.kill()
        self._gateway.wait(60)
        self._processes.remove(self._gateway)

    def restart(self) -> None:
        """Starts the gateway again after `kill`."""
        self._start_gateway()

    def pause(self) -> None:
        """SIGSTOP: the gateway takes connections and answers nothing."""
        assert self._gateway is not None
        self._gateway.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        assert self._gateway is not None
        self._gateway.send_signal(signal.SIGCONT)

    # -- how it is brought up --------------------------------------------------------------------------------------

    def _start(self, packages: Packages) -> None:
        self._bin = packages.root / "usr/bin"
        monitor = f"v1:127.0.0.1:{free_port()}"
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        for name in ("mon", "osd", "run", "mgr"):
            (self._dir / name).mkdir()
        libraries = next(path for path in packages.libraries if (path / "rados-classes").is_dir())
        (self._dir / "ceph.conf").write_text(self._configuration(fsid, monitor, libraries))
        keyring = str(self._dir / "keyring")
        self._run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        admin = ("--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *")
        self._run("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *admin)
        monmap = str(self._dir / "monmap")
        release = ("--set-min-mon-release", "pacific")
        self._run("monmaptool", "--create", "--addv", "a", f"[{monitor}]", "--fsid", fsid, *release, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._spawn("ceph-mon", "-i", "a", "-f")
        self._ask_monitor({"prefix": "osd new", "uuid": osd})
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._ask_monitor({"prefix": "osd crush add", "id": 0, "weight": 1.0, "args": ["root=default", "host=h"]})
        self._spawn("ceph-osd", "-i", "0", "-f")
        keys = ("--access-key", self.access_key, "--secret-key", self.secret_key)
        self._run("radosgw-admin", "user", "create", "--uid", "t", "--display-name", "t", *keys)
        self._start_gateway()

    def _start_gateway(self) -> None:
        self._gateway = self._spawn("radosgw", "-n", "client.admin", "-f")
        self._wait_ready(*self._processes)

    def _configuration(self, fsid: str, monitor: str, libraries: Path) -> str:
        base = self._dir
        settings = {
            "fsid": fsid,
            "auth_cluster_required": "none",
            "auth_service_required": "none",
            "auth_client_required": "none",
            "mon_host": monitor,
            "osd_pool_default_size": 1,
            "osd_pool_default_min_size": 1,
            "osd_pool_default_pg_num": 1,
            "osd_pool_default_pgp_num": 1,
            "osd_pool_default_pg_autoscale_mode": "off",
            "osd_pool_default_flag_hashpspool": "true",
            "mon_allow_pool_size_one": "true",
            "mon_warn_on_pool_no_redundancy": "false",
            "mon_max_pg_per_osd": 1000,
            "mon_data_avail_crit": 1,
            "mon_data_avail_warn": 1,
            "paxos_propose_interval": 0.2,
            "ms_bind_msgr2": "false",
            "ms_bind_port_min": 20000,
            "ms_bind_port_max": 32000,
            "osd_crush_chooseleaf_type": 0,
            "osd_class_update_on_start": "false",
            "osd_crush_update_on_start": "false",
            "osd_class_dir": libraries / "rados-classes",
            "erasure_code_dir": libraries / "ceph/erasure-code",
            "plugin_dir": libraries / "ceph",
            "osd_objectstore": "memstore",
            "memstore_device_bytes": self._memory_bytes,
            "osd_max_object_name_len": 256,
            "run_dir": base / "run",
            "log_file": base / "$name.log",
            "admin_socket": base / "run/$name.asok",
            "pid_file": base / "run/$name.pid",
            "mon_data": base / "mon",
            "osd_data": base / "osd",
            "mgr_data": base / "mgr",
            "keyring": base / "keyring",
            "rgw_frontends": f"beast endpoint=127.0.0.1:{self.port}",
            "rgw_dns_name": "localhost",
            "rgw_s3_auth_use_keystone": "false",
            "rgw_enable_usage_log": "false",
            "rgw_enable_ops_log": "false",
            "rgw_thread_pool_size": 32,
        }
        return "[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items())

    def _run(self, program: str, *args: str) -> None:
        self._check([str(self._bin / program), *args])

    def _ask_monitor(self, *commands: Mapping[str, object]) -> None:
        texts = [json.dumps(command) for command in commands]
        self._check([sys.executable, "-c", _MON_COMMAND, str(self._dir / "ceph.conf"), *texts])

    def _check(self, command: Sequence[str]) -> None:
        done = subprocess.run(command, env=self._env, cwd=self._dir, capture_output=True, text=True, timeout=_READY_S)
        if done.returncode:
            raise CannotHave(f"{command[0]} failed: {done.stderr.strip()[-1000:]}")

    def _spawn(self, program: str, *args: str) -> subprocess.Popen[bytes]:
        log: IO[bytes]
        with (self._dir / f"{program}.out").open("ab") as log:
            process = subprocess.Popen(
                [str(self._bin / program), *args],
                env=self._env,
                cwd=self._dir,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,
            )
        self._processes.append(process)
        return process


@functools.cache
def _client(endpoint: str, region: str, access_key: str, secret_key: str, **config: Any) -> Any:
    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}, **config),
    )


def _end_with_parent() -> None:
    """Has the kernel kill this process when the one that started it ends, however that ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(60)

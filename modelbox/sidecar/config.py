"""The sidecar's settings.

Owns `SidecarConfig` and how it is read: flags over environment (``MODELBOX_SIDECAR_…``) over TOML file over default,
all problems at once. Where the central server is and where the cache lies are settings of the client
(`modelbox.config`), which the sidecar is one of: ``MODELBOX_URL``, ``MODELBOX_CACHE_DIR`` and its file count here, and
``server`` and ``cache_dir`` win over them. A setting is one field below; its flag, its variable, its line in the file
and its row in ``docs/sidecar.md`` are made of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelbox._serving.settings import (
    BOOL,
    HOST,
    LEVEL,
    PORT,
    Kind,
    SettingError,
    Settings,
    is_loopback,
    number,
    port_problems,
    problems_error,
    setting,
)
from modelbox._serving.tls import (
    CERT_HELP,
    CLIENT_AUTH,
    CLIENT_AUTH_HELP,
    CLIENT_CA_HELP,
    KEY_HELP,
    PEM_FILE,
    tls_problems,
)
from modelbox.errors import RefError
from modelbox.refs import ModelRef, shown
from modelbox.sidecar.model_settings import (
    BATCHING,
    DELAY_MS,
    MAX_BATCH,
    MAX_QUEUE,
    MODE,
    PROVIDERS,
    THREADS_INSIDE,
    THREADS_OF_POOL,
    TIMEOUT_S,
    WARM_UP_S,
    Tables,
    model_settings_toml,
    read_model_tables,
    table_problems,
    words,
)

__all__ = (
    "CONFIG_PATH_VARIABLE",
    "SidecarConfig",
    "load_sidecar_config",
    "setting_help",
    "settings_table",
    "sidecar_config_toml",
    "switches",
)

CONFIG_PATH_VARIABLE = "MODELBOX_SIDECAR_CONFIG"
"""Names the TOML file where no flag does."""


def _read_models(value: Any) -> tuple[ModelRef, ...]:
    refs: list[ModelRef] = []
    for text in [str(item) for item in value] if isinstance(value, tuple) else words(value):
        try:
            ref = ModelRef.parse(text)
        except RefError as exc:
            raise SettingError(str(exc)) from exc
        if ref not in refs:
            refs.append(ref)
    return tuple(refs)


def _read_optional_path(value: Any) -> Path | None:
    if isinstance(value, str | Path) and "\0" not in str(value):
        return Path(value).expanduser().absolute() if str(value) else Path()
    raise ValueError


def _read_socket(value: Any) -> Path | None:
    if isinstance(value, str):
        value = value.removeprefix("unix://")
    path = _read_optional_path(value)
    if path is not None and len(bytes(path)) > 107:
        raise SettingError("the kernel takes at most 107 bytes")
    return path


def _read_mode(value: Any) -> int:
    if isinstance(value, str):
        value = int(value, 8)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0o777:
        raise ValueError
    return value


def _read_users(value: Any) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value,)
    items = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ValueError
    # There are none on systems without users.
    import pwd

    found: list[int] = []
    for item in items:
        text = str(item)
        if isinstance(item, bool) or not text.isdecimal():
            try:
                user = pwd.getpwnam(text).pw_uid
            except KeyError as exc:
                raise SettingError(f"there is no user {shown(text)}") from exc
        else:
            user = int(text)
        if user not in found:
            found.append(user)
    return tuple(found)


def _read_url(value: Any) -> str:
    if not isinstance(value, str) or (value and not value.startswith(("http://", "https://"))):
        raise ValueError
    return value


_MODELS = Kind(read=_read_models, allowed="references such as langtech/wav2vec@prod")
_SOCKET = Kind(read=_read_socket, allowed="a path, or empty for none")
_SOCKET_MODE = Kind(read=_read_mode, allowed="file permissions, octal")
_USERS = Kind(read=_read_users, allowed="names or ids of users")
_PATH = Kind(read=_read_optional_path, allowed="a directory, or empty")
_URL = Kind(read=_read_url, allowed="http://host:port or https://host:port, or empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarConfig:
    """Everything that can be set; made by `load_sidecar_config`, which checks it."""

    models: tuple[ModelRef, ...] = setting(
        (), _MODELS, "What is served; a flag's place is taken by the positional arguments."
    )
    host: str = setting(
        "127.0.0.1", HOST, "Address to listen on. Others than loopback need TLS with client certificates."
    )
    http_port: int = setting(8000, PORT, "Port of the Open Inference Protocol over HTTP; 0 takes a free one.")
    grpc_port: int = setting(8001, PORT, "Port of the Open Inference Protocol over gRPC; 0 takes a free one.")
    metrics_port: int = setting(8002, PORT, "Port of Prometheus /metrics; 0 takes a free one.")
    http: bool = setting(True, BOOL, "Whether to listen on http_port.")
    grpc: bool = setting(True, BOOL, "Whether to listen on grpc_port.")
    socket: Path | None = field(
        default=None,
        metadata={"kind": _SOCKET, "help": "Unix socket for ModelBox's own client; empty for none."},
    )
    socket_mode: int = field(
        default=0o600,
        metadata={
            "kind": _SOCKET_MODE,
            "help": "Permissions of the socket's file. With 600 only the sidecar's own user may connect.",
            "shown": "600",
        },
    )
    socket_users: tuple[int, ...] = setting(
        (),
        _USERS,
        "Users who may connect to the socket, beside root and the sidecar's own; empty: whoever its permissions admit.",
    )
    socket_linger_us: float = setting(
        100.0,
        number(0, 1000, "microseconds", whole=False),
        "How long the sidecar looks for the next call of a quick lone caller on the socket before it sleeps. Others get"
        " the processor whenever they want it; 0 for a sidecar whose processor time is counted.",
    )
    tls_cert: str = setting("", PEM_FILE, CERT_HELP)
    tls_key: str = setting("", PEM_FILE, KEY_HELP)
    tls_client_ca: str = setting("", PEM_FILE, CLIENT_CA_HELP)
    tls_client_auth: str = setting("off", CLIENT_AUTH, CLIENT_AUTH_HELP)
    insecure_plaintext: bool = setting(
        False,
        BOOL,
        "Listen beyond loopback without TLS and without asking who calls: everybody who reaches the ports may read what"
        " is sent and use the models. Only inside a network that you trust, such as a pod.",
    )
    insecure_open: bool = setting(
        False,
        BOOL,
        "Listen beyond loopback with TLS, but let everybody use the models: without tls_client_auth = required.",
    )
    server: str = setting("", _URL, "HTTP address of the central server; empty: MODELBOX_URL or the client's file.")
    cache_dir: Path | None = field(
        default=None,
        metadata={
            "kind": _PATH,
            "help": "Where downloaded models are kept; empty: MODELBOX_CACHE_DIR or the client's file.",
        },
    )
    log_level: str = setting("info", LEVEL, "Least severity that is logged, on stderr.")
    drain_timeout_s: float = setting(
        30.0, number(0, 3600, "seconds", whole=False), "Seconds that accepted calls get to finish after SIGTERM."
    )
    repository_control: bool = setting(
        True, BOOL, "Whether clients may load and unload models by the protocol's repository calls."
    )
    shared_memory: bool = setting(
        True,
        BOOL,
        "Whether clients may register shared memory of this machine, which the sidecar then reads and writes.",
    )
    max_queue: int = setting(1000, MAX_QUEUE, "Calls to one model that may wait; more are refused as busy.")
    max_batch: int = setting(64, MAX_BATCH, "Most rows in one run of calls that were joined.")
    max_delay_ms: float = setting(
        0.0,
        DELAY_MS,
        "How long the first call of a batch waits for others; 0 joins only what arrives in the same turn of the loop.",
    )
    batching: str = setting(
        "auto",
        BATCHING,
        "Whether calls are joined: auto lets each model's metadata or its warm-up decide.",
    )
    default_timeout_s: float = setting(
        0.0,
        TIMEOUT_S,
        "Limit of calls that bring none; 0 for none.",
    )
    mode: str = setting(
        "auto",
        MODE,
        "Where runs happen: inline on the event loop, in a pool of threads, or by length.",
    )
    threads: int = setting(
        0,
        THREADS_OF_POOL,
        "Threads of each model's pool; 0: one per processor of the control group's quota, at least 2 and at most 8.",
    )
    intra_op_threads: int = setting(1, THREADS_INSIDE, "Threads inside one run; more pay only on an idle machine.")
    providers: tuple[str, ...] = setting(
        ("CPUExecutionProvider",), PROVIDERS, "onnxruntime's execution providers, best first; all must be installed."
    )
    warm_up_timeout_s: float = setting(
        60.0,
        WARM_UP_S,
        "A version whose first runs take longer is refused, and the one before goes on.",
    )
    golden: bool = setting(
        True, BOOL, "Whether golden inputs and outputs that a version brings must be reproduced by it."
    )
    prediction_cache_mb: float = setting(
        0.0,
        number(0, 1_000_000, "MiB", whole=False),
        "Memory for answers by version and inputs, given again without a run; 0 for none.",
    )
    max_request_mb: float = setting(
        64.0,
        number(0.001, 100_000, "MiB", whole=False),
        "Largest request that is taken, over HTTP, gRPC and the socket.",
    )
    max_connections: int = setting(
        10_000, number(1, 1_000_000, "connections", whole=True), "Connections at a time on each port and the socket."
    )
    max_connections_per_address: int = setting(
        0,
        number(0, 1_000_000, "connections", whole=True),
        "Those of one address, a /64 of IPv6, on each port. 0: half of max_connections, but as many as there are for"
        " this machine itself, all of whose programs have one address.",
    )
    max_streams: int = setting(1000, number(1, 100_000, "calls", whole=True), "Calls at a time on one gRPC connection.")
    drain_delay_s: float = setting(
        0.0,
        number(0, 600, "seconds", whole=False),
        "Seconds between the end of readiness and the end of listening, for load balancers to notice.",
    )
    idle_timeout_s: float = setting(
        30.0,
        number(0.1, 3600, "seconds", whole=False),
        "Seconds that a client may leave a request unfinished or an answer unread; then it is cut off.",
    )

    model: Tables = ()
    """Tables of the file for one model each, by reference or by model: see `modelbox.sidecar.model_settings`."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the sidecar."""
        return is_loopback(self.host)

    @property
    def share_of_address(self) -> int:
        """How many connections one address may have."""
        return self.max_connections_per_address or max(1, self.max_connections // 2)

    def shares_address(self, address: str) -> bool:
        """Whether ``address`` is that of many callers, and has no share."""
        return not self.max_connections_per_address and is_loopback(address)

    @property
    def max_request_bytes(self) -> int:
        """`max_request_mb` in bytes."""
        return int(self.max_request_mb * (1 << 20))


_SETTINGS = Settings(SidecarConfig, prefix="MODELBOX_SIDECAR_", path_variable=CONFIG_PATH_VARIABLE)


def load_sidecar_config(
    *, flags: Mapping[str, object], env: Mapping[str, str], config_path: Path | None = None
) -> SidecarConfig:
    """Reads the settings.

    Args:
        flags: By setting; what is None was not given.
        env: The environment.
        config_path: A TOML file; without it `CONFIG_PATH_VARIABLE` names one or there is none.

    Raises:
        ConfigError: With one line for every problem; ``fields["problems"]`` lists them.
    """
    problems: list[str] = []
    tables: dict[str, object] = {"model": {}}
    values = _SETTINGS.read(flags=flags, env=env, config_path=config_path, problems=problems, tables=tables)
    values["model"] = read_model_tables(tables["model"], problems)
    for key in ("socket", "cache_dir"):
        if values.get(key) == Path():
            values[key] = None
    config = SidecarConfig(**values)
    problems += tls_problems(config)
    problems += _exposure_problems(config, problems)
    problems += table_problems(config)
    problems += port_problems(config, ("http_port", "grpc_port", "metrics_port"))
    if problems:
        raise problems_error(problems)
    return config


def _exposure_problems(config: SidecarConfig, known: list[str]) -> list[str]:
    """What is missing for a sidecar that other machines can reach."""
    if config.loopback or config.insecure_plaintext or any("insecure_" in problem for problem in known):
        return []
    where = f"host = {shown(config.host)} can be reached from other machines, and"
    if not config.tls_cert:
        return [
            f"{where} there is no TLS: expected tls_cert, and tls_client_auth = required with tls_client_ca; or a"
            " loopback address such as 127.0.0.1; or insecure_plaintext = true beside it in a network that you trust"
        ]
    if config.tls_client_auth != "required" and not config.insecure_open:
        return [
            f"{where} nobody is asked who it is: expected tls_client_auth = required with tls_client_ca; or"
            " insecure_open = true, where everybody may use the models"
        ]
    return []


def setting_help() -> list[tuple[str, str]]:
    """Every setting with its help text, in order."""
    return _SETTINGS.help()


def switches() -> frozenset[str]:
    """The settings that are true or false."""
    return _SETTINGS.switches()


def sidecar_config_toml() -> str:
    """A file with every setting, explained and commented out."""
    return (
        _SETTINGS.toml(
            "Settings of the ModelBox sidecar: python -m modelbox.sidecar --config-path THIS_FILE",
            "Flags and MODELBOX_SIDECAR_... variables win over what is set here. Values shown are the defaults.",
        )
        + model_settings_toml()
    )


def settings_table() -> str:
    """The settings as Markdown."""
    return _SETTINGS.table()

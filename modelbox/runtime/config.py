"""The server's settings.

Owns `ServerConfig` and how it is read: flags over environment (``MODELBOX_…``) over TOML file over default. Every
problem is reported at once, each with the key, the value and what is allowed. Nothing else in the server looks at the
environment. A setting is one field below; its flag, its variable, its line in the file and its row in
``docs/server-settings.md`` are made of that.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import math
import textwrap
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from modelbox.errors import ConfigError
from modelbox.refs import shown

__all__ = (
    "CONFIG_PATH_VARIABLE",
    "ServerConfig",
    "load_server_config",
    "server_config_toml",
    "setting_help",
    "settings_table",
)

CONFIG_PATH_VARIABLE = "MODELBOX_SERVER_CONFIG"
"""Names the TOML file where no flag does."""

_LOG_LEVELS = ("debug", "info", "warning", "error")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How one setting is read; ``read`` raises ValueError with what was expected."""

    read: Callable[[Any], Any]
    allowed: str


def _number(low: float, high: float, unit: str, *, whole: bool) -> _Kind:
    allowed = f"{low} to {high} {unit}".rstrip()

    def read(value: Any) -> Any:
        if isinstance(value, str):
            value = int(value) if whole else float(value)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise ValueError
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError
        return value if whole else float(value)

    return _Kind(read=read, allowed=allowed)


def _read_bool(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    if not isinstance(value, bool):
        raise ValueError
    return value


def _read_host(value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > 253 or not value.isprintable() or " " in value:
        raise ValueError
    return value


def _read_address(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    host, colon, port = value.rpartition(":")
    if value and not (colon and host and port.isdecimal() and 0 < int(port) < 65536 and value.isprintable()):
        raise ValueError
    return value


def _read_path(value: Any) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError
    return Path(value).expanduser()


def _read_level(value: Any) -> str:
    if not isinstance(value, str) or value.lower() not in _LOG_LEVELS:
        raise ValueError
    return value.lower()


_PORT = _number(0, 65535, "", whole=True)
_BOOL = _Kind(read=_read_bool, allowed="true or false")
_HOST = _Kind(read=_read_host, allowed="a host name or IP address")
_ADDRESS = _Kind(read=_read_address, allowed="host:port, or empty")
_PATH = _Kind(read=_read_path, allowed="a directory")
_LEVEL = _Kind(read=_read_level, allowed=", ".join(_LOG_LEVELS))


def _setting(default: Any, kind: _Kind, help_text: str) -> Any:
    return field(default=default, metadata={"kind": kind, "help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Everything that can be set; made by `load_server_config`, which checks it."""

    host: str = _setting("127.0.0.1", _HOST, "Address to listen on. Others than loopback need insecure_plaintext.")
    grpc_port: int = _setting(8085, _PORT, "Port of gRPC; 0 takes a free one and prints it.")
    http_port: int = _setting(8080, _PORT, "Port of HTTP: REST, files, change feed, health; 0 takes a free one.")
    metrics_port: int = _setting(2112, _PORT, "Port of Prometheus /metrics; 0 takes a free one.")
    data_dir: Path = field(
        default=Path("modelbox-data"),
        metadata={
            "kind": _PATH,
            "help": "Directory of the database and the files, made if missing. MODELBOX_HOME changes the default.",
        },
    )
    insecure_plaintext: bool = _setting(
        False,
        _BOOL,
        "Listen beyond loopback although there is no authentication and no TLS yet: everybody who reaches the ports"
        " may read and change everything. Only inside a network that you trust.",
    )
    advertise_grpc: str = _setting("", _ADDRESS, "gRPC address that clients are told; empty: where it listens.")
    advertise_http: str = _setting("", _ADDRESS, "HTTP address that clients are told; empty: where it listens.")
    log_level: str = _setting("info", _LEVEL, "Least severity that is logged, on stderr.")
    drain_timeout_s: float = _setting(
        30.0, _number(0, 3600, "seconds", whole=False), "Seconds that calls get to finish after SIGTERM."
    )
    bookmark_interval_s: float = _setting(
        10.0, _number(0.05, 300, "seconds", whole=False), "Seconds between bookmarks in the change feed."
    )
    send_timeout_s: float = _setting(
        10.0,
        _number(0.05, 600, "seconds", whole=False),
        "Seconds that a reader of the change feed may leave unread what is sent; then it is cut off.",
    )
    stall_timeout_s: float = _setting(
        60.0,
        _number(0.1, 3600, "seconds", whole=False),
        "Seconds that an upload or download may stand still; then it is cut off and can be resumed.",
    )
    call_timeout_s: float = _setting(
        30.0,
        _number(0.1, 3600, "seconds", whole=False),
        "Seconds that a call may take that is neither a transfer nor a watch.",
    )
    hello_timeout_s: float = _setting(
        5.0, _number(0.1, 60, "seconds", whole=False), "Seconds that a new gRPC connection has to say hello."
    )
    keepalive_s: float = _setting(
        20.0,
        _number(1, 600, "seconds", whole=False),
        "Seconds between pings on gRPC connections.",
    )
    max_connections: int = _setting(
        2000, _number(1, 100_000, "connections", whole=True), "gRPC connections at a time; more are closed at once."
    )
    max_streams: int = _setting(
        200, _number(1, 10_000, "calls", whole=True), "Calls at a time on one gRPC connection, watches included."
    )
    max_message_bytes: int = _setting(
        8 << 20, _number(64 << 10, 256 << 20, "bytes", whole=True), "Largest gRPC message that is taken, in bytes."
    )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def load_server_config(
    *, flags: Mapping[str, object], env: Mapping[str, str], config_path: Path | None = None
) -> ServerConfig:
    """Reads the settings.

    Args:
        flags: By setting; what is None was not given.
        env: The environment.
        config_path: A TOML file; without it `CONFIG_PATH_VARIABLE` names one or there is none.

    Raises:
        ConfigError: With one line for every problem; ``fields["problems"]`` lists them.
    """
    problems: list[str] = []
    values: dict[str, object] = {}
    if home := env.get("MODELBOX_HOME"):
        values["data_dir"] = _read(_KINDS["data_dir"], home, "MODELBOX_HOME", problems)
    if config_path is None and env.get(CONFIG_PATH_VARIABLE):
        config_path = Path(env[CONFIG_PATH_VARIABLE])
    sources: list[tuple[Mapping[str, object], Callable[[str], str]]] = [
        ({} if config_path is None else _read_file(config_path, problems), lambda key: f"{key} in {config_path}"),
        ({key: env[_variable(key)] for key in _KINDS if _variable(key) in env}, _variable),
        ({key: value for key, value in flags.items() if value is not None}, _flag),
    ]
    for source, name in sources:
        for key, value in source.items():
            if key not in _KINDS:
                problems.append(f"{name(key)}: there is no such setting{_nearest(key)}")
            else:
                values[key] = _read(_KINDS[key], value, name(key), problems)
    config = ServerConfig(**{k: v for k, v in values.items() if v is not None})  # type: ignore[arg-type]  # just checked
    if not config.loopback and not config.insecure_plaintext and not any("insecure_plaintext" in p for p in problems):
        problems.append(
            f"host = {shown(config.host)} can be reached from other machines, and there is no authentication and no "
            "TLS yet: expected a loopback address such as 127.0.0.1, or insecure_plaintext = true beside it in a "
            "network that you trust"
        )
    ports = {key: port for key in ("grpc_port", "http_port", "metrics_port") if (port := getattr(config, key))}
    for port in sorted({port for port in ports.values() if list(ports.values()).count(port) > 1}):
        same = " and ".join(key for key in ports if ports[key] == port)
        problems.append(f"{same} are all {port}: expected different ports")
    if problems:
        raise ConfigError("\n".join(["the settings cannot work:", *(f"  - {p}" for p in problems)]), problems=problems)
    return config


def _read(kind: _Kind, value: object, name: str, problems: list[str]) -> object:
    try:
        return kind.read(value)
    except (ValueError, TypeError, OverflowError, RuntimeError):
        problems.append(f"{name} = {shown(value)}: expected {kind.allowed}")
        return None


def _read_file(path: Path, problems: list[str]) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        problems.append(f"the file {path} cannot be read: {exc.strerror or exc}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        problems.append(f"the file {path} is not valid TOML: {exc}")
    return {}


def _variable(key: str) -> str:
    return f"MODELBOX_{key.upper()}"


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _nearest(key: str) -> str:
    near = difflib.get_close_matches(key, _KINDS, n=1)
    return f" (did you mean {near[0]}?)" if near else f"; there are {', '.join(_KINDS)}"


_FIELDS = fields(ServerConfig)
_KINDS: dict[str, _Kind] = {f.name: f.metadata["kind"] for f in _FIELDS}


def setting_help() -> list[tuple[str, str]]:
    """Every setting with its help text, in order."""
    return [(f.name, f.metadata["help"]) for f in _FIELDS]


def server_config_toml() -> str:
    """A file with every setting, explained and commented out."""
    lines = [
        "# Settings of the ModelBox server: modelbox server start --config-path THIS_FILE",
        "# Flags and MODELBOX_... variables win over what is set here. Values shown are the defaults.",
    ]
    for f in _FIELDS:
        lines += ["", *(f"# {line}" for line in _wrap(f.metadata["help"])), f"# Allowed: {f.metadata['kind'].allowed}."]
        lines.append(f"# {f.name} = {_toml(f.default)}")
    return "\n".join(lines) + "\n"


def settings_table() -> str:
    """The settings as Markdown."""
    lines = ["| setting | flag | environment | default | allowed | meaning |", "|---|---|---|---|---|---|"]
    lines += [
        f"| `{f.name}` | `{_flag(f.name)}` | `{_variable(f.name)}` | `{_toml(f.default)}` "
        f"| {f.metadata['kind'].allowed} | {f.metadata['help']} |"
        for f in _FIELDS
    ]
    return "\n".join(lines)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    return json.dumps(str(value))


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 100)

"""The server's settings.

Owns `ServerConfig` and how it is read: flags over environment (``MODELBOX_…``) over TOML file over default. Every
problem is reported at once, each with the key, the value and what is allowed. Nothing else in the server looks at the
environment. A setting is one field below; its flag, its variable, its line in the file and its row in
``docs/server-settings.md`` are made of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modelbox._serving.proxies import NETWORKS
from modelbox._serving.settings import (
    ADDRESS,
    BOOL,
    HOST,
    LEVEL,
    PATH,
    PORT,
    Kind,
    Settings,
    choice,
    is_loopback,
    number,
    port_problems,
    problems_error,
    setting,
    text,
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
from modelbox.refs import shown
from modelbox.rules import parse_patterns
from modelbox.runtime.roles import ROLES

__all__ = (
    "CONFIG_PATH_VARIABLE",
    "ServerConfig",
    "load_server_config",
    "server_config_toml",
    "setting_help",
    "settings_table",
    "switches",
)

CONFIG_PATH_VARIABLE = "MODELBOX_SERVER_CONFIG"
"""Names the TOML file where no flag does."""

_DATABASE_URL = text(
    2000,
    "postgresql://user:password@host:5432/database, mysql://user:password@host:3306/database, or empty",
    secret=True,
)


def _read_endpoint(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 1024 or not value.isprintable():
        raise ValueError
    if not value:
        return ""
    url = urlsplit(value)
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc:
        raise ValueError
    if url.query or url.fragment or url.path not in ("", "/") or (url.port is not None and not url.port):
        raise ValueError
    return f"{url.scheme}://{url.netloc}"


_ACCESS = Kind(read=choice("", "on", "off").read, allowed="on, off, or empty")
_ENDPOINT = Kind(read=_read_endpoint, allowed="http://host:port or https://host, or empty", secret=True)


def _read_patterns(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return ",".join(parse_patterns(value))


_PATTERNS = Kind(
    read=_read_patterns, allowed="names of aliases or patterns such as prod*, with commas between, or empty"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Everything that can be set; made by `load_server_config`, which checks it."""

    host: str = setting(
        "127.0.0.1", HOST, "Address to listen on. Others than loopback need access = on and TLS (tls_cert)."
    )
    grpc_port: int = setting(8085, PORT, "Port of gRPC; 0 takes a free one and prints it.")
    http_port: int = setting(8080, PORT, "Port of HTTP: REST, files, change feed, health; 0 takes a free one.")
    metrics_port: int = setting(2112, PORT, "Port of Prometheus /metrics; 0 takes a free one.")
    data_dir: Path = field(
        default=Path("modelbox-data"),
        metadata={
            "kind": PATH,
            "help": "Directory of the database and the files, made if missing. MODELBOX_HOME changes the default.",
        },
    )
    database_url: str = setting(
        "",
        _DATABASE_URL,
        "PostgreSQL or MySQL that all replicas share; empty: SQLite in data_dir, for one server. It may hold a"
        " password: give it by the environment or by a file that others cannot read.",
    )
    database_connections: int = setting(
        10,
        number(1, 1000, "connections", whole=True),
        "Connections for reading from PostgreSQL or MySQL at most; nine more are used for other things.",
    )
    database_connect_timeout_s: float = setting(
        30.0,
        number(0, 3600, "seconds", whole=False),
        "Seconds that a start waits for a PostgreSQL or MySQL that does not answer yet.",
    )
    blobs_url: str = setting(
        "",
        text(1024, "s3://bucket, s3://bucket/prefix, file:///directory, or empty"),
        "Where the bytes of files are: an S3-compatible store or a directory, which all replicas share; empty:"
        " data_dir. Credentials for S3 come from the environment (AWS_ACCESS_KEY_ID ...), a profile, or the machine.",
    )
    s3_endpoint: str = setting(
        "", _ENDPOINT, "Address of an S3-compatible store; empty: Amazon's of the region. Only with s3:// in blobs_url."
    )
    s3_region: str = setting("", text(64, "a region's name, or empty"), "Region; empty: what the environment says.")
    s3_path_style: bool = setting(
        False,
        BOOL,
        "Always name the bucket in the path and not in the host; otherwise it depends on the address, which for most"
        " stores beside Amazon's comes to the same.",
    )
    s3_presign: bool = setting(
        False,
        BOOL,
        "Let clients send bytes to the S3 store and read them there, by addresses that hold for five minutes. Clients"
        " that cannot reach it go on through the server.",
    )
    s3_public_endpoint: str = setting(
        "", _ENDPOINT, "Address of the S3 store as clients reach it; empty: s3_endpoint. Only with s3_presign."
    )
    tls_cert: str = setting("", PEM_FILE, CERT_HELP)
    tls_key: str = setting("", PEM_FILE, KEY_HELP)
    tls_client_ca: str = setting("", PEM_FILE, CLIENT_CA_HELP)
    tls_client_auth: str = setting("off", CLIENT_AUTH, CLIENT_AUTH_HELP)
    insecure_plaintext: bool = setting(
        False,
        BOOL,
        "Listen beyond loopback without TLS: whoever is on the way reads tokens and models, and can change them. Only"
        " inside a network that you trust, or behind a proxy with TLS.",
    )
    access: str = setting(
        "",
        _ACCESS,
        "Whether callers need tokens or certificates, and may do what their roles say. Empty: off, which holds on"
        " loopback only.",
    )
    insecure_open: bool = setting(
        False,
        BOOL,
        "Listen beyond loopback without access control: everybody who reaches the ports may read and change"
        " everything. Only inside a network that you trust.",
    )
    admin_token_file: str = setting(
        "",
        text(4096, "a file, or empty"),
        "File with the token of the first admin: written by the first start with access = on, or taken if it is there."
        " Empty: admin-token in data_dir.",
    )
    advertise_grpc: str = setting("", ADDRESS, "gRPC address that clients are told; empty: where it listens.")
    advertise_http: str = setting("", ADDRESS, "HTTP address that clients are told; empty: where it listens.")
    role: str = setting(
        "all",
        choice(*ROLES),
        "What this server does: all; control, which leaves files to servers with them; or blobs, which sends and takes"
        " files and nothing else. Servers of all roles share a database and a blob store.",
    )
    replica_name: str = setting(
        "",
        text(128, "at most 128 printable characters"),
        "Name of this server among those that share its database; empty: the host and the port of gRPC.",
    )
    protected_aliases: str = setting(
        "prod*",
        _PATTERNS,
        "Aliases that only promoters move, in all namespaces: names or patterns, with commas between. It matters with"
        " access control; namespaces and models can protect more.",
    )
    approval_wait_s: float = setting(
        7 * 86400.0,
        number(1, 365 * 86400, "seconds", whole=False),
        "Seconds that the move of an alias waits for the second person who has to approve it.",
    )
    log_level: str = setting("info", LEVEL, "Least severity that is logged, on stderr.")
    drain_timeout_s: float = setting(
        30.0, number(0, 3600, "seconds", whole=False), "Seconds that calls get to finish after SIGTERM."
    )
    drain_delay_s: float = setting(
        0.0,
        number(0, 600, "seconds", whole=False),
        "Seconds between the end of readiness and the end of new work after SIGTERM, for load balancers to notice.",
    )
    bookmark_interval_s: float = setting(
        10.0, number(0.05, 300, "seconds", whole=False), "Seconds between bookmarks in the change feed."
    )
    send_timeout_s: float = setting(
        10.0,
        number(0.05, 600, "seconds", whole=False),
        "Seconds that a reader of the change feed may leave unread what is sent; then it is cut off.",
    )
    stall_timeout_s: float = setting(
        60.0,
        number(0.1, 3600, "seconds", whole=False),
        "Seconds that an upload or download may stand still; then it is cut off and can be resumed.",
    )
    call_timeout_s: float = setting(
        30.0,
        number(0.1, 3600, "seconds", whole=False),
        "Seconds that a call may take that is neither a transfer nor a watch.",
    )
    find_timeout_s: float = setting(
        10.0,
        number(0.1, 3600, "seconds", whole=False),
        "Seconds that a query of find may run; then it is ended. call_timeout_s holds for it too.",
    )
    audit_retention_days: int = setting(
        365,
        number(1, 36500, "days", whole=True),
        "Days that changes stay in the audit log. Those that readers of the change feed may still ask for stay longer.",
    )
    blob_grace_s: float = setting(
        86400.0,
        number(1, 365 * 86400, "seconds", whole=False),
        "Seconds that bytes stay which no version and no artifact has: an upload has to be published within this time,"
        " and what was deleted can be published again without an upload.",
    )
    retention_interval_s: float = setting(
        3600.0,
        number(1, 30 * 86400, "seconds", whole=False),
        "Seconds between two looks for what no policy of retention keeps and for bytes that nobody needs.",
    )
    hello_timeout_s: float = setting(
        5.0, number(0.1, 60, "seconds", whole=False), "Seconds that a new gRPC connection has to say hello."
    )
    keepalive_s: float = setting(
        20.0,
        number(1, 600, "seconds", whole=False),
        "Seconds between pings on gRPC connections.",
    )
    max_connections: int = setting(
        2000,
        number(1, 100_000, "connections", whole=True),
        "Connections at a time on each of the ports; more are closed at once.",
    )
    max_connections_per_address: int = setting(
        1000,
        number(1, 100_000, "connections", whole=True),
        "Those of one address, a /64 of IPv6. Behind a balancer all have its address: then as many as max_connections,"
        " which is what trusted_proxies have.",
    )
    trusted_proxies: tuple[str, ...] = setting(
        (),
        NETWORKS,
        "Addresses of the proxies and balancers before this server, which are believed when they say where a call comes"
        " from (X-Forwarded-For, also in the metadata of gRPC): for the audit log and the limit of bad credentials. Not"
        " those that pass on what callers write there and add nothing.",
    )
    max_calls: int = setting(
        4000,
        number(1, 1_000_000, "calls", whole=True),
        "Calls and requests in work at a time, apart from transfers and watches; more are told to come again.",
    )
    max_streams: int = setting(
        200, number(1, 10_000, "calls", whole=True), "Calls at a time on one gRPC connection, watches included."
    )
    max_watches: int = setting(
        100,
        number(1, 100_000, "streams", whole=True),
        "Streams of the change feed at a time of one token or certificate, on each server.",
    )
    max_message_bytes: int = setting(
        8 << 20, number(64 << 10, 256 << 20, "bytes", whole=True), "Largest gRPC message that is taken, in bytes."
    )

    @property
    def access_on(self) -> bool:
        """Whether there is access control."""
        return self.access == "on"

    @property
    def admin_token_path(self) -> Path:
        """Where the first admin's token is, or will be."""
        return Path(self.admin_token_file) if self.admin_token_file else self.data_dir / "admin-token"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


_SETTINGS = Settings(ServerConfig, prefix="MODELBOX_", path_variable=CONFIG_PATH_VARIABLE)


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
    values = {}
    if home := env.get("MODELBOX_HOME"):
        values["data_dir"] = _SETTINGS.check("data_dir", home, "MODELBOX_HOME", problems)
    values |= _SETTINGS.read(flags=flags, env=env, config_path=config_path, problems=problems)
    config = ServerConfig(**{k: v for k, v in values.items() if v is not None})
    problems += _open_problems(config, problems)
    problems += tls_problems(config)
    if not config.blobs_url.startswith("s3://"):
        problems += [
            f"{key} is set, and blobs_url is no s3:// address: set that too, or leave {key} out"
            for key in ("s3_endpoint", "s3_public_endpoint", "s3_presign")
            if getattr(config, key) and not any(p.startswith((key, "blobs_url")) for p in problems)
        ]
    problems += port_problems(config, ("grpc_port", "http_port", "metrics_port"))
    if problems:
        raise problems_error(problems)
    return config


def _open_problems(config: ServerConfig, others: Sequence[str]) -> list[str]:
    """What is lacking to listen where other machines can reach it; a setting that is wrong already is left out."""
    if config.loopback:
        return []
    reached = f"host = {shown(config.host)} can be reached from other machines, and"
    problems = []
    if not config.access_on and not config.insecure_open and not _named(("access", "insecure_open"), others):
        problems.append(
            f"{reached} there is no access control: expected access = on, a loopback address such as 127.0.0.1, or "
            "insecure_open = true beside it in a network that you trust"
        )
    if not config.tls_cert and not config.insecure_plaintext and not _named(("insecure_plaintext", "tls_"), others):
        problems.append(
            f"{reached} there is no TLS: expected tls_cert, a loopback address such as 127.0.0.1, or "
            "insecure_plaintext = true beside it in a network that you trust"
        )
    return problems


def _named(keys: Sequence[str], problems: Sequence[str]) -> bool:
    spelt = [form for key in keys for form in (key, f"--{key.replace('_', '-')}", f"MODELBOX_{key.upper()}")]
    return any(problem.startswith(tuple(spelt)) for problem in problems)


def setting_help() -> list[tuple[str, str]]:
    """Every setting with its help text, in order."""
    return _SETTINGS.help()


def switches() -> frozenset[str]:
    """The settings that are true or false."""
    return _SETTINGS.switches()


def server_config_toml() -> str:
    """A file with every setting, explained and commented out."""
    return _SETTINGS.toml(
        "Settings of the ModelBox server: modelbox server start --config-path THIS_FILE",
        "Flags and MODELBOX_... variables win over what is set here. Values shown are the defaults.",
    )


def settings_table() -> str:
    """The settings as Markdown."""
    return _SETTINGS.table()
